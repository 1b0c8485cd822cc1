"""Metrics that torchmetrics lacks.

Shapes: N samples or words, B batch, W words, C classes, K values.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score
from torchmetrics.utilities import dim_zero_cat

from lit_foundry.nn.text.masking import IGNORED


class TokenAccuracy(Metric):
    """Share of the predicted tokens that are right, where -100 is left out.

    That of torchmetrics selects what counts, and thereby waits for the device in every step.
    """

    full_state_update = False
    correct: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("correct", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count ids of any shape."""
        self.correct += (preds == target).sum()
        self.total += (target != IGNORED).sum()

    def compute(self) -> Tensor:
        """Return the share."""
        return self.correct / self.total.clamp(min=1)


class PositiveF1(MulticlassF1Score):
    """F1 of the second of two classes, the positive one."""

    def __init__(self) -> None:
        super().__init__(num_classes=2, average="none", validate_args=False)

    def compute(self) -> Tensor:
        """Return the score."""
        positive: Tensor = super().compute()[1]
        return positive


class _KeepsSamples(Metric):
    """Keeps what is predicted and what is true of all samples of an evaluation."""

    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch, (B, K) both."""
        self.preds.append(preds)
        self.target.append(target)

    def kept(self) -> tuple[Tensor, Tensor]:
        """Return both, shape (K, N), in float64 where the device has that."""
        both = [dim_zero_cat(state).T for state in (self.preds, self.target)]
        preds, target = (x if x.device.type == "mps" else x.double() for x in both)
        return preds, target


class ValueScores(_KeepsSamples):
    """Errors and correlations of values; of several the means of theirs.

    Those of torchmetrics fail on one sample, warn of constant values, and rank equal ones one after
    the other. Here correlations with a constant are 0.
    """

    def compute(self) -> dict[str, Tensor]:
        """Return ``mae``, ``rmse``, ``r2``, ``pearson`` and ``spearman``."""
        preds, target = self.kept()
        square = (preds - target).square()
        spread = (target - target.mean(1, keepdim=True)).square().sum(1)
        r2 = torch.where(spread > 0, 1 - square.sum(1) / spread, 0.0)
        scores = {"mae": (preds - target).abs().mean(1), "rmse": square.mean(1).sqrt(), "r2": r2}
        scores["pearson"] = correlation(preds, target)
        scores["spearman"] = correlation(ranks(preds), ranks(target))
        return {name: score.mean().float() for name, score in scores.items()}


def correlation(one: Tensor, two: Tensor) -> Tensor:
    """Return Pearson's correlation along the rows of (K, N), 0 with what is constant."""
    one, two = (rows - rows.mean(1, keepdim=True) for rows in (one, two))
    scale = (one.square().sum(1) * two.square().sum(1)).sqrt()
    return torch.where(scale > 0, (one * two).sum(1) / scale, 0.0)


def ranks(values: Tensor) -> Tensor:
    """Return the ranks in each row of (K, N), the mean one of equal values."""
    found = torch.empty_like(values)
    for row, rank in zip(values, found, strict=True):
        _, place, counts = row.unique(return_inverse=True, return_counts=True)
        rank.copy_((counts.cumsum(0) - (counts - 1) / 2)[place])
    return found


class MeanAveragePrecision(_KeepsSamples):
    """Mean over classes of the area under precision and recall, as scikit-learn computes it.

    Classes that never apply are left out: torchmetrics does so too, and warns each time.
    """

    def compute(self) -> Tensor:
        """Return the score; 0 if no class ever applies."""
        preds, target = self.kept()
        found = [
            average_precision(*pair) for pair in zip(preds, target, strict=True) if pair[1].any()
        ]
        return (
            torch.stack(found).mean().float() if found else preds.new_zeros((), dtype=torch.float)
        )


def average_precision(preds: Tensor, target: Tensor) -> Tensor:
    """Return the precision at each threshold, weighted by what it adds to recall.

    Args:
        preds: Scores, shape (N,).
        target: 1 where the class applies, else 0, shape (N,).
    """
    order = preds.argsort(descending=True)
    preds, hits = preds[order], target[order].cumsum(0)
    last = torch.cat([preds.diff() != 0, preds.new_ones(1, dtype=torch.bool)])  # of equal scores
    hits, place = hits[last], last.nonzero()[:, 0] + 1
    gained = hits.diff(prepend=hits.new_zeros(1))
    return (hits / place * gained).sum() / hits[-1]


class EntityF1(Metric):
    """F1 of whole entities, by tags of words that begin (``B-PER``) or go on with one (``I-PER``).

    One is right if its kind and both of its ends are. As in seqeval, ``I-PER`` begins an entity
    where none of its kind went before.

    Args:
        names: Those of the tags.

    Source: Ramshaw and Marcus, Text Chunking using Transformation-Based Learning, 1995.
        https://arxiv.org/abs/cmp-lg/9505040 (the tags); https://github.com/chakki-works/seqeval
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        known = sorted({name[2:] for name in names if name != "O"})
        kinds = [-1 if name == "O" else known.index(name[2:]) for name in names]
        self._kinds, self._begins = kinds, [name[:2] == "B-" for name in names]
        self.add_state("counts", torch.zeros(3, dtype=torch.long), dist_reduce_fx="sum")

    @staticmethod
    def reads(names: Sequence[str]) -> bool:
        """Tell whether tags are named so."""
        marks = {name if name == "O" else name[:2] for name in names}
        return "B-" in marks and marks <= {"B-", "I-", "O"}

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Count the entities of texts, (B, W) both; words whose target is -100 are left out."""
        row, word = (target != IGNORED).nonzero(as_tuple=True)
        said, true = (self._entities(tags[row, word], row) for tags in (preds, target))
        right = torch.isin(said, true).sum()
        self.counts += torch.stack(
            [right, right.new_tensor(len(said)), right.new_tensor(len(true))]
        )

    def _entities(self, tags: Tensor, row: Tensor) -> Tensor:
        """Return a number for each entity, that of its kind and ends, of all words in a line."""
        kind = torch.tensor(self._kinds, device=tags.device)[tags]
        begins = torch.tensor(self._begins, device=tags.device)[tags]
        new = torch.ones_like(begins)  # whether an entity, if there is one, begins or is over
        new[1:] = begins[1:] | (kind[1:] != kind[:-1]) | (row[1:] != row[:-1])
        first = (new & (kind >= 0)).nonzero()[:, 0]
        last = (new.roll(-1) & (kind >= 0)).nonzero()[:, 0]
        return (first * len(tags) + last) * len(self._kinds) + kind[first]

    def compute(self) -> Tensor:
        """Return the score, 0 if there are none."""
        right, said, true = self.counts
        score: Tensor = 2 * right / (said + true).clamp(min=1)
        return score
