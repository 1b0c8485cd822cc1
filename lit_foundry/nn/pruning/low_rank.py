"""Linear layers as products of two smaller ones, by the singular values of their weights.

Shapes: O outputs, I inputs, R rank.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.nn.changes import factorize, is_shared
from lit_foundry.nn.pruning.linear import calls
from lit_foundry.nn.pruning.trial import alike, tried


def layers(
    backbone: Any, batch: Mapping[str, Tensor], targets: tuple[str, ...] | None = None
) -> dict[str, nn.Linear]:
    """Return the linear layers that learn and can be two, by name.

    Args:
        backbone: Network.
        batch: Some samples that it is tried on.
        targets: Ends of the names of those that shall be; None of all.

    Raises:
        ValueError: If the network computes something else with them as two.
    """
    network = tried(backbone)
    order = calls(copy.deepcopy(network), batch)
    there = {name: backbone.get_submodule(name) for name in order}
    found = {
        name: layer
        for name, layer in there.items()
        if (targets is None or name.endswith(targets))
        and type(layer) is nn.Linear
        and layer.weight.requires_grad
        and is_shared(backbone, layer) is None
    }
    with torch.no_grad():
        want = network.encode(batch)
        for name in found:
            weight = network.get_submodule(name).weight
            one = torch.eye(min(weight.shape), device=weight.device)
            put(
                network,
                name,
                (one, weight) if weight.shape[0] >= weight.shape[1] else (weight, one),
            )
        try:
            same = alike(network.encode(batch), want)
        except AttributeError:  # of the weight, which two have each for themselves
            same = False
        if not same:
            raise ValueError(
                f"LowRank: linear layers of a {type(backbone).__name__} are read past themselves, "
                "and cannot be made two: name others in LowRank.targets."
            )
    return found


@torch.no_grad()
def put(network: nn.Module, name: str, factors: tuple[Tensor, Tensor]) -> None:
    """Put two layers in the place of one.

    Args:
        network: Holds the layer.
        name: Its dotted name.
        factors: What is applied first, shape (R, I), and then, (O, R).
    """
    factorize(network, name, len(factors[0]))
    for layer, weight in zip(network.get_submodule(name).children(), factors, strict=True):
        layer.weight.copy_(weight)  # type: ignore[operator]


@torch.no_grad()
def factors(weight: Tensor, energy: float | None, share: float | None) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product is the best approximation of a weight of their rank.

    Args:
        weight: Shape (O, I).
        energy: Share of the sum of squares of the weight that the product keeps at least.
        share: Share of its numbers that the two have together at most, in place of that.

    Returns:
        What is applied first, shape (R, I), and then, (O, R).

    Source: Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """
    u, values, v = torch.linalg.svd(weight.float(), full_matrices=False)
    if energy is not None:
        kept = values.double().square().cumsum(0) / values.double().square().sum()
        rank = int((kept < energy).sum()) + 1
    else:
        rank = int((share or 0) * weight.numel() / sum(weight.shape))
    rank = min(max(rank, 1), len(values))
    root = values[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root
