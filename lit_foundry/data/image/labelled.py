"""Labelled images: files in, batches of uint8 pixels of one size out."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_foundry.data.base import Split
from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.rows import DataError
from lit_foundry.data.image.dataset import ImageDataset
from lit_foundry.data.image.decoded import DecodedImages
from lit_foundry.data.image.decoding import Fit, Mode
from lit_foundry.data.labelled import LabelledData
from lit_foundry.data.labels import in_order

THUMBNAIL = 96  # pixels of the longer edge


class ImageData(LabelledData[ImageTable], DecodedImages):
    """Images of one size with a target. A subclass implements :meth:`read`.

    A sample is what a file holds, decoded and fitted to a size. What is random and heavy (crops,
    flips, colours, normalization) happens later, on the device, in whole batches.

    Args:
        size: Edge in pixels that images are fitted to; None takes files as they are, which then
            have to agree.
        fit: ``crop`` makes the shorter edge this long and takes the centre; ``squash`` keeps all
            of the image and not its shape. Both are bicubic and antialiased.
        mode: RGB, or L for shades of grey; other images are converted.
        val_fraction: Share of the training split that validates, the same in each class, where
            the dataset has no validation split.
        max_train_samples: Samples that are trained on, each class by its share, of what validation
            leaves of the training split; None takes all.
        split_seed: Seed of both draws; they depend on the bytes of the files and on nothing else,
            so that copies of a file fall on the same side.
        classes: Classes to keep, in the order of the network's outputs; None keeps all.
        predict: What ``predict`` reads: a folder, an image, a list of paths (.txt, or ``-`` for
            standard input), or a table (.csv, .tsv, .jsonl, .parquet).
        cache: Whether decoded pixels are kept in a memory-mapped file, else they are decoded each
            time; None keeps them up to 4 GB a split.
        bad_images: How many images of a split that cannot be decoded are skipped; ``skipped`` and
            a file in the cache list them.
        transform: What a training image (C, H, W) uint8 goes through: ``class_path`` and
            ``init_args``, such as ``torchvision.transforms.v2.RandAugment``, or a callable. Its
            draws from torch's generator are a function of seed, epoch and sample.
        batch_size: Samples of one optimizer step, over all devices; 32 if None.
        micro_batch: Most samples that one device takes at once.
        balanced: Draw every class equally often in training, with replacement.
        transfer: Images without labels that are trained on too, by tasks that learn from a
            teacher; in any form that ``predict`` reads.
        num_workers: Loader processes per device; 0 suffices where pixels are kept decoded.
        cache_dir: Folder for decoded pixels; by default ``$LIT_FOUNDRY_CACHE`` or
            ``~/.cache/lit_foundry``.
    """

    def __init__(
        self,
        size: int | None = None,
        fit: Fit = "crop",
        mode: Mode = "RGB",
        val_fraction: float = 0.1,
        max_train_samples: int | None = None,
        split_seed: int = 0,
        classes: list[str] | None = None,
        predict: str | None = None,
        cache: bool | None = None,
        bad_images: int = 0,
        transform: dict[str, Any] | None = None,
        batch_size: int | None = None,
        micro_batch: int | None = None,
        balanced: bool = False,
        num_workers: int = 0,
        cache_dir: Path | None = None,
        transfer: str | None = None,
    ) -> None:
        super().__init__(
            (size, fit, mode),
            predict,
            cache,
            bad_images,
            transform,
            cache_dir,
            batch_size=batch_size,
            micro_batch=micro_batch,
            balanced=balanced,
            num_workers=num_workers,
        )
        if classes is not None and len(set(classes)) != len(classes):
            raise ValueError(f"data.classes must name each class once, got {classes}.")
        self.set_splits(val_fraction, max_train_samples, split_seed, transfer)
        self.classes = self._labels = classes

    @abstractmethod
    def read(self, split: Literal["train", "val", "test"]) -> ImageTable | None:
        """Read a split as the files hold it; None if the dataset has no validation split."""

    def as_read(self, split: Split) -> ImageTable | None:
        """Read the chosen classes of a split, or the images to predict on."""
        if split == "predict":
            return self._predict_table()
        table = self.read(split)
        return table if table is None or self.classes is None else self._of_classes(table, split)

    def _of_classes(self, table: ImageTable, split: str) -> ImageTable:
        labels, classes = table.labels or (), self.classes or ()
        if self.target_kind != "class":
            raise ValueError(f"data.classes={classes} needs data.target=class: leave it out.")
        if split == "train" and (missing := [name for name in classes if name not in {*labels}]):
            raise DataError(
                f"data.classes: {table.source} has no class {missing[0]!r}. Choose among "
                f"{in_order(labels)}."
            )
        return table.take([row for row, label in enumerate(labels) if label in classes])

    def _good(self, source: Split) -> NDArray[np.int64]:
        """Return which rows of a split as read can be decoded."""
        rows = super()._good(source)
        if not self.bad_images:
            return rows  # else the first bad one is an error
        return np.delete(rows, [skipped.row for skipped in self.decoded(source).skipped])

    @property
    def facts(self) -> Mapping[str, int]:
        """Classes or values, channels, and the edge of the images if they are square."""
        return {**self.target_facts(), **super().facts}

    def state(self) -> dict[str, Any]:
        """Return label names and what images become."""
        form = {"fit": self.form.fit, "mode": self.form.mode, "shape": list(self.shape)}
        return {"labels": self.labels, "size": super().facts.get("image_size"), **form}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Use the label names of a checkpoint, and make of images what its network was fed."""
        self._labels = list(state["labels"])
        form = {name: state[name] for name in ("size", "fit", "mode")}
        self.form = replace(self.form, **form)
        self.__dict__.pop("shape", None)
        if shape := state.get("shape"):  # which size alone does not say of what is not square
            self.shape = tuple(shape)

    def cuts(self) -> dict[str, Any]:
        """Return what else decides which rows a micro-batch holds, and what becomes of them."""
        names = "val_fraction", "max_train_samples", "split_seed", "transfer", "bad_images"
        form = {f"data.{k}": getattr(self.form, k) for k in ("size", "fit", "mode")}
        return {f"data.{name}": getattr(self, name) for name in names} | form

    def describe(self, split: Split, rows: Sequence[int]) -> Mapping[str, Sequence[Any]]:
        """Return ids, such as paths, and rows of some images."""
        table = self.table(split)
        return {"id": [table.id(row) for row in rows], "row": list(rows)}

    def images(self, split: Split, rows: Sequence[int]) -> NDArray[np.uint8]:
        """Return the pixels of some images, shape (B, H, W, C), as batches hold them."""
        dataset = self.load(split)
        return dataset.pixels[dataset.rows[list(rows)]]

    def thumbnail(self, split: Split, row: int) -> Image.Image:
        """Return an image for a page, of at most 96 pixels an edge."""
        [pixels] = self.images(split, [row])
        image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        return image

    def load(self, split: Split) -> ImageDataset:
        """Open a split, decoded."""
        labels = self.encoded(split)
        source, rows = self._rows[split]
        transform = self.transform if split == "train" else None
        return ImageDataset(self.decoded(source).pixels, rows, labels, transform)
