"""Images in folders named after their classes."""

from pathlib import Path
from typing import Any, Literal

from lit_foundry.data.image_data import ImageData
from lit_foundry.data.image_readers import read_class_folders
from lit_foundry.data.image_table import ImageTable
from lit_foundry.data.rows import DatasetNotFoundError

FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class ImageFolder(ImageData):
    """Images ``root/{train,val,test}/{class}/*.jpg``, or ``root/{class}/*.jpg`` to train on only.

    Args:
        root: The folder. Without one for validation, a stratified part of training validates.
        options: Further arguments of :class:`ImageData`.
    """

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root).expanduser()

    def read(self, split: Literal["train", "val", "test"]) -> ImageTable | None:
        """Read the folder of a split."""
        found = [folder for name in FOLDERS[split] if (folder := self.root / name).is_dir()]
        if found:
            return read_class_folders(found[0], self.cache)
        if split == "train":
            return read_class_folders(self.root, self.cache)
        if split == "val":
            return None
        rule = "no such folder, which has a folder of images for each class"
        raise DatasetNotFoundError(f"{self.root.absolute() / split}: {rule}. Set data.root.")
