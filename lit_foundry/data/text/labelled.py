"""Text classification data: tables in, padded token batches out."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from lit_foundry import ranges
from lit_foundry.data.base import Split
from lit_foundry.data.files.table import Table
from lit_foundry.data.labels import (
    check_carved,
    check_labels,
    in_order,
    stratified,
    stratified_sample,
)
from lit_foundry.data.text.dataset import TextDataset
from lit_foundry.data.text.token_cache import Tokens, tokenize
from lit_foundry.data.text.tokenized import TokenizedText
from lit_foundry.data.text.tokenizer import (
    Truncation,
    tokenizer_files,
    tokenizer_from_files,
)
from lit_foundry.data.text.tokenizer_training import TrainTokenizer

EXCERPT = 400  # characters that predictions keep of a text


class TextData(TokenizedText):
    """Labelled texts, or pairs of texts. A subclass implements :meth:`read`.

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
        own = {"val_fraction": val_fraction, "max_train_samples": max_train_samples}
        least = max_train_samples is None or max_train_samples >= 1
        rules = {
            "val_fraction": (0 < val_fraction < 1, "must lie in (0, 1)"),
            "max_train_samples": (least, "must be at least 1, or null"),
        }
        ranges.check("data", own, rules)
        self.val_fraction = val_fraction
        self.max_train_samples = max_train_samples
        self.split_seed = split_seed
        self._tables: dict[str, Table] = {}
        self._labels: list[str] | None = None

    val_key: ClassVar[str | None] = None  # names the file that validates, where one can

    @abstractmethod
    def read(self, split: Literal["train", "val", "test"]) -> Table | None:
        """Read a split as the files hold it; None if the dataset has no validation split."""

    def table(self, split: Split) -> Table:
        """Return a split, validation carved from training where the dataset has none.

        Raises:
            DataError: If labels are missing, unknown, or fewer than two where one can learn.
        """
        if split not in self._tables:
            if split == "predict":
                self._tables[split] = self._predict_table()
            elif split == "test":
                self._tables[split] = self._read("test")
            else:
                self._read_training()
        table = self._tables[split]
        if split in ("val", "test"):
            check_labels(table, split, self.labels, self.val_key)
        return table

    def _read(self, split: Literal["train", "val", "test"]) -> Table:
        table = self.read(split)
        assert table is not None
        return table

    def _read_training(self) -> None:
        train, val = self._read("train"), self.read("val")
        check_labels(train, "train", self._labels, self.val_key)
        if val is None:
            held_out = stratified(train, self.val_fraction, self.split_seed)
            check_carved(train, held_out, self.val_fraction, self.val_key)
            val = train.take(np.flatnonzero(held_out).tolist())
            train = train.take(np.flatnonzero(~held_out).tolist())
        if self.max_train_samples is not None and self.max_train_samples < len(train):
            train = stratified_sample(train, self.max_train_samples, self.split_seed)
        self._tables |= {"train": train, "val": val}

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the network's outputs."""
        if self._labels is None:
            self._labels = in_order(self.table("train").labels or ())
        return self._labels

    def training_texts(self) -> tuple[Iterable[str], str]:
        """Return all texts of the training split."""
        train = self.table("train")
        return [*train.texts, *(train.pairs or ())], train.fingerprint

    @property
    def facts(self) -> Mapping[str, int]:
        """Classes, vocabulary, padding and longest row."""
        return {"num_classes": len(self.labels), **super().facts}

    def state(self) -> dict[str, Any]:
        """Return label names and the tokenizer's files."""
        return {"labels": self.labels, "tokenizer": tokenizer_files(self.tokenizer)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Use the label names and the tokenizer of a checkpoint."""
        self._labels = list(state["labels"])
        self.tokenizer = tokenizer_from_files(state["tokenizer"])

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of each split that was read."""
        return {split: table.fingerprint for split, table in self._tables.items()}

    def cuts(self) -> dict[str, Any]:
        """Return what else decides which rows a micro-batch holds."""
        names = "max_length", "val_fraction", "max_train_samples", "split_seed"
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

    def prepare_data(self) -> None:
        """Tokenize before any network is on a device."""
        fn = getattr(self.trainer, "state", None)
        if fn is not None and fn.fn == "fit":
            self.load("train")
            self.load("val")

    def load(self, split: Split) -> TextDataset:
        """Open a split, tokenized."""
        table = self.table(split)
        known = {name: i for i, name in enumerate(self.labels)}
        labels = table.labels if split != "predict" else None
        fast = self.tokenizer.backend_tokenizer
        fast.no_truncation()  # as each call sets it, else the first key would differ
        fast.no_padding()
        backend = fast.to_str()
        columns: list[Tokens] = []
        for texts in (table.texts, table.pairs):
            if texts is not None:
                part = "pair" if columns else "text"
                key = hashlib.sha256(f"{backend}{table.fingerprint}{part}".encode()).hexdigest()
                folder = self.cache / "tokens" / key[:24]
                columns.append(tokenize(texts, self.tokenizer, folder, f"{split} {part}s"))
        return self._dataset(
            columns, None if labels is None else np.array([known[name] for name in labels])
        )
