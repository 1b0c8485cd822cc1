"""Tokenized texts, framed, padded and taken a batch at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lit_foundry.data.batch import TextBatch
from lit_foundry.data.samplers import EpochRows
from lit_foundry.data.target import IGNORED, Encoded, label_tensor
from lit_foundry.data.text.token_cache import Tokens
from lit_foundry.data.text.tokenizer import Template, Truncation, truncate


class TextDataset(torch.utils.data.Dataset[TextBatch]):
    """One split of tokenized texts, taken a batch at a time.

    Args:
        columns: Tokens of the texts, and of the second texts of pairs.
        labels: Label of each row, or the tags of its words; None if unknown.
        template: How texts are framed.
        max_length: Most tokens of a row, special tokens included.
        truncation: What a longer text keeps.
    """

    def __init__(
        self,
        columns: Sequence[Tokens],
        labels: Encoded | None,
        template: Template,
        max_length: int,
        truncation: Truncation,
    ) -> None:
        self.columns, self.labels, self.template = columns, labels, template
        self.truncation = truncation
        self.room = max_length - template.num_special
        total = sum((column.lengths for column in columns), np.int64(0))
        self.lengths = np.maximum(np.minimum(total, self.room) + template.num_special, 1)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: Sequence[int]) -> TextBatch:
        framed = [self.template.join(self._shorten([c[row] for c in self.columns])) for row in rows]
        shape = len(rows), max(len(ids) for ids, _ in framed)
        # Filled as arrays: assigning to tensors costs several times as much.
        ids = np.full(shape, self.template.pad_id, np.int64)
        mask, types = np.zeros(shape, np.bool_), np.zeros(shape, np.int64)
        for i, (row_ids, row_types) in enumerate(framed):
            ids[i, : len(row_ids)] = row_ids
            mask[i, : len(row_ids)] = True
            types[i, : len(row_ids)] = row_types
        batch: TextBatch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "index": torch.tensor(rows),
        }
        if len(self.columns) > 1:
            batch["token_type_ids"] = torch.from_numpy(types)
        if self.columns[0].words is not None:
            batch["word"] = torch.from_numpy(word := self._words(rows, shape))
            if self.labels is not None:
                batch["label"] = torch.from_numpy(self._tags(rows, word))
        elif isinstance(self.labels, np.ndarray):
            batch["label"] = label_tensor(self.labels, rows)
        if isinstance(rows, EpochRows) and rows.draws is not None:
            batch["draw"] = torch.tensor(rows.draws)
        return batch

    def _words(self, rows: Sequence[int], shape: tuple[int, int]) -> NDArray[np.int64]:
        """Return which word begins with each token, -1 if none, shape (B, T)."""
        word, begin = np.full(shape, -1, np.int64), len(self.template.frame[0])
        for place, row in zip(word, rows, strict=True):
            words = truncate(self.columns[0].words_of(row), self.room, self.truncation)
            place[begin : begin + len(words)] = words
        return word

    def _tags(self, rows: Sequence[int], word: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the tag of each word that begins, shape (B, T)."""
        assert self.labels is not None
        tags = np.full(word.shape, IGNORED)
        for place, row, words in zip(tags, rows, word, strict=True):
            place[words >= 0] = self.labels[row][words[words >= 0]]
        return tags

    def _shorten(self, texts: list[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
        """Truncate to ``max_length``; of a pair, the longer text gives way first."""
        if len(texts) == 1:
            return [truncate(texts[0], self.room, self.truncation)]
        first, second = (len(text) for text in texts)
        half = (self.room + (first > second)) // 2  # the longer one keeps an odd token
        keep = max(self.room - second, half) if first > half else first
        rest = self.room - min(first, keep)
        return [truncate(t, r, self.truncation) for t, r in zip(texts, (keep, rest), strict=True)]
