"""What a denoising autoencoder has to undo, a function of (seed, epoch, sample).

Shapes: B batch, C channels, H height, W width.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_foundry import ranges
from lit_foundry.nn.image.erasing import blanked
from lit_foundry.randomness import normals, uniforms

Kind = Literal["gaussian", "mask", "salt_and_pepper", "box"]
_NOISE, _PLACE, _SALT = range(32, 35)  # streams of random numbers


@dataclass(frozen=True)
class Corruption:
    """How images are corrupted.

    Args:
        kind: Gaussian noise is added (``gaussian``), pixels are blanked (``mask``), made black or
            white (``salt_and_pepper``), or a square is blanked (``box``).
        amount: Standard deviation of the noise in units of the whole range, share of the pixels,
            or edge of the square as a share of the image's.

    Raises:
        ValueError: If the kind is unknown, or the amount not in (0, 1].

    Source: Vincent et al., Stacked Denoising Autoencoders, 2010.
        https://jmlr.org/papers/v11/vincent10a.html
    """

    kind: Kind = "gaussian"
    amount: float = 0.2

    def __post_init__(self) -> None:
        rules = {
            "kind": (self.kind in get_args(Kind), f"is one of {', '.join(get_args(Kind))}"),
            "amount": (0 < self.amount <= 1, "lies in (0, 1]"),
        }
        ranges.check("model.corruption", vars(self), rules)

    def __call__(self, images: Tensor, keys: Tensor, fill: Tensor) -> Tensor:
        """Corrupt a batch.

        Args:
            images: Pixels from 0 to 255, shape (B, C, H, W).
            keys: Of the samples, shape (B,) int64.
            fill: What is blanked, 0 to 255, shape (C, 1, 1) or (1, 1, 1).

        Returns:
            Pixels from 0 to 255, float32; those with noise may lie outside.
        """
        return _KINDS[self.kind](images.float(), keys, self.amount, fill)


def gaussian(images: Tensor, keys: Tensor, std: float, fill: Tensor) -> Tensor:
    """Add noise."""
    noise = normals(keys, images[0].numel(), _NOISE).view_as(images)
    return images + 255 * std * noise


def mask(images: Tensor, keys: Tensor, share: float, fill: Tensor) -> Tensor:
    """Blank pixels, all channels alike."""
    return torch.where(_drawn(images, keys, _PLACE) < share, fill, images)


def salt_and_pepper(images: Tensor, keys: Tensor, share: float, fill: Tensor) -> Tensor:
    """Make pixels black or white, all channels alike."""
    salt = 255.0 * (_drawn(images, keys, _SALT) < 0.5)
    return torch.where(_drawn(images, keys, _PLACE) < share, salt, images)


def box(images: Tensor, keys: Tensor, share: float, fill: Tensor) -> Tensor:
    """Blank a square within each image."""
    room = torch.tensor(images.shape[-2:], device=images.device)
    edge = max(1, round(share * min(images.shape[-2:])))
    start = (uniforms(keys, 2, _PLACE) * (room - edge + 1)).long()
    return blanked(images, start, start + edge, fill)


def _drawn(images: Tensor, keys: Tensor, stream: int) -> Tensor:
    """Return a uniform number for each pixel, shape (B, 1, H, W)."""
    height, width = images.shape[-2:]
    return uniforms(keys, height * width, stream).view(-1, 1, height, width)


_KINDS = {"gaussian": gaussian, "mask": mask, "salt_and_pepper": salt_and_pepper, "box": box}
