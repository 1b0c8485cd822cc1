"""Any set of images with labels, or without, from tables or from a hub."""

from pathlib import Path
from typing import Any, Literal

from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.image_tables import read_image_hub, read_image_table
from lit_foundry.data.files.rows import DataError
from lit_foundry.data.image.labelled import ImageData
from lit_foundry.data.targets import ImageChoice, target_of


class ImageFiles(ImageData):
    """Images in .parquet files, at paths in .csv, .tsv or .jsonl files, or on a hub.

    Args:
        train: File to train on (several of .parquet, if its name has a ``*``); with ``hub``, name
            of the split.
        val: File that validates; None holds out a part of ``train``, stratified by ``class``.
        test: File that tests; needed by the command test only.
        hub: Dataset ``org/name`` or ``org/name:config`` on the hub that has these splits.
        image: Column of the images: paths relative to the file, or, in .parquet files and on a
            hub, bytes or structs of bytes and path.
        target: What labels are: ``class``, one for each image; ``classes``, any number of them;
            ``value``, a number; or ``none``.
        label: Column of the labels. ``classes`` are a list, or a text with ``label_delimiter``
            between them; or, of a list of columns, a 0 or 1 in each. Of ``value``, a list of
            columns are several numbers.
        label_names: Classes in the order of the network's outputs; None sorts those of ``train``.
        label_delimiter: What stands between ``classes`` in a text.
        id: Column that identifies rows in predictions; paths, or else row numbers if None.
        options: Further arguments of :class:`ImageData`.
    """

    val_key = "data.val"

    def __init__(
        self,
        train: str = "train",
        val: str | None = None,
        test: str | None = None,
        hub: str | None = None,
        image: str = "image",
        label: str | list[str] = "label",
        label_names: list[str] | None = None,
        id: str | None = None,
        target: ImageChoice = "class",
        label_delimiter: str = "|",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.sources = {"train": train, "val": val, "test": test}
        self.target = target_of(target, label, label_names, label_delimiter)
        self.hub, self.label_names = hub, label_names
        self.image_column, self.id_column = image, id
        self._labels = self.classes or label_names

    def read(self, split: Literal["train", "val", "test"]) -> ImageTable | None:
        """Read the file of a split, or the split of the hub's dataset."""
        source = self.sources[split]
        if source is None:
            if split == "test":
                raise DataError("data.test is not set: name the file that tests.")
            return None
        columns = self.image_column, self.target.label, self.id_column
        if self.hub:
            table = read_image_hub(self.hub, source, *columns)
        else:
            table = read_image_table(Path(source), *columns, self.cache)
        if split == "train" and self.label_names is not None:
            self.target.check_names(self.label_names, table)
        return table
