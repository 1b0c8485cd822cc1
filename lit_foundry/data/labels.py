"""Label names: their order, their checks, and the split that keeps their shares."""

import hashlib
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from lit_foundry.data.files.rows import DataError


class Labelled(Protocol):
    """Rows of one split with their labels: of texts, of images."""

    @property
    def labels(self) -> Sequence[Any] | None:
        """Label of each row, None where there are no labels."""

    @property
    def source(self) -> str:
        """File or folder that the rows came from, for messages."""

    def __len__(self) -> int: ...

    def contents(self) -> Iterable[bytes]:
        """Yield what tells rows apart, and is equal for copies."""

    def take(self, rows: Sequence[int]) -> Self:
        """Return some of the rows."""


def in_order(labels: Iterable[str]) -> list[str]:
    """Return the distinct labels, in numeric order if all are integers, else alphabetically."""
    names = sorted(set(labels))
    try:
        return sorted(names, key=int)
    except ValueError:
        return names


def warn_alike(labels: Iterable[str], source: str) -> None:
    """Warn of classes whose names differ by case, form of characters, or digits alone."""
    alike: dict[Any, list[str]] = {}
    for name in in_order(labels):
        folded: Any = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        with suppress(ValueError):
            folded = float(folded)  # 1 and 1.0
        alike.setdefault(folded, []).append(name)
    groups = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    if groups:
        message = f"{source}: {'; '.join(groups[:3])} are classes of their own. Spell them alike."
        warnings.warn(message, stacklevel=2)


def stratified(
    table: Labelled, fraction: float, seed: int, strata: Sequence[str] | None = None
) -> NDArray[np.bool_]:
    """Hold out the same share of each class: those rows whose seeded hash is smallest.

    The choice depends on the contents alone, so it is the same on every machine and from every
    file layout, and copies of a row fall on the same side. A class of one content stays.

    Args:
        table: What is held out from.
        fraction: The share.
        seed: Seed of the hashes.
        strata: What stands for the class of each row; its label if None.

    Returns:
        True for the rows held out, shape (N,).
    """
    hashes, labels = _hashes(table, seed), np.array(table.labels if strata is None else strata)
    chosen = np.zeros(len(table), bool)
    for name in np.unique(labels):
        rows = labels == name
        if len(np.unique(hashes[rows])) == 1:
            continue
        cut = np.sort(hashes[rows])[max(1, round(fraction * rows.sum())) - 1]
        chosen |= rows & (hashes <= cut)
    return np.isin(hashes, hashes[chosen])  # copies with another label too


def sample_rows(
    table: Labelled, count: int, seed: int, strata: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Choose ``count`` rows, of each class its share and one at least, in the order of the table.

    Those whose seeded hash is smallest in their class: smaller samples are parts of larger ones.
    Arguments are those of :func:`stratified`.

    Raises:
        ValueError: If ``count`` is less than the number of classes.
    """
    labels = np.array(table.labels if strata is None else strata)
    classes = len(set(labels.tolist()))
    if count < classes:
        raise ValueError(
            f"data.max_train_samples={count} leaves out some of the {classes} classes of "
            f"{table.source}; raise it."
        )
    hashes = _hashes(table, seed)
    place = np.empty(len(table))  # in its class, from 0 to 1
    for name in np.unique(labels):
        rows = np.flatnonzero(labels == name)
        place[rows[np.argsort(hashes[rows], kind="stable")]] = np.arange(len(rows)) / len(rows)
    return np.sort(np.argsort(place, kind="stable")[:count])


def _hashes(table: Labelled, seed: int) -> NDArray[np.uint64]:
    salt = str(seed).encode()
    digests = [
        hashlib.blake2b(content, key=salt, digest_size=8).digest() for content in table.contents()
    ]
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)


def check_labels(
    table: Labelled, split: str, known: Sequence[str] | None, val_key: str | None = None
) -> None:
    """Raise DataError unless a split is labelled, with the known classes, and two at least.

    Args:
        table: The split.
        split: Its name.
        known: The classes, None if they are not known yet.
        val_key: Key that names the file that validates, for messages; None if there is none.
    """
    found = set(labels_of(table, split))
    check_known(table, split, found, known)
    if len(found) < 2 and split != "test":
        remedy = "Shuffle the file before splitting it" if val_key else "Add another"
        if val_key and split == "val":
            remedy += f", or set {val_key} to null so that a stratified part of training validates"
        raise DataError(
            f"{table.source}: the {split} split has only the class {next(iter(found), None)!r}; "
            f"it needs at least two. {remedy}."
        )


def labels_of(table: Labelled, split: str) -> Sequence[Any]:
    """Return the labels of a split; raise DataError if it has none."""
    if table.labels is None:
        raise DataError(
            f"{table.source}: the {split} split has no labels; name their column in data.label."
        )
    return table.labels


def check_known(table: Labelled, split: str, found: set[str], known: Sequence[str] | None) -> None:
    """Raise DataError if a split has a class that is not known; warn of those spelled alike.

    Args:
        table: The split, each row of which is labelled with a class or a tuple of them.
        split: Its name.
        found: Its classes.
        known: The classes, None if they are not known yet.
    """
    if unknown := sorted(found - set(known)) if known is not None else []:
        name = unknown[0]
        each = [{label} if isinstance(label, str) else label for label in table.labels or ()]
        row = next(i for i, names in enumerate(each, 1) if name in names)
        raise DataError(
            f"{table.source}: label {name!r} of row {row} in the {split} split is none of "
            f"the known {list(known or ())}; mend the label or the split."
        )
    if split == "train":
        warn_alike(found, table.source)


def check_carved(
    table: Labelled, held_out: NDArray[np.bool_], fraction: float, val_key: str | None
) -> None:
    """Raise DataError unless training keeps every class, and validation has two at least.

    Args:
        table: What validation is taken from.
        held_out: True for the rows that validate, shape (N,).
        fraction: Their share, as set.
        val_key: Key that names the file that validates, for messages; None if there is none.
    """
    labels = np.array(table.labels)
    classes, trained = set(labels.tolist()), set(labels[~held_out].tolist())
    validated = set(labels[held_out].tolist())
    other = f", or set {val_key} to a file that validates" if val_key else ""
    if missing := in_order(list(classes - trained)):
        raise DataError(
            f"{table.source}: data.val_fraction={fraction} holds out all of the class "
            f"{missing[0]!r}{and_more(missing)}, and leaves nothing to train on: lower it{other}."
        )
    if len(validated) < 2:
        alone = in_order(list(classes - validated))
        raise DataError(
            f"{table.source}: the class {alone[0]!r}{and_more(alone)} has one sample, or copies of "
            f"one, so that none can be held out for validation, which needs two classes at least: "
            f"add samples{other}."
        )


def and_more(names: Sequence[str]) -> str:
    """Return how many more than one there are, if there are."""
    return f" (and of {len(names) - 1} more)" if len(names) > 1 else ""
