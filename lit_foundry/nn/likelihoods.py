"""How probable an image is, given what a decoder says of its pixels; and the bound of a VAE.

All in nats. Images lie in [-1, 1].

Shapes: B batch, C channels, H height, W width, L latent width, K samples of a latent.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.recipe import Recorded

LEVEL = 1 / 127.5  # between neighbouring levels of 256


def gaussian_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return log densities of a normal distribution."""
    return -0.5 * (((x - mean) * torch.exp(-log_std)) ** 2 + math.log(2 * math.pi)) - log_std


def discretized_logistic_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return log probabilities of one of 256 levels under a logistic distribution.

    The first and the last level have all that lies beyond them.

    Source: Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow, 2016,
        appendix A.2. https://arxiv.org/abs/1606.04934
    """
    inverse, centred = torch.exp(-log_scale), x - mean
    above, below = inverse * (centred + LEVEL / 2), inverse * (centred - LEVEL / 2)
    # log(sigmoid(above) - sigmoid(below)), without the cancellation.
    inner = F.logsigmoid(above) + F.logsigmoid(-below)
    inner = inner + torch.log(-torch.expm1(-inverse * LEVEL))
    first, last = x < -1 + LEVEL / 2, x > 1 - LEVEL / 2
    return torch.where(first, F.logsigmoid(above), torch.where(last, F.logsigmoid(-below), inner))


def kl_to_standard_normal(mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the divergence KL(N(mean, std) || N(0, 1)) of each dimension."""
    return 0.5 * (mean**2 + torch.exp(2 * log_std) - 1) - log_std


def importance_bound(log_weights: Tensor, samples: int) -> Tensor:
    """Return the bound on log p(x) of so many samples, averaged over groups of K draws.

    As the mean over groups of the logarithm of a mean, it grows with ``samples`` for any draws,
    where each number divides the next (Jensen).

    Args:
        log_weights: log p(x, z) - log q(z | x) of each draw, shape (B, K).
        samples: Draws of a group, which divide K.

    Returns:
        Shape (B,).

    Source: Burda et al., Importance Weighted Autoencoders, 2015. https://arxiv.org/abs/1509.00519
    """
    groups = log_weights.view(len(log_weights), -1, samples)
    return (groups.logsumexp(2) - math.log(samples)).mean(1)


class Likelihood(Recorded, nn.Module, ABC):
    """What the outputs of a decoder say of an image.

    Attributes:
        outputs: Outputs of each channel of a pixel.
        is_density: Whether it is of real numbers, so that its logarithm may exceed 0.
    """

    outputs: ClassVar[int] = 1
    is_density: ClassVar[bool] = False

    @abstractmethod
    def log_prob(self, said: Tensor, images: Tensor) -> Tensor:
        """Return log p of each channel of each pixel.

        Args:
            said: Outputs, shape (B, outputs * C, H, W).
            images: Shape (B, C, H, W), in [-1, 1].
        """

    def mean(self, said: Tensor) -> Tensor:
        """Return the expected image in [-1, 1], shape (B, C, H, W)."""
        return said.chunk(self.outputs, 1)[0].clamp(-1, 1)


class Gaussian(Likelihood):
    """Normal, with one standard deviation for all pixels.

    Args:
        std: In units in which images lie in [-1, 1]; None learns it.

    Source: Rybkin et al., Simple and Effective VAE Training with Calibrated Decoders, 2021.
        https://arxiv.org/abs/2006.13202
    """

    is_density: ClassVar[bool] = True

    def __init__(self, std: float | None = None) -> None:
        super().__init__()
        rules = {"std": (std is None or std > 0, "is above 0, or null")}
        ranges.check("model.likelihood", {"std": std}, rules)
        begin = torch.tensor(math.log(std or 0.5))
        self.log_std = nn.Parameter(begin, requires_grad=std is None)

    def log_prob(self, said: Tensor, images: Tensor) -> Tensor:
        """Return log densities."""
        return gaussian_log_prob(images, said, self.log_std)


class Bernoulli(Likelihood):
    """Each pixel is a probability to be white: for black and white images, or nearly so."""

    def log_prob(self, said: Tensor, images: Tensor) -> Tensor:
        """Return minus the cross-entropies."""
        return -F.binary_cross_entropy_with_logits(said, (images + 1) / 2, reduction="none")

    def mean(self, said: Tensor) -> Tensor:
        """Return the expected image."""
        return 2 * said.sigmoid() - 1


class DiscretizedLogistic(Likelihood):
    """A probability of each of 256 levels, by a mean and a scale of each channel of each pixel."""

    outputs: ClassVar[int] = 2

    def log_prob(self, said: Tensor, images: Tensor) -> Tensor:
        """Return log probabilities."""
        mean, log_scale = said.chunk(2, 1)
        return discretized_logistic_log_prob(images, mean, (log_scale - 2).clamp(min=-7))
