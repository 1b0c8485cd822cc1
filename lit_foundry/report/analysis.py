"""What predictions tell of a network: per class, by confidence and by length.

Shapes: N samples, C classes, K bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lit_foundry.runs.predictions import Predictions

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def confusion(predictions: Predictions) -> Counts:
    """Count samples by true (row) and predicted class, shape (C, C)."""
    return count_pairs(predictions.target, predictions.predicted, len(predictions.labels))


def count_pairs(target: Counts, predicted: Counts, size: int) -> Counts:
    """Count pairs of true (row) and predicted class, shape (size, size)."""
    return np.bincount(target * size + predicted, minlength=size**2).reshape(size, size)


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class, shape (C,); 0 where nothing was predicted or nothing is there."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Counts


def class_scores(matrix: Counts) -> ClassScores:
    """Compute the scores of each class from a confusion matrix."""
    return scores_of(matrix.diagonal(), matrix.sum(0), matrix.sum(1))


def scores_of(hits: Counts, predicted: Counts, support: Counts) -> ClassScores:
    """Compute scores of classes from how often each was hit, was predicted and is there."""
    precision, recall = hits / np.maximum(predicted, 1), hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(predicted + support, 1)
    return ClassScores(precision, recall, f1, support)


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy in bins of equal width, shape (K,).

    Attributes:
        confidence: Mean probability of the predicted class; 0 in an empty bin.
        accuracy: Share of right predictions; 0 in an empty bin.
        count: Samples.
        error: Expected calibration error: mean gap between the two, weighted by samples.
    """

    confidence: Floats
    accuracy: Floats
    count: Counts
    error: float

    @property
    def edges(self) -> Floats:
        """Borders of the bins, shape (K + 1,)."""
        return np.linspace(0, 1, len(self.count) + 1)


def calibration(predictions: Predictions, num_bins: int = 15) -> Calibration:
    """Bin samples by confidence; of several classes at once, all their probabilities.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017, arxiv.org/abs/1706.04599
    """
    if predictions.kind == "classes":
        sure, right = predictions.probs.ravel(), predictions.target.ravel() > 0
    else:
        sure = predictions.probs.max(1)
        right = predictions.predicted == predictions.target
    edges = np.linspace(0, 1, num_bins + 1, dtype=sure.dtype)
    index = np.searchsorted(edges, sure, side="right") - 1

    def bins(index: NDArray[np.intp], size: int) -> tuple[Floats, Floats, Counts]:
        count = np.bincount(index, minlength=size)
        sums = (np.bincount(index, weights, size) for weights in (sure, right))
        confidence, accuracy = (total / np.maximum(count, 1) for total in sums)
        return confidence, accuracy, count

    # torchmetrics gives a confidence of exactly 1 a bin of its own, and so does the error here,
    # for val/calibration_error to be the same number; a reader sees it in the last bin.
    confidence, accuracy, count = bins(index, num_bins + 1)
    error = float((np.abs(confidence - accuracy) * count).sum() / max(len(sure), 1))
    return Calibration(*bins(np.minimum(index, num_bins - 1), num_bins), error)


def wilson(hits: Counts, count: Counts, z: float = 1.96) -> tuple[Floats, Floats]:
    """Return the borders of a binomial share's interval, by default of 95 %.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927
    """
    n = np.maximum(count, 1)
    share = hits / n
    center = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return np.maximum(center - half, 0), np.minimum(center + half, 1)


@dataclass(frozen=True)
class ByLength:
    """Accuracy in bins of length, shape (K,), with the borders of its 95 % interval."""

    accuracy: Floats
    low: Floats
    high: Floats
    count: Counts


def length_edges(runs: Sequence[Predictions], num_bins: int = 8) -> Counts:
    """Return lengths that cut the samples of all runs into equally many, shape (<= K + 1,).

    A bin reaches from its edge up to, and without, the next one.
    """
    tokens = np.concatenate([np.asarray(run.samples["tokens"], np.int64) for run in runs])
    edges = np.quantile(tokens, np.linspace(0, 1, num_bins + 1), method="higher")
    edges[-1] += 1
    return np.unique(edges).astype(np.int64)


def by_length(predictions: Predictions, edges: Counts) -> ByLength:
    """Compute accuracy in bins of length."""
    tokens = np.asarray(predictions.samples["tokens"])
    right = predictions.predicted == predictions.target
    inside = [(low <= tokens) & (tokens < high) for low, high in pairwise(edges)]
    count = np.array([mask.sum() for mask in inside], np.int64)
    hits = np.array([right[mask].sum() for mask in inside], np.int64)
    return ByLength(hits / np.maximum(count, 1), *wilson(hits, count), count)


def examples(predictions: Predictions, count: int = 24) -> Counts:
    """Return rows from all over a split, whatever was predicted."""
    size = len(predictions)
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))


@dataclass(frozen=True)
class Agreement:
    """How many samples two runs get right: both, only the first, only the second, neither."""

    both: int
    only_first: int
    only_second: int
    neither: int


def agreement(first: Predictions, second: Predictions) -> Agreement | None:
    """Compare two runs sample by sample; None if they did not see the same ones."""

    def table(run: Predictions) -> dict[tuple[str, ...], bool]:
        # Ids may be row numbers, which other files have too.
        columns = [run.samples[name] for name in ("id", "text") if name in run.samples]
        names = [run.labels[i] for i in run.target]
        keys = ((*map(str, key),) for key in zip(*columns, names, strict=True))
        return dict(zip(keys, (run.predicted == run.target).tolist(), strict=True))

    one, two = table(first), table(second)
    if one.keys() != two.keys() or not len(one) == len(first.target) == len(second.target):
        return None
    pairs = [(right, two[key]) for key, right in one.items()]
    cells = ((True, True), (True, False), (False, True), (False, False))
    return Agreement(*(pairs.count(cell) for cell in cells))
