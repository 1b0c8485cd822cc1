"""ResNet-9: eight convolutions that learn CIFAR-10 in minutes on a GPU.

Source: Page, How to Train Your ResNet, 2018, https://myrtle.ai/learn/how-to-train-your-resnet

Shapes: B batch, C channels, H height, W width, D feature width.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn.features import Features
from lit_foundry.nn.image.backbone import ImageBackbone
from lit_foundry.nn.image.networks.airbench import CIFAR10_MEAN, CIFAR10_STD


class ResNet9(ImageBackbone):
    """Four stages of convolutions, two of them with a residual branch, for small images.

    Args:
        width: Channels of the first stage; each stage doubles them.
        in_channels: Channels of an image.
        mean: Mean of each channel in [0, 1]; by default that of CIFAR-10.
        std: Standard deviation of each channel, likewise.
    """

    def __init__(
        self,
        width: int = 64,
        in_channels: int | None = None,
        mean: Sequence[float] = CIFAR10_MEAN,
        std: Sequence[float] = CIFAR10_STD,
    ) -> None:
        rules = {"width": (width >= 1, "is a number of channels, 1 at least")}
        ranges.check("model.backbone", {"width": width}, rules)
        super().__init__(3 if in_channels is None else in_channels, mean, std)
        self.dim = 8 * width
        self.stages = nn.ModuleList(
            [
                _conv(self.in_channels, width),
                nn.Sequential(_conv(width, 2 * width), nn.MaxPool2d(2), _Residual(2 * width)),
                nn.Sequential(_conv(2 * width, 4 * width), nn.MaxPool2d(2)),
                nn.Sequential(_conv(4 * width, self.dim), nn.MaxPool2d(2), _Residual(self.dim)),
            ]
        )

    def features(self, images: Tensor) -> Features:
        """Compute features of (B, C, H, W) normalized images."""
        for stage in self.stages:
            images = stage(images)
        return Features(images.flatten(2).transpose(1, 2), images.amax((2, 3)))

    def blocks(self) -> list[nn.Module]:
        """Return the stages."""
        return list(self.stages)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, images: Tensor) -> Tensor:
        changed: Tensor = self.branch(images)
        return images + changed


def _conv(before: int, width: int) -> nn.Sequential:
    conv = nn.Conv2d(before, width, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
