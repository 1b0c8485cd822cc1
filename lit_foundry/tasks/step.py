"""What a task yields of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

Stage = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class Step:
    """What one batch yields for an objective.

    Attributes:
        loss: Scalar to minimize.
        count: Number (or weight) of the terms that ``loss`` averages. Losses and gradients of an
            optimizer step are averaged over the terms of all its micro-batches and ranks.
        preds: What the metrics score, None to score nothing.
        target: What ``preds`` is scored against.
        samples: What the record of an evaluation keeps of each sample, by column of shape
            (B, ...), with ``index``, its row in the split. Of the names, ``prob`` (B, C), ``value``
            (B,) or (B, K) and ``tag`` (B, T), each with its ``target``, have a meaning to reports;
            any other column is a number of each sample, (B,).
    """

    loss: Tensor
    count: Tensor | int
    preds: Tensor | None = None
    target: Tensor | None = None
    samples: Mapping[str, Tensor] = field(default_factory=dict)
