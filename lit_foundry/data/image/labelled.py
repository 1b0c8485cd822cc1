"""Image classification data: files in, batches of uint8 pixels of one size out."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lit_foundry import ranges
from lit_foundry.data.base import Split
from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.rows import DataError
from lit_foundry.data.image.dataset import ImageDataset
from lit_foundry.data.image.decoded import DecodedImages
from lit_foundry.data.image.decoding import Fit, Mode
from lit_foundry.data.labels import check_carved, check_labels, in_order, sample_rows, stratified

THUMBNAIL = 96  # pixels of the longer edge


class ImageData(DecodedImages):
    """Labelled images of one size. A subclass implements :meth:`read`.

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
        own = {"val_fraction": val_fraction, "max_train_samples": max_train_samples}
        least = max_train_samples is None or max_train_samples >= 1
        rules = {
            "val_fraction": (0 < val_fraction < 1, "must lie in (0, 1)"),
            "max_train_samples": (least, "must be at least 1, or null"),
        }
        ranges.check("data", own, rules)
        if classes is not None and len(set(classes)) != len(classes):
            raise ValueError(f"data.classes must name each class once, got {classes}.")
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.max_train_samples = max_train_samples
        self.classes = self._labels = classes
        self._sources: dict[str, ImageTable] = {}
        self._tables: dict[str, ImageTable] = {}
        self._rows: dict[str, tuple[Split, NDArray[np.int64]]] = {}  # of which split as read

    val_key: ClassVar[str | None] = None  # names the file that validates, where one can

    @abstractmethod
    def read(self, split: Literal["train", "val", "test"]) -> ImageTable | None:
        """Read a split as the files hold it; None if the dataset has no validation split."""

    def source(self, split: Split) -> ImageTable | None:
        """Return the chosen classes of a split as read; None if there is no validation split."""
        if split not in self._sources:
            table = self._predict_table() if split == "predict" else self.read(split)
            if table is None:
                return None
            chosen = split != "predict" and self.classes is not None
            self._sources[split] = self._of_classes(table, split) if chosen else table
        return self._sources[split]

    def _of_classes(self, table: ImageTable, split: str) -> ImageTable:
        labels, classes = table.labels or (), self.classes or ()
        if split == "train" and (missing := [name for name in classes if name not in {*labels}]):
            raise DataError(
                f"data.classes: {table.source} has no class {missing[0]!r}. Choose among "
                f"{in_order(labels)}."
            )
        return table.take([row for row, label in enumerate(labels) if label in classes])

    def table(self, split: Split) -> ImageTable:
        """Return a split without bad images, validation carved from training if it has none.

        Raises:
            DataError: If labels are missing, unknown, or fewer than two where one can learn.
        """
        if split not in self._tables:
            if split in ("train", "val"):
                self._read_training()
            else:
                self._take(split, split, self._good(split))
        if split in ("val", "test"):
            check_labels(self._tables[split], split, self.labels, self.val_key)
        return self._tables[split]

    def _read_training(self) -> None:
        train, val = self._source("train"), self.source("val")
        check_labels(train, "train", self._labels, self.val_key)
        rows = self._good("train")
        if val is None:
            good = train.take(rows.tolist())
            held_out = stratified(good, self.val_fraction, self.split_seed)
            check_carved(good, held_out, self.val_fraction, self.val_key)
            self._take("val", "train", rows[held_out])
            rows = rows[~held_out]
        else:
            self._take("val", "val", self._good("val"))
        if self.max_train_samples is not None and self.max_train_samples < len(rows):
            rest = train.take(rows.tolist())
            rows = rows[sample_rows(rest, self.max_train_samples, self.split_seed)]
        self._take("train", "train", rows)

    def _source(self, split: Split) -> ImageTable:
        table = self.source(split)
        assert table is not None
        return table

    def _good(self, source: Split) -> NDArray[np.int64]:
        """Return which rows of a split as read can be decoded."""
        rows = np.arange(len(self._source(source)))
        if not self.bad_images:
            return rows  # else the first bad one is an error
        return np.delete(rows, [skipped.row for skipped in self.decoded(source).skipped])

    def _take(self, split: str, source: Split, rows: NDArray[np.int64]) -> None:
        table = self._source(source)
        self._rows[split] = source, rows
        self._tables[split] = table if len(rows) == len(table) else table.take(rows.tolist())

    @property
    def labels(self) -> list[str]:
        """Names of the classes, in the order of the network's outputs."""
        if self._labels is None:
            table = self._source("train")
            check_labels(table, "train", None, self.val_key)
            self._labels = in_order(table.labels or ())
        return self._labels

    @property
    def facts(self) -> Mapping[str, int]:
        """Classes, channels, and the edge of the images if they are square."""
        return {"num_classes": len(self.labels), **super().facts}

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

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of each split that was read."""
        return {split: table.fingerprint for split, table in self._tables.items()}

    def cuts(self) -> dict[str, Any]:
        """Return what else decides which rows a micro-batch holds, and what becomes of them."""
        names = "val_fraction", "max_train_samples", "split_seed", "bad_images"
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

    def prepare_data(self) -> None:
        """Decode before any network is on a device."""
        fn = getattr(self.trainer, "state", None)
        if fn is not None and fn.fn == "fit":
            self.load("train")
            self.load("val")

    def load(self, split: Split) -> ImageDataset:
        """Open a split, decoded."""
        table = self.table(split)
        source, rows = self._rows[split]
        labels = None
        if split != "predict" and table.labels is not None:
            known = {name: i for i, name in enumerate(self.labels)}
            labels = np.array([known[name] for name in table.labels])
        transform = self.transform if split == "train" else None
        return ImageDataset(self.decoded(source).pixels, rows, labels, transform)
