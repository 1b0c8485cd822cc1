"""Heads: against their definitions."""

import pytest
import torch
from torch import nn

from lit_foundry.nn import DenseHead, Features, LinearHead


@pytest.fixture
def features() -> Features:
    torch.manual_seed(0)
    return Features(torch.randn(5, 3, 8), torch.randn(5, 8))


def test_linear_head_is_a_linear_map_of_the_pooled_features(features: Features) -> None:
    head = LinearHead(8, 4, dropout=0.5).eval()
    expected = features.pooled @ head.out.weight.T + head.out.bias
    torch.testing.assert_close(head(features), expected)


def test_dense_head_applies_its_parts_in_order(features: Features) -> None:
    head = DenseHead(8, 4, nn.Tanh(), 0.5, 0.5, bias=False, norm=nn.LayerNorm(8)).eval()
    hidden = torch.tanh(features.pooled @ head.dense.weight.T)
    normed = (hidden - hidden.mean(-1, keepdim=True)) / hidden.std(-1, False, keepdim=True)
    expected = normed @ head.out.weight.T + head.out.bias
    torch.testing.assert_close(head(features), expected, atol=1e-3, rtol=1e-3)
    assert head.dense.bias is None


@pytest.mark.parametrize("probs", [(0.9, 0.0), (0.0, 0.9)])
def test_both_dropouts_act_in_training_only(probs: tuple[float, float], features: Features) -> None:
    head = DenseHead(8, 4, nn.Tanh(), *probs)
    assert not torch.equal(head(features), head(features))
    head.eval()
    assert torch.equal(head(features), head(features))


def test_initial_weights_have_the_given_deviation_and_zero_bias() -> None:
    torch.manual_seed(0)
    head = DenseHead(500, 300, nn.Tanh(), init_std=(0.05, 0.2))
    assert head.dense.weight.std().item() == pytest.approx(0.05, rel=0.02)
    assert head.out.weight.std().item() == pytest.approx(0.2, rel=0.02)
    assert not head.dense.bias.any()
    assert not head.out.bias.any()
    cut = DenseHead(500, 300, nn.Tanh(), init_std=(0.05, 0.2), init_cutoff=2.0)
    assert cut.out.weight.abs().max().item() <= 0.4
    assert LinearHead(500, 300, init_std=0.1).out.weight.std().item() == pytest.approx(
        0.1, rel=0.02
    )
