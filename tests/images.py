"""Tiny images and datasets of them in published layouts."""

import pickle
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from lit_foundry.nn.features import Features
from lit_foundry.nn.image.backbone import ImageBackbone

NAMES = ("cat", "dog")


def noise(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> NDArray[np.uint8]:
    """Make random pixels, different ones for each seed."""
    shape = (height, width, channels)[: 2 if channels == 1 else 3]
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(pixels: NDArray[np.uint8], format: str = "PNG") -> bytes:
    """Encode pixels as the content of a file, without loss unless it is JPEG."""
    buffer = BytesIO()
    options: dict[str, Any] = {"lossless": True} if format == "WEBP" else {}
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def write_class_folders(root: Path, count: int, seed: int = 0, **shape: int) -> Path:
    """Write ``count`` images ``root/{cat,dog}/*``, in turn, as PNG and WebP."""
    for i in range(count):
        folder = root / NAMES[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        suffix = ("png", "webp")[i % 3 == 0]
        data = encoded(noise(seed + i, **shape), suffix.upper())
        (folder / f"{i:03}.{suffix}").write_bytes(data)
    return root


def write_kinds(root: Path) -> list[Path]:
    """Write a photo larger than others, and small images of odd sizes and of every kind."""
    root.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(noise(1, 37, 53))
    exif = small.getexif()
    exif[0x0112] = 6
    key = {"transparency": 40}
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "photo.jpg": (Image.fromarray(noise(0, 15, 20)).resize((1003, 751)), {}),
        "turned.jpg": (small, {"exif": exif}),
        "grey.jpg": (small.convert("L"), {}),
        "ink.jpg": (small.convert("CMYK"), {}),
        "odd.png": (Image.fromarray(noise(2, 33, 34)), {}),
        "tall.png": (Image.fromarray(noise(3, 50, 7)), {}),
        "palette.png": (small.convert("P"), {}),
        "palette_key.png": (small.convert("P"), key),
        "palette_alpha.png": (small.convert("P"), {"transparency": bytes(range(256))}),
        "grey_key.png": (small.convert("L"), key),
        "alpha.png": (Image.fromarray(noise(4, 41, 35, 4)), {}),
        "grey_alpha.png": (Image.fromarray(noise(4, 41, 35, 4)).convert("LA"), {}),
        "bits.png": (small.convert("1"), {}),
        "key.gif": (small.convert("P"), key),
        "small.webp": (Image.fromarray(noise(5, 9, 11)), {}),
    }
    for name, (image, options) in kinds.items():
        image.save(root / name, **options)
    return [root / name for name in kinds]


def rows(count: int, seed: int = 0, names: Sequence[str] = NAMES) -> list[dict[str, Any]]:
    """Make rows of images and class numbers, as the hub has them."""
    return [
        {"image": {"bytes": encoded(noise(seed + i)), "path": None}, "label": i % len(names)}
        for i in range(count)
    ]


def write_parquet(
    path: Path, records: Sequence[dict[str, Any]], image: str = "image", label: str = "label"
) -> Path:
    """Write rows as a parquet file."""
    renamed = [{image: record["image"], label: record["label"]} for record in records]
    pq.write_table(pa.Table.from_pylist(renamed), path, row_group_size=7)
    return path


def write_cifar(root: Path, fine: bool = False, each: int = 20) -> Path:
    """Write the pickles of CIFAR-10 or CIFAR-100, of ``each`` images a file."""
    folder = root / ("cifar-100-python" if fine else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    numbered = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(["train", "test"] if fine else numbered):
        labels = [(seed + i) % (100 if fine else 10) for i in range(each)]
        batch = {
            b"data": np.random.default_rng(seed).integers(0, 256, (each, 3072), np.uint8),
            b"fine_labels" if fine else b"labels": labels,
            b"filenames": [f"{name}_{i}.png".encode() for i in range(each)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


class Patches(ImageBackbone):
    """Looks at patches of 4x4 pixels, and is trained in a second."""

    def __init__(self, in_channels: int | None = None, image_size: int | None = None) -> None:
        super().__init__(in_channels or 3, (0.5,), (0.25,), image_size)
        self.dim = 32
        self.stem = nn.Conv2d(self.in_channels, self.dim, 4, 4)

    def features(self, images: Tensor) -> Features:
        """Compute features of normalized images."""
        tokens = self.stem(images).relu().flatten(2).mT
        return Features(tokens, tokens.mean(1))

    def blocks(self) -> list[nn.Module]:
        """Return the only layer."""
        return [self.stem]
