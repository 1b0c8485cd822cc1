"""The order of samples as a pure function of seed and epoch, in batches of similar length."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from lit_foundry.randomness import philox

Ints = NDArray[np.int64]

# Samples whose lengths round up to the same multiple trade places from epoch to epoch. Larger
# mixes more and pads more: 8 pads 1.2 % of IMDb at 512 tokens and 8,192 a batch.
LENGTH_STEP = 8


class EpochRows(list[int]):
    """Rows of a micro-batch that know their epoch, in worker processes too.

    Args:
        rows: Rows of a split.
        seed: Seed of the run.
        epoch: Number of the epoch.
        draws: How often each row was drawn before in the epoch; None where each is drawn once.
    """

    def __init__(
        self, rows: Iterable[int], seed: int, epoch: int, draws: Sequence[int] | None = None
    ) -> None:
        super().__init__(rows)
        self.seed, self.epoch, self.draws = seed, epoch, draws


# A DistributedSampler by type only: Lightning replaces any other under several devices.
class LengthGroupedBatches(DistributedSampler[list[int]]):
    """Yields the rows of each micro-batch of one rank.

    Samples are sorted by length, cut into micro-batches, and these are shuffled: one by one
    under a token budget, as whole steps where samples are counted. The cuts are the same in
    every epoch and only their contents change, so that each epoch has equally many steps. A
    step consists of ``accumulate`` micro-batches on each rank; every sample is seen
    exactly once per epoch, on any number of ranks; balanced, as many are drawn as there are.

    Args:
        lengths: Tokens of each sample, shape (N,).
        batch_size: Samples of one optimizer step, over all ranks.
        batch_tokens: Tokens of one optimizer step, padding included, over all ranks; replaces
            ``batch_size``.
        micro_batch: Most samples (or tokens) that one device takes at once.
        rank: This process among ``world_size``.
        world_size: Number of processes that share the samples.
        shuffle: Draw a new order each epoch; else longest first, so that a batch that does not
            fit into memory fails at once.
        seed: Seed of the order.
        epoch: First epoch to iterate.
        start: Micro-batches of that epoch that were done before (resume).
        labels: Class of each sample, shape (N,): draw as many samples as there are with
            replacement, each class equally often; not under a token budget.

    Raises:
        ValueError: If the samples cannot fill a step.
    """

    def __init__(
        self,
        lengths: Ints,
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        micro_batch: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        start: int = 0,
        labels: Ints | None = None,
    ) -> None:
        self.labels = labels
        self.lengths, self.rank, self.world_size = lengths, rank, world_size
        self.shuffle, self.seed, self.epoch = shuffle, seed, epoch
        self._resumed = (epoch, start)
        self._levels: Ints = -(-np.maximum(lengths, 1) // LENGTH_STEP) * LENGTH_STEP
        self.accumulate = accumulation(batch_tokens or batch_size or 1, micro_batch, world_size)
        share = self.accumulate * world_size
        if batch_tokens is not None:
            cuts = cut_by_tokens(self._descending(), batch_tokens // share, share)
            self._unit = 1
        else:
            cuts = cut_evenly(len(lengths), batch_size or 1, share)
            # Parts differ by one sample: only as cut do they add up to at most batch_size, and
            # ranks that take equally long texts do not wait for each other.
            self._unit = share
        self.edges = cuts

    def _descending(self) -> Ints:
        """Return the rounded lengths, longest first."""
        return np.minimum(-np.sort(-self._levels), max(self.lengths.max(initial=0), 1))

    def __len__(self) -> int:
        """Return the number of micro-batches of one rank and epoch."""
        return (len(self.edges) - 1) // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that is iterated next."""
        self.epoch = epoch

    def epoch_batches(self) -> list[Ints]:
        """Return the rows of every micro-batch of this epoch, over all ranks, in order."""
        return [rows for rows, _ in self._drawn_batches()]

    def _drawn_batches(self) -> list[tuple[Ints, Ints | None]]:
        """Return these rows, and how often each was drawn before where some are drawn again."""
        rng = philox(self.seed, self.epoch)
        count = len(self.edges) - 1
        if self.shuffle:
            order = self._drawn(rng)
            units = rng.random(count // self._unit).argsort()
            place = (units[:, None] * self._unit + np.arange(self._unit)).ravel()
        else:
            order, place = np.arange(len(self.lengths)), np.arange(count)
        by_length = np.argsort(-self._levels[order], kind="stable")
        parts = [by_length[self.edges[i] : self.edges[i + 1]] for i in place]
        if self.labels is None or not self.shuffle:
            return [(order[part], None) for part in parts]
        # Counted before the cuts, which the number of ranks and the size of batches decide on.
        before = earlier(order)
        return [(order[part], before[part]) for part in parts]

    def _drawn(self, rng: np.random.Generator) -> Ints:
        """Return the rows of an epoch in random order."""
        if self.labels is not None:
            return draw_balanced(self.labels, rng)
        return rng.random(len(self.lengths)).argsort()

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of this rank's micro-batches."""
        epoch, start = self._resumed
        mine = self._drawn_batches()[self.rank :: self.world_size]
        for rows, before in mine[start if epoch == self.epoch else 0 :]:
            draws = None if before is None else before.tolist()
            yield EpochRows(rows.tolist(), self.seed, self.epoch, draws)

    @property
    def padding(self) -> float:
        """Fraction of the tokens of this epoch that are padding."""
        batches = [self.lengths[rows] for rows in self.epoch_batches()]
        padded = sum(int(batch.max()) * len(batch) for batch in batches)
        return 1 - float(self.lengths.sum()) / padded


def draw_balanced(labels: Ints, rng: np.random.Generator) -> Ints:
    """Draw as many rows as there are, with replacement, of each class equally many.

    Shares differ by one draw at most; which classes have one more is random too.

    Args:
        labels: Class of each row, shape (N,).
        rng: Source of the draws.

    Returns:
        Rows in random order, shape (N,).
    """
    names, sizes = np.unique(labels, return_counts=True)
    by_class, first = labels.argsort(kind="stable"), sizes.cumsum() - sizes
    kinds = np.arange(len(labels)) % len(names)  # in equal shares
    kinds = rng.random(len(names)).argsort()[kinds][rng.random(len(labels)).argsort()]
    rows: Ints = by_class[first[kinds] + (rng.random(len(labels)) * sizes[kinds]).astype(np.int64)]
    return rows


def earlier(rows: Ints) -> Ints:
    """Return for each entry how many equal ones come before it, shape (N,)."""
    order = rows.argsort(kind="stable")
    _, first, counts = np.unique(rows[order], return_index=True, return_counts=True)
    before = np.empty_like(rows)
    before[order] = np.arange(len(rows)) - first.repeat(counts)
    return before


def accumulation(batch: int, micro_batch: int | None, world_size: int) -> int:
    """Return the micro-batches per device and step that ``micro_batch`` asks for."""
    return 1 if micro_batch is None else max(1, -(-batch // (micro_batch * world_size)))


def cut_evenly(count: int, batch_size: int, share: int) -> Ints:
    """Cut ``count`` samples into steps of at most ``batch_size``, each into ``share`` parts.

    Returns:
        Edges of the parts, shape (parts + 1,); their sizes differ by at most one.
    """
    steps = -(-count // batch_size)
    if count < steps * share:
        raise ValueError(
            f"{count} samples cannot fill {steps} steps of {share} micro-batches; lower the number "
            "of devices, or raise data.batch_size or data.micro_batch."
        )
    return np.arange(steps * share + 1) * count // (steps * share)


def cut_by_tokens(lengths: Ints, tokens: int, share: int) -> Ints:
    """Cut samples, longest first, into parts of at most ``tokens``, padding included.

    Args:
        lengths: Descending lengths, shape (N,).
        tokens: Most tokens of a part: its number of samples times the longest.
        share: The number of parts becomes a multiple of this.

    Returns:
        Edges of the parts, shape (parts + 1,).
    """
    if len(lengths) and lengths[0] > tokens:
        raise ValueError(
            f"One micro-batch may hold {tokens} tokens, but the longest sample has {lengths[0]}; "
            "raise data.batch_tokens or data.micro_batch, or lower data.max_length."
        )
    edges = [0]
    while edges[-1] < len(lengths):
        edges.append(min(len(lengths), edges[-1] + tokens // int(lengths[edges[-1]])))
    parts = [(first - last, first) for first, last in pairwise(edges)]
    heapq.heapify(parts)
    for _ in range(-len(parts) % share):  # halve the parts that hold most samples
        size, first = heapq.heappop(parts)
        if size == -1:
            raise ValueError(
                f"{len(lengths)} samples cannot be shared by {share} micro-batches; lower the "
                "number of devices, or raise data.micro_batch."
            )
        half = -size // 2
        heapq.heappush(parts, (-half, first))
        heapq.heappush(parts, (size + half, first + half))
    return np.array([*sorted(first for _, first in parts), len(lengths)])
