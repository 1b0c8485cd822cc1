"""Losses by comparison: of two views of a sample, each tells the other from all else.

Shapes: N samples, P width of what is compared.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def nt_xent(first: Tensor, second: Tensor, temperature: float, within: bool = True) -> Tensor:
    """Return the cross-entropy of finding the other view of each sample, by cosine similarity.

    With ``within``, each of the 2 N views looks among the 2 N - 1 others (SimCLR). Without, each
    first view looks among the second ones (SimCSE).

    Args:
        first: Views of the samples, shape (N, P).
        second: Other views of the same, shape (N, P).
        temperature: What similarities are divided by.
        within: Whether views of one kind are told apart too.

    Returns:
        Of each sample, shape (N,): with ``within`` the mean of its two views.

    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
        2020, https://arxiv.org/abs/2002.05709; Gao et al., SimCSE, 2021,
        https://arxiv.org/abs/2104.08821
    """
    with torch.autocast(first.device.type, enabled=False):  # in 16 bits, neighbours are alike
        return _nt_xent(first.float(), second.float(), temperature, within)


def _nt_xent(first: Tensor, second: Tensor, temperature: float, within: bool) -> Tensor:
    first, second = (F.normalize(x, dim=1) for x in (first, second))
    across = first @ second.T / temperature
    place = torch.arange(len(first), device=first.device)
    if not within:
        return F.cross_entropy(across, place, reduction="none")
    self_ = torch.eye(len(first), dtype=torch.bool, device=first.device)
    rows = []
    for mine, other in ((first, across), (second, across.T)):
        alike = (mine @ mine.T / temperature).masked_fill(self_, float("-inf"))
        rows.append(F.cross_entropy(torch.cat([other, alike], 1), place, reduction="none"))
    return torch.stack(rows).mean(0)


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Return the squared distance of both views of each sample on the unit sphere, shape (N,).

    Source: Wang and Isola, Understanding Contrastive Representation Learning through Alignment and
        Uniformity on the Hypersphere, 2020. https://arxiv.org/abs/2005.10242
    """
    return (F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(1)


def found(first: Tensor, second: Tensor) -> Tensor:
    """Return whether the nearest second view of each first one is its own, shape (N,)."""
    with torch.autocast(first.device.type, enabled=False):
        first, second = (F.normalize(x.float(), dim=1) for x in (first, second))
        nearest = (first @ second.T).argmax(1)
    return nearest == torch.arange(len(first), device=first.device)
