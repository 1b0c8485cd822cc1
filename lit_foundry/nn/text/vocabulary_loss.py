"""Losses that torch lacks.

Shapes: N predictions, E width of the last layer, V vocabulary.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lit_foundry.nn.text.masking import IGNORED

# Of the float32 logits of a chunk, by device: large enough for its matrix kernels.
CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**29}
# Ids that the fast kernels of a device want a multiple of; made up with some that cannot be.
MULTIPLE = {"cpu": 1, "cuda": 64}


def _scored(
    logits: Tensor, bias: Tensor | None, goal: Tensor, gradient: torch.dtype | None
) -> tuple[Tensor, Tensor, Any, Any]:
    """Score the logits of a chunk, which are lost.

    Returns:
        Loss, most probable ids, and the gradients of bias and logits, the latter in the type that
        is asked for, if any.
    """
    logits = logits.float()
    if bias is not None:
        logits += bias
    highest, preds = logits.max(-1)
    valid, index = (goal != IGNORED)[:, None], goal.clamp(min=0)[:, None]
    logits -= highest[:, None]
    score = logits.gather(1, index)
    norm = logits.exp_().sum(-1, keepdim=True)
    loss = torch.where(valid, norm.log() - score, 0.0).sum()
    if gradient is None:
        return loss, preds, None, None
    logits *= valid / norm  # probabilities, in their place, minus the target
    if torch.compiler.is_compiling():  # one pass for all
        ids = torch.arange(logits.shape[1], device=logits.device)
        logits = logits - ((ids == index) & valid).float()
    else:
        logits.scatter_add_(1, index, -valid.float())
    by_id = None if bias is None else logits.sum(0)
    return loss, preds, by_id, logits.to(gradient)


@cache
def _compiled() -> Any:
    """Return :func:`_scored` with fewer passes over the logits.

    On a CPU, where matrix products take most of the time, it gains nothing.
    """
    return torch.compile(_scored, dynamic=True)


class _LinearCrossEntropy(torch.autograd.Function):
    """Takes the gradient of each chunk while its logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, small = hidden.to(dtype), weight.to(dtype)
        else:
            small = weight.to(hidden.dtype)
        kind, num_ids = hidden.device.type, len(weight)
        if spare := -num_ids % MULTIPLE.get(kind, 1):
            small = F.pad(small, (0, 0, 0, spare))
            bias = None if bias is None else F.pad(bias, (0, spare))
        score = _compiled() if compiled and hidden.is_cuda else _scored
        total = torch.zeros((), device=hidden.device)
        preds = torch.empty_like(target)
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(small, dtype=torch.float32) if wanted[1] else None
        grad_bias = torch.zeros(len(small), device=weight.device) if wanted[2] else None
        rows = max(1, CHUNK_BYTES.get(kind, CHUNK_BYTES["cpu"]) // (4 * len(small)))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = F.linear(hidden[part], small)
            logits[:, num_ids:] = -torch.inf
            gradient = small.dtype if any(wanted) else None
            loss, preds[part], by_id, grad = score(logits, bias, target[part], gradient)
            total += loss
            if grad_bias is not None:
                grad_bias += by_id
            if grad_hidden is not None:
                torch.mm(grad, small, out=grad_hidden[part])
            if grad_weight is not None:
                if grad.dtype == torch.float32:
                    grad_weight.addmm_(grad.T, hidden[part])
                else:
                    grad_weight += grad.T @ hidden[part]
        own = (None if grad is None else grad[:num_ids] for grad in (grad_weight, grad_bias))
        ctx.grads = grad_hidden, *own
        ctx.mark_non_differentiable(preds)
        return total, preds

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        if ctx.grads is None:
            raise RuntimeError("linear_cross_entropy keeps its gradients for one backward pass.")
        grads, ctx.grads = ctx.grads, None
        return *(None if grad is None else grad.mul_(outputs[0]) for grad in grads), None, None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy of a linear layer's logits, which are never held at once.

    Equal to ``F.cross_entropy(F.linear(hidden, weight, bias), target, reduction="sum")``. Torch's
    own, since 2.13, does not tell the predictions.

    Args:
        hidden: Input of the layer, shape (N, E).
        weight: Shape (V, E).
        bias: Shape (V,), if any.
        target: Ids, shape (N,); -100 is left out.
        compiled: Compile what a GPU does with the logits: a few seconds more at the start.

    Returns:
        The sum, a float32 scalar, and the most probable ids, shape (N,).
    """
    if not torch.is_grad_enabled():  # of which a function of its own is not told
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    total, preds = _LinearCrossEntropy.apply(hidden, weight, bias, target, compiled)
    return total, preds
