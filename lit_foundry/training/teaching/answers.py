"""What a teacher says of every sample, computed once.

Shapes: N samples, C classes, D feature width.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from lit_foundry import __version__
from lit_foundry.atomic import naming, replacing
from lit_foundry.datamodule import Data
from lit_foundry.nn.distillation import Outputs
from lit_foundry.sources import cache_root

TOKENS, ROWS = 8192, 64  # at most in a batch
PROBES = 64  # samples that stand for how data are turned into batches
PATIENCE = 60  # seconds without an answer from other processes
FRAMING = "truncation", "max_length", "size", "fit", "mode"  # arguments of data that shape samples
ON_DEVICE = 2**28  # bytes of a table that lies where the student learns

Answer = Callable[[Any], Outputs]  # of a batch as the data yield it


class Answers:
    """A table of a teacher's logits, and of its pooled features if these are asked for.

    It is filled before the first step, in batches that depend on the data alone: in others, numbers
    would be rounded otherwise. So a run has the same bits whether the file was there before, and
    whether there is one. A process that is killed goes on where it was.

    Args:
        samples: Split that is learned from.
        answer: The teacher.
        key: What its answers depend on beside the samples.
        folder: Where the file lies; None keeps the table in memory.
        share: Number of this process on its machine, and of all there, which share the work.
        name: What the progress bar says.
    """

    def __init__(
        self,
        samples: Any,
        answer: Answer,
        key: Sequence[str],
        folder: Path | None,
        share: tuple[int, int] = (0, 1),
        name: str = "",
    ) -> None:
        batches = list(_batches(samples.lengths))
        one = answer(samples[batches[-1][:1]])
        self.classes = one.logits.shape[1]
        shape = len(samples.lengths), _joined(one).shape[1]
        if folder is None:
            table, mine = np.full(shape, np.nan, np.float32), batches
        else:
            table = _opened(folder / _key(samples, key, shape), shape)
            mine = batches[share[0] :: share[1]]
        self._fill(table, samples, answer, mine, name)
        missing, since = None, time.monotonic()
        while left := int(np.isnan(table).any(1).sum()):  # others on this machine are at it
            if left != missing:
                missing, since = left, time.monotonic()
            elif time.monotonic() - since > PATIENCE:  # or were, and died
                self._fill(table, samples, answer, batches, name)
            time.sleep(0.5)
        self._table = torch.from_numpy(np.array(table))

    @staticmethod
    def _fill(
        table: NDArray[np.float32],
        samples: Any,
        answer: Answer,
        batches: Sequence[list[int]],
        name: str,
    ) -> None:
        missing = [rows for rows in batches if np.isnan(table[rows]).any()]
        total = sum(map(len, missing))
        hidden = None if total else True  # without a terminal too
        with tqdm(total=total, desc=name, unit=" samples", disable=hidden) as bar:
            for rows in missing:
                values = _joined(answer(samples[rows])).cpu().numpy()
                if not np.isfinite(values).all():
                    raise ValueError(f"{name} says nothing finite of samples such as {rows[0]}.")
                table[rows] = values
                bar.update(len(rows))

    def to(self, device: torch.device) -> None:
        """Move the table to a device, if it is not too large."""
        if self._table.nbytes <= ON_DEVICE:
            self._table = self._table.to(device)

    def of(self, rows: Tensor) -> Outputs:
        """Return what the teacher says of some samples."""
        found = self._table[rows.to(self._table.device)].to(rows.device)
        pooled = found[:, self.classes :]
        return Outputs(found[:, : self.classes], pooled=pooled if pooled.shape[1] else None)


def _batches(lengths: NDArray[np.int64]) -> Iterator[list[int]]:
    """Yield rows of similar lengths, the longest first: memory runs out at once, or never."""
    order = np.argsort(-lengths, kind="stable").tolist()
    start = 0
    while start < len(order):
        count = min(ROWS, max(1, TOKENS // max(int(lengths[order[start]]), 1)))
        yield order[start : start + count]
        start += count


def _joined(outputs: Outputs) -> Tensor:
    """Return rows of a table: logits, and pooled features if they are asked for."""
    parts = (outputs.logits, outputs.pooled)
    return torch.cat([part.float() for part in parts if part is not None], 1)


def _key(samples: Any, key: Sequence[str], shape: tuple[int, int]) -> str:
    """Hash what a table depends on: how samples become batches is seen on some of them."""
    total = hashlib.sha256("\0".join([*key, *map(str, shape)]).encode())
    count = len(samples.lengths)
    rows = sorted({i * count // PROBES for i in range(PROBES)})
    for name, value in sorted(samples[rows].items()):
        if isinstance(value, Tensor):
            total.update(name.encode() + value.numpy().tobytes())
    total.update(np.asarray(samples.lengths).tobytes())
    return total.hexdigest()[:24]


def _opened(folder: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Open a table, and make one first if there is none; what is missing is NaN."""
    path = folder / "answers.f32"
    size = 4 * shape[0] * shape[1]
    if path.is_file() and path.stat().st_size == size:
        table = np.memmap(path, np.float32, "r", shape=shape)
        if not np.isnan(table).any():  # one that is whole may lie on a read-only disk
            return table
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not path.is_file() or path.stat().st_size != size:
            with replacing(path) as partial:
                partial.write_bytes(np.full(shape, np.nan, np.float32).tobytes())
    with naming(path):
        return np.memmap(path, np.float32, "r+", shape=shape)


def framing(data: Data) -> list[str]:
    """Return what answers depend on of data and versions, as far as samples do not show it."""
    args = data.recipe()["init_args"]
    how = [f"{name}={args[name]}" for name in FRAMING if name in args]
    versions = torch.__version__, transformers.__version__, __version__
    return [str(data.fingerprint().get("train")), *how, *map(str, versions)]


def folder_of(place: Path | None) -> Path:
    """Return where tables lie."""
    return cache_root(place) / "teachers"
