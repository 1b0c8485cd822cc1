"""Intervals are those of the papers, and hold the truth as often as they say."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from lit_foundry.compress.confidence import paired_difference, wilson


def paired(both: int, gained: int, lost: int, neither: int) -> list[NDArray[np.bool_]]:
    """Return which samples two networks have right, by how many each and both have."""
    counts = [both, gained, lost, neither]
    return [np.repeat(right, counts) for right in ([True, True, False, False], [1, 0, 1, 0])]


# Newcombe, Two-sided Confidence Intervals for the Single Proportion, 1998, table I, method 3
@pytest.mark.parametrize(
    ("right", "count", "interval"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_interval_of_a_share_is_that_of_the_paper(
    right: int, count: int, interval: tuple[float, float]
) -> None:
    found = wilson(right, count)
    assert found == pytest.approx(interval, abs=5e-5)
    theirs = binomtest(right, count).proportion_ci(method="wilson")
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("right", [0, 7])
def test_interval_of_none_and_all_holds_them(right: int) -> None:
    low, high = wilson(right, 7)
    assert 0 <= low <= right / 7 <= high <= 1


def test_interval_of_a_paired_difference_is_that_of_the_paper() -> None:
    # Newcombe 1998, table II, method 10
    difference, interval = paired_difference(*paired(36, 12, 2, 0))
    assert difference == pytest.approx(0.2)
    assert interval == pytest.approx((0.0569, 0.3404), abs=5e-5)
    back, mirrored = paired_difference(*reversed(paired(36, 12, 2, 0)))
    assert (back, *mirrored) == pytest.approx((-difference, -interval[1], -interval[0]))


def test_interval_of_many_samples_is_that_of_mcnemars_variance() -> None:
    difference, (low, high) = paired_difference(*paired(230_000, 3000, 2500, 14_500))
    spread = 1.959964 * (5500 - 500**2 / 250_000) ** 0.5 / 250_000
    assert difference == pytest.approx(0.002)
    assert (low, high) == pytest.approx((0.002 - spread, 0.002 + spread), abs=1e-5)


def test_who_predicts_the_same_does_not_differ_but_is_not_sure_either() -> None:
    difference, (low, high) = paired_difference(*paired(30, 0, 0, 10))
    assert difference == 0
    assert -0.1 < low < 0 < high < 0.1


def test_interval_holds_the_true_difference_of_95_in_100_draws() -> None:
    rng = np.random.default_rng(0)
    probs = np.array([0.75, 0.10, 0.06, 0.09])
    held = 0
    for _ in range(1000):
        _, (low, high) = paired_difference(*paired(*rng.multinomial(100, probs).tolist()))
        held += low <= probs[1] - probs[2] <= high
    assert 930 <= held <= 985
