"""Texts and labels as read from files, before any tokenizer sees them."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

WORD = re.compile(r"[^ \t\r\n]+")  # of a text whose words bear tags


class LabelReader(Protocol):
    """How labels are read that are no names of single classes."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns that hold them."""

    def read(self, where: str, cells: Sequence[Any], text: str) -> Any:
        """Return the label of a row as plain data, None if a cell of it is missing.

        Args:
            where: File and line or row, for messages.
            cells: Its cells in these columns.
            text: Its text, if it has one.
        """


@dataclass(frozen=True)
class Table:
    """Rows of one split.

    Attributes:
        texts: One text a row.
        pairs: Second text of each row, for tasks on two texts.
        labels: Label of each row, such as the name of a class; None where there are no labels.
        ids: What identifies each row in predictions, such as a file name; row numbers if None.
        source: File or folder that the rows came from, for messages.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None = None
    labels: Sequence[Any] | None = None
    ids: Sequence[str] | None = None
    source: str = ""

    def __len__(self) -> int:
        return len(self.texts)

    def contents(self) -> Iterable[bytes]:
        """Yield the bytes of each text."""
        return (text.encode(errors="surrogatepass") for text in self.texts)

    def take(self, rows: Sequence[int]) -> "Table":
        """Return some of the rows."""

        def pick(column: Sequence[Any] | None) -> list[Any] | None:
            return None if column is None else [column[i] for i in rows]

        texts = [self.texts[i] for i in rows]
        return Table(texts, pick(self.pairs), pick(self.labels), pick(self.ids), self.source)

    def joined(self, unlabelled: "Table") -> "Table":
        """Return these rows and others after them, which have no labels.

        Raises:
            ValueError: If one of them has pairs of texts alone.
        """
        if (self.pairs is None) != (unlabelled.pairs is None):
            raise ValueError(
                f"{unlabelled.source} has {'no ' if unlabelled.pairs is None else ''}pairs of "
                f"texts, other than {self.source}: both have to be alike."
            )
        ids = [table.ids or [*map(str, range(len(table)))] for table in (self, unlabelled)]
        return Table(
            [*self.texts, *unlabelled.texts],
            None if self.pairs is None else [*self.pairs, *(unlabelled.pairs or ())],
            [*(self.labels or ()), *[None] * len(unlabelled)],
            [*ids[0], *(f"transfer/{name}" for name in ids[1])],
            self.source,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: equal tables, wherever they lie, have equal fingerprints."""
        digest = hashlib.sha256()
        for column in (self.texts, self.pairs, self.labels):
            digest.update(b"\x00none" if column is None else str(len(column)).encode())
            for cell in column or ():
                data = cell_bytes(cell)
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def cell_bytes(cell: Any) -> bytes:
    """Return the bytes that stand for a text or a label in a fingerprint."""
    text = cell if isinstance(cell, str) else json.dumps(cell)
    return text.encode(errors="surrogatepass")
