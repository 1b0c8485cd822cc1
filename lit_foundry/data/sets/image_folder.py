"""Images in folders named after their classes."""

from pathlib import Path
from typing import Any, Literal

from lit_foundry.data.files.folders import entries
from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.image_tables import folders_in, is_loose, read_class_folders
from lit_foundry.data.files.rows import DataError, DatasetNotFoundError
from lit_foundry.data.image.labelled import ImageData

FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class ImageFolder(ImageData):
    """Images ``root/{train,val,test}/{class}/*.jpg``, or ``root/{class}/*.jpg`` to train on only.

    Args:
        root: The folder. Its splits may also be named training, valid, validation or testing, in
            lower case or not. Without one for validation, a stratified part of training validates.
        options: Further arguments of :class:`ImageData`.
    """

    def __init__(self, root: str, **options: Any) -> None:
        super().__init__(**options)
        self.root = Path(root).expanduser()

    def read(self, split: Literal["train", "val", "test"]) -> ImageTable | None:
        """Read the folder of a split."""
        folders = folders_in(self.root) if self.root.is_dir() else []
        found = [folder for folder in folders if folder.name.lower() in FOLDERS[split]]
        if len(found) > 1:
            names = " and ".join(folder.name for folder in found)
            raise DataError(f"{self.root}: {names} are both the {split} split. Rename one of them.")
        if found:
            return read_class_folders(found[0], self.cache)
        if split == "train":
            _check_classes(self.root, folders)
            return read_class_folders(self.root, self.cache)
        if split == "val":
            return None
        rule = "no such folder, which has a folder of images for each class"
        raise DatasetNotFoundError(f"{self.root.absolute() / split}: {rule}. Set data.root.")


def _check_classes(root: Path, folders: list[Path]) -> None:
    """Refuse folders that are hardly classes: splits, or data sets of their own."""
    splits = {name for names in FOLDERS.values() for name in names}
    named = [folder.name for folder in folders if folder.name.lower() in splits]
    remedy = f"Put the folders of the classes to train on into {root / 'train'}"
    if named:
        rule = f"{named[0]} is named like a split, and no folder like the training split"
        raise DataError(f"{root}: {rule}. {remedy}.")
    if folders and all(_is_nested(folder) for folder in folders):
        rule = f"{folders[0].name} and all folders beside it hold folders and no image"
        raise DataError(f"{root}: {rule}. Set data.root to one of them, or p{remedy[1:]}.")


def _is_nested(folder: Path) -> bool:
    return not any(map(is_loose, map(Path, entries(folder)))) and bool(folders_in(folder))
