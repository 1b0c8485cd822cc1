"""Image networks made for colours, fitted to other numbers of input channels."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn


def spread(weight: Tensor, channels: int) -> Tensor:
    """Fit the weight of a first convolution to another number of input channels.

    One channel takes the sum, as if it were shown to all; more repeat the old ones, rescaled so
    that the output keeps its size. So does timm.

    Args:
        weight: Shape (D, C, kernel, kernel).
        channels: Number of channels that it shall take.
    """
    had = weight.shape[1]
    if channels == had:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, ceil(channels / had), 1, 1)[:, :channels] * (had / channels)


def replace_first_convolution(network: nn.Module, channels: int) -> None:
    """Let a network from scratch take images of so many channels, initialized as it was."""
    name, old = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if old.in_channels == channels:
        return
    sizes: dict[str, Any] = {
        key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation")
    }
    new = nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **sizes)
    had = old.in_channels
    with torch.no_grad():  # the channels of the old one are a sample of its initialization
        new.weight.copy_(old.weight.repeat(1, ceil(channels / had), 1, 1)[:, :channels])
    if old.bias is not None:
        new.bias = old.bias
    network.set_submodule(name, new)


def of_channels(values: Sequence[float], channels: int) -> list[float]:
    """Return statistics of RGB for so many channels: their average, where these are not three."""
    return list(values) if len(values) in (1, channels) else [sum(values) / len(values)]
