"""Metrics that torchmetrics lacks."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score

from lit_foundry.nn.text.masking import IGNORED


class TokenAccuracy(Metric):
    """Share of the predicted tokens that are right, where -100 is left out.

    That of torchmetrics selects what counts, and thereby waits for the device in every step.
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count ids of any shape."""
        self.correct += (preds == target).sum()
        self.total += (target != IGNORED).sum()

    def compute(self) -> Tensor:
        """Return the share."""
        return self.correct / self.total.clamp(min=1)


class PositiveF1(MulticlassF1Score):
    """F1 of the second of two classes, the positive one."""

    def __init__(self) -> None:
        super().__init__(num_classes=2, average="none", validate_args=False)

    def compute(self) -> Tensor:
        """Return the score."""
        positive: Tensor = super().compute()[1]
        return positive
