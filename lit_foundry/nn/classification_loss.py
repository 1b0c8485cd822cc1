"""The loss of classifiers.

Shapes: B batch, C classes.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

TINY = 1e-12  # where 1 - p is 0, its fractional powers have no gradient


def classification_loss(
    logits: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
    gamma: float = 0.0,
) -> tuple[Tensor, Tensor | int]:
    """Average the cross-entropy, or the focal loss, over the samples.

    With p the probabilities and q the target, smoothed, a sample adds

        sum_c weights_c q_c (1 - p_c)^gamma (-log p_c)

    and counts with the weight of its target before smoothing, as in ``F.cross_entropy``, which
    gives the same for class indices. For probabilities that one divides by the number of samples
    whatever their weights; here a target of one class is the same in both forms.

    Args:
        logits: Shape (B, C).
        target: Classes, shape (B,), -100 of samples that are unknown and add nothing; or
            probabilities of each, shape (B, C).
        weights: Weight of each class, shape (C,).
        smoothing: Share of the target that is spread over all classes.
        gamma: Focus on hard samples; 0 is the cross-entropy.

    Returns:
        The mean, and the weight of the samples that it averages: their number without ``weights``.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017.
        https://arxiv.org/abs/1708.02002 (here with softmax, and for targets of several classes)
    """
    if gamma:
        total = _focal_terms(logits, target, smoothing, gamma)
        total = (total if weights is None else total * weights).sum()
    else:
        learnt = target
        if smoothing and target.ndim == 2:  # torch would give rows without a class one
            learnt = target * (1 - smoothing) + smoothing * target.sum(1, True) / logits.shape[1]
            smoothing = 0.0
        options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": "sum"}
        total = F.cross_entropy(logits, learnt, weights, **options)
    if weights is None:
        return total / len(target), len(target)
    count = ((shares(target, len(weights)) if target.ndim == 1 else target) * weights).sum()
    return total / count.clamp(min=TINY), count


def shares(target: Tensor, num_classes: int) -> Tensor:
    """Return (B, C) probabilities of known classes (B,), and none where that is -100."""
    return F.one_hot(target.clamp(min=0), num_classes).float() * (target >= 0).unsqueeze(1)


def _focal_terms(logits: Tensor, target: Tensor, smoothing: float, gamma: float) -> Tensor:
    """Return what each class adds for each sample, shape (B, C)."""
    probs = shares(target, logits.shape[1]).to(logits.dtype) if target.ndim == 1 else target
    smoothed = probs * (1 - smoothing) + smoothing * probs.sum(1, True) / logits.shape[1]
    log_probs = logits.log_softmax(-1)
    others = -log_probs.expm1()  # 1 - p, exact where p is nearly 1
    return -smoothed * others.clamp(min=TINY) ** gamma * log_probs
