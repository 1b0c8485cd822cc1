"""Contrastive losses against their formulas, written out."""

import math

import pytest
import torch
from torch import Tensor

from lit_foundry.nn.contrastive_loss import alignment, found, nt_xent


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("within", [True, False])
def test_loss_is_that_of_the_paper(within: bool) -> None:
    first, second = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    losses = nt_xent(first, second, 0.3, within)
    for i in range(5):
        each = []
        for mine, other in ((first, second), (second, first)):
            right = math.exp(cosine(mine[i], other[i]) / 0.3)
            total = sum(math.exp(cosine(mine[i], other[j]) / 0.3) for j in range(5))
            if within:
                alike = (cosine(mine[i], mine[j]) for j in range(5) if j != i)
                total += sum(math.exp(value / 0.3) for value in alike)
            each.append(-math.log(right / total))
        want = sum(each) / 2 if within else each[0]
        assert float(losses[i]) == pytest.approx(want, rel=1e-5)


def test_neighbours_are_told_apart_where_products_have_16_bits() -> None:
    first = 5 + torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 1e-2
    want = nt_xent(first, first, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert found(first, first).all()
        torch.testing.assert_close(nt_xent(first, first, 0.1), want)


def test_a_sample_alone_has_nothing_to_be_told_from() -> None:
    one = torch.randn(1, 4)
    for within in (True, False):
        assert float(nt_xent(one, one, 0.1, within)) == pytest.approx(0, abs=1e-5)


def test_alignment_and_what_is_found() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    second = torch.tensor([[3.0, 0.0], [1.0, 0.1], [-2.0, -2.0]])
    assert alignment(first, second)[[0, 2]].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert float(alignment(first, second)[1]) == pytest.approx(2 - 2 * 0.1 / math.hypot(1, 0.1))
    assert found(first, second).tolist() == [True, True, True]
    assert found(first, second[[1, 0, 2]]).tolist() == [False, False, True]
