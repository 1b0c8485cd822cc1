"""Classes by a linear function of features that stay as they are: multinomial logistic regression.

Shapes: N samples, D feature width, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_foundry.training.probing.encoder import check_finite

L2 = tuple(10.0**power for power in range(2, -7, -1))  # the strongest first
STEPS = 1000  # of L-BFGS, at most


@dataclass(frozen=True)
class LinearProbe:
    """A linear function of standardized features.

    Attributes:
        mean: Of the training features, shape (D,).
        std: Their standard deviation, 1 where they are constant, shape (D,).
        weight: Shape (C, D).
        bias: Shape (C,).
        l2: Strength of the penalty that validation chose.
        val: Share of the validation samples that it tells right.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    l2: float
    val: float

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits of (N, D) features, shape (N, C) float64."""
        return F.linear((features.double() - self.mean) / self.std, self.weight, self.bias)


def linear_probe(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], l2: Sequence[float] = L2
) -> LinearProbe:
    """Fit the weights to training samples for each strength, and keep those that validate best.

    Of equals, the strongest penalty is taken. Each fit starts from that of the next stronger one.

    Args:
        train: Features (N, D) and classes (N,).
        val: The same of the validation split.
        l2: Strengths to choose from.

    Raises:
        ValueError: If features are not finite.
    """
    for split, (features, _) in {"train": train, "val": val}.items():
        check_finite(features, f"the split {split}")
    features, label = train[0].double(), train[1]
    mean, std = features.mean(0), features.std(0, correction=0)
    # Of a constant, rounding leaves a trace, which would become as large as any other feature.
    std = torch.where(std > 1e-8 * features.abs().amax(0), std, 1.0)
    features = (features - mean) / std
    num_classes = 1 + int(max(label.max(), val[1].max()))
    weight, bias = features.new_zeros(num_classes, len(mean)), features.new_zeros(num_classes)
    best: LinearProbe | None = None
    for strength in sorted(l2, reverse=True):
        weight, bias = fit(features, label, strength, weight, bias)
        probe = LinearProbe(mean, std, weight, bias, strength, 0.0)
        share = float((probe.logits(val[0]).argmax(1) == val[1]).double().mean())
        if best is None or share > best.val:
            best = LinearProbe(mean, std, weight, bias, strength, share)
    assert best is not None
    return best


@torch.enable_grad()
def fit(
    features: Tensor, label: Tensor, l2: float, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimize the mean cross-entropy plus l2 / 2 times the squared norm of the weights.

    The minimum is unique, but for a constant that all biases may share; L-BFGS with a line search
    finds it (scikit-learn has the same at C = 1 / (l2 N)).

    Args:
        features: Shape (N, D), float64.
        label: Classes, shape (N,).
        l2: Strength of the penalty, above 0.
        weight: Where to begin, shape (C, D).
        bias: Likewise, shape (C,).

    Returns:
        Weight and bias.
    """
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=STEPS,
        max_eval=2 * STEPS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), label)
        loss = loss + l2 / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
