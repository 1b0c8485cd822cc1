"""Any set of texts with labels, or without, from files or from a hub."""

from pathlib import Path
from typing import Any, Literal

from lit_foundry.data.files.rows import Quoting
from lit_foundry.data.files.table import Table
from lit_foundry.data.files.text_tables import DataError, read_hub, read_table
from lit_foundry.data.targets import Choice, target_of
from lit_foundry.data.text.labelled import TextData
from lit_foundry.data.text.tokenizer_training import TrainTokenizer


class TextFiles(TextData):
    """Texts, or pairs of texts, with labels of any kind, in files or on a hub.

    Files are .csv, .tsv, .jsonl or .parquet.

    Args:
        tokenizer: As in :class:`TextData`, whose other arguments ``options`` takes.
        train: File to train on; with ``hub``, name of the split.
        val: File that validates; None holds out a part of ``train``, stratified by ``class``.
        test: File that tests; needed by the command test only.
        hub: Dataset ``org/name`` or ``org/name:config`` on the hub that has these splits.
        text: Column of the texts, or the two columns of pairs.
        target: What labels are: ``class``, one for each text; ``classes``, any number of them;
            ``value``, a number; ``tags``, one for each word; or ``none``.
        label: Column of the labels. ``classes`` are a list, or a text with ``label_delimiter``
            between them; or, of a list of columns, a 0 or 1 in each. Of ``value``, a list of
            columns are several numbers. With ``tags``, texts and labels are lists of equal length,
            or texts with blanks between the words and tags.
        label_names: Classes or tags in the order of the network's outputs; None sorts those of
            ``train``.
        label_delimiter: What stands between ``classes`` in a text.
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
        label: str | list[str] = "label",
        label_names: list[str] | None = None,
        id: str | None = None,
        quoting: Quoting = "auto",
        target: Choice = "class",
        label_delimiter: str = "|",
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        self.sources = {"train": train, "val": val, "test": test}
        self.hub, self.id_column, self.quoting = hub, id, quoting
        self.text_columns = (text,) if isinstance(text, str) else tuple(text)
        self.target = target_of(target, label, label_names, label_delimiter)
        self.label_names = self._labels = label_names
        if target == "tags" and len(self.text_columns) > 1:
            raise ValueError(f"data.text={text} must be one column, whose words have the tags.")

    def read(self, split: Literal["train", "val", "test"]) -> Table | None:
        """Read the file of a split, or the split of the hub's dataset."""
        source = self.sources[split]
        if source is None:
            if split == "test":
                raise DataError("data.test is not set: name the file that tests.")
            return None
        columns: dict[str, Any] = {"text": self.text_columns, "label": self.target.label}
        columns |= {"id": self.id_column, "words": self.target_kind == "tags"}
        table = (
            read_hub(self.hub, source, **columns)
            if self.hub
            else read_table(Path(source), **columns, quoting=self.quoting)
        )
        if split == "train" and self.label_names is not None:
            self.target.check_names(self.label_names, table)
        return table
