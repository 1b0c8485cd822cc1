"""RandAugment, TrivialAugment and colour jitter on whole uint8 batches, each image for itself.

Every image draws its operation and strength; those with the same operation are computed at once.
That takes the rows of each operation, for which a GPU is waited for.

Shapes: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.transforms.v2.functional._color import _hsv_to_rgb, _rgb_to_hsv

from lit_foundry.randomness import uniforms

PolicyName = Literal["randaugment", "trivialaugment"]
Change = Callable[[Tensor, Tensor], Tensor]  # of (B, C, H, W) images, with one strength each
BINS = 30  # strengths are 0 to 30
_GREY = (0.2989, 0.587, 0.114)  # as in torchvision and PIL


class Operation(NamedTuple):
    """What a policy may draw."""

    change: Change
    least: float  # strength at magnitude 0
    most: float  # and at 30
    signed: bool  # whether its sign is drawn too


def apply_policy(
    images: Tensor, keys: Tensor, stream: int, policy: PolicyName, num_ops: int, magnitude: int
) -> Tensor:
    """Draw operations for each image, and apply them.

    Args:
        images: Pixels, shape (B, C, H, W) uint8.
        keys: Of each sample, from :func:`lit_foundry.randomness.sample_keys`, shape (B,).
        stream: Tells these random numbers apart from others.
        policy: ``randaugment`` with one strength for all, or ``trivialaugment``: one operation
            of any strength.
        num_ops: Operations of ``randaugment``, one after the other.
        magnitude: Their strength, 0 to 30.

    Source: Cubuk et al., RandAugment, 2019, https://arxiv.org/abs/1909.13719; Müller and Hutter,
        TrivialAugment, 2021, https://arxiv.org/abs/2103.10158 (the wide space); operations and
        strengths are those of torchvision.
    """
    trivial = policy == "trivialaugment"
    found = operations(images.shape[-1], trivial)
    rounds = 1 if trivial else num_ops
    draws = uniforms(keys, 3 * rounds, stream).view(-1, rounds, 3)
    for draw in draws.unbind(1):
        choice = (draw[:, 0] * (len(found) + 1)).long()  # the last one changes nothing
        level = (
            (draw[:, 1] * (BINS + 1)).floor() if trivial else torch.full_like(draw[:, 1], magnitude)
        )
        sign = torch.where(draw[:, 2] < 0.5, -1.0, 1.0)
        images = images.clone()
        # The host waits for the device once, not for each operation.
        counts = (choice == torch.arange(len(found) + 1, device=choice.device)[:, None]).sum(1)
        parts = torch.split(choice.argsort(stable=True), counts.tolist())
        for operation, rows in zip(found, parts, strict=False):
            if not len(rows):
                continue
            part = level[rows] / BINS
            strength = operation.least + (operation.most - operation.least) * part
            strength = strength * sign[rows] if operation.signed else strength
            images[rows] = operation.change(images[rows], strength)
    return images


def operations(width: int, wide: bool) -> list[Operation]:
    """Return the operations for images of a width, with the strengths of a policy."""
    shear, blend, degrees = (0.99, 0.99, 135.0) if wide else (0.3, 0.9, 30.0)
    shift = 32.0 if wide else 150.0 / 331.0 * width
    bits = 2.0 if wide else 4.0
    return [
        Operation(lambda x, s: sheared(x, s, 0), 0, shear, True),
        Operation(lambda x, s: sheared(x, s, 1), 0, shear, True),
        Operation(lambda x, s: shifted(x, s, 0), 0, shift, True),
        Operation(lambda x, s: shifted(x, s, 1), 0, shift, True),
        Operation(rotated, 0, degrees, True),
        Operation(lambda x, s: brightened(x, 1 + s), 0, blend, True),
        Operation(lambda x, s: saturated(x, 1 + s), 0, blend, True),
        Operation(lambda x, s: contrasted(x, 1 + s), 0, blend, True),
        Operation(lambda x, s: sharpened(x, 1 + s), 0, blend, True),
        Operation(lambda x, s: posterized(x, s.round()), 8, bits, False),
        Operation(solarized, 255, 0, False),
        Operation(lambda x, s: tv.autocontrast(x), 0, 0, False),
        Operation(lambda x, s: tv.equalize(x), 0, 0, False),
    ]


def jitter(images: Tensor, keys: Tensor, stream: int, strengths: Sequence[float]) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image at random, in this order.

    Args:
        images: Pixels, shape (B, C, H, W) uint8.
        keys: Of each sample, shape (B,).
        stream: Tells these random numbers apart from others.
        strengths: Of each: factors are uniform in [1 - s, 1 + s], not below 0; hue turns by
            [-s, s] of the circle.
    """
    draws = 2 * uniforms(keys, 4, stream) - 1
    for number, change in enumerate((brightened, contrasted, saturated, hued)):
        if strengths[number]:
            offset = strengths[number] * draws[:, number]
            images = change(images, offset if change is hued else (1 + offset).clamp(min=0))
    return images


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _blended(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return ``factor`` of the images and 1 - factor of others; above 1 it moves away from them."""
    factor = _each(factor)
    return (factor * images + (1 - factor) * other).clamp(0, 255).to(images.dtype)


def grey(images: Tensor) -> Tensor:
    """Return the brightness of each pixel in whole numbers, shape (B, 1, H, W) float32."""
    if images.shape[1] != len(_GREY):
        return images.float().mean(1, keepdim=True).floor()
    red, green, blue = (weight * images[:, i] for i, weight in enumerate(_GREY))
    return (red + green + blue).floor()[:, None]


def brightened(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply each image by its factor."""
    return (images * _each(factor)).clamp(0, 255).to(images.dtype)


def saturated(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its shades of grey."""
    return _blended(images, grey(images), factor)


def contrasted(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with its mean shade of grey."""
    return _blended(images, grey(images).mean((1, 2, 3), keepdim=True), factor)


def sharpened(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with a smoothed one; its border stays."""
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5.0
    channels = images.shape[1]
    weight = (kernel / 13).expand(channels, 1, 3, 3)
    smooth = images.float()
    inner = F.conv2d(smooth, weight, groups=channels).round()
    smooth = smooth.clone()
    smooth[..., 1:-1, 1:-1] = inner
    return _blended(images, smooth, factor)


def posterized(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of each pixel."""
    return images & _each((256 - 2 ** (8 - bits.long())).to(images.dtype))


def solarized(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert pixels at or above a threshold."""
    return torch.where(images >= _each(threshold), 255 - images, images)


def hued(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of each image, by a part of the circle; images without three channels stay."""
    if images.shape[1] != len(_GREY):
        return images
    hue, saturation, value = _rgb_to_hsv(images.float() / 255).unbind(1)
    hue = (hue + turn[:, None, None]) % 1
    rgb = _hsv_to_rgb(torch.stack([hue, saturation, value], 1))
    turned: Tensor = (rgb * 255).round().clamp(0, 255).to(images.dtype)
    return turned


def sheared(images: Tensor, amount: Tensor, axis: int) -> Tensor:
    """Move pixels along an axis (0 for x) in proportion to their distance from the upper left."""
    matrix = _identity(amount)
    matrix[:, axis, 1 - axis] = amount
    # As if the corner were the origin, where affine maps have the middle.
    matrix[:, axis, 2] = amount * images.shape[-2 if axis == 0 else -1] / 2
    return _mapped(images, matrix)


def shifted(images: Tensor, pixels: Tensor, axis: int) -> Tensor:
    """Move each image along an axis (0 for x), by whole pixels."""
    matrix = _identity(pixels)
    matrix[:, axis, 2] = -pixels.trunc()
    return _mapped(images, matrix)


def rotated(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate each image about its middle, counterclockwise."""
    angle = degrees * math.pi / 180
    matrix = _identity(angle)
    matrix[:, 0, 0] = matrix[:, 1, 1] = angle.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = -angle.sin(), angle.sin()
    return _mapped(images, matrix)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(2, 3, device=like.device).repeat(len(like), 1, 1)


def _mapped(images: Tensor, matrix: Tensor) -> Tensor:
    """Take each pixel from where a matrix (B, 2, 3) sends it, in pixels from the middle."""
    height, width = images.shape[-2:]
    scale = torch.cat([matrix.new_full((1,), width / 2), matrix.new_full((1,), height / 2)])
    # affine_grid counts in halves of the image.
    theta = torch.cat(
        [matrix[:, :, :2] * scale / scale[:, None], matrix[:, :, 2:] / scale[:, None]], 2
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    sampled = F.grid_sample(images.float(), grid, "nearest", "zeros", align_corners=False)
    return sampled.to(images.dtype)
