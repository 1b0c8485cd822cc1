"""What samples can be labelled with: one class, several, numbers, tags of words, or nothing.

Shapes: N rows, B rows of a batch, T tokens, C classes, K values.
"""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from lit_foundry.data.files.cells import flag_in, number_in, strings_in
from lit_foundry.data.files.rows import DataError
from lit_foundry.data.files.table import WORD, LabelReader
from lit_foundry.data.labels import (
    Labelled,
    check_carved,
    check_known,
    check_labels,
    in_order,
    labels_of,
)
from lit_foundry.data.target import IGNORED, Encoded, Target

Choice = Literal["class", "classes", "value", "tags", "none"]  # what a config can say
ImageChoice = Literal["class", "classes", "value", "none"]
MARKS = ",;|"  # what files separate classes by, and names of classes seldom have


class Unlabelled(Target):
    """No labels, or none that are read."""

    kind, fact, label = None, None, None
    fixed_names: ClassVar[list[str]] = []

    def check(self, *args: Any) -> None:
        """Accept any split."""

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> None:
        """Return nothing."""


class Class(Target):
    """One class; label of a batch (B,) int64, -100 of a sample without."""

    kind = "class"

    @property
    def label(self) -> str:
        """The column, whose cells are names."""
        return self.columns[0]

    def names(self, labels: Sequence[Any]) -> list[str]:
        """Return the classes."""
        return in_order(labels)

    def check(
        self, table: Labelled, split: str, known: Sequence[str] | None, val_key: str | None
    ) -> None:
        """Raise DataError unless all are known, and two at least where one learns."""
        check_labels(table, split, known, val_key)

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> Encoded:
        """Return the number of each class, shape (N,)."""
        known = {None: IGNORED} | {name: i for i, name in enumerate(names)}
        return np.array([known[name] for name in labels])

    def strata(self, table: Labelled) -> Sequence[str]:
        """Return the classes."""
        return table.labels or ()

    def check_held_out(
        self, table: Labelled, held_out: NDArray[np.bool_], fraction: float, val_key: str | None
    ) -> None:
        """Raise DataError unless training keeps every class, and validation has two."""
        check_carved(table, held_out, fraction, val_key)


class _Read(Target):
    """Labels that are no names of single classes: a target that reads its cells itself."""

    @property
    def label(self) -> LabelReader:
        """This target."""
        return self

    @abstractmethod
    def read(self, where: str, cells: Sequence[Any], text: str) -> Any:
        """Return the label of a row, as :class:`LabelReader` says."""


class Value(_Read):
    """One number, or several; label of a batch (B,) or (B, K) float32."""

    kind, fact = "value", "num_values"

    @property
    def fixed_names(self) -> list[str]:
        """The columns."""
        return list(self.columns)

    def read(self, where: str, cells: Sequence[Any], text: str) -> Any:
        """Return a number, or a tuple of those of several columns."""
        found = tuple(number_in(where, *pair) for pair in zip(self.columns, cells, strict=True))
        return None if None in found else found if len(found) > 1 else found[0]

    def check(
        self, table: Labelled, split: str, known: Sequence[str] | None, val_key: str | None
    ) -> None:
        """Raise DataError unless there are as many values as are known."""
        labels_of(table, split)
        if known is not None and len(known) != len(self.columns):
            raise DataError(
                f"{table.source}: data.label names {len(self.columns)} columns of values, and "
                f"{len(known)} are known: {list(known)}. Name as many."
            )

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> Encoded:
        """Return the numbers, shape (N,) or (N, K)."""
        return np.array(labels, np.float32)


class _Several(_Read):
    """Rows of several names each."""

    rare = True
    least: ClassVar[int]  # how many can be learned

    def names(self, labels: Sequence[Any]) -> list[str]:
        """Return the names that occur."""
        return self.fixed_names or in_order(name for row in labels for name in row)

    def check(
        self, table: Labelled, split: str, known: Sequence[str] | None, val_key: str | None
    ) -> None:
        """Raise DataError unless all names are known, and enough of them occur in training."""
        found = {name for row in labels_of(table, split) for name in row}
        check_known(table, split, found, known)
        if split == "train" and len(found) < self.least:
            raise DataError(
                f"{table.source}: the train split has only {in_order(found)} in "
                f"{' and '.join(map(repr, self.columns))}; it needs at least {self.least}. Check "
                "data.label, or add samples."
            )


@dataclass(frozen=True)
class Classes(_Several):
    """Any number of classes at once, or none; label of a batch (B, C) float32, 0 or 1.

    Attributes:
        columns: One column of lists of names, or of names with a delimiter between them; or a
            column of 0 and 1 for each class.
        flags: Whether these are columns of 0 and 1.
        delimiter: What stands between names.
    """

    kind, least = "classes", 1
    flags: bool = False
    delimiter: str = "|"

    @property
    def fixed_names(self) -> list[str] | None:
        """The columns, if each is that of a class."""
        return list(self.columns) if self.flags else None

    def read(self, where: str, cells: Sequence[Any], text: str) -> tuple[str, ...] | None:
        """Return the classes of a row, each once, in alphabetic order."""
        pairs = list(zip(self.columns, cells, strict=True))
        if self.flags:
            return tuple(sorted(name for name, cell in pairs if flag_in(where, name, cell)))
        [(column, cell)] = pairs
        if cell is None:
            return None
        found = cell.split(self.delimiter) if isinstance(cell, str) else cell
        return tuple(sorted({*strings_in(where, column, found)} - {""}))

    def check(
        self, table: Labelled, split: str, known: Sequence[str] | None, val_key: str | None
    ) -> None:
        """Check names as of any kind, and warn of one that likely is several."""
        super().check(table, split, known, val_key)
        rows = table.labels or ()
        joined = {name for row in rows for name in row if any(mark in name for mark in MARKS)}
        if split == "train" and joined and not self.flags and max(map(len, rows)) == 1:
            warnings.warn(
                f"{table.source}: no row has two classes, and some are named as "
                f"{min(joined)!r}. Set data.label_delimiter to what stands between classes.",
                stacklevel=2,
            )

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> Encoded:
        """Return True where a class applies, shape (N, C)."""
        known = {name: i for i, name in enumerate(names)}
        applies = np.zeros((len(labels), len(names)), np.bool_)
        for row, present in zip(applies, labels, strict=True):
            row[[known[name] for name in present]] = True
        return applies


class Tags(_Several):
    """A tag for each word of a text; label of a batch (B, T) int64.

    That of a token with which a word begins is the word's tag, and of all others -100, as in the
    examples of ``transformers``. A word of which no token is left has none.
    """

    kind, least = "tags", 2

    def read(self, where: str, cells: Sequence[Any], text: str) -> tuple[str, ...] | None:
        """Return the tags of the words of a text."""
        [column], [cell] = self.columns, cells
        if cell is None:
            return None
        tags = strings_in(where, column, cell.split() if isinstance(cell, str) else cell)
        words = len(WORD.findall(text))
        if words != len(tags):
            rule = f"{words} words, and {len(tags)} tags in {column!r}"
            raise DataError(f"{where}: {rule}. Give each word one, or drop the row.")
        if "" in tags:
            rule = f"tag {tags.index('') + 1} of {column!r} is empty"
            raise DataError(f"{where}: {rule}. Fill it in, or drop the row.")
        return tuple(tags)

    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> Encoded:
        """Return the numbers of the tags of each row."""
        known = {name: i for i, name in enumerate(names)}
        return [np.array([known[name] for name in tags], np.int64) for tags in labels]


def target_of(
    choice: Choice,
    label: str | Sequence[str],
    label_names: Sequence[str] | None = None,
    delimiter: str = "|",
) -> Target:
    """Build the target that a config describes.

    Args:
        choice: Its kind.
        label: Column of the labels, or several.
        label_names: Names of its outputs, if they are set.
        delimiter: What stands between the classes of a cell.

    Raises:
        ValueError: If they do not go together.
    """
    columns = (label,) if isinstance(label, str) else tuple(label)
    if choice in ("value", "none") and label_names is not None:
        raise ValueError(
            f"data.label_names={list(label_names)} names classes, which data.target={choice} has "
            "none of: leave it out."
        )
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(f"data.label={[*columns]} must name each column once, and one at least.")
    if not delimiter:
        raise ValueError("data.label_delimiter must be at least one character; leave it out.")
    if choice in ("class", "tags") and len(columns) > 1:
        raise ValueError(
            f"data.label={[*columns]} must be one column where data.target={choice}; several are "
            "for classes (a column of 0 and 1 for each) and value."
        )
    match choice:
        case "class":
            return Class(columns)
        case "classes":
            return Classes(columns, not isinstance(label, str), delimiter)
        case "value":
            return Value(columns)
        case "tags":
            return Tags(columns)
        case "none":
            return Unlabelled()
