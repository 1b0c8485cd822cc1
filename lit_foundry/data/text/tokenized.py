"""What all text data share: a tokenizer, texts to predict on, and the framing of raw inputs."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerFast

from lit_foundry.data.base import DataModule, Split
from lit_foundry.data.batch import TextBatch
from lit_foundry.data.files.raw_inputs import text_rows
from lit_foundry.data.files.rows import Quoting, check_length
from lit_foundry.data.files.table import Table
from lit_foundry.data.files.text_tables import DataError, read_lines
from lit_foundry.data.samplers import LengthGroupedBatches
from lit_foundry.data.target import Encoded
from lit_foundry.data.text.dataset import TextDataset
from lit_foundry.data.text.token_cache import Tokens, encode
from lit_foundry.data.text.tokenizer import (
    Template,
    Truncation,
    leave_open,
    load_tokenizer,
    save_tokenizer,
    tokenizer_files,
    tokenizer_from_files,
)
from lit_foundry.data.text.tokenizer_training import TrainTokenizer, train_tokenizer
from lit_foundry.data.text.vocabulary import Vocabulary
from lit_foundry.data.text.words import word_starts
from lit_foundry.sources import cache_root


class TokenizedText(DataModule):
    """Data that a tokenizer turns into ids. A subclass implements :meth:`training_texts`.

    Args:
        tokenizer: Hub name, folder or ``package:NAME/FOLDER`` of a ``transformers`` tokenizer,
            or how to train one on the training split.
        max_length: Most tokens of a text, special tokens included.
        truncation: What a longer text keeps.
        predict: File of texts for ``predict``, or ``-`` for standard input.
        cache: Folder for token files; by default ``$LIT_FOUNDRY_CACHE`` or
            ``~/.cache/lit_foundry``.
        batches: Sizes of steps and ``balanced``, as in :class:`DataModule`.
    """

    batch_type: ClassVar[type] = TextBatch
    text_columns: tuple[str, ...] = ("text",)  # what predict reads from files with columns
    id_column: str | None = None
    quoting: Quoting = "auto"

    def __init__(
        self,
        tokenizer: str | TrainTokenizer,
        max_length: int,
        truncation: Truncation,
        predict: str | None,
        cache: Path | None,
        **batches: int | None,
    ) -> None:
        super().__init__(**batches)  # type: ignore[arg-type]
        if max_length < 8:
            raise ValueError(f"data.max_length must be at least 8 tokens, got {max_length}.")
        self._tokenizer_spec = tokenizer
        self.max_length = max_length
        self.truncation: Truncation = truncation
        self.predict = predict
        self.cache = cache_root(cache)

    @abstractmethod
    def training_texts(self) -> tuple[Iterable[str], str]:
        """Return what a tokenizer is trained on, and a hash of it."""

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, trained first if the config says so."""
        spec = self._tokenizer_spec
        if isinstance(spec, str):
            tokenizer = load_tokenizer(spec)
            if tokenizer.pad_token is None:  # as GPT-2; nothing attends to what fills a row
                tokenizer.pad_token = tokenizer.eos_token
            return tokenizer
        texts, fingerprint = self.training_texts()
        return train_tokenizer(spec, texts, fingerprint, self.cache)

    def _predict_table(self) -> Table:
        if self.predict is None:
            raise ValueError("predict needs texts: set --input FILE, or - for standard input.")
        return self.unlabelled_table(self.predict)

    def unlabelled_table(self, source: str) -> Table:
        """Read texts without labels."""
        if source == "-":
            return read_lines("-", text=self.text_columns, words=self.target_kind == "tags")
        path = Path(source)
        id = None if path.suffix == ".txt" else self.id_column
        how: Any = {"quoting": self.quoting, "words": self.target_kind == "tags"}
        return read_lines(path, text=self.text_columns, id=id, **how)

    def _dataset(self, columns: Sequence[Tokens], labels: Encoded | None = None) -> TextDataset:
        template = Template(self.tokenizer, pair=len(columns) > 1)
        return TextDataset(columns, labels, template, self.max_length, self.truncation)

    @property
    def facts(self) -> Mapping[str, int]:
        """Vocabulary, padding and longest row, and the mask token where there is one."""
        facts = {
            "vocab_size": len(self.tokenizer),
            "pad_id": int(self.tokenizer.pad_token_id or 0),
            "max_length": self.max_length,
        }
        mask_id = self.tokenizer.mask_token_id
        return facts if mask_id is None else facts | {"mask_id": int(mask_id)}

    @property
    def vocabulary(self) -> Vocabulary:
        """What a language model must know of the token ids."""
        return Vocabulary.of(self.tokenizer)

    @abstractmethod
    def table(self, split: Any) -> Table:
        """Return a split as the files hold it."""

    def ids(self, split: Split) -> Sequence[str] | None:
        """Return what identifies the samples of a split."""
        return self.table(split).ids

    def rows(self, inputs: Any) -> Sequence[Any]:
        """Return texts, or pairs of texts, one by one."""
        return text_rows(inputs, self.text_columns)

    def caveat(self, format: str) -> str | None:
        """Tell what transformers would cut otherwise."""
        if format != "hf" or self.truncation != "head_tail":
            return None
        return (
            f"of texts over {self.max_length} tokens, transformers keeps the head, where training "
            "kept head and tail, as lit_foundry.load does"
        )

    @property
    def batch_fields(self) -> list[str]:
        """Fields of the batches that a network may read."""
        segments = ["token_type_ids"] * (len(self.text_columns) > 1)
        return ["input_ids", "attention_mask", *segments]

    def batches(
        self, inputs: Sequence[str] | Sequence[tuple[str, str]], batch_tokens: int = 8192
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
            for text in row:
                check_length(f"Input {number}", text)
        if not rows:
            return
        columns = zip(*rows, strict=True)
        starts = word_starts if self.target_kind == "tags" else None
        dataset = self._dataset([encode(column, self.tokenizer, starts) for column in columns])
        lengths = dataset.lengths
        most = max(batch_tokens, int(lengths.max()))
        for batch in LengthGroupedBatches(lengths, batch_tokens=most, shuffle=False):
            yield dataset[batch]

    def save_preprocessor(
        self, folder: Path, inputs: Sequence[str], goes_on: bool = False
    ) -> PreTrainedTokenizerFast:
        """Write the tokenizer for whoever loads an export.

        Args:
            folder: Where its files go.
            inputs: What the network takes; the tokenizer yields no more.
            goes_on: Whether the network continues texts: then these are begun, but not ended.

        Returns:
            What was written.
        """
        files = tokenizer_files(self.tokenizer)
        tokenizer = tokenizer_from_files(files)  # a copy
        if goes_on:
            leave_open(tokenizer)
        tokenizer.model_max_length = self.max_length
        tokenizer.truncation_side = "left" if self.truncation == "tail" else "right"
        tokenizer.model_input_names = [name for name in inputs if name in self.batch_fields]
        if not goes_on:  # as in training, whatever side the tokenizer came with
            tokenizer.padding_side = "right"
        for name in ("truncation_side", "padding_side", "model_input_names"):  # what is written
            tokenizer.init_kwargs[name] = getattr(tokenizer, name)
        save_tokenizer(tokenizer, folder)
        return tokenizer
