"""Metrics of what is rebuilt of images.

Shapes: B batch, M codes, S size of a codebook.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class Means(Metric):
    """Means of what is told of samples, by name.

    Args:
        names: Of the columns, of which a stage may lack the last ones.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        zeros = torch.zeros(2, len(names), dtype=torch.float64)
        self.add_state("total", zeros[0], dist_reduce_fx="sum")
        self.add_state("count", zeros[1], dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch of shape (B, columns)."""
        self.total[: preds.shape[1]] += preds.double().sum(0)
        self.count[: preds.shape[1]] += len(preds)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each column that there was."""
        means = (self.total / self.count).float()
        pairs = zip(self.names, means, self.count, strict=True)
        return {name: mean for name, mean, count in pairs if count}


class PeakSignalToNoise(Metric):
    """Peak signal-to-noise ratio in decibels, of the mean squared error of all images."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add the mean squared errors of a batch, (B,), where the whole range is 1."""
        self.total += target.double().sum()
        self.count += len(target)

    def compute(self) -> Tensor:
        """Return the ratio."""
        return -10 * (self.total / self.count).log10().float()


class CodeUsage(Metric):
    """How many codes are in use: their share, and their perplexity.

    Args:
        size: Number S of codes.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count codes of any shape."""
        self.counts += torch.bincount(preds.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """Return the share of codes in use, their perplexity, and how often each was, (S,)."""
        share = self.counts / self.counts.sum()
        entropy = -torch.special.xlogy(share, share).sum()
        used = (self.counts > 0).float().mean()
        return {"usage": used, "perplexity": entropy.exp(), "code_counts": self.counts}
