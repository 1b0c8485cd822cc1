"""The loss of classifiers, against torch and the papers' formulas."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_foundry.nn.classification_loss import classification_loss, shares

WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.5])


def sample(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (9, 4), classes (9,) and probabilities (9, 4)."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(9, 4, generator=generator, dtype=dtype)
    label = torch.randint(4, (9,), generator=generator)
    return logits, label, torch.rand(9, 4, generator=generator, dtype=dtype).softmax(-1)


@pytest.mark.parametrize(("weights", "smoothing"), [*product([None, WEIGHTS], [0.0, 0.1])])
def test_of_classes_it_is_the_cross_entropy_of_torch(
    weights: Tensor | None, smoothing: float
) -> None:
    logits, label, _ = sample(torch.float32)
    loss, count = classification_loss(logits, label, weights, smoothing)
    assert torch.allclose(loss, F.cross_entropy(logits, label, weights, label_smoothing=smoothing))
    assert float(count) == pytest.approx(9 if weights is None else float(weights[label].sum()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_of_probabilities_it_is_the_cross_entropy_of_torch(smoothing: float) -> None:
    logits, _, probs = sample()
    loss, count = classification_loss(logits, probs, smoothing=smoothing)
    assert torch.allclose(loss, F.cross_entropy(logits, probs, label_smoothing=smoothing))
    assert count == 9
    # With weights torch divides by the samples: the sums are the same.
    loss, weight = classification_loss(logits, probs, WEIGHTS.double(), smoothing)
    theirs = F.cross_entropy(logits, probs, WEIGHTS.double(), label_smoothing=smoothing)
    assert torch.allclose(loss * weight, theirs * 9)
    assert float(weight) == pytest.approx(float((probs * WEIGHTS).sum()))


@pytest.mark.parametrize(
    ("weights", "smoothing", "gamma"), [*product([None, WEIGHTS.double()], [0.0, 0.1], [0.0, 2.0])]
)
def test_one_class_is_the_same_as_an_index_and_as_probabilities(
    weights: Tensor | None, smoothing: float, gamma: float
) -> None:
    logits, label, _ = sample()
    hard = classification_loss(logits, label, weights, smoothing, gamma)
    soft = classification_loss(logits, F.one_hot(label, 4).double(), weights, smoothing, gamma)
    assert torch.allclose(hard[0], soft[0])
    assert float(hard[1]) == pytest.approx(float(soft[1]))


@pytest.mark.parametrize(
    ("weights", "gamma"), [*product([None, WEIGHTS.double()], [0.5, 1.0, 2.0])]
)
def test_focal_loss_follows_its_formula(weights: Tensor | None, gamma: float) -> None:
    logits, label, _ = sample()
    p = logits.softmax(-1)[range(9), label]
    alpha = torch.ones(9).double() if weights is None else weights[label]
    want = (alpha * (1 - p) ** gamma * -p.log()).sum() / alpha.sum()
    loss, count = classification_loss(logits, label, weights, gamma=gamma)
    assert torch.allclose(loss, want)
    assert float(count) == pytest.approx(float(alpha.sum()))


def test_focal_loss_of_smoothed_mixtures_is_the_sum_over_their_classes() -> None:
    logits, _, probs = sample()
    p, q = logits.softmax(-1), 0.9 * probs + 0.1 / 4
    want = (WEIGHTS * q * (1 - p) ** 2 * -p.log()).sum() / (WEIGHTS * probs).sum()
    assert torch.allclose(classification_loss(logits, probs, WEIGHTS.double(), 0.1, 2.0)[0], want)


def test_nearly_no_focus_is_nearly_the_cross_entropy() -> None:
    logits, label, probs = sample()
    for target, smoothing in product((label, probs), (0.0, 0.1)):
        focal, plain = (
            classification_loss(logits, target, WEIGHTS.double(), smoothing, gamma)[0]
            for gamma in (1e-9, 0.0)
        )
        assert torch.allclose(focal, plain)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_probabilities_are_0_or_1(gamma: float, dtype: Any) -> None:
    logits = torch.tensor([[500.0, 0.0, -500.0]] * 3, dtype=dtype, requires_grad=True)
    loss, _ = classification_loss(logits, torch.tensor([0, 1, 2]), smoothing=0.1, gamma=gamma)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_classes_without_weight_add_nothing() -> None:
    logits, _, _ = sample()
    for gamma in (0.0, 2.0):
        target, weights = torch.zeros(9).long(), torch.tensor([0.0, 1.0, 1.0, 1.0]).double()
        loss, count = classification_loss(logits, target, weights, gamma=gamma)
        assert (float(loss), float(count)) == (0.0, 0.0)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_unknown_classes_add_nothing_whatever_form_targets_have(gamma: float) -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    label, weights = torch.tensor([0, -100, 2, -100]), torch.tensor([1.0, 2.0, 3.0])
    for chosen in (None, weights):
        found = [
            classification_loss(logits, target, chosen, 0.1, gamma)
            for target in (label, shares(label, 3))
        ]
        known = classification_loss(logits[::2], label[::2], chosen, 0.1, gamma)
        totals = [float(loss * count) for loss, count in (*found, known)]
        assert totals == pytest.approx([totals[0]] * 3, rel=1e-5)
