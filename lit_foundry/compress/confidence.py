"""Confidence intervals of shares, and of the difference of two on the same samples."""

from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Z = NormalDist().inv_cdf(0.975)  # of intervals of 95 %


def wilson(right: int, count: int) -> Interval:
    """Return the score interval of a share at 95 %.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
        https://doi.org/10.1080/01621459.1927.10502953
    """
    share, square = right / count, Z * Z / count
    middle = (share + square / 2) / (1 + square)
    half = sqrt(share * (1 - share) * square + square * square / 4) / (1 + square)
    # Rounding would leave 0 and 1 outside.
    return min(share, middle - half), max(share, middle + half)


def paired_difference(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> tuple[float, Interval]:
    """Return by how much the share of one exceeds that of the other, and the interval at 95 %.

    It comes from the score intervals of both shares and their correlation, so that it also holds
    where the two hardly differ, or are right nearly everywhere.

    Args:
        one: Whether each sample is right, shape (N,).
        other: The same of another network on the same samples.

    Source: Newcombe, Improved Confidence Intervals for the Difference between Binomial Proportions
        Based on Paired Data, 1998, method 10.
        https://doi.org/10.1002/(SICI)1097-0258(19981130)17:22<2635::AID-SIM954>3.0.CO;2-C
    """
    count = len(one)
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    gained, lost = int((one & ~other).sum()), int((other & ~one).sum())
    odds: float = both * neither - gained * lost
    if odds > 0:
        odds = max(odds - count / 2, 0.0)  # his correction for continuity
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    phi = odds / sqrt(margins) if margins else 0.0
    shares = (both + gained) / count, (both + lost) / count
    (low, high), (other_low, other_high) = wilson(both + gained, count), wilson(both + lost, count)
    below, above = shares[0] - low, high - shares[0]
    other_below, other_above = shares[1] - other_low, other_high - shares[1]
    down = sqrt(below**2 - 2 * phi * below * other_above + other_above**2)
    up = sqrt(above**2 - 2 * phi * above * other_below + other_below**2)
    difference = (gained - lost) / count
    return difference, (difference - down, difference + up)
