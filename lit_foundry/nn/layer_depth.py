"""Which block of a backbone a weight or a layer belongs to, and which weights are matrices.

What lies in no block (a class token, a final norm) goes with the block registered before it, or
with the first.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from torch import nn
from torch.nn.modules.conv import _ConvNd

T = TypeVar("T")
LAYERS = (nn.Linear, _ConvNd, nn.Embedding, nn.EmbeddingBag)


def parameter_depths(backbone: nn.Module, blocks: Sequence[nn.Module]) -> dict[nn.Parameter, int]:
    """Return the number of its block for each parameter; of a shared one, the lowest.

    Args:
        backbone: Network.
        blocks: Its parts in depth order.
    """
    inside = _lowest(block.parameters() for block in blocks)
    depths, depth = {}, 0
    for p in backbone.parameters():
        depths[p] = depth = inside.get(p, depth)
    return depths


def module_depths(backbone: nn.Module, blocks: Sequence[nn.Module]) -> dict[nn.Module, int]:
    """Return the number of its block for each module, except for those that hold blocks.

    Args:
        backbone: Network.
        blocks: Its parts in depth order.
    """
    inside = _lowest(block.modules() for block in blocks)
    depths, depth = {}, 0
    for module in backbone.modules():
        depth = inside.get(module, depth)
        if module in inside or not any(m in inside for m in module.modules()):
            depths[module] = depth
    return depths


def _lowest(members: Iterable[Iterable[T]]) -> dict[T, int]:
    """Return for each member the number of the lowest block that has it."""
    deepest_first = reversed(list(enumerate(members)))
    return {member: depth for depth, block in deepest_first for member in block}


def matrices(network: nn.Module) -> set[nn.Parameter]:
    """Return the weights of linear layers, convolutions and embeddings.

    In modules of other types, such as experts, those are it that are named so and are no vector.
    Positions, class tokens and scales of channels are none, however many dimensions they have.
    """
    found = set()
    for module in network.modules():
        for name, p in module.named_parameters(recurse=False):
            named = "weight" in name or name.endswith("proj")
            is_vector = sum(size > 1 for size in p.shape) < 2
            if p.ndim >= 2 and named and (isinstance(module, LAYERS) or not is_vector):
                found.add(p)
    return found
