"""How many units of each group stay, so that a network costs no more than it may.

Shapes: U units of a group.
"""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor

from lit_foundry.nn.pruning.cost import Cost, cost
from lit_foundry.nn.pruning.groups import indices, remove
from lit_foundry.nn.pruning.scores import Score, comparable, sizes
from lit_foundry.nn.pruning.units import groups

Keep = list[Tensor]  # of each group, whether a unit stays, shape (U,)


class Plan:
    """What of a backbone can be removed, and what that leaves of its cost.

    Args:
        backbone: Network.
        batch: Samples that it is tried and measured on.
        kinds: Of ``channels``, ``neurons`` and ``heads``.
        least: Share of each group that stays at least.
        multiple_of: Number that groups of channels and neurons are left a multiple of.
        original: Number of units that the groups had at first; None if that is now.

    Attributes:
        groups: What can be removed.
        original: Number of units that each had at first, by name.
    """

    def __init__(
        self,
        backbone: Any,
        batch: Mapping[str, Tensor],
        kinds: Collection[str],
        least: float,
        multiple_of: int,
        original: Mapping[str, int] | None = None,
    ) -> None:
        self.backbone, self.batch = backbone, batch
        self.least, self.multiple_of = least, multiple_of
        found = groups(backbone, batch, kinds)
        self.original = original or {group.name: group.count for group in found}
        # The width of the last head left may seem neurons; a run that goes on has not known these.
        self.groups = [group for group in found if group.name in self.original]

    def cost(self, of: Cost, keep: Keep | None = None) -> float:
        """Return what the network costs, or would with some units alone."""
        network = copy.deepcopy(self.backbone).eval()
        if keep is not None:
            remove(network, indices(self.groups, keep))
        return cost(network, self.batch, of)

    def above(self, scores: Sequence[Tensor], threshold: float) -> Keep:
        """Keep what scores above a threshold, as far as bounds and multiples allow."""
        keep = []
        for group, values in zip(self.groups, scores, strict=True):
            least = max(1, ceil(self.least * self.original[group.name] - 1e-9))
            count = max(least, int((values > threshold).sum()))
            multiple = 1 if group.kind == "heads" else self.multiple_of
            best = values.argsort(descending=True, stable=True)[: -(-count // multiple) * multiple]
            keep.append(torch.zeros(group.count, dtype=torch.bool).index_fill(0, best, True))
        return keep

    def smallest(self, of: Cost) -> float:
        """Return the least that the network can cost."""
        nothing = [torch.zeros(group.count) for group in self.groups]
        return self.cost(of, self.above(nothing, 0.0))

    def choose(
        self, scores: Sequence[Tensor], score: Score, by_layer: bool, of: Cost, most: float
    ) -> Keep:
        """Keep what scores above the lowest threshold that leaves no higher cost.

        Args:
            scores: Of each group, shape (U,).
            score: What they are.
            by_layer: Let all groups lose the same share.
            of: Kind of cost.
            most: Highest cost.
        """
        parameters = (sizes(self.backbone, group) for group in self.groups)
        values = [
            comparable(each, weight, score, by_layer)
            for each, weight in zip(scores, parameters, strict=True)
        ]
        thresholds = [float("-inf"), *sorted({each for group in values for each in group.tolist()})]
        fits: Callable[[int], bool] = lambda at: (  # noqa: E731
            self.cost(of, self.above(values, thresholds[at])) <= most
        )
        low, high = 0, len(thresholds) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle + 1, high)
        return self.above(values, thresholds[high])
