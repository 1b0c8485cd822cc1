"""Choices among documents: by their content, whatever their order and number."""

from typing import Any

import numpy as np
import pytest

from lit_foundry.data.corpus.shards import first_occurrences, held_out


def hashes(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 2**64, (count, 2), np.uint64)


def test_only_the_first_of_equal_documents_is_a_first_occurrence() -> None:
    some = hashes(5)
    some[3, 0] = some[1, 0]  # half of a hash in common
    order = [0, 1, 0, 2, 3, 1, 0, 4]
    expected = [True, True, False, True, True, False, False, True]
    assert first_occurrences(some[order]).tolist() == expected
    assert first_occurrences(some[:0]).tolist() == []


def test_held_out_share_depends_on_content_and_seed_alone() -> None:
    some = hashes(20_000)
    chosen = held_out(some, 0.1, seed=0)
    assert abs(chosen.mean() - 0.1) < 0.01
    order = np.random.default_rng(1).permutation(20_000)[:5000]
    assert (held_out(some[order], 0.1, seed=0) == chosen[order]).all()
    assert (chosen <= held_out(some, 0.2, seed=0)).all()
    both = chosen & held_out(some, 0.1, seed=1)
    assert abs(both.mean() - 0.01) < 0.004
    in_order = np.stack([np.arange(20_000), np.zeros(20_000)], 1).astype(np.uint64)
    assert abs(held_out(in_order, 0.5, seed=0).mean() - 0.5) < 0.02


@pytest.mark.parametrize("fraction", [1e-9, 0.5, 1 - 1e-9])
def test_each_side_has_a_document_and_copies_stay_together(fraction: float) -> None:
    for seed in range(20):
        chosen = held_out(hashes(2)[[0, 1, 0, 1, 1]], fraction, seed)
        assert chosen.any()
        assert not chosen.all()
        assert chosen[0] == chosen[2]
        assert chosen[1] == chosen[3] == chosen[4]
    assert not held_out(hashes(1)[[0, 0]], fraction, 0).any()
    assert held_out(hashes(0), fraction, 0).shape == (0,)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got 1"):
        held_out(hashes(2), 1.0, 0)
