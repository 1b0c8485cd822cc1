"""Mixtures of two images of a batch, and of their labels.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_foundry import ranges
from lit_foundry.nn.classification_loss import shares
from lit_foundry.randomness import Moment, uniforms

_CHOICE, _BETA, _PLACE = range(24, 27)  # streams of random numbers
_GRID = 1024  # points of the table that turns uniform numbers into those of a beta distribution


@dataclass(frozen=True)
class Mixing:
    """How samples are mixed in training.

    Every image is mixed with the one before it in its batch, in a share that is drawn for itself.

    Args:
        mixup: Parameter of the beta distribution of the shares in mixup; 0 turns it off.
        cutmix: The same for cutmix, where a rectangle of the other image replaces that share of
            the area; 0 turns it off. Of the two, one is drawn for each image.
        prob: Probability that an image is mixed.
        until: Fraction of the run after which nothing is mixed any more.

    Raises:
        ValueError: If a value breaks its rule.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, 2017,
        https://arxiv.org/abs/1710.09412; Yun et al., CutMix: Regularization Strategy to Train
        Strong Classifiers with Localizable Features, 2019, https://arxiv.org/abs/1905.04899
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    prob: float = 1.0
    until: float = 1.0

    def __post_init__(self) -> None:
        rules = {
            "mixup": (self.mixup >= 0, "is a parameter of a beta distribution, 0 for none"),
            "cutmix": (self.cutmix >= 0, "is a parameter of a beta distribution, 0 for none"),
            "prob": (0 <= self.prob <= 1, "is a probability"),
            "until": (0 < self.until <= 1, "is a fraction of the run in (0, 1]"),
        }
        ranges.check("model.mixing", vars(self), rules)

    def mixes(self, progress: float) -> bool:
        """Tell whether anything is mixed when a fraction ``progress`` of the run is done."""
        return bool(self.prob and (self.mixup or self.cutmix)) and progress < self.until

    def __call__(
        self, images: Tensor, label: Tensor, index: Tensor, num_classes: int, moment: Moment
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: Shape (B, C, H, W), any dtype.
            label: Classes, shape (B,), or 1 for each that applies, else 0, shape (B, K).
            index: Number of each sample, shape (B,).
            num_classes: Number of classes K.
            moment: When they are drawn.

        Returns:
            Mixed images, float32, and the share of each class in them, shape (B, K).
        """
        keys = moment.keys(index)
        choice = uniforms(keys, 2, _CHOICE)
        half = 0.5 if self.mixup else 1.0
        cuts = choice[:, 0] < (half if self.cutmix else 0.0)
        draw = uniforms(keys, 1, _BETA)[:, 0]
        share = torch.where(
            cuts,
            beta_quantile(draw, self.cutmix or 1.0),
            beta_quantile(draw, self.mixup or 1.0),
        )
        share = torch.where(choice[:, 1] < self.prob, share, 1.0)
        other = images.roll(1, 0).float()
        cut, cut_share = cutmix(images, other, share, uniforms(keys, 2, _PLACE))
        mixed = torch.where(cuts[:, None, None, None], cut, mixup(images, other, share))
        share = torch.where(cuts, cut_share, share)[:, None]
        classes = label if label.ndim == 2 else shares(label, num_classes)
        return mixed, share * classes + (1 - share) * classes.roll(1, 0)


def mixup(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return ``share`` (B,) of each image with the rest of another."""
    weight = share[:, None, None, None]
    return weight * images + (1 - weight) * other


def cutmix(images: Tensor, other: Tensor, share: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Replace a rectangle of each image, of its proportions, by that of another.

    Args:
        images: Shape (B, C, H, W).
        other: Likewise.
        share: Share of the area that stays, before the rectangle is cut at the borders; (B,).
        place: Centre of the rectangle, in [0, 1), shape (B, 2).

    Returns:
        Images, and the share that stayed, shape (B,).
    """
    inside, lengths = [], []
    for axis, size in enumerate(images.shape[-2:]):
        half = (size * (1 - share).sqrt()).long() // 2
        middle = (place[:, axis] * size).long()
        start, end = (middle - half).clamp(min=0), (middle + half).clamp(max=size)
        places = torch.arange(size, device=images.device)
        inside.append((places >= start[:, None]) & (places < end[:, None]))
        lengths.append(end - start)
    rectangle = (inside[0][:, :, None] & inside[1][:, None])[:, None]
    stayed = 1 - lengths[0] * lengths[1] / (images.shape[-2] * images.shape[-1])
    return torch.where(rectangle, other, images.float()), stayed


def beta_quantile(uniform: Tensor, alpha: float) -> Tensor:
    """Turn uniform numbers into those of a symmetric beta distribution, by a table."""
    table, points = _beta_table(alpha, uniform.device)
    high = torch.searchsorted(table, uniform.contiguous(), right=True).clamp(1, _GRID)
    low = high - 1
    part = (uniform - table[low]) / (table[high] - table[low]).clamp(min=1e-12)
    return points[low] + part.clamp(0, 1) * (points[high] - points[low])


@cache  # the host waits while it is copied to a device
def _beta_table(alpha: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the distribution's values and where it takes them, in float32."""
    # The density, integrated on a grid that is finest where it has its poles, at 0 and 1.
    angle = torch.linspace(0, torch.pi, _GRID + 1, dtype=torch.float64)
    grid = (1 - angle.cos()) / 2
    middle = (grid[1:] + grid[:-1]) / 2
    density = (middle * (1 - middle)) ** (alpha - 1)
    mass = F.pad((density * grid.diff()).cumsum(0), (1, 0))
    return (mass / mass[-1]).to(device, torch.float32), grid.to(device, torch.float32)
