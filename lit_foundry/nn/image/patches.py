"""Images as rows of square patches, and vision transformers that see some of them alone.

Shapes: B batch, C channels, S edge of an image, P edge of a patch, N patches, K visible ones,
D width.
"""

from math import isqrt
from typing import Any

import torch
from torch import Tensor


def patches_of(images: Tensor, edge: int) -> Tensor:
    """Cut images (B, C, S, S) into ``edge`` x ``edge`` patches, (B, N, P * P * C)."""
    rows, channels, size, _ = images.shape
    cut = images.reshape(rows, channels, edge, size // edge, edge, size // edge)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2)


def images_of(patches: Tensor, channels: int) -> Tensor:
    """Put patches (B, N, P * P * C) back together, (B, C, S, S)."""
    rows, count, numbers = patches.shape
    edge, patch = isqrt(count), isqrt(numbers // channels)
    grid = patches.reshape(rows, edge, edge, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(rows, channels, edge * patch, edge * patch)


def visible_tokens(backbone: Any, images: Tensor, kept: Tensor) -> Tensor:
    """Encode some patches of each image, as if there were no others.

    Args:
        backbone: Vision transformer of ``transformers``, as :func:`check_patches` demands it.
        images: Pixels from 0 to 255, shape (B, C, S, S).
        kept: Numbers of the patches, shape (B, K).

    Returns:
        Features of the class token and of these patches in their order, (B, 1 + K, D).
    """
    network = backbone.encoder
    hidden = network.embeddings(backbone.normalize(images))
    places = 1 + kept[:, :, None].expand(-1, -1, hidden.shape[2])
    hidden = torch.cat([hidden[:, :1], hidden.gather(1, places)], 1)
    for layer in network.layers:
        hidden = layer(hidden)
    tokens: Tensor = network.layernorm(hidden)
    return tokens


@torch.no_grad()
def check_patches(backbone: Any, size: int, who: str) -> None:
    """Raise ValueError unless a backbone sees patches one by one, in some order.

    No list says which do: one does that computes the same of all patches in reverse.

    Args:
        backbone: Image backbone.
        size: Edge of its images.
        who: Class that asks, for the message.
    """
    was, weight = backbone.training, next(backbone.parameters())
    images = torch.arange(backbone.in_channels * size**2, device=weight.device) % 251
    images = images.view(1, backbone.in_channels, size, size)
    try:
        want = backbone.eval()(images).tokens
        kept = torch.arange(want.shape[1] - 1, device=weight.device).flip(0)[None]
        found = visible_tokens(backbone, images, kept)
        sees = torch.allclose(found[:, 1:].flip(1), want[:, 1:], atol=1e-4)
        # One token before the patches, which all have a position: else numbers are of others.
        count = want.shape[1] - 1
        sees &= isqrt(count) ** 2 == count
        sees &= backbone.encoder.embeddings.position_embeddings.shape[1] == count + 1
    except (AttributeError, TypeError, RuntimeError):
        sees = False
    finally:
        backbone.train(was)
    if not sees:
        raise ValueError(
            f"{who} hides patches from its encoder, which has to be an ImageEncoder with a "
            f"model_type such as vit, and not a {type(backbone).__name__} of another family."
        )


def sine_cosine(edge: int, dim: int) -> Tensor:
    """Return positions of a square grid as sines and cosines, those of rows after columns, (N, D).

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, in the layout of its
        published weights. https://arxiv.org/abs/2111.06377
    """
    rates = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    places = torch.arange(edge, dtype=torch.float64)
    columns, rows = places.repeat(edge), places.repeat_interleave(edge)
    angles = [axis[:, None] * rates for axis in (columns, rows)]
    return torch.cat([wave(a) for a in angles for wave in (torch.sin, torch.cos)], 1).float()
