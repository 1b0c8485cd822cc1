"""Text to pretrain on, of any size, in packed rows."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lit_foundry.data.base import BatchDataset, Split
from lit_foundry.data.corpus.dataset import PackedDataset
from lit_foundry.data.corpus.packing import Packing, Pieces, Stream, pack
from lit_foundry.data.corpus.row_batches import BatchWarmup, RowBatches
from lit_foundry.data.corpus.shards import (
    TokenShards,
    first_occurrences,
    held_out,
    tokenize_documents,
)
from lit_foundry.data.files.documents import Documents
from lit_foundry.data.files.table import Table
from lit_foundry.data.files.text_tables import DataError
from lit_foundry.data.text.dataset import TextDataset
from lit_foundry.data.text.token_cache import encode
from lit_foundry.data.text.tokenized import TokenizedText
from lit_foundry.data.text.tokenizer import (
    Template,
    tokenizer_files,
    tokenizer_from_files,
)
from lit_foundry.data.text.tokenizer_training import TrainTokenizer
from lit_foundry.randomness import philox, run_seed
from lit_foundry.recipe import plain

Ints = NDArray[np.int64]


class Corpus(TokenizedText):
    """Documents without labels, packed into rows of one length.

    Args:
        tokenizer: Hub name, folder or ``package:NAME/FOLDER`` of a ``transformers`` tokenizer,
            or how to train one on the training documents.
        train: Files, folders or patterns (.txt, .csv, .tsv, .jsonl, .parquet) to train on; with
            ``hub``, name of the split.
        val: The same for validation; None holds out a part of ``train``.
        test: The same for the test; needed by the command test only.
        hub: Dataset ``org/name`` or ``org/name:config`` on the hub that has these splits.
        text: Column of the texts, where there are columns.
        delimiter: Cuts .txt files into documents, such as a blank line; None makes each file one.
        max_length: Tokens of a row.
        packing: ``isolated``: no token attends to another document, and positions restart in
            each; ``concatenated``: all documents in a row, as if they were one.
        deduplicate: Leave out all but the first of equal documents of a split; of those that
            validation is taken from, before it is.
        val_fraction: Share of ``train`` that validates if there is no ``val``.
        val_from: Take whole ``documents`` for it, or the ``end`` of every document, which a corpus
            of one document needs.
        split_seed: Seed of the choice of documents; it depends on their content alone.
        predict: File of texts for ``predict``, or ``-`` for standard input.
        batch_size: Rows of one optimizer step, over all devices; 32 if nothing is set.
        batch_tokens: Tokens of one optimizer step instead.
        micro_batch: Most rows (or tokens) that one device takes at once.
        batch_warmup: Lets the first steps be smaller.
        num_workers: Loader processes per device.
        cache: Folder for token files; by default ``$LIT_FOUNDRY_CACHE`` or
            ``~/.cache/lit_foundry``.

    Raises:
        ValueError: If a value lies outside its range.
    """

    def __init__(
        self,
        tokenizer: str | TrainTokenizer,
        train: str | list[str] = "train",
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        hub: str | None = None,
        text: str = "text",
        delimiter: str | None = None,
        max_length: int = 512,
        packing: Packing = "isolated",
        deduplicate: bool = False,
        val_fraction: float = 0.01,
        val_from: Literal["documents", "end"] = "documents",
        split_seed: int = 0,
        predict: str | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        micro_batch: int | None = None,
        batch_warmup: BatchWarmup | None = None,
        num_workers: int = 0,
        cache: Path | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            max_length,
            "tail",  # a language model goes on from the end of a text
            predict,
            cache,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            micro_batch=micro_batch,
            num_workers=num_workers,
        )
        if not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction must lie in (0, 1), got {val_fraction}.")
        self.sources = {"train": train, "val": val, "test": test}
        self.hub, self.text, self.delimiter = hub, text, delimiter
        self.text_columns = (text,)
        self.packing, self.deduplicate = packing, deduplicate
        self.val_fraction, self.val_from, self.split_seed = val_fraction, val_from, split_seed
        self.batch_warmup = batch_warmup
        self.reloads = batch_warmup is not None  # epochs in which steps grow have more of them
        self._tokens: dict[str, TokenShards] = {}
        self._datasets: dict[str, PackedDataset] = {}
        self._tokens_per_byte: dict[str, float] = {}
        self._predicted: Table | None = None

    def documents(self, split: str) -> Documents:
        """Return the documents of a split, as the files hold them.

        Raises:
            DataError: If the split is not set.
        """
        source = self.sources[split]
        if source is None:
            raise DataError(f"data.{split} is not set: name the files for it.")
        if self.hub:
            return Documents.of_hub(self.hub, str(source), text=self.text, cache=self.cache)
        sources = [source] if isinstance(source, str) else source
        return Documents(sources, text=self.text, delimiter=self.delimiter, cache=self.cache)

    def table(self, split: Literal["predict"]) -> Table:
        """Return the texts to predict on."""
        if self._predicted is None:
            self._predicted = self._predict_table()
        return self._predicted

    def training_texts(self) -> tuple[Iterable[str], str]:
        """Return the training documents."""
        documents = self.documents("train")
        return documents, documents.fingerprint

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """Ids before and after each document; a tokenizer that frames none ends each."""
        before, after = Template(self.tokenizer, pair=False).frame
        end = self.tokenizer.eos_token_id
        return list(before), list(after) or ([] if end is None else [int(end)])

    def state(self) -> dict[str, Any]:
        """Return the tokenizer's files."""
        return {"tokenizer": tokenizer_files(self.tokenizer)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Use the tokenizer of a checkpoint."""
        self.tokenizer = tokenizer_from_files(state["tokenizer"])

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of each split that was read."""
        return {split: tokens.fingerprint for split, tokens in self._tokens.items()}

    def tokens(self, split: str) -> TokenShards:
        """Return the token files of the documents of a split, made first if there are none."""
        if split not in self._tokens:
            self._tokens[split] = tokenize_documents(
                self.documents(split), self.tokenizer, self.cache, split
            )
        return self._tokens[split]

    def load(self, split: Split) -> PackedDataset | TextDataset:
        """Open a split, packed; texts to predict on are not packed."""
        if split == "predict":
            return self._dataset([encode(self.table("predict").texts, self.tokenizer)])
        if split not in self._datasets:
            self._datasets[split] = self._packed(split)
        return self._datasets[split]

    def _packed(self, split: str) -> PackedDataset:
        tokens, documents, offsets, lengths = self._share(split)
        total = int(lengths.sum())
        if not total:
            raise DataError(f"data.{split}: no document has a token. Name other files.")
        before, after = self.frame
        size, train = self.max_length, split == "train"
        # Whatever the seed of a run, evaluation has the same rows, and so the same masks.
        seed = run_seed() if train else 0
        whole = lengths == tokens.lengths[documents] - offsets  # with their end in the split
        rows: Pieces | Stream
        if self.packing == "isolated":
            rows = pieces = pack(lengths, size, len(before + after), philox(seed, 0))
            ends = int((whole & (lengths > 0)).sum())
            frames = len(pieces.length) * max(len(before) - 1, 0)
        else:
            rows = Stream(lengths, size, (len(before), len(after)), seed if train else None)
            ends, frames = int(whole.sum()), len(lengths) * len(before)
        frames += ends * len(after)  # of those that end a document
        # Where only the ends of documents are of the split, so is that share of their bytes. A
        # first token that nothing comes before is not free: it counts as the mean of the others.
        num_bytes = tokens.num_bytes[documents].sum() * total / tokens.lengths[documents].sum()
        self._tokens_per_byte[split] = float((total + frames) / num_bytes)
        if not len(rows):
            raise DataError(
                f"data.{split} has {total} tokens, less than a row of "
                f"data.max_length={size}: lower it, set data.packing to isolated, or add text."
            )
        pad = int(self.tokenizer.pad_token_id or 0)
        return PackedDataset(tokens, documents, offsets, rows, self.frame, pad, size)

    def _share(self, split: str) -> tuple[TokenShards, Ints, Ints, Ints]:
        """Return the documents of a split: token files, numbers, first tokens and lengths."""
        carved = split != "test" and self.sources["val"] is None
        tokens = self.tokens("train" if carved else split)
        kept = np.ones(len(tokens), bool)
        if self.deduplicate:
            kept &= first_occurrences(tokens.hashes)
        if carved and self.val_from == "documents":
            validates = held_out(tokens.hashes, self.val_fraction, self.split_seed)
            if validates.all() or not validates.any():
                raise DataError(
                    "data.train has too few documents to hold some out: set data.val_from to end, "
                    "data.delimiter to what parts documents, or data.val to other files."
                )
            kept &= validates if split == "val" else ~validates
        documents = np.flatnonzero(kept)
        lengths = tokens.lengths[documents]
        offsets = np.zeros_like(lengths)
        if carved and self.val_from == "end":
            cuts = (lengths * (1 - self.val_fraction)).astype(np.int64)
            offsets, lengths = (cuts, lengths - cuts) if split == "val" else (offsets, cuts)
        return tokens, documents, offsets, lengths

    def sampler(self, dataset: BatchDataset, train: bool, **place: int) -> Any:
        """Return what yields the rows of each micro-batch; only in training, in random order."""
        if not train or not isinstance(dataset, PackedDataset):
            return super().sampler(dataset, train, **place)
        size = self.max_length
        batch = self.batch_size or (self.batch_tokens or 0) // size
        if not batch:
            raise ValueError(
                f"data.batch_tokens={self.batch_tokens} is less than a row of "
                f"data.max_length={size}: raise it."
            )
        micro = self.micro_batch
        if self.batch_tokens and micro:
            micro = max(1, micro // size)
        return RowBatches(
            len(dataset),
            size,
            batch,
            micro_batch=micro,
            warmup=self.batch_warmup,
            limit=getattr(self.trainer, "limit_train_batches", 1.0),
            **place,
        )

    def cuts(self) -> dict[str, Any]:
        """Return what else decides which rows a micro-batch holds."""
        names = ["batch_warmup", "max_length", "packing", "deduplicate"]
        names += ["val_fraction", "val_from", "split_seed"]
        return {f"data.{name}": plain(getattr(self, name)) for name in names}

    def tokens_per_byte(self, split: Split) -> float:
        """Return the tokens of a split that tell its text to a causal model, by byte of it."""
        if split not in self._tokens_per_byte:
            self.load(split)
        return self._tokens_per_byte[split]

    def prepare_data(self) -> None:
        """Tokenize before any network is on a device."""
        fn = getattr(self.trainer, "state", None)
        if fn is not None and fn.fn == "fit":
            self.load("train")
            self.load("val")
