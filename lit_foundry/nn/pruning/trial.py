"""Whether groups are what they seem: what is left of a network computes what it did without them.

Families of networks are too many to be listed, so each is tried.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_foundry.nn.pruning.groups import Group, indices, mask, remove

_TOLERANCE = 1e-3  # of the largest feature


@torch.no_grad()
def tried(backbone: Any) -> Any:
    """Return a copy in eval mode with other weights.

    Zeros would hide what follows them, and small queries and keys, by which all heads attend alike,
    which of the heads a value is in.
    """
    copied = copy.deepcopy(backbone).float().eval().requires_grad_(True)
    random = torch.Generator().manual_seed(0)
    for p in copied.parameters():
        noise = torch.randn(p.shape, generator=random).to(p.device)
        least = 0.5 * p[0].numel() ** -0.5 if p.ndim > 1 else 0.01
        p.add_(noise * (0.1 * p.std(correction=0) + least))
    return copied


def holding(backbone: Any, batch: Mapping[str, Tensor], groups: Sequence[Group]) -> list[Group]:
    """Return those groups whose removal equals their masking, found by halves."""
    if not groups or holds(backbone, batch, groups):
        return [*groups]
    if len(groups) == 1:
        return []
    middle = len(groups) // 2
    left, right = (holding(backbone, batch, half) for half in (groups[:middle], groups[middle:]))
    # What holds in each half may share a dimension with the other one.
    both = [*left, *right]
    return (
        both if not (left and right) or holds(backbone, batch, both) else max(left, right, key=len)
    )


@torch.no_grad()
def holds(backbone: Any, batch: Mapping[str, Tensor], groups: Sequence[Group]) -> bool:
    """Tell whether the features are the same with half of the units removed, and masked.

    Which half is random: every second unit would leave heads equally narrow, and hide that what
    seemed neurons is the width of heads.
    """
    random = torch.Generator().manual_seed(0)
    orders = (torch.randperm(group.count, generator=random) for group in groups)
    keep = [order < (len(order) + 1) // 2 for order in orders]
    masked, removed = copy.deepcopy(backbone), copy.deepcopy(backbone)
    mask(masked, groups, keep)
    remove(removed, indices(groups, keep))
    try:
        got = removed.encode(batch)
    except Exception:  # whatever a network throws that reads its sizes elsewhere
        return False
    return alike(got, masked.encode(batch))


def alike(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    """Tell whether features are the same but for rounding."""
    return all(
        a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * b.abs().max())
        for a, b in zip(got, want, strict=True)
    )
