"""Rectangles of images that are blanked: cutout and random erasing.

Shapes: B batch, C channels, H height, W width.
"""

import math

import torch
from torch import Tensor

from lit_foundry.randomness import uniforms


def erased_boxes(images: Tensor, keys: Tensor, stream: int, prob: float) -> tuple[Tensor, Tensor]:
    """Return corners of what is blanked: 2 to 33 % of the area, at aspect ratios 0.3 to 3.3.

    Returns:
        Upper left and lower right corner, each of shape (B, 2); equal where nothing is blanked.
    """
    height, width = images.shape[-2:]
    draws = uniforms(keys, 5, stream)
    area = height * width * (0.02 + 0.31 * draws[:, 0])
    low, high = math.log(0.3), math.log(1 / 0.3)
    ratio = torch.exp(low + (high - low) * draws[:, 1])
    edges = torch.sqrt(area * ratio).clamp(max=height), torch.sqrt(area / ratio).clamp(max=width)
    box = torch.stack(edges, 1).round().long() * (draws[:, 4:] < prob)
    room = torch.stack([height - box[:, 0], width - box[:, 1]], 1)
    start = (draws[:, 2:4] * (room + 1)).long()
    return start, start + box


def blanked(images: Tensor, start: Tensor, end: Tensor, fill: Tensor) -> Tensor:
    """Fill a rectangle of each image.

    Args:
        images: Pixels, shape (B, C, H, W).
        start: Upper left corner, shape (B, 2); may lie outside.
        end: Lower right corner, exclusive, likewise.
        fill: What it holds, shape (C, 1, 1) or one number.
    """
    inside = []
    for axis, size in enumerate(images.shape[-2:]):
        places = torch.arange(size, device=images.device)
        inside.append((places >= start[:, axis, None]) & (places < end[:, axis, None]))
    rectangle = (inside[0][:, :, None] & inside[1][:, None])[:, None]
    return torch.where(rectangle, fill.round().to(images.dtype), images)
