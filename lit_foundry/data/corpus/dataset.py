"""Rows of packed documents, taken a batch at a time.

Shapes: B batch, T tokens of a row.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from lit_foundry.data.batch import TextBatch
from lit_foundry.data.corpus.packing import Pieces, Stream


class DocumentTokens(Protocol):
    """Token ids of documents, without special tokens."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""

    def ids(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[np.integer]:
        """Return the ids of a document, or of a part of it."""


class PackedDataset(torch.utils.data.Dataset[TextBatch]):
    """One split of a corpus in rows of ``size`` tokens.

    Args:
        tokens: Of all documents.
        documents: Those of the split, as numbers in ``tokens``, shape (N,).
        offsets: Tokens of each document before the part that is of the split, shape (N,).
        rows: What each row holds, in numbers of ``documents``: isolated pieces, or a stream.
        frame: Ids before and after each document.
        pad_id: Fills rows.
        size: Tokens of a row.
    """

    def __init__(
        self,
        tokens: DocumentTokens,
        documents: NDArray[np.int64],
        offsets: NDArray[np.int64],
        rows: Pieces | Stream,
        frame: tuple[Sequence[int], Sequence[int]],
        pad_id: int,
        size: int,
    ) -> None:
        self.tokens, self.documents, self.offsets, self.rows = tokens, documents, offsets, rows
        self.ends = tokens.lengths[documents] - offsets  # of documents, from the split's part on
        self.frame, self.pad_id, self.size = frame, pad_id, size
        self.lengths = np.full(len(rows), size)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Sequence[int]) -> TextBatch:
        """Return a batch of rows; what exceeds the number of rows is their epoch, times that."""
        shape = len(rows), self.size
        ids = np.full(shape, self.pad_id, np.int64)
        document, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        cut, ends = np.zeros(shape, bool), [0]
        for i, number in enumerate(rows):
            at = 0
            pieces = self._pieces(*divmod(number, len(self.rows)))
            for place, (piece, false_end) in enumerate(pieces, 1):
                end = at + len(piece)
                cut[i, end - false_end : end] = True
                ids[i, at:end] = piece
                document[i, at:end] = place
                positions[i, at:end] = np.arange(len(piece))
                at = end
                ends.append(i * self.size + at)
            ends += [(i + 1) * self.size] * (at < self.size)  # of padding
        batch: TextBatch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(document > 0),
            "index": torch.tensor(rows) % len(self.rows),
            "cut": torch.from_numpy(cut),
        }
        if isinstance(self.rows, Pieces):
            batch["document"] = torch.from_numpy(document)
            batch["offsets"] = torch.tensor(ends, dtype=torch.int32)
            batch["position_ids"] = torch.from_numpy(positions)
        return batch

    def _pieces(self, epoch: int, row: int) -> list[tuple[NDArray[np.integer], int]]:
        """Return the framed ids of what a row holds; and how many of the last end no document."""
        before, after = self.frame
        parts = []
        if isinstance(self.rows, Pieces):
            held = slice(self.rows.edges[row], self.rows.edges[row + 1])
            columns = self.rows.document[held], self.rows.start[held], self.rows.length[held]
            for document, start, length in zip(*(c.tolist() for c in columns), strict=True):
                stop = start + length
                ids = np.concatenate([before, self._ids(document, start, stop), after])
                parts.append((ids, len(after) * bool(stop < self.ends[document])))
            return parts
        for document, first, last in self.rows.parts(epoch, row):
            length = int(self.rows.lengths[document]) - len(before) - len(after)
            start, stop = (min(max(i - len(before), 0), length) for i in (first, last))
            tail = after[slice(*(max(i - len(before) - length, 0) for i in (first, last)))]
            ids = np.concatenate([before[first:last], self._ids(document, start, stop), tail])
            parts.append((ids, len(tail) * bool(length < self.ends[document])))
        return parts

    def _ids(self, document: int, start: int, stop: int) -> NDArray[np.integer]:
        offset = int(self.offsets[document])
        return self.tokens.ids(int(self.documents[document]), offset + start, offset + stop)
