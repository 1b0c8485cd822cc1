"""Likelihoods, divergences and bounds against torch.distributions and their definitions."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Normal,
    SigmoidTransform,
    TransformedDistribution,
    Uniform,
    kl_divergence,
)
from torch.distributions import Bernoulli as TorchBernoulli

from lit_foundry.nn.likelihoods import (
    Bernoulli,
    DiscretizedLogistic,
    Gaussian,
    Likelihood,
    discretized_logistic_log_prob,
    gaussian_log_prob,
    importance_bound,
    kl_to_standard_normal,
)

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def logistic(mean: float, scale: float) -> TransformedDistribution:
    uniform = Uniform(torch.tensor(0.0, dtype=torch.float64), 1.0)
    shape = ComposeTransform([SigmoidTransform().inv, AffineTransform(mean, scale)])
    return TransformedDistribution(uniform, shape)


@pytest.mark.parametrize(("mean", "scale"), [(0.1, 0.2), (-0.9, 0.05), (0.3, 2.0)])
def test_discretized_logistic_has_what_the_logistic_has_of_each_level(
    mean: float, scale: float
) -> None:
    pair = torch.tensor([mean, scale], dtype=torch.float64)
    found = discretized_logistic_log_prob(LEVELS, pair[0], pair[1].log()).exp()
    edges = (LEVELS[:-1] + LEVELS[1:]) / 2
    below = logistic(mean, scale).cdf(edges)
    ends = torch.cat([torch.zeros(1), below, torch.ones(1)])
    torch.testing.assert_close(found, ends.diff(), rtol=1e-9, atol=1e-12)
    assert found.sum() == pytest.approx(1, abs=1e-12)


def test_discretized_logistic_is_finite_far_from_its_mean() -> None:
    logits = torch.tensor(-7.0, requires_grad=True)
    found = discretized_logistic_log_prob(LEVELS.float(), torch.tensor(0.9), logits)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert found.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite()


def test_gaussian_and_divergence_are_those_of_torch() -> None:
    mean, log_std, x = torch.randn(3, 5, 4).unbind()
    want = Normal(mean, log_std.exp())
    torch.testing.assert_close(gaussian_log_prob(x, mean, log_std), want.log_prob(x))
    standard = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_std), kl_divergence(want, standard))


def test_bernoulli_is_that_of_torch() -> None:
    said, images = torch.randn(2, 1, 3, 3), torch.rand(2, 1, 3, 3) * 2 - 1
    want = TorchBernoulli(logits=said, validate_args=False).log_prob((images + 1) / 2)
    torch.testing.assert_close(Bernoulli().log_prob(said, images), want)
    torch.testing.assert_close(Bernoulli().mean(said), 2 * torch.sigmoid(said) - 1)


@pytest.mark.parametrize("likelihood", [Gaussian(), Bernoulli(), DiscretizedLogistic()])
def test_outputs_are_read_as_they_are_counted(likelihood: Likelihood) -> None:
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    said = torch.randn(2, 3 * likelihood.outputs, 4, 4)
    assert likelihood.log_prob(said, images).shape == images.shape
    mean = likelihood.mean(said)
    assert mean.shape == images.shape
    assert mean.abs().max() <= 1


def bound_by_hand(weights: Tensor, samples: int) -> Tensor:
    rows = []
    for row in weights:
        groups = [row[i : i + samples] for i in range(0, len(row), samples)]
        rows.append(sum(math.log(float(g.exp().mean())) for g in groups) / len(groups))
    return torch.tensor(rows)


def test_importance_bound_is_its_definition_and_grows() -> None:
    weights = torch.randn(6, 100, dtype=torch.float64) * 3
    bounds = [importance_bound(weights, samples) for samples in (1, 10, 100)]
    for samples, found in zip((1, 10, 100), bounds, strict=True):
        torch.testing.assert_close(found.float(), bound_by_hand(weights, samples))
    assert (bounds[0] <= bounds[1]).all()
    assert (bounds[1] <= bounds[2]).all()


def test_importance_bound_reaches_a_likelihood_that_is_known() -> None:
    """Of z ~ N(0, 1), x | z ~ N(z, 1), it is that of x ~ N(0, sqrt 2)."""
    torch.manual_seed(0)
    x, zero = torch.tensor([0.7, -1.5]), torch.zeros(())
    noise = torch.randn(2, 20_000)
    latents = x[:, None] / 2 + 0.8 * noise  # not quite the posterior
    posterior = gaussian_log_prob(latents, x[:, None] / 2, torch.tensor(0.8).log())
    joint = gaussian_log_prob(x[:, None], latents, zero) + gaussian_log_prob(latents, zero, zero)
    want = Normal(0.0, math.sqrt(2)).log_prob(x)
    found = [importance_bound(joint - posterior, k) for k in (1, 10, 20_000)]
    torch.testing.assert_close(found[-1], want, atol=5e-3, rtol=0)
    assert (want - found[0] > want - found[1]).all()


def test_a_deviation_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.likelihood\.std is above 0"):
        Gaussian(std=0.0)
