"""Both CIFAR sets, from any of their published layouts.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np

from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.image_tables import read_image_hub, read_image_table
from lit_foundry.data.files.rows import DataError, DatasetNotFoundError


@dataclass(frozen=True)
class Layout:
    """How a set is published.

    Attributes:
        title: What messages call it.
        names: Its classes, in the official order.
        folder: What the archive of pickles unpacks to.
        batches: Files of each split in it.
        key: Field of the classes in these.
        column: Column of the classes in parquet files.
        hub: Its name on the hub.
        config: Folder of the parquet files there.
    """

    title: str
    names: tuple[str, ...]
    folder: str
    batches: dict[str, tuple[str, ...]]
    key: str
    column: str
    hub: str
    config: str


def read_cifar(
    root: str, split: Literal["train", "test"], layout: Layout, cache: Path | None = None
) -> ImageTable:
    """Read a split, with the official names of the classes whatever it comes from.

    Args:
        root: The unpacked archive of Python pickles, or the folder that it lies in; a folder with
            ``{split}.parquet`` or its shards ``{split}-*.parquet``; or the name on the hub.
        split: Which part.
        layout: How it is published.
        cache: Folder for the digests of files.

    Raises:
        DatasetNotFoundError: If ``root`` is on this machine and has no such files.
        DataError: If a file is malformed, or has a label that is none of the classes.
    """
    ways = (
        f"Set data.root to the unpacked {layout.folder} or the folder that holds it, to a folder "
        f"with {split}.parquet or {split}-*.parquet, or to a hub name such as {layout.hub}."
    )
    folder, batches = Path(root).expanduser(), layout.batches[split]
    for place in (folder, folder / layout.folder):
        if any((place / name).is_file() for name in batches):
            return _read_pickles([place / name for name in batches], layout)
    for place in (folder, folder / layout.config):
        for pattern in (f"{split}.parquet", f"{split}-*.parquet"):
            if any(place.glob(pattern)):
                table = read_image_table(place / pattern, "img", layout.column, cache=cache)
                return _named(table, layout)
    if folder.exists() or folder.is_absolute() or root.startswith((".", "~")):
        rule = f"no {split} split of {layout.title} here"
        raise DatasetNotFoundError(f"{folder.absolute()}: {rule}. {ways}")
    return _named(read_image_hub(root, split, "img", layout.column, remedy=ways), layout)


def _named(table: ImageTable, layout: Layout) -> ImageTable:
    numbers = {str(number): name for number, name in enumerate(layout.names)}
    labels = [numbers.get(label, label) for label in table.labels or ()]
    known = set(layout.names)
    for row, label in enumerate(labels):
        if label not in known:
            rule = f"label {label!r}, where {layout.title} has 0 to {len(known) - 1} or their names"
            raise DataError(f"{table.source}, row {row + 1}: {rule}. Check data.root.")
    return replace(table, labels=labels)


def _read_pickles(files: Sequence[Path], layout: Layout) -> ImageTable:
    pixels = []
    labels: list[str] = []
    ids: list[str] = []
    for file in files:
        batch = _unpickled(file)
        data, numbers = (batch.get(key.encode()) for key in ("data", layout.key))
        if not (
            isinstance(data, np.ndarray)
            and data.dtype == np.uint8
            and data.shape[1:] == (3072,)
            and isinstance(numbers, list)
            and len(numbers) == len(data)
        ):
            raise _damaged(file, f"no 'data' (N, 3072) of uint8 with N {layout.key!r}")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += map(str, numbers)
        names = batch.get(b"filenames") or range(len(ids), len(ids) + len(data))
        ids += [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names]
    source = str(files[0].parent if len(files) > 1 else files[0])
    return _named(ImageTable(np.concatenate(pixels), labels, ids, source), layout)


def _damaged(file: Path, rule: str) -> DataError:
    return DataError(f"{file}: damaged ({rule}). Unpack the archive again.")


def _unpickled(file: Path) -> dict[bytes, Any]:
    if not file.is_file():
        raise DatasetNotFoundError(f"{file}: no such file. Unpack the archive again.")
    try:
        batch = _Arrays(io.BytesIO(file.read_bytes()), encoding="bytes").load()
    except Exception as error:  # damaged pickles raise whatever their bytes happen to mean
        raise _damaged(file, f"no pickle of arrays: {shorten(str(error), 100)}") from None
    if not isinstance(batch, dict):
        raise _damaged(file, f"a {type(batch).__name__} and not a dictionary")
    return {k.encode() if isinstance(k, str) else k: v for k, v in batch.items()}


class _Arrays(pickle.Unpickler):
    """Loads arrays and plain data, and runs nothing that a file may name."""

    allowed = frozenset({"_reconstruct", "ndarray", "dtype", "encode", "_frombuffer"})

    def find_class(self, module: str, name: str) -> Any:
        if name in self.allowed and module.split(".")[0] in ("numpy", "_codecs"):
            # Where numpy 2 has what numpy 1 had in numpy.core.
            return getattr(import_module(module.replace("numpy.core", "numpy._core")), name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")
