"""The parts of any image network in depth order, and the surgery that their families share."""

import re
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

# Types that only hold parts, by name: those of torchvision, timm and transformers.
HOLDER = re.compile(r"(Model|Transformer|Encoder|Stage|DenseBlock|MaxVitBlock)$")
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def depth_blocks(network: nn.Module) -> list[nn.Module]:
    """Cut a network into its blocks in depth order, the stem first.

    A residual block is one, and so is a convolution or linear layer outside of them. Norms go with
    the part before. Every parameter is in one block.

    Args:
        network: Any network whose parts are registered in the order in which they run.
    """
    groups: list[list[nn.Module]] = []
    loose: list[nn.Parameter] = []
    for part in _parts(network, loose, expand=True):
        trains = next(part.parameters(), None) is not None
        follows = isinstance(part, NORMS) or type(part).__name__.endswith(("Norm", "Pooler"))
        if trains and not (groups and follows):
            groups.append([part])
        elif groups and (trains or hasattr(part, "p")):  # dropout is frozen with its block
            groups[-1].append(part)
    if loose:  # class tokens and positions belong to the stem
        groups[0].append(nn.ParameterList(loose))
    return [group[0] if len(group) == 1 else nn.ModuleList(group) for group in groups]


def _parts(module: nn.Module, loose: list[nn.Parameter], expand: bool) -> Iterator[nn.Module]:
    loose += module.parameters(recurse=False)
    for child in module.children():
        nested = any(True for part in child.children() for _ in part.children())
        plain = type(child) in (nn.Sequential, nn.ModuleList)
        if HOLDER.search(type(child).__name__) or (plain and (expand or nested)):
            yield from _parts(child, loose, expand=False)
        else:
            yield child


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
