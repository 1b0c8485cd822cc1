"""Images in folders named after their classes, or in any."""

from pathlib import Path
from typing import Any, Literal

from lit_foundry.data.files.folders import entries
from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.image_tables import (
    folders_in,
    is_loose,
    read_class_folders,
    read_images,
)
from lit_foundry.data.files.rows import DataError, DatasetNotFoundError
from lit_foundry.data.image.labelled import ImageData
from lit_foundry.data.targets import target_of

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
        target: ``class``, named by folders; or ``none``, which takes the images at any depth.
        options: Further arguments of :class:`ImageData`.
    """

    def __init__(
        self, root: str, target: Literal["class", "none"] = "class", **options: Any
    ) -> None:
        super().__init__(**options)
        self.root, self.target = Path(root).expanduser(), target_of(target, "label")

    def read(self, split: Literal["train", "val", "test"]) -> ImageTable | None:
        """Read the folder of a split."""
        folders = folders_in(self.root) if self.root.is_dir() else []
        found = [folder for folder in folders if folder.name.lower() in FOLDERS[split]]
        if len(found) > 1:
            names = " and ".join(folder.name for folder in found)
            raise DataError(f"{self.root}: {names} are both the {split} split. Rename one of them.")
        if found:
            return self._read(found[0])
        if split == "train":
            _check_classes(self.root, folders, self.target_kind != "none")
            return self._read(self.root)
        if split == "val":
            return None
        rule = "no such folder" + ", which has a folder of images for each class" * (
            self.target_kind != "none"
        )
        raise DatasetNotFoundError(f"{self.root.absolute() / split}: {rule}. Set data.root.")

    def _read(self, folder: Path) -> ImageTable:
        if self.target_kind == "none":
            return read_images(str(folder), self.image_column, None, self.cache)
        return read_class_folders(folder, self.cache)


def _check_classes(root: Path, folders: list[Path], classes: bool) -> None:
    """Refuse folders that are hardly to be trained on: other splits, or sets of their own."""
    splits = {name for names in FOLDERS.values() for name in names}
    named = [folder.name for folder in folders if folder.name.lower() in splits]
    what = "folders of the classes" if classes else "images"
    remedy = f"Put the {what} to train on into {root / 'train'}"
    if named:
        rule = f"{named[0]} is named like a split, and no folder like the training split"
        raise DataError(f"{root}: {rule}. {remedy}.")
    if classes and folders and all(_is_nested(folder) for folder in folders):
        rule = f"{folders[0].name} and all folders beside it hold folders and no image"
        raise DataError(f"{root}: {rule}. Set data.root to one of them, or p{remedy[1:]}.")


def _is_nested(folder: Path) -> bool:
    return not any(map(is_loose, map(Path, entries(folder)))) and bool(folders_in(folder))
