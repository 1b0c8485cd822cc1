"""From latents to images: what an autoencoder has behind its backbone.

Shapes: B batch, L latent width, E edge of a map of latents, C outputs of a pixel, S edge of images.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.recipe import Recorded

_START = 4  # edge, at least, that convolutions begin with


class Decoder(Recorded, ABC):
    """How a decoder is made, once the shapes of latents and images are known."""

    @abstractmethod
    def build(self, latent: int, edge: int | None, outputs: int, size: int) -> nn.Module:
        """Build the network.

        Args:
            latent: Width L of the latents.
            edge: E, if these are a map of shape (B, L, E, E); None if they are (B, L).
            outputs: Outputs C of each pixel.
            size: Edge S of the images.

        Returns:
            A module from latents to (B, C, S, S).

        Raises:
            ValueError: If it cannot be made for these shapes.
        """


@dataclass(frozen=True)
class MLPDecoder(Decoder):
    """Linear layers.

    Args:
        hidden: Widths of those before the last one.
    """

    hidden: tuple[int, ...] = (512,)

    def __post_init__(self) -> None:
        rules = {"hidden": (min(self.hidden, default=1) >= 1, "are widths, 1 at least")}
        ranges.check("model.decoder", vars(self), rules)

    def build(self, latent: int, edge: int | None, outputs: int, size: int) -> nn.Module:
        """Build linear layers with GELU between them."""
        widths = (latent * (edge or 1) ** 2, *self.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, width in pairwise(widths):
            layers += [nn.Linear(before, width), nn.GELU()]
        last = nn.Linear(widths[-1], outputs * size**2)
        return nn.Sequential(*layers, last, nn.Unflatten(1, (outputs, size, size)))


@dataclass(frozen=True)
class ConvDecoder(Decoder):
    """Convolutions that double the edge, stage by stage, each with residual blocks.

    Their norms are of groups of channels, so that training and evaluation compute the same.

    Args:
        width: Channels at the edge of the images; each smaller one has twice as many.
        most: Channels at most.
        blocks: Residual blocks of each stage.
    """

    width: int = 32
    most: int = 256
    blocks: int = 1

    def __post_init__(self) -> None:
        rules = {
            "width": (self.width >= 8 and self.width % 8 == 0, "is a multiple of 8"),
            "most": (self.most >= self.width and self.most % 8 == 0, "is a multiple of 8, no less"),
            "blocks": (self.blocks >= 0, "is a number of blocks"),
        }
        ranges.check("model.decoder", vars(self), rules)

    def build(self, latent: int, edge: int | None, outputs: int, size: int) -> nn.Module:
        """Build the stages; latents without places have one linear layer before."""
        start, stages = edge or size, 0
        if edge is None:
            while start % 2 == 0 and start // 2 >= _START:
                start, stages = start // 2, stages + 1
        while start << stages < size:
            stages += 1
        if start << stages != size:
            raise ValueError(
                f"model.decoder: a map of {start} x {start} latents becomes no image of {size} "
                "pixels by doubling its edge: take MLPDecoder, or other images or patches."
            )
        widths = [min(self.most, self.width << (stages - i)) for i in range(stages + 1)]
        if edge is None:
            first = nn.Linear(latent, widths[0] * start**2)
            layers: list[nn.Module] = [first, nn.Unflatten(1, (widths[0], start, start))]
        else:
            layers = [nn.Conv2d(latent, widths[0], 3, padding=1)]
        for number, width in enumerate(widths):
            if number:
                conv = nn.Conv2d(widths[number - 1], width, 3, padding=1)
                layers += [nn.Upsample(scale_factor=2), conv]
            layers += [_Residual(width) for _ in range(self.blocks)]
        last = nn.Conv2d(widths[-1], outputs, 3, padding=1)
        return nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU(), last)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        hidden = images
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(F.silu(norm(hidden)))
        return images + hidden
