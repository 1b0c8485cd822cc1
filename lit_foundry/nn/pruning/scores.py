"""How much each unit of a group matters.

Shapes: U units, S size of a dimension.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lit_foundry.nn.pruning.groups import Group, weights

Score = Literal["magnitude", "taylor", "movement"]


@torch.no_grad()
def magnitudes(network: nn.Module, group: Group) -> Tensor:
    """Return the L2 norm of all parameters that go with a unit, shape (U,).

    Source: Fang et al., DepGraph: Towards Any Structural Pruning, 2023,
        https://arxiv.org/abs/2301.12900
    """
    total = torch.zeros(group.count)
    for part, weight, dim in weights(network, group.parts):
        others = [d for d in range(weight.ndim) if d != dim]
        squares = weight.float().square()
        _add(total, part.units, squares.sum(others) if others else squares)
    return total.sqrt()


@torch.no_grad()
def gate_gradients(network: nn.Module, group: Group) -> Tensor:
    """Return the derivative of the loss by a factor on what is read of a unit, at 1; shape (U,).

    That is the sum of weight times gradient over what reads it. Its square is the Taylor score of
    Molchanov et al., Importance Estimation for Neural Network Pruning, 2019,
    https://arxiv.org/abs/1906.10771; minus its sum over training is how far the weights moved
    away from 0 (Sanh et al., Movement Pruning, 2020, https://arxiv.org/abs/2005.07683).
    """
    total = torch.zeros(group.count)
    for part, weight, dim in weights(network, [p for p in group.parts if p.reads]):
        if weight.grad is not None:
            others = [d for d in range(weight.ndim) if d != dim]
            _add(total, part.units, (weight * weight.grad).float().sum(others))
    return total


def sizes(network: nn.Module, group: Group) -> Tensor:
    """Return the number of parameters that go with a unit, shape (U,)."""
    total = torch.zeros(group.count)
    for part, weight, dim in weights(network, group.parts):
        _add(total, part.units, torch.full(part.units.shape, weight.numel() / weight.shape[dim]))
    return total


def comparable(scores: Tensor, sizes: Tensor, score: Score, by_layer: bool) -> Tensor:
    """Make scores of different groups such that one threshold serves all.

    Args:
        scores: Those of a group, shape (U,).
        sizes: Parameters of each unit, shape (U,).
        score: What they are: norms are taken relative to the group's mean, what tells of the loss
            relative to the parameters.
        by_layer: Have all groups lose the same share, whatever their scores.
    """
    if by_layer:
        return scores.argsort(stable=True).argsort() / len(scores)
    return scores / (scores.mean().clamp(min=1e-12) if score == "magnitude" else sizes)


def _add(total: Tensor, units: Tensor, values: Tensor) -> None:
    total.index_add_(0, units[units >= 0], values.to(total.device)[units >= 0])
