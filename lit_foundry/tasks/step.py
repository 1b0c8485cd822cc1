"""What a task yields of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Stage = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch yields.

    Attributes:
        loss: Scalar to minimize.
        count: Number (or weight) of the terms that ``loss`` averages. Losses and gradients of an
            optimizer step are averaged over the terms of all its micro-batches and ranks.
        preds: What the metrics score, None to score nothing.
        target: What ``preds`` is scored against.
        probs: Probability of each class, shape (B, C), where ``target`` is a class of each sample
            of the batch, shape (B,): what the record of an evaluation keeps.
    """

    loss: Tensor
    count: Tensor | int
    preds: Tensor | None = None
    target: Tensor | None = None
    probs: Tensor | None = None

    def of_samples(self, batch: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Return what callbacks keep of each sample; None where a step classifies no samples."""
        if self.probs is None or self.target is None:
            return None
        return {"index": batch["index"], "prob": self.probs, "target": self.target}
