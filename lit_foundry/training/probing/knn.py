"""Classes by the nearest neighbours in feature space, weighted by their similarity.

Shapes: N samples of the bank, Q queries, D feature width, C classes, k neighbours.

Source: Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018.
    https://arxiv.org/abs/1805.01978 (section 3.4)
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lit_foundry import ranges
from lit_foundry.training.probing.encoder import check_finite

K, TEMPERATURE = 200, 0.07  # theirs
BLOCK = 256  # queries at once


def nearest(
    features: Tensor,
    bank: Tensor,
    label: Tensor,
    k: int | None = None,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Return the class that the nearest samples of a bank vote for, shape (Q,).

    Each of the k samples of the largest cosine similarity s votes for its class with the weight
    exp(s / temperature).

    Args:
        features: Of the queries, shape (Q, D).
        bank: Features of samples whose class is known, shape (N, D).
        label: Classes of these, shape (N,).
        k: Number of neighbours; None takes 200, or all if there are fewer.
        temperature: Above 0; the smaller, the more the nearest of them count.

    Raises:
        ValueError: If a value lies outside its range, as k beyond the bank, or features are not
            finite.
    """
    check_votes(k, temperature)
    if k is not None and k > len(bank):
        raise ValueError(f"k={k} neighbours, and the bank holds {len(bank)} samples: lower k.")
    check_finite(bank, "the bank")
    check_finite(features, "the queries")
    k, num_classes = min(k or K, len(bank)), int(label.max()) + 1
    bank = F.normalize(bank, dim=1)
    found = []
    for queries in torch.split(features, BLOCK):
        similarity, place = (F.normalize(queries, dim=1) @ bank.T).topk(k)
        weight = (similarity / temperature).exp()
        votes = weight.new_zeros(len(queries), num_classes)
        found.append(votes.scatter_add_(1, label[place], weight).argmax(1))
    return torch.cat(found) if found else label[:0]


def check_votes(k: int | None, temperature: float) -> None:
    """Raise ValueError unless both are such as :func:`nearest` takes."""
    rules = {
        "k": (k is None or k >= 1, "is a number of neighbours, 1 at least, or null"),
        "temperature": (temperature > 0, "must be above 0"),
    }
    ranges.check("", {"k": k, "temperature": temperature}, rules)


class WeightedKNN(Metric):
    """Share of queries whose class the nearest samples of a bank tell.

    Samples are put in the order of their split, so that any number of ranks computes the same.

    Args:
        k: Number of neighbours; None takes 200, or all samples of the bank if there are fewer.
        temperature: Above 0.
    """

    full_state_update = False
    bank: list[Tensor]
    bank_label: list[Tensor]
    bank_index: list[Tensor]
    features: list[Tensor]
    label: list[Tensor]
    index: list[Tensor]

    def __init__(self, k: int | None = None, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        check_votes(k, temperature)
        self.k, self.temperature = k, temperature
        for name in ("bank", "bank_label", "bank_index", "features", "label", "index"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, label: Tensor, index: Tensor, bank: bool = False) -> None:
        """Add samples to the queries, or to the bank; every rank adds to both, if only (0, D).

        Args:
            features: Shape (B, D).
            label: Class of each, shape (B,); what is below 0 is left out.
            index: Its number in its split, shape (B,).
            bank: Whether they vote.
        """
        known = label >= 0
        names = ("bank", "bank_label", "bank_index") if bank else ("features", "label", "index")
        for name, values in zip(names, (features, label, index), strict=True):
            getattr(self, name).append(values[known])

    def compute(self) -> Tensor:
        """Return the share."""
        bank, bank_label = _in_order(self.bank, self.bank_label, self.bank_index)
        features, label = _in_order(self.features, self.label, self.index)
        said = nearest(features, bank, bank_label, self.k, self.temperature)
        return (said == label).float().mean()


def _in_order(features: list[Tensor], label: list[Tensor], index: list[Tensor]) -> list[Tensor]:
    order = dim_zero_cat(index).argsort()
    return [dim_zero_cat(values)[order] for values in (features, label)]
