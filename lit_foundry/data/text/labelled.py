"""Labelled texts: tables in, padded token batches out."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_foundry.data.base import Split
from lit_foundry.data.files.table import Table
from lit_foundry.data.labelled import LabelledData
from lit_foundry.data.text.dataset import TextDataset
from lit_foundry.data.text.token_cache import Tokens, tokenize
from lit_foundry.data.text.tokenized import TokenizedText
from lit_foundry.data.text.tokenizer import (
    Truncation,
    tokenizer_files,
    tokenizer_from_files,
)
from lit_foundry.data.text.tokenizer_training import TrainTokenizer
from lit_foundry.data.text.words import word_starts

EXCERPT = 400  # characters that predictions keep of a text


class TextData(LabelledData[Table], TokenizedText):
    """Texts, or pairs of texts, with a target. A subclass implements :meth:`read`.

    Args:
        tokenizer: Hub name, folder or ``package:NAME/FOLDER`` of a ``transformers`` tokenizer,
            or how to train one on the training split.
        max_length: Most tokens of a text, special tokens included.
        truncation: What a longer text keeps: its head, its tail, or a quarter from the head and
            the rest from the tail (Sun et al. 2019).
        val_fraction: Share of the training split that validates, the same in each class, where
            the dataset has no validation split.
        max_train_samples: Samples that are trained on, each class by its share, of what validation
            leaves of the training split; None takes all.
        split_seed: Seed of both draws; they depend on the texts and on nothing else.
        predict: File of texts for ``predict`` (.txt with one a line, .csv, .tsv, .jsonl,
            .parquet), or ``-`` for standard input.
        batch_size: Samples of one optimizer step, over all devices; 32 if nothing is set.
        batch_tokens: Tokens of one optimizer step instead, padding included.
        micro_batch: Most samples (or tokens) that one device takes at once.
        num_workers: Loader processes per device.
        balanced: Draw every class equally often in training, with replacement.
        transfer: File of texts without labels that are trained on too, by tasks that learn from a
            teacher; in any form that ``predict`` reads.
        cache: Folder for token files; by default ``$LIT_FOUNDRY_CACHE`` or
            ``~/.cache/lit_foundry``.
    """

    def __init__(
        self,
        tokenizer: str | TrainTokenizer,
        max_length: int = 512,
        truncation: Truncation = "head",
        val_fraction: float = 0.1,
        max_train_samples: int | None = None,
        split_seed: int = 0,
        predict: str | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        micro_batch: int | None = None,
        num_workers: int = 0,
        balanced: bool = False,
        cache: Path | None = None,
        transfer: str | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length,
            truncation,
            predict,
            cache,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            micro_batch=micro_batch,
            num_workers=num_workers,
            balanced=balanced,
        )
        self.set_splits(val_fraction, max_train_samples, split_seed, transfer)

    @abstractmethod
    def read(self, split: Literal["train", "val", "test"]) -> Table | None:
        """Read a split as the files hold it; None if the dataset has no validation split."""

    def as_read(self, split: Split) -> Table | None:
        """Read a split as the files hold it, or the texts to predict on."""
        return self._predict_table() if split == "predict" else self.read(split)

    def training_texts(self) -> tuple[Iterable[str], str]:
        """Return all texts of the training split."""
        train = self.table("train")
        return [*train.texts, *(train.pairs or ())], train.fingerprint

    @property
    def facts(self) -> Mapping[str, int]:
        """Classes or values, vocabulary, padding and longest row."""
        return {**self.target_facts(), **super().facts}

    def state(self) -> dict[str, Any]:
        """Return label names and the tokenizer's files."""
        return {"labels": self.labels, "tokenizer": tokenizer_files(self.tokenizer)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Use the label names and the tokenizer of a checkpoint."""
        self._labels = list(state["labels"])
        self.tokenizer = tokenizer_from_files(state["tokenizer"])

    def cuts(self) -> dict[str, Any]:
        """Return what else decides which rows a micro-batch holds."""
        names = "max_length", "val_fraction", "max_train_samples", "split_seed", "transfer"
        return {f"data.{name}": getattr(self, name) for name in names}

    def describe(self, split: Split, rows: Sequence[int]) -> Mapping[str, Sequence[Any]]:
        """Return id, beginning and number of tokens, before truncation, of some texts."""
        table, columns = self.table(split).take(rows), self.load(split).columns
        second = [f" | {text}" for text in table.pairs or ()] or [""] * len(rows)
        whole = [a[:EXCERPT] + b[:EXCERPT] for a, b in zip(table.texts, second, strict=True)]
        return {
            "id": table.ids or [str(row) for row in rows],
            "text": [" ".join(text.split()) for text in whole],
            "tokens": np.sum([c.lengths[list(rows)] for c in columns], axis=0).tolist(),
        }

    def load(self, split: Split) -> TextDataset:
        """Open a split, tokenized."""
        table, labels = self.table(split), self.encoded(split)
        starts = word_starts if self.target_kind == "tags" else None
        fast = self.tokenizer.backend_tokenizer
        fast.no_truncation()  # as each call sets it, else the first key would differ
        fast.no_padding()
        backend = fast.to_str()
        columns: list[Tokens] = []
        for texts in (table.texts, table.pairs):
            if texts is not None:
                part = "pair" if columns else "word" if starts else "text"
                key = hashlib.sha256(f"{backend}{table.fingerprint}{part}".encode()).hexdigest()
                folder = self.cache / "tokens" / key[:24]
                columns.append(tokenize(texts, self.tokenizer, folder, f"{split} {part}s", starts))
        return self._dataset(columns, labels)
