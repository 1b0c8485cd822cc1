"""The linear probe is the multinomial regression of scikit-learn, chosen by validation alone."""

import pytest
import torch
from torch import Tensor

from lit_foundry.training.probing.linear import L2, fit, linear_probe


def samples(count: int, seed: int, width: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=random)
    features = torch.randn(count, width, generator=random)
    features[:, :3] += 1.5 * torch.eye(3)[label]
    return features * torch.logspace(-3, 3, width) + 5, label


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-5])
def test_probabilities_are_those_of_scikit_learn(l2: float) -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    train, (queries, _) = samples(150, 0), samples(40, 1)
    probe = linear_probe(train, samples(50, 2), [l2])
    mean, std = train[0].double().mean(0), train[0].double().std(0, correction=0)
    theirs = sklearn.LogisticRegression(C=1 / (l2 * 150), tol=1e-10, max_iter=10_000)
    theirs.fit(((train[0].double() - mean) / std).numpy(), train[1].numpy())
    expected = theirs.predict_proba(((queries.double() - mean) / std).numpy())
    assert probe.logits(queries).softmax(1).numpy() == pytest.approx(expected, abs=1e-5)


def test_gradient_vanishes_where_the_fit_ends() -> None:
    features, label = samples(80, 0)
    features = (features.double() - features.mean(0)) / features.std(0)
    weight, bias = fit(features, label, 1e-3, torch.zeros(3, 6).double(), torch.zeros(3).double())
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, label)
    (loss + 5e-4 * weight.square().sum()).backward()
    for parameter in (weight, bias):
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 1e-6


def test_scales_and_constants_do_not_matter() -> None:
    train, val = samples(100, 0), samples(60, 1)
    probe = linear_probe(train, val)
    scale = torch.logspace(2, -2, 6)
    wide = [
        (torch.cat((f * scale + 3, torch.full((len(f), 1), 0.1)), 1), y) for f, y in (train, val)
    ]
    other = linear_probe(*wide)
    assert other.val == probe.val
    assert torch.allclose(other.logits(wide[1][0]), probe.logits(val[0]), atol=1e-2)


def test_validation_chooses_the_strength_and_the_stronger_of_equals() -> None:
    random = torch.Generator().manual_seed(0)
    train, val = samples(30, 0, width=40), samples(400, 1, width=40)
    noise = torch.randn(30, 40, generator=random)
    train = train[0] + noise * torch.logspace(-3, 3, 40), train[1]
    shares = {l2: linear_probe(train, val, [l2]).val for l2 in L2}
    best = max(shares.values())
    probe = linear_probe(train, val)
    assert probe.val == best > min(shares.values())
    assert probe.l2 == max(l2 for l2, share in shares.items() if share == best)


def test_a_class_that_validation_alone_has_is_told_wrong() -> None:
    train, (features, label) = samples(50, 0), samples(20, 1)
    label[0] = 3
    assert linear_probe(train, (features, label)).val < 1


def test_features_that_are_not_finite_are_refused() -> None:
    train, val = samples(50, 0), samples(20, 1)
    val[0][4, 2] = torch.nan
    with pytest.raises(ValueError, match="of the split val are not finite, the first is number 4"):
        linear_probe(train, val)
