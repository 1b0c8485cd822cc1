"""Any text classification set, from files or from a hub."""

from pathlib import Path
from typing import Any, Literal

from lit_foundry.data.files.rows import Quoting
from lit_foundry.data.files.table import Table
from lit_foundry.data.files.text_tables import DataError, read_hub, read_table
from lit_foundry.data.labels import check_names
from lit_foundry.data.text.labelled import TextData
from lit_foundry.data.text.tokenizer_training import TrainTokenizer


class TextFiles(TextData):
    """Labelled texts, or pairs of texts, in .csv, .tsv, .jsonl or .parquet files or on a hub.

    Args:
        tokenizer: As in :class:`TextData`, whose other arguments ``options`` takes.
        train: File to train on; with ``hub``, name of the split.
        val: File that validates; None holds out a stratified part of ``train``.
        test: File that tests; needed by the command test only.
        hub: Dataset ``org/name`` or ``org/name:config`` on the hub that has these splits.
        text: Column of the texts, or the two columns of pairs.
        label: Column of the labels.
        label_names: Classes in the order of the network's outputs; None sorts those of ``train``.
        id: Column that identifies rows in predictions; row numbers if None.
        quoting: Whether .csv and .tsv files, those to predict on too, quote texts: ``minimal``, or
            ``none``, where quotation marks are text as any other; ``auto`` takes .csv for quoted
            and finds out of .tsv.
        options: Further arguments of :class:`TextData`.
    """

    val_key = "data.val"

    def __init__(
        self,
        tokenizer: str | TrainTokenizer,
        train: str = "train",
        val: str | None = None,
        test: str | None = None,
        hub: str | None = None,
        text: str | list[str] = "text",
        label: str = "label",
        label_names: list[str] | None = None,
        id: str | None = None,
        quoting: Quoting = "auto",
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        self.sources = {"train": train, "val": val, "test": test}
        self.hub, self.label, self.id_column, self.quoting = hub, label, id, quoting
        self.text_columns = (text,) if isinstance(text, str) else tuple(text)
        self.label_names = self._labels = label_names

    def read(self, split: Literal["train", "val", "test"]) -> Table | None:
        """Read the file of a split, or the split of the hub's dataset."""
        source = self.sources[split]
        if source is None:
            if split == "test":
                raise DataError("data.test is not set: name the file that tests.")
            return None
        columns: dict[str, Any] = {"text": self.text_columns, "label": self.label}
        columns["id"] = self.id_column
        table = (
            read_hub(self.hub, source, **columns)
            if self.hub
            else read_table(Path(source), **columns, quoting=self.quoting)
        )
        if split == "train" and self.label_names is not None:
            check_names(self.label_names, table)
        return table
