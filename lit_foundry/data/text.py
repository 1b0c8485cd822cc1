"""Text classification data: tables in, padded token batches out."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from lit_foundry.data.base import DataModule, Split
from lit_foundry.data.batch import TextBatch
from lit_foundry.data.cache import Tokens, cache_root, encode, tokenize
from lit_foundry.data.labels import check_labels, in_order, stratified
from lit_foundry.data.readers import DataError, read_lines
from lit_foundry.data.samplers import LengthGroupedBatches
from lit_foundry.data.table import Table
from lit_foundry.data.text_dataset import TextDataset
from lit_foundry.data.tokenizer import (
    Template,
    TrainTokenizer,
    Truncation,
    load_tokenizer,
    tokenizer_files,
    tokenizer_from_files,
    train_tokenizer,
)

EXCERPT = 400  # characters that predictions keep of a text


class TextData(DataModule):
    """Labelled texts, or pairs of texts. A subclass implements :meth:`read`.

    Args:
        tokenizer: Hub name, folder or ``package:NAME/FOLDER`` of a ``transformers`` tokenizer,
            or how to train one on the training split.
        max_length: Most tokens of a text, special tokens included.
        truncation: What a longer text keeps: its head, its tail, or a quarter from the head and
            the rest from the tail (Sun et al. 2019).
        val_fraction: Share of the training split that validates, the same in each class, where
            the dataset has no validation split.
        split_seed: Seed of that share; it depends on the texts and on nothing else.
        predict: File of texts for ``predict`` (.txt with one a line, .csv, .tsv, .jsonl,
            .parquet), or ``-`` for standard input.
        batch_size: Samples of one optimizer step, over all devices; 32 if nothing is set.
        batch_tokens: Tokens of one optimizer step instead, padding included.
        micro_batch: Most samples (or tokens) that one device takes at once.
        num_workers: Loader processes per device.
        cache: Folder for token files; by default ``$LIT_FOUNDRY_CACHE`` or
            ``~/.cache/lit_foundry``.
    """

    batch_type: ClassVar[type] = TextBatch
    text_columns: tuple[str, ...] = ("text",)  # what predict reads from files with columns
    id_column: str | None = None

    def __init__(
        self,
        tokenizer: str | TrainTokenizer,
        max_length: int = 512,
        truncation: Truncation = "head",
        val_fraction: float = 0.1,
        split_seed: int = 0,
        predict: str | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        micro_batch: int | None = None,
        num_workers: int = 0,
        cache: Path | None = None,
    ) -> None:
        super().__init__(batch_size, batch_tokens, micro_batch, num_workers)
        if not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction must lie in (0, 1), got {val_fraction}.")
        if max_length < 8:
            raise ValueError(f"data.max_length must be at least 8 tokens, got {max_length}.")
        self._tokenizer_spec = tokenizer
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.predict = predict
        self.cache = cache_root(cache)
        self._tables: dict[str, Table] = {}
        self._labels: list[str] | None = None

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
            check_labels(table, split, self.labels)
        return table

    def _read(self, split: Literal["train", "val", "test"]) -> Table:
        table = self.read(split)
        assert table is not None
        return table

    def _read_training(self) -> None:
        train, val = self._read("train"), self.read("val")
        check_labels(train, "train", self._labels)
        if val is None:
            held_out = stratified(train, self.val_fraction, self.split_seed)
            val = train.take(np.flatnonzero(held_out).tolist())
            train = train.take(np.flatnonzero(~held_out).tolist())
        self._tables |= {"train": train, "val": val}

    def _predict_table(self) -> Table:
        if self.predict is None:
            raise ValueError("predict needs texts: set --input FILE, or - for standard input.")
        if self.predict == "-":
            return read_lines("-", text=self.text_columns)
        source = Path(self.predict)
        id = None if source.suffix == ".txt" else self.id_column
        return read_lines(source, text=self.text_columns, id=id)

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the network's outputs."""
        if self._labels is None:
            self._labels = in_order(self.table("train").labels or ())
        return self._labels

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, trained first if the config says so."""
        spec = self._tokenizer_spec
        if isinstance(spec, str):
            return load_tokenizer(spec)
        train = self.table("train")
        texts = [*train.texts, *(train.pairs or ())]
        return train_tokenizer(spec, texts, train.fingerprint, self.cache)

    @property
    def facts(self) -> Mapping[str, int]:
        """Classes, vocabulary, padding and longest row."""
        return {
            "num_classes": len(self.labels),
            "vocab_size": len(self.tokenizer),
            "pad_id": int(self.tokenizer.pad_token_id or 0),
            "max_length": self.max_length,
        }

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

    def _dataset(
        self, columns: Sequence[Tokens], labels: NDArray[np.int64] | None = None
    ) -> TextDataset:
        template = Template(self.tokenizer, pair=len(columns) > 1)
        return TextDataset(columns, labels, template, self.max_length, self.truncation)

    @property
    def batch_fields(self) -> list[str]:
        """Fields of the batches that a network may read."""
        segments = ["token_type_ids"] * (len(self.text_columns) > 1)
        return ["input_ids", "attention_mask", *segments]

    def batches(
        self, inputs: Sequence[str] | Sequence[tuple[str, str]], batch_tokens: int
    ) -> Iterator[TextBatch]:
        """Yield texts, or pairs of texts, in batches of similar length.

        Args:
            inputs: Texts of any length.
            batch_tokens: Most tokens of a batch, padding included.

        Raises:
            DataError: If pairs are given where single texts are needed, or the reverse.
        """
        wanted = len(self.text_columns)
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in inputs]
        for number, row in enumerate(rows):
            if len(row) != wanted:
                kinds = {1: "single texts", 2: "pairs of texts"}
                raise DataError(
                    f"Input {number} has {len(row)} texts, but the network was trained on "
                    f"{kinds[wanted]}."
                )
        if not rows:
            return
        columns = zip(*rows, strict=True)
        dataset = self._dataset([encode(column, self.tokenizer) for column in columns])
        lengths = dataset.lengths
        most = max(batch_tokens, int(lengths.max()))
        for batch in LengthGroupedBatches(lengths, batch_tokens=most, shuffle=False):
            yield dataset[batch]

    def save_preprocessor(self, folder: Path, inputs: Sequence[str]) -> None:
        """Write the tokenizer for whoever loads an export.

        Args:
            folder: Where its files go.
            inputs: What the network takes; the tokenizer yields no more.
        """
        files = tokenizer_files(self.tokenizer)
        tokenizer = tokenizer_from_files(files)  # a copy
        tokenizer.model_max_length = self.max_length
        tokenizer.truncation_side = "left" if self.truncation == "tail" else "right"
        tokenizer.model_input_names = [name for name in inputs if name in self.batch_fields]
        for name in ("truncation_side", "model_input_names"):  # what save_pretrained writes
            tokenizer.init_kwargs[name] = getattr(tokenizer, name)
        tokenizer.save_pretrained(folder)
