"""What all image data share: decoding to one form, kept or each time, and raw inputs.

Shapes: B batch, N images, H height, W width, C channels.
"""

import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lit_foundry.data.base import DataModule, Split
from lit_foundry.data.batch import ImageBatch
from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.image_tables import read_images
from lit_foundry.data.files.raw_inputs import image_rows
from lit_foundry.data.files.rows import DataError
from lit_foundry.data.image.dataset import ImageDataset, Streamed, bad
from lit_foundry.data.image.decoding import BadImageError, Fit, Form, Mode
from lit_foundry.data.image.pixel_cache import FORMAT, Decoding, Images, Skipped, decode, told
from lit_foundry.data.image.transform import built, plain_spec
from lit_foundry.sources import cache_root

CACHE_BYTES = 4 * 10**9  # pixels of a split up to which they are kept decoded
INFERENCE = 64  # images at once


class DecodedImages(DataModule):
    """Images of one form. A subclass implements :meth:`source`.

    Args:
        form: What images become.
        predict: What ``predict`` reads.
        cache: Whether decoded pixels are kept; None keeps them up to 4 GB a split.
        bad_images: How many images of a split that cannot be decoded are skipped.
        transform: What a training image goes through.
        cache_dir: Folder for decoded pixels.
        batches: Sizes of steps, as in :class:`DataModule`.

    Attributes:
        skipped: Images of each split as read that could not be decoded.
    """

    batch_type: ClassVar[type] = ImageBatch
    batch_fields: ClassVar[list[str]] = ["pixel_values"]  # what a network may read
    image_column: str = "image"  # what predict reads from files with columns
    id_column: str | None = None

    def __init__(
        self,
        form: tuple[int | None, Fit, Mode],
        predict: str | None,
        cache: bool | None,
        bad_images: int,
        transform: Any,
        cache_dir: Path | None,
        **batches: Any,
    ) -> None:
        super().__init__(**batches)
        self.form = Form(*form)
        if self.form.size is not None and self.form.size < 1:
            raise ValueError(f"data.size must be at least 1 pixel, got {self.form.size}.")
        if bad_images < 0:
            raise ValueError(f"data.bad_images must be at least 0, got {bad_images}.")
        self.predict, self.keep, self.bad_images = predict, cache, bad_images
        self.transform = None if transform is None else built(transform)
        self.cache = cache_root(cache_dir)
        self.skipped: dict[str, Sequence[Skipped]] = {}
        self._images: dict[str, Images] = {}

    @abstractmethod
    def source(self, split: Split) -> ImageTable | None:
        """Return a split as read; None if there is no validation split."""

    def recipe(self) -> dict[str, Any]:
        """Return the recipe; a transform that was given as a callable is not part of it."""
        args = self.__dict__["_init_args"]
        args["transform"] = plain_spec(args.get("transform"))
        return super().recipe()

    def _predict_table(self) -> ImageTable:
        if self.predict is None:
            raise ValueError("predict needs images: set --input to a folder, a list or a table.")
        return self.unlabelled_table(self.predict)

    def unlabelled_table(self, source: str) -> ImageTable:
        """Read images without labels."""
        return read_images(source, self.image_column, self.id_column, self.cache)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of all images; unless ``size`` says it, that of the first to train on."""
        if (size := self.form.size) is not None:
            return size, size, self.form.channels
        return self._first_shape(_present(self.source("train")))

    def _first_shape(self, table: ImageTable) -> tuple[int, int, int]:
        images, skipped = table.images, 0
        for row in range(len(table)):
            try:
                height, width, channels = self.form.pixels(images[row]).shape
            except BadImageError as error:
                skipped += 1
                if skipped > self.bad_images:
                    raise bad(table, row, str(error)) from None
                continue
            return height, width, channels
        raise DataError(f"{table.source}: no image that can be decoded. Mend the files.")

    @property
    def facts(self) -> Mapping[str, int]:
        """Channels, and the edge of the images if they are square."""
        height, width, _ = self.shape
        edge = {"image_size": height} if height == width else {}
        return {"in_channels": self.form.channels, **edge}

    def decoded(self, split: Split) -> Images:
        """Return all images of a split as read, from the cache or decoded now if they fit there."""
        if split not in self._images:
            self._images[split] = images = self._decode(split)
            if images.skipped:
                self.skipped[split] = images.skipped
                warnings.warn(
                    f"{len(images.skipped)} of {images.pixels.shape[0]} {split} images are skipped"
                    f": {told(images.skipped)}. See {images.record}.",
                    stacklevel=2,
                )
        return self._images[split]

    def _decode(self, split: Split) -> Images:
        table, shape = _present(self.source(split)), self.shape
        pixels = table.images
        if isinstance(pixels, np.ndarray):
            pixels = pixels.reshape(*pixels.shape[:3], -1)
            if self.form.holds(pixels.shape):
                return Images(pixels)
        keep = self.keep
        if keep is None:
            keep = len(table) * int(np.prod(shape)) <= CACHE_BYTES
        if not keep and not self.bad_images:
            return Images(Streamed(table, self.form, shape))
        job = Decoding(table, self.form, shape, self.bad_images, f"{split} images")
        return decode(job, self._folder(split, keep), keep)

    def _folder(self, split: Split, keep: bool) -> Path:
        form = self.form
        parts = (_present(self.source(split)).content, form, self.shape, keep, FORMAT)
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        return self.cache / "images" / key[:24]

    def batches(
        self, inputs: Sequence[Any], batch_tokens: int | None = None
    ) -> Iterator[ImageBatch]:
        """Yield images in batches, in their order.

        Args:
            inputs: Paths, images of PIL, or arrays (H, W) or (H, W, C) of uint8.
            batch_tokens: Taken for the sake of texts, and ignored.

        Raises:
            DataError: If one cannot be decoded, or has another size and none is set.
        """
        items = [Path(i).expanduser() if isinstance(i, str | Path) else i for i in inputs]
        table = ImageTable(items, source="input")
        for item in items:
            if isinstance(item, Path) and not item.is_file():
                raise DataError(f"{item}: no such file. Correct the path of this input.")
        dataset = ImageDataset(Streamed(table, self.form, self.shape), np.arange(len(items)))
        for start in range(0, len(items), INFERENCE):
            yield dataset[range(start, min(start + INFERENCE, len(items)))]

    def rows(self, inputs: Any) -> Sequence[Any]:
        """Return images one by one."""
        return image_rows(inputs, self.image_column)

    def caveat(self, format: str) -> str | None:
        """Tell what pipelines of transformers make of other files."""
        if format != "hf":
            return None
        if self.form.channels == 1:
            return "pipelines of transformers take colours; lit_foundry.load takes these greys"
        return (
            "of greys of 16 bit, transformers makes white what exceeds 255, where predict scales "
            "them"
        )


def _present(table: ImageTable | None) -> ImageTable:
    assert table is not None
    return table
