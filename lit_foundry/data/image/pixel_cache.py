"""Decoded images of a whole split in one memory-mapped file, made once.

Shapes: N images, H height, W width, C channels.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm.auto import tqdm

from lit_foundry.atomic import replacing
from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.rows import DataError
from lit_foundry.data.image.dataset import Pixels, Streamed, bad, wrong_size
from lit_foundry.data.image.decoding import BadImageError, Form

FORMAT = 2  # of the files, and of how pixels are made
CHUNK = 2**22  # bytes of pixels that a thread decodes at once
TOLD = 3  # bad images that messages name; skipped.json has all


class Skipped(NamedTuple):
    """An image that could not be decoded."""

    row: int  # in its split as read, from 0
    path: str  # file, or file and row
    reason: str


@dataclass(frozen=True)
class Images:
    """All images of a table.

    Attributes:
        pixels: Those of each row; what a skipped row holds means nothing.
        skipped: Images that could not be decoded.
        record: File that lists them.
    """

    pixels: Pixels
    skipped: Sequence[Skipped] = ()
    record: Path | None = None


@dataclass(frozen=True)
class Decoding:
    """What is to be decoded.

    Attributes:
        table: Images.
        form: What they become.
        shape: Shape (H, W, C) that all of them must have then.
        budget: How many may be skipped.
        name: What the progress bar calls them.
    """

    table: ImageTable
    form: Form
    shape: tuple[int, int, int]
    budget: int = 0
    name: str = "images"


def decode(job: Decoding, folder: Path, keep: bool) -> Images:
    """Decode images into ``folder``, or open what an earlier call left there.

    Args:
        job: What to decode.
        folder: Named after everything that the result depends on.
        keep: Whether pixels are written; else images are only found good or bad.
    """
    if not _is_whole(folder):  # one that is may lie on a read-only disk
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # other processes wait instead of doing the same
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                _write(job, folder, keep)
    record = folder / "skipped.json"
    found = json.loads(record.read_text(encoding="utf-8"))
    # Paths of the images as they lie now: equal ones elsewhere share the cache.
    skipped = [Skipped(row, job.table.name(row), reason) for row, _, reason in found]
    check_budget(skipped, job)
    if not keep:
        return Images(Streamed(job.table, job.form, job.shape), skipped, record)
    shape = len(job.table), *job.shape
    pixels = np.memmap(folder / "pixels.bin", np.uint8, "r", shape=shape)
    return Images(np.asarray(pixels), skipped, record)


def check_budget(skipped: Sequence[Skipped], job: Decoding) -> None:
    """Raise DataError if more images are bad than may be skipped."""
    if len(skipped) <= job.budget:
        return
    if not job.budget:
        raise bad(job.table, skipped[0].row, skipped[0].reason)
    raise DataError(
        f"{job.table.source}: more than data.bad_images={job.budget} cannot be decoded: "
        f"{told(skipped)}. Mend or remove them, or raise data.bad_images."
    )


def told(skipped: Sequence[Skipped]) -> str:
    """Name the first few bad images."""
    more = f"; and {len(skipped) - TOLD} more" if len(skipped) > TOLD else ""
    return "; ".join(f"{path} ({reason})" for _, path, reason in skipped[:TOLD]) + more


def _is_whole(folder: Path) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in meta["sizes"]}
        return bool(meta["format"] == FORMAT and meta["sizes"] == sizes)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(job: Decoding, folder: Path, keep: bool) -> None:
    with replacing(folder) as partial:
        partial.mkdir()
        skipped: list[Skipped] = []
        bar = tqdm(None, f"Decoding {job.name}", len(job.table), unit=" images", disable=None)
        with bar, (partial / "pixels.bin").open("wb") as file:
            for pixels, failed in _chunks(job):
                skipped += failed
                check_budget(skipped, job)
                if keep:
                    file.write(pixels.data)
                bar.update(len(pixels))
        (partial / "skipped.json").write_text(json.dumps(skipped, indent=1), encoding="utf-8")
        names = "pixels.bin", "skipped.json"
        sizes = {name: (partial / name).stat().st_size for name in names}
        meta = json.dumps({"format": FORMAT, "sizes": sizes})
        (partial / "meta.json").write_text(meta, encoding="utf-8")


def _chunks(job: Decoding) -> Iterator[tuple[NDArray[np.uint8], list[Skipped]]]:
    """Yield pixels (n, H, W, C) in order; PIL lets go of Python's lock while it decodes."""
    size = max(1, min(256, CHUNK // int(np.prod(job.shape))))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    waiting: deque[Future[Any]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for start in range(0, len(job.table), size):
            rows = range(start, min(start + size, len(job.table)))
            waiting.append(pool.submit(_decoded, job, rows))
            if len(waiting) > 2 * (threads or 1):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(job: Decoding, rows: range) -> tuple[NDArray[np.uint8], list[Skipped]]:
    pixels, failed = np.zeros((len(rows), *job.shape), np.uint8), []
    for place, row in zip(pixels, rows, strict=True):
        try:
            image = job.form.pixels(job.table.images[row])
        except BadImageError as error:
            failed.append(Skipped(row, job.table.name(row), str(error)))
            continue
        if image.shape != job.shape:
            raise wrong_size(job.table, row, image.shape, job.shape)
        place[:] = image
    return pixels, failed
