"""Encoded images and labels as files hold them, before any is decoded."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_foundry.data.files.digests import joint_digests
from lit_foundry.data.files.table import cell_bytes

# A file, the bytes of one, or pixels (H, W), (H, W, 1) or (H, W, 3) uint8.
Encoded = Path | bytes | NDArray[np.uint8]


class Chosen(Sequence[Any]):
    """Some items of a sequence, which are taken from it when they are asked for."""

    def __init__(self, items: Sequence[Any], rows: Sequence[int]) -> None:
        self.items, self.rows = items, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: Any) -> Any:
        return self.items[self.rows[row]]


class ArrowImages(Sequence[bytes]):
    """The bytes of a column of arrow, which may lie in a memory-mapped file."""

    def __init__(self, column: Any) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, row: Any) -> Any:
        return self.column[row].as_py()


class Joined(Sequence[Any]):
    """The items of a sequence, then those of another."""

    def __init__(self, first: Any, then: Any) -> None:
        self.first, self.then = first, then

    def __len__(self) -> int:
        return len(self.first) + len(self.then)

    def __getitem__(self, row: Any) -> Any:
        row = range(len(self))[row]
        split = len(self.first)
        return self.first[row] if row < split else self.then[row - split]


@dataclass(frozen=True)
class ImageTable:
    """Rows of one split.

    Attributes:
        images: One image a row; an array (N, H, W) or (N, H, W, C) where pixels are at hand.
        labels: Label of each row, such as the name of a class; None where there are no labels.
        ids: What identifies each row in predictions, such as a path; row numbers if None.
        source: File or folder that the rows came from, for messages.
        rows: Number of each row in ``source``, where that has rows and some were left out.
        cache: Folder for the digests of files.
        known: Digests that were computed before.
    """

    images: Sequence[Encoded] | NDArray[np.uint8]
    labels: Sequence[Any] | None = None
    ids: Sequence[str] | None = None
    source: str = ""
    rows: Sequence[int] | None = None
    cache: Path | None = None
    known: Sequence[bytes] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Sequence[int]) -> "ImageTable":
        """Return some of the rows."""

        def pick(column: Sequence[Any] | None) -> list[Any] | None:
            return None if column is None else [column[i] for i in rows]

        images = self.images
        return ImageTable(
            images[list(rows)] if isinstance(images, np.ndarray) else Chosen(images, rows),
            pick(self.labels),
            pick(self.ids),
            self.source,
            list(rows) if self.rows is None else pick(self.rows),
            self.cache,
            pick(self.contents()),
        )

    def joined(self, unlabelled: "ImageTable") -> "ImageTable":
        """Return these rows and others after them, which have no labels."""
        ids = [[table.id(row) for row in range(len(table))] for table in (self, unlabelled)]
        return ImageTable(
            Joined(self.images, unlabelled.images),
            [*(self.labels or ()), *[None] * len(unlabelled)],
            [*ids[0], *(f"transfer/{name}" for name in ids[1])],
            self.source,
            None,
            self.cache,
            [*self.contents(), *unlabelled.contents()],
        )

    def name(self, row: int) -> str:
        """Return where a row lies, for messages: its file, or file and row, counted from 1."""
        image = self.images[row]
        if isinstance(image, Path):
            return str(image)
        return f"{self.source}, row {(row if self.rows is None else self.rows[row]) + 1}"

    def id(self, row: int) -> str:
        """Return what identifies a row in predictions."""
        return str(row) if self.ids is None else self.ids[row]

    def contents(self) -> Sequence[bytes]:
        """Return a digest of the bytes of each image, as the file holds them."""
        return self._digests

    @cached_property
    def _digests(self) -> Sequence[bytes]:
        if self.known is not None:
            return self.known
        if len(self) and isinstance(self.images[0], Path):
            paths: Any = self.images
            return [bytes.fromhex(digest) for digest in joint_digests(list(paths), self.cache)]
        return [hashlib.blake2b(_bytes(image), digest_size=16).digest() for image in self.images]

    @cached_property
    def content(self) -> str:
        """Hash of the images alone, in their order."""
        return hashlib.sha256(b"".join(self.contents())).hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """Hash of images and labels: equal tables, wherever they lie, have equal fingerprints."""
        digest = hashlib.sha256(self.content.encode())
        for label in self.labels or ():
            name = cell_bytes(label)
            digest.update(len(name).to_bytes(8, "little") + name)
        return digest.hexdigest()


def distinct(ids: Iterable[str | None]) -> list[str] | None:
    """Return ids if all are there and no two are equal, else None."""
    names = [name for name in ids if name]
    found = list(ids) if not isinstance(ids, list) else ids
    return names if len(names) == len(found) == len(Counter(names)) else None


def _bytes(image: Any) -> bytes:
    return image if isinstance(image, bytes) else str(image.shape).encode() + image.tobytes()
