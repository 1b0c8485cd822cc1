"""The order of packed rows as a pure function of seed and epoch, in steps that may grow."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from lit_foundry import ranges
from lit_foundry.data.samplers import accumulation
from lit_foundry.randomness import philox

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class BatchWarmup:
    """Small steps at the beginning of a run, when gradients agree; they grow linearly.

    Args:
        tokens: Tokens of the run after which steps are whole.
        start: Size of the first step, as a share of a whole one.

    Raises:
        ValueError: If a value lies outside its range.

    Source: McCandlish et al., An Empirical Model of Large-Batch Training, 2018.
        https://arxiv.org/abs/1812.06162 (the batch that pays grows as the loss falls)
    """

    tokens: int
    start: float = 0.25

    def __post_init__(self) -> None:
        rules = {
            "tokens": (self.tokens >= 1, "must be at least 1"),
            "start": (0 < self.start <= 1, "must lie in (0, 1]"),
        }
        ranges.check("data.batch_warmup", vars(self), rules)

    def rows(self, done: int, whole: int, size: int) -> int:
        """Return the rows of a step.

        Args:
            done: Rows that the run has seen before.
            whole: Rows of a whole step.
            size: Tokens of a row.
        """
        share = self.start + (1 - self.start) * done * size / self.tokens
        return min(whole, max(1, round(share * whole)))


# A DistributedSampler by type only: Lightning replaces any other under several devices.
class RowBatches(DistributedSampler[list[int]]):
    """Yields the rows of each micro-batch of one rank, with their epoch: ``epoch * R + row``.

    An epoch shuffles the R rows and cuts them into steps; a step consists of ``accumulate``
    micro-batches on each rank. The last step takes what is left, unless that is less than a row for
    each micro-batch: then it is left out.

    Args:
        num_rows: Rows R of the split.
        size: Tokens of a row.
        batch_size: Rows of one optimizer step, over all ranks.
        micro_batch: Most rows that one device takes at once.
        warmup: Lets the first steps of the run be smaller.
        limit: Micro-batches of an epoch that a rank trains on: a number, or a share of them.
        rank: This process among ``world_size``.
        world_size: Number of processes that share the rows.
        seed: Seed of the order.
        epoch: First epoch to iterate.
        start: Micro-batches of that epoch that were done before (resume).

    Raises:
        ValueError: If a step, or the smallest of the warm-up, has less than a row for each
            micro-batch.
    """

    def __init__(
        self,
        num_rows: int,
        size: int,
        batch_size: int,
        *,
        micro_batch: int | None = None,
        warmup: BatchWarmup | None = None,
        limit: int | float = 1.0,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
    ) -> None:
        self.num_rows, self.size, self.batch_size = num_rows, size, batch_size
        self.warmup, self.limit = warmup, limit
        self.rank, self.world_size = rank, world_size
        self.seed, self.epoch = seed, epoch
        self._resumed = (epoch, start)
        self.accumulate = accumulation(batch_size, micro_batch, world_size)
        self.share = self.accumulate * world_size
        smallest = warmup.rows(0, batch_size, size) if warmup else batch_size
        if min(smallest, num_rows) < self.share:
            raise ValueError(
                f"A step of {min(smallest, num_rows)} rows cannot be shared by {self.share} "
                "micro-batches: raise data.batch_size (or batch_tokens), data.micro_batch or "
                "data.batch_warmup.start, or lower the number of devices."
            )

    def steps(self, epoch: int) -> Ints:
        """Return the edges of the steps of an epoch, in rows, shape (steps + 1,)."""
        done, warmup = 0, self.warmup
        for _ in range(epoch if warmup else 0):
            if warmup and done * self.size >= warmup.tokens:
                break
            edges = self._cut(done)
            most = (len(edges) - 1) * self.accumulate
            limit = self.limit if isinstance(self.limit, int) else int(self.limit * most)
            done += int(edges[min(limit, most) // self.accumulate])
        return self._cut(done)

    def _cut(self, done: int) -> Ints:
        """Return the edges of the steps of an epoch before which the run saw ``done`` rows."""
        edges, whole = [0], self.batch_size
        while edges[-1] < self.num_rows:
            if self.warmup:
                whole = self.warmup.rows(done + edges[-1], self.batch_size, self.size)
            if whole == self.batch_size:  # so are all that follow
                edges += [*range(edges[-1] + whole, self.num_rows, whole), self.num_rows]
            else:
                edges.append(min(self.num_rows, edges[-1] + whole))
        if len(edges) > 2 and edges[-1] - edges[-2] < self.share:
            edges.pop()
        return np.array(edges)

    def __len__(self) -> int:
        """Return the number of micro-batches of one rank in the current epoch."""
        return (len(self.steps(self.epoch)) - 1) * self.accumulate

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is iterated next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of this rank's micro-batches."""
        epoch, start = self._resumed
        start = start if epoch == self.epoch else 0
        order = philox(self.seed, self.epoch).permutation(self.num_rows)
        order += self.epoch * self.num_rows
        parts = np.arange(self.share + 1)
        for first, end in pairwise(self.steps(self.epoch).tolist()):
            cuts = first + parts * (end - first) // self.share
            for part in range(self.rank, self.share, self.world_size):
                if start:
                    start -= 1
                else:
                    yield order[cuts[part] : cuts[part + 1]].tolist()
