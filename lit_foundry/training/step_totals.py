"""The losses of the micro-batches that make up one optimizer step.

Shapes: K objectives.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class StepTotals:
    """Sums the losses and counts of one step's micro-batches, without waiting for the device.

    Attributes:
        skipped: Steps of this process that changed nothing.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._parts: list[tuple[list[Tensor], Tensor | None]] = []

    def clear(self) -> None:
        """Begin the next step."""
        self._parts.clear()

    def add(
        self, totals: Sequence[Tensor], counts: Sequence[Tensor | int], rows: Tensor | None
    ) -> None:
        """Add a micro-batch.

        Args:
            totals: Summed loss of each objective.
            counts: What each sums over.
            rows: Those of its samples.
        """
        numbers: list[Tensor] = []
        for total, count in zip(totals, counts, strict=True):
            weight = torch.zeros_like(total, dtype=torch.float32) + count
            numbers += total.detach().float(), weight
        # A copy: what a loader's worker yields holds a file open.
        self._parts.append((numbers, None if rows is None else rows.clone()))

    def reduce(self, trainer: Trainer) -> Tensor:
        """Return the summed losses and the counts of the step, over all ranks; (K, 2)."""
        numbers = torch.stack([number for part in self._parts for number in part[0]])
        sums = numbers.view(len(self._parts), -1, 2).sum(0)
        reduced: Tensor = trainer.strategy.reduce(sums, reduce_op="sum")
        return reduced

    def skip(self, sums: Tensor, epoch: int, step: int) -> None:
        """Warn of a step that is skipped, naming this rank's samples that may have caused it."""
        self.skipped += 1
        why = "Loss or gradient is not finite"
        if not sums[:, 1].any():
            why = "No sample has anything to learn from"
        elif self.is_finite and not sums[:, 0].sum().isfinite():
            return  # another rank is to blame, and names its own
        warnings.warn(
            f"{why} in epoch {epoch}, step {step}; the step is skipped. "
            f"Training rows of the micro-batches: {self.suspects() or 'unknown'}.",
            stacklevel=3,
        )

    def demand_a_step(self, steps: int) -> None:
        """Raise ValueError if all ``steps`` of the run were skipped."""
        if steps and self.skipped == steps:
            raise ValueError(
                f"All {steps} steps were skipped, as loss or gradients were not finite or there "
                "was nothing to learn from. Look at the rows named above; lower model.optim.lr, or "
                "set trainer.precision to 32-true."
            )

    def suspects(self) -> list[int]:
        """Return the rows of the micro-batches whose loss is not finite, else all rows."""
        bad = [part for part in self._parts if not _is_finite(part[0])]
        rows: list[Any] = [part[1].tolist() for part in bad or self._parts if part[1] is not None]
        return [row for part in rows for row in part]

    @property
    def is_finite(self) -> bool:
        """Whether all losses of this rank are."""
        return all(_is_finite(numbers) for numbers, _ in self._parts)


def _is_finite(numbers: Sequence[Tensor]) -> bool:
    return all(bool(number.isfinite()) for number in numbers)
