"""Gradients of a loss that compares all samples of an optimizer step with each other.

A micro-batch has seen none of the others, so it cannot be differentiated when it has run. Its
embeddings are kept instead; once all are there, those of all ranks too, the loss tells the gradient
of each embedding, and the micro-batches run again to hand it on.

Shapes: V views, B batch, n samples of this rank's step, N of all ranks', P width of what is
compared.

Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.
    https://arxiv.org/abs/2101.06983
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from lit_foundry.training.objectives import reduce_ourselves, sync_buffers
from lit_foundry.training.running_statistics import RunningStatistics

Embed = Callable[[Mapping[str, Any]], Tensor]  # from a micro-batch to (V, B, P), always the same
Compare = Callable[[Tensor], Tensor]  # from (V, N, P) to the loss of each sample, (N,)


class WholeStep:
    """Collects the micro-batches of a step, and differentiates them once they are all there."""

    def __init__(self) -> None:
        self._parts: list[tuple[Mapping[str, Any], Tensor]] = []
        self._gradients: Sequence[Tensor] = ()

    def begin(self, trainer: Trainer) -> None:
        """Make ready for a run.

        Raises:
            ValueError: If it cannot be trained so.
        """
        self.clear()
        if trainer.precision == "16-mixed":
            raise ValueError(
                "trainer.precision=16-mixed scales a loss, and here gradients are those of "
                "embeddings: take bf16-mixed or 32-true."
            )
        reduce_ourselves(trainer)

    def clear(self) -> None:
        """Begin a step."""
        self._parts, self._gradients = [], ()

    def add(self, batch: Mapping[str, Any], embed: Embed, trainer: Trainer) -> bool:
        """Run a micro-batch; tell whether it was the last of the step."""
        alone = trainer.accumulate_grad_batches == 1
        with torch.set_grad_enabled(alone):  # which need not run again
            self._parts.append((batch, embed(batch)))
        # A limit of batches may end an epoch, and with it a step, before.
        return len(self._parts) == trainer.accumulate_grad_batches or trainer.is_last_batch

    def compare(self, loss: Compare, trainer: Trainer) -> Tensor:
        """Return the loss of each sample of this rank, (n,).

        Kept are the gradients of the sum over all ranks.
        """
        mine = torch.cat([part.detach() for _, part in self._parts], 1).float().requires_grad_()
        before, everything = gathered(mine, trainer)
        with torch.enable_grad():
            losses = loss(everything)
            [gradient] = torch.autograd.grad(losses.sum(), mine)
        self._gradients = torch.split(gradient, [part.shape[1] for _, part in self._parts], 1)
        return losses.detach()[before : before + mine.shape[1]]

    def backward(self, module: nn.Module, embed: Embed, trainer: Trainer) -> None:
        """Make the gradients of the sum, over all ranks, those of the parameters.

        They are divided by the number of micro-batches and ranks, as Lightning would.
        """
        if not self._gradients:
            return
        parameters = [p for p in module.parameters() if p.requires_grad]
        sums: list[Tensor | None] = [None] * len(parameters)
        statistics = RunningStatistics(module)
        statistics.keep()
        for (batch, part), gradient in zip(self._parts, self._gradients, strict=True):
            if not part.requires_grad:
                with trainer.precision_plugin.train_step_context():
                    part = embed(batch)
            made = torch.autograd.grad(part, parameters, gradient.to(part.dtype), allow_unused=True)
            sums = [_sum(*pair) for pair in zip(sums, made, strict=True)]
        if not self._parts[0][1].requires_grad:  # else each has run once
            statistics.restore()
        scale = 1 / (trainer.accumulate_grad_batches * trainer.world_size)
        for p, total in zip(parameters, sums, strict=True):
            if total is not None:
                p.grad = trainer.strategy.reduce(total, reduce_op="sum") * scale
        sync_buffers(trainer)
        self.clear()


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def gathered(mine: Tensor, trainer: Trainer) -> tuple[int, Tensor]:
    """Join the embeddings of all ranks, of which only this one's are differentiated.

    Args:
        mine: Shape (V, n, P); ranks may have different n.
        trainer: Trains on some ranks.

    Returns:
        How many samples come before this rank's, and those of all, (V, N, P).
    """
    if trainer.world_size == 1:
        return 0, mine
    count = torch.tensor([mine.shape[1]], device=mine.device)
    counts: list[int] = trainer.strategy.all_gather(count).flatten().tolist()
    room = max(counts) - mine.shape[1]
    padded = torch.nn.functional.pad(mine.detach(), (0, 0, 0, room)).contiguous()
    pieces = list(trainer.strategy.all_gather(padded).unbind(0))
    pieces = [piece[:, :n] for piece, n in zip(pieces, counts, strict=True)]
    pieces[trainer.global_rank] = mine
    return sum(counts[: trainer.global_rank]), torch.cat(pieces, 1)
