"""Images of one size, taken a batch at a time.

Shapes: B batch, N images, H height, W width, C channels.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_foundry.data.batch import ImageBatch
from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.rows import DataError
from lit_foundry.data.image.decoding import BadImageError, Form
from lit_foundry.data.samplers import EpochRows
from lit_foundry.data.target import Encoded, label_tensor

Transform = Callable[[Tensor], Tensor]  # (C, H, W) uint8 to the same shape and type


class Pixels(Protocol):
    """Where decoded images come from: an array (N, H, W, C), or files."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, H, W, C)."""

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """Return some images, shape (B, H, W, C)."""


class Streamed:
    """Images that are decoded each time they are asked for.

    Args:
        table: Where they are.
        form: What they become.
        shape: Shape (H, W, C) that all of them must have then.
    """

    def __init__(self, table: ImageTable, form: Form, shape: tuple[int, int, int]) -> None:
        self.table, self.form = table, form
        self.shape = len(table), *shape

    def __getitem__(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, row in zip(images, rows, strict=True):
            try:
                pixels = self.form.pixels(self.table.images[row])
            except BadImageError as error:
                raise bad(self.table, row, str(error)) from None
            if pixels.shape != place.shape:
                raise wrong_size(self.table, row, pixels.shape, place.shape)
            place[:] = pixels
        return images


class ImageDataset(torch.utils.data.Dataset[ImageBatch]):
    """One split of images.

    Args:
        pixels: All images, and maybe others.
        rows: Which of these belong to the split, in its order, shape (N,).
        labels: Label of each of them, shape (N, ...), None if unknown.
        transform: What becomes of each image; a random one draws from torch's generator, which
            is seeded with (seed, epoch, row) before, and with the draw where rows are drawn again.
    """

    def __init__(
        self,
        pixels: Pixels,
        rows: NDArray[np.int64],
        labels: Encoded | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.pixels, self.rows, self.labels = pixels, rows, labels
        self.transform = transform
        self.lengths = np.ones(len(rows), np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Sequence[int]) -> ImageBatch:
        index = np.asarray(rows, np.int64)
        images = torch.from_numpy(self.pixels[self.rows[index]]).permute(0, 3, 1, 2)
        if self.transform is not None:
            images = transformed(images, rows, self.transform)
        batch: ImageBatch = {"pixel_values": images, "index": torch.from_numpy(index)}
        if isinstance(self.labels, np.ndarray):
            batch["label"] = label_tensor(self.labels, index)
        if isinstance(rows, EpochRows) and rows.draws is not None:
            batch["draw"] = torch.tensor(rows.draws)
        return batch


def transformed(images: Tensor, rows: Sequence[int], transform: Transform) -> Tensor:
    """Transform each of (B, C, H, W) images, as a function of seed, epoch, row and draw alone."""
    rows = rows if isinstance(rows, EpochRows) else EpochRows(rows, 0, 0)
    draws = [()] * len(rows) if rows.draws is None else [(draw,) for draw in rows.draws]
    generator, results = torch.default_generator, torch.empty_like(images)
    before = generator.get_state()
    try:
        for image, result, row, draw in zip(images, results, rows, draws, strict=True):
            entropy = [rows.seed, rows.epoch, row, *draw]
            key = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
            generator.manual_seed(int(key[0]))
            new = transform(image)
            if new.shape != image.shape or new.dtype != image.dtype:
                raise DataError(
                    f"data.transform turns {tuple(image.shape)} uint8 into {tuple(new.shape)} "
                    f"{str(new.dtype).removeprefix('torch.')}: it must keep both; set data.size "
                    "for another size, and leave the scaling to the network."
                )
            result.copy_(new)
    finally:
        generator.set_state(before)
    return results


def bad(table: ImageTable, row: int, reason: str) -> DataError:
    """Return the error of an image that cannot be decoded."""
    remedy = "Mend or remove it, or set data.bad_images to how many may be skipped."
    return DataError(f"{table.name(row)}: {reason}. {remedy}")


def wrong_size(
    table: ImageTable, row: int, found: tuple[int, ...], wanted: tuple[int, ...]
) -> DataError:
    """Return the error of the first image that has another size than those before it."""
    sizes = [f"{shape[1]}x{shape[0]}" for shape in (found, wanted)]
    return DataError(
        f"{table.name(row)}: {sizes[0]} pixels (width x height), where others have {sizes[1]}. "
        "Set data.size to the edge that all images are fitted to."
    )
