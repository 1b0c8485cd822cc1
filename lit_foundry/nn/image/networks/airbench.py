"""The network of airbench: CIFAR-10 in seconds.

Source: Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024,
    https://arxiv.org/abs/2404.00498

Shapes: B batch, C channels, H height, W width, D feature width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn.features import Features
from lit_foundry.nn.heads import LinearHead
from lit_foundry.nn.image.backbone import ImageBackbone

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_KERNEL = 2  # edge of the patches that it whitens


class Airbench(ImageBackbone):
    """A whitening layer and three groups of convolutions, for images of 32 x 32.

    Before training, the first layer is fitted to patches of the training images and then stays;
    only its biases learn. BatchNorm has no scales.

    Args:
        widths: Channels of the three groups; (128, 384, 384) for 95 % on CIFAR-10.
        depth: Convolutions of each group, 2 or 3; with 3, the second has a residual branch.
        in_channels: Channels of an image.
        mean: Mean of each channel in [0, 1]; by default that of CIFAR-10.
        std: Standard deviation of each channel, likewise.
    """

    fitted_rows: ClassVar[int] = 5000

    def __init__(
        self,
        widths: tuple[int, int, int] = (64, 256, 256),
        depth: int = 2,
        in_channels: int | None = None,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
    ) -> None:
        super().__init__(3 if in_channels is None else in_channels, mean, std)
        rules = {
            "widths": (min(widths) >= 1, "are numbers of channels, 1 at least"),
            "depth": (depth in (2, 3), "is 2 or 3 convolutions a group"),
        }
        ranges.check("model.backbone", {"widths": widths, "depth": depth}, rules)
        patch = self.in_channels * _KERNEL**2
        self.whiten = nn.Conv2d(self.in_channels, 2 * patch, _KERNEL)
        self.whiten.weight.requires_grad_(False)
        pairs = zip((2 * patch, *widths[:2]), widths, strict=True)
        self.groups = nn.ModuleList(_Group(before, width, depth) for before, width in pairs)
        self.dim = widths[-1]

    def features(self, images: Tensor) -> Features:
        """Compute features of (B, C, H, W) normalized images."""
        hidden = F.gelu(self.whiten(images))
        for group in self.groups:
            hidden = group(hidden)
        # Of images of 32 x 32, 3 x 3 places are left.
        return Features(hidden.flatten(2).transpose(1, 2), hidden.amax((2, 3)))

    def blocks(self) -> list[nn.Module]:
        """Return the whitening layer and the groups."""
        return [self.whiten, *self.groups]

    @torch.no_grad()
    def fit_to(self, batch: Mapping[str, Any]) -> None:
        """Let the first layer whiten the patches of training images."""
        images = self.normalize(batch["pixel_values"].to(self.mean.device))
        patches = F.unfold(images, _KERNEL).transpose(1, 2).flatten(0, 1)
        covariance = patches.T.double() @ patches.double() / len(patches)
        values, vectors = torch.linalg.eigh(covariance)
        filters = (vectors / (values + 5e-4).sqrt()).T.reshape(-1, *self.whiten.weight.shape[1:])
        self.whiten.weight.copy_(torch.cat([filters, -filters]))

    def classifier(self, num_classes: int, dropout: float | None = None) -> nn.Module:
        """Build a linear head without biases, whose first logits are small."""
        return LinearHead(self.dim, num_classes, dropout or 0.0, 1 / self.dim, bias=False)


class _Group(nn.Module):
    def __init__(self, before: int, width: int, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv(before if i == 0 else width, width) for i in range(depth))
        self.norms = nn.ModuleList(_norm(width) for _ in range(depth))

    def forward(self, images: Tensor) -> Tensor:
        first = F.gelu(self.norms[0](F.max_pool2d(self.convs[0](images), 2)))
        hidden = self.norms[1](self.convs[1](first))
        if len(self.convs) == 3:
            hidden = self.norms[2](self.convs[2](F.gelu(hidden))) + first
        return F.gelu(hidden)


def _conv(before: int, width: int) -> nn.Conv2d:
    """Return a convolution that begins by passing on its input, as far as it has filters."""
    conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:before])
    return conv


def _norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
