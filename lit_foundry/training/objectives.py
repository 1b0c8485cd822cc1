"""Gradients of several objectives, each averaged over terms of its own.

Shapes: K objectives.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class ObjectiveGradients:
    """Keeps the gradients of objectives apart until the counts of the whole step are known.

    A sum over micro-batches and ranks cannot be divided by several counts afterwards. Costs a
    backward pass and the memory of all gradients for each objective.

    Attributes:
        pending: Summed loss of each objective of the current micro-batch, not yet differentiated.
    """

    def __init__(self) -> None:
        self.pending: Sequence[Tensor] = ()
        self._sums: list[dict[nn.Parameter, Tensor]] = []
        self._parameters: Sequence[nn.Parameter] = ()

    def begin(self, trainer: Trainer, objectives: int) -> None:
        """Make ready for a run.

        Raises:
            ValueError: If it cannot train several objectives.
        """
        self.pending, self._sums = (), []
        if objectives == 1:
            return
        if trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision=16-mixed scales one loss, and this task has several objectives: "
                "take bf16-mixed or 32-true."
            )
        reduce_ourselves(trainer)

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Differentiate what is pending; a loss that depends on no parameter adds nothing."""
        self._parameters, totals = parameters, self.pending
        self._sums = self._sums or [{} for _ in totals]
        for number, (total, sums) in enumerate(zip(totals, self._sums, strict=True)):
            if not total.requires_grad:
                continue
            more = number + 1 < len(totals)
            found = torch.autograd.grad(total, parameters, retain_graph=more, allow_unused=True)
            for p, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    sums[p] = sums[p] + gradient if p in sums else gradient

    @torch.no_grad()
    def combine(self, trainer: Trainer, scales: Tensor) -> None:
        """Make their weighted sum, over all ranks, the gradient of each parameter.

        Args:
            trainer: Trains on some ranks.
            scales: Factor of each objective, shape (K,), the same on all ranks.
        """
        sums, self._sums = self._sums, []
        elsewhere = [0.0] * len(self._parameters)
        if trainer.world_size > 1:  # of which another one may have more
            here = [float(any(p in s for s in sums)) for p in self._parameters]
            has = torch.tensor(here, device=scales.device)
            elsewhere = trainer.strategy.reduce(has, reduce_op="sum").tolist()
        for p, ranks in zip(self._parameters, elsewhere, strict=True):
            parts = [s[p] * scale for s, scale in zip(sums, scales, strict=True) if p in s]
            if ranks:
                parts = [trainer.strategy.reduce(sum(parts, torch.zeros_like(p)), reduce_op="sum")]
            p.grad = torch.stack(parts).sum(0) if parts else None
        sync_buffers(trainer)


def reduce_ourselves(trainer: Trainer) -> None:
    """Have DDP reduce no gradients."""
    if isinstance(trainer.strategy.model, DistributedDataParallel):
        trainer.strategy.model.require_backward_grad_sync = False


def sync_buffers(trainer: Trainer) -> None:
    """Let ranks have the same statistics at the next pass: DDP stops where it reduces nothing."""
    if isinstance(trainer.strategy.model, DistributedDataParallel):
        trainer.strategy.model.require_forward_param_sync = True
