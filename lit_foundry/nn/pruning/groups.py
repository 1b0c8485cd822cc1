"""Units of a network that can be removed, and what of it goes along with each.

Shapes: U units of a group, S size of a dimension.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.nn.narrowing import axes, cut

Indices = dict[tuple[str, str], Tensor]  # of what stays, by module and size


@dataclass(frozen=True)
class Part:
    """A dimension of a layer that gets smaller with its group.

    Attributes:
        module: Dotted name of the layer.
        size: Its attribute, such as ``in_features``.
        units: To which unit each index belongs, shape (S,); -1 where to none.
    """

    module: str
    size: str
    units: Tensor

    @property
    def reads(self) -> bool:
        """Whether the layer reads what the units say."""
        return self.size.startswith("in_")


@dataclass(frozen=True)
class Group:
    """Channels, neurons or heads of which any number can be removed.

    Attributes:
        name: Dotted name of the layer that computes them.
        kind: What they are.
        parts: Where they lie.
    """

    name: str
    kind: str
    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        """Number of units U."""
        return 1 + max(int(part.units.max()) for part in self.parts)


def part(module: str, size: str, units: int, width: int = 1, times: int = 1) -> Part:
    """Return a dimension in which units are ``width`` wide, side by side, and that many times."""
    return Part(module, size, torch.arange(units).repeat_interleave(width).repeat(times))


def indices(groups: Sequence[Group], keep: Sequence[Tensor]) -> Indices:
    """Return what stays of each dimension.

    Args:
        groups: Several may share a dimension, as after a concatenation.
        keep: Of each, whether a unit stays, shape (U,).
    """
    masks: dict[tuple[str, str], Tensor] = {}
    for group, stays in zip(groups, keep, strict=True):
        for each in group.parts:
            mask = (each.units < 0) | stays[each.units.clamp(min=0)]
            key = each.module, each.size
            masks[key] = masks[key] & mask if key in masks else mask
    return {key: mask.nonzero().flatten() for key, mask in masks.items()}


def shrunk(groups: Sequence[Group], keep: Sequence[Tensor]) -> list[Group]:
    """Return the groups of the network that is left."""
    there = indices(groups, keep)
    left = []
    for group, stays in zip(groups, keep, strict=True):
        renumbered = torch.cat((torch.where(stays, stays.cumsum(0) - 1, -1), torch.tensor([-1])))
        parts = [
            replace(each, units=renumbered[each.units[there[each.module, each.size]]])
            for each in group.parts
        ]
        left.append(replace(group, parts=tuple(parts)))
    return left


def remove(
    network: nn.Module, there: Indices, state: Mapping[Any, dict[str, Any]] | None = None
) -> None:
    """Make a network smaller in place, and what an optimizer remembers of it."""
    for (module, size), index in there.items():
        layer = network.get_submodule(module)
        if len(index) < getattr(layer, size):
            cut(layer, size, index, state)


@torch.no_grad()
def mask(network: nn.Module, groups: Sequence[Group], keep: Sequence[Tensor]) -> None:
    """Let nothing read the units that do not stay: what removing them must compute."""
    for group, stays in zip(groups, keep, strict=True):
        for each, weight, _ in weights(network, [p for p in group.parts if p.reads]):
            gone = (each.units >= 0) & ~stays[each.units.clamp(min=0)]
            weight.index_fill_(1, gone.nonzero().flatten().to(weight.device), 0.0)


def weights(network: nn.Module, parts: Iterable[Part]) -> Iterator[tuple[Part, nn.Parameter, int]]:
    """Yield the parameters that have some parts as a dimension, and which."""
    for each in parts:
        layer = network.get_submodule(each.module)
        for name, dim in (axes(layer, each.size) or {}).items():
            if isinstance(tensor := getattr(layer, name, None), nn.Parameter):
                yield each, tensor, dim
