"""What can be removed of a backbone."""

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from lit_foundry.nn.changes import is_shared
from lit_foundry.nn.pruning.channels import channels
from lit_foundry.nn.pruning.groups import Group
from lit_foundry.nn.pruning.linear import calls, heads, neurons
from lit_foundry.nn.pruning.trial import holding, tried

Kind = Literal["channels", "neurons", "heads"]


def groups(backbone: Any, batch: Mapping[str, Tensor], kinds: Collection[str]) -> list[Group]:
    """Return all groups of some kinds, each of which was tried, in the order of the layers.

    What computes frozen units stays whole: it could not make up for those that went.

    Args:
        backbone: Network.
        batch: Some samples that it is tried on.
        kinds: Of ``channels``, ``neurons`` and ``heads``.

    Raises:
        ModuleNotFoundError: If torch-pruning is needed and not installed.
    """
    copied = tried(backbone)
    order = calls(copy.deepcopy(copied), batch)  # some networks keep what a forward pass computed
    found: list[Group] = []
    every = {"heads": heads(backbone, order), "neurons": neurons(order)}
    for kind, candidates in every.items():
        if kind in kinds:
            found += holding(copied, batch, _free(backbone, candidates, found))
    if "channels" in kinds:
        found += holding(copied, batch, _free(backbone, channels(copied, batch), found))
    rank = {name: number for number, (name, _) in enumerate(backbone.named_modules())}
    return sorted(found, key=lambda group: (rank[group.name], group.kind))


def _free(backbone: Any, candidates: Iterable[Group], found: list[Group]) -> list[Group]:
    """Return those that learn, and of which nothing is in a group that was found before."""
    taken = {(each.module, each.size) for group in found for each in group.parts}
    return [
        group
        for group in candidates
        if taken.isdisjoint((each.module, each.size) for each in group.parts)
        and all(_learns(backbone, each.module) for each in group.parts if not each.reads)
        and not any(is_shared(backbone, backbone.get_submodule(p.module)) for p in group.parts)
    ]


def _learns(backbone: Any, module: str) -> bool:
    weight = getattr(backbone.get_submodule(module), "weight", None)
    return weight is None or weight.ndim < 2 or bool(weight.requires_grad)
