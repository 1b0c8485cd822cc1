"""Codes in place of vectors: learnt ones (VQ), or the points of a grid (FSQ).

Shapes: M vectors, L latent width, S size of the codebook.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.recipe import Recorded


class Quantized(NamedTuple):
    """What becomes of vectors."""

    vectors: Tensor  # (M, L), with the gradient of what they were
    codes: Tensor  # (M,) int64
    loss: Tensor  # of each vector, (M,)


class Ranks(Protocol):
    """Processes that train together, as a strategy of Lightning has them; or one alone."""

    def reduce(self, tensor: Tensor, *, reduce_op: str) -> Tensor:
        """Return the sum over ranks."""

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all ranks, (ranks, ...); of one alone its own."""


class Codebook(Recorded, nn.Module, ABC):
    """From vectors to codes.

    Attributes:
        size: Number S of codes.
        dim: Width L of the vectors.
    """

    size: int
    dim: int

    @abstractmethod
    def forward(self, vectors: Tensor) -> Quantized:
        """Quantize (M, L) vectors."""

    @abstractmethod
    def vectors(self, codes: Tensor) -> Tensor:
        """Return the vectors of codes of any shape, (..., L)."""

    def remember(self, vectors: Tensor, codes: Tensor, keys: Tensor) -> None:
        """See what a training step quantized, as far as the codebook learns from it.

        Args:
            vectors: Shape (M, L), without gradient.
            codes: Shape (M,).
            keys: Random number of each vector, whatever rank has it, shape (M,) int64.
        """

    def follow(self, ranks: Ranks) -> None:
        """Learn from what was seen in an optimizer step, by all ranks."""

    def forget(self) -> None:
        """Forget what was seen: a step begins, or was skipped."""


class VectorQuantizer(Codebook):
    """The nearest of learnt vectors, which follow the mean of what they stood for.

    Codes that stand for little begin anew at vectors that were seen. Sums are taken over
    micro-batches and ranks, so that one optimizer step makes one update.

    Args:
        size: Number S of codes.
        dim: Width L.
        decay: Of the moving averages, for each step.
        commitment: Weight of the squared distance of a vector to its code.
        restart: Share of an average code's use below which a code begins anew; 0 never.

    Source: van den Oord et al., Neural Discrete Representation Learning, 2017, appendix A.1,
        https://arxiv.org/abs/1711.00937; Dhariwal et al., Jukebox, 2020,
        https://arxiv.org/abs/2005.00341 (restarts)
    """

    embedding: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        size: int = 512,
        dim: int = 64,
        decay: float = 0.95,
        commitment: float = 0.25,
        restart: float = 0.05,
    ) -> None:
        super().__init__()
        own = {k: v for k, v in locals().items() if k in ("size", "dim", "decay", "commitment")}
        rules = {
            "size": (size >= 2, "is a number of codes, 2 at least"),
            "dim": (dim >= 1, "is a width, 1 at least"),
            "decay": (0 <= decay < 1, "lies in [0, 1)"),
            "commitment": (commitment >= 0, "is 0 at least"),
            "restart": (0 <= restart < 1, "is a share, in [0, 1)"),
        }
        ranges.check("model.codebook", {**own, "restart": restart}, rules)
        self.size, self.dim, self.decay = size, dim, decay
        self.commitment, self.restart = commitment, restart
        self.register_buffer("embedding", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dim))
        self.forget()

    def _apply(self, fn: Any, recurse: bool = True) -> "VectorQuantizer":
        """Move all, and leave it in float32: averages of bf16 would stand still."""
        exact = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            made = self._buffers[name]
            if value is not None and made is not None and made.dtype != torch.float32:
                self._buffers[name] = value.to(made.device)
        return self

    def forget(self) -> None:
        """Forget what was seen."""
        self._counts: Tensor | None = None
        self._sums: Tensor | None = None
        self._seen: tuple[Tensor, Tensor] | None = None

    def vectors(self, codes: Tensor) -> Tensor:
        """Return rows of the table."""
        return F.embedding(codes, self.embedding)

    def forward(self, vectors: Tensor) -> Quantized:
        """Take the nearest code of each vector."""
        wide = vectors.float()
        codes = torch.cdist(wide.detach(), self.embedding).argmin(1)
        found = self.vectors(codes)
        loss = self.commitment * (wide - found).square().sum(1)
        return Quantized((wide + (found - wide).detach()).to(vectors.dtype), codes, loss)

    @torch.no_grad()
    def remember(self, vectors: Tensor, codes: Tensor, keys: Tensor) -> None:
        """Add to the sums; keep the vectors of the lowest keys, to begin anew with."""
        vectors = vectors.detach().float()
        counts = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, vectors)
        self._counts = counts if self._counts is None else self._counts + counts
        self._sums = sums if self._sums is None else self._sums + sums
        if self._seen is not None:
            keys, vectors = torch.cat([self._seen[0], keys]), torch.cat([self._seen[1], vectors])
        self._seen = _lowest(keys, vectors, self.size)

    @torch.no_grad()
    def follow(self, ranks: Ranks) -> None:
        """Move codes to the mean of what they stood for; begin anew those that stand for little."""
        if self._counts is None or self._sums is None or self._seen is None:
            return
        for mean, seen in ((self.counts, self._counts), (self.sums, self._sums)):
            mean.lerp_(ranks.reduce(seen, reduce_op="sum"), 1 - self.decay)
        there = (self.counts > 0)[:, None]
        means = self.sums / self.counts.clamp(min=1e-12)[:, None]
        self.embedding.copy_(torch.where(there, means, self.embedding))
        if self.restart:
            self._begin_anew(ranks)
        self.forget()

    def _begin_anew(self, ranks: Ranks) -> None:
        assert self._seen is not None
        average = self.counts.sum() / self.size
        keys, vectors = self._seen
        short = self.size - len(keys)  # ranks gather equally many
        keys = torch.cat([keys, keys.new_full((short,), torch.iinfo(keys.dtype).max)])
        vectors = torch.cat([vectors, vectors.new_full((short, self.dim), math.nan)])
        keys, vectors = _lowest(
            ranks.all_gather(keys).flatten(),
            ranks.all_gather(vectors).view(-1, self.dim),
            self.size,
        )
        vectors = vectors[~vectors[:, 0].isnan()]
        dead = (self.counts < self.restart * average).nonzero()[:, 0][: len(vectors)]
        self.embedding[dead] = vectors[: len(dead)]
        self.sums[dead] = vectors[: len(dead)] * average  # as if it were an average one
        self.counts[dead] = average


def _lowest(keys: Tensor, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    order = keys.argsort(stable=True)[:count]
    return keys[order], vectors[order]


class FiniteScalar(Codebook):
    """Each dimension is bounded and rounded to a few levels: nothing is learnt, and nothing dies.

    Args:
        levels: Number of levels of each dimension, 2 at least; their product is the number of
            codes. The paper recommends 5 at least: (8, 5, 5, 5) is 1,000 codes.

    Source: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023.
        https://arxiv.org/abs/2309.15505
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        super().__init__()
        own, good = {"levels": list(levels)}, min(levels, default=0) >= 2 and max(levels) <= 1000
        rules = {"levels": (good, "are numbers of levels, from 2 to 1000")}
        ranges.check("model.codebook", own, rules)
        self.size, self.dim = math.prod(levels), len(levels)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def forward(self, vectors: Tensor) -> Quantized:
        """Bound and round each dimension."""
        wide = vectors.float()
        half = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        bounded = torch.tanh(wide + torch.atanh(offset / half)) * half - offset
        whole = bounded.round()
        found = (bounded + (whole - bounded).detach()) / (self.levels // 2)
        codes = ((whole + self.levels // 2).long() * self.basis).sum(1)
        return Quantized(found.to(vectors.dtype), codes, torch.zeros_like(wide[:, 0]))

    def vectors(self, codes: Tensor) -> Tensor:
        """Return the points of the grid."""
        places = codes[..., None] // self.basis % self.levels
        return (places - self.levels // 2) / (self.levels // 2)
