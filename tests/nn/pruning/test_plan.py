"""Scores against their definitions, costs, and what is chosen by them."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lit_foundry.nn import TextEncoder
from lit_foundry.nn.features import Features
from lit_foundry.nn.pruning.cost import cost, latency, macs
from lit_foundry.nn.pruning.groups import Group, indices, part, remove
from lit_foundry.nn.pruning.low_rank import layers
from lit_foundry.nn.pruning.plan import Plan
from lit_foundry.nn.pruning.scores import comparable, gate_gradients, magnitudes, sizes
from tests.tasks.test_base import Toy

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def bert() -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(config=BERT, vocab_size=50, dropout=0.0)


def pair() -> tuple[nn.Sequential, Group]:
    """Return two linear layers, and the neurons between them."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    return network, Group(
        "0", "neurons", (part("0", "out_features", 5), part("2", "in_features", 5))
    )


def test_magnitude_is_the_norm_of_what_goes() -> None:
    network, group = pair()
    first, _, last = network
    rows = torch.cat((first.weight, first.bias[:, None], last.weight.T), 1)
    assert torch.allclose(magnitudes(network, group), rows.norm(dim=1))
    assert sizes(network, group).tolist() == [6.0] * 5


def test_gate_gradient_is_that_of_a_factor_on_each_unit() -> None:
    network, group = pair()
    gates = torch.ones(5, requires_grad=True)
    x = torch.randn(7, 3)
    loss = network[2](network[1](network[0](x)) * gates).square().mean()
    loss.backward()
    assert torch.allclose(gate_gradients(network, group), gates.grad, atol=1e-7)
    network.zero_grad()
    assert not gate_gradients(network, group).any()


def test_gate_gradient_of_heads() -> None:
    backbone = bert()
    batch = backbone.example(2, 8)
    plan = Plan(backbone, batch, ("heads",), 0.0, 1)
    gates = torch.ones(4, requires_grad=True)
    wide = gates.repeat_interleave(4)
    layer: Any = backbone.encoder.encoder.layer[1].attention.output.dense
    hook = layer.register_forward_pre_hook(lambda _, args: args[0] * wide)
    backbone.encode(batch).tokens.square().sum().backward()
    hook.remove()
    assert torch.allclose(gate_gradients(backbone, plan.groups[1]), gates.grad, rtol=1e-4)


def test_scores_are_made_comparable() -> None:
    scores, weights = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([2.0, 2.0, 4.0])
    assert comparable(scores, weights, "magnitude", False).tolist() == [0.5, 1.5, 1.0]
    assert comparable(scores, weights, "taylor", False).tolist() == [0.5, 1.5, 0.5]
    ranks = comparable(scores, weights, "movement", True)
    assert torch.allclose(ranks, torch.tensor([0, 2, 1]) / 3)


def test_costs() -> None:
    backbone = bert().eval()
    batch = backbone.example(1, 8)
    # Four projections and two of the feed-forward part, and attention itself.
    layer = 8 * (4 * 16 * 16 + 2 * 16 * 24) + 2 * 8 * 8 * 16
    assert macs(backbone, batch) == 2 * layer
    assert cost(backbone, batch, "parameters") == sum(p.numel() for p in backbone.parameters())
    assert 0 < latency(backbone, batch) < 1


@pytest.mark.parametrize("of", ["macs", "parameters"])
@pytest.mark.parametrize("by_layer", [False, True])
def test_the_lowest_units_go_until_the_cost_fits(of: Any, by_layer: bool) -> None:
    backbone = bert()
    plan = Plan(backbone, backbone.example(1, 8), ("neurons", "heads"), 0.1, 1)
    before = plan.cost(of)
    assert plan.smallest(of) < 0.7 * before
    scores = [magnitudes(backbone, group) for group in plan.groups]
    keep = plan.choose(scores, "magnitude", by_layer, of, 0.7 * before)
    cut = copy.deepcopy(plan.cost(of, keep))
    assert 0.5 * before < cut <= 0.7 * before
    for values, stays in zip(scores, keep, strict=True):
        assert not (~stays).any() or values[~stays].max() <= values[stays].min()
    if by_layer:
        counts = {g.kind: {int(k.sum())} for g, k in zip(plan.groups, keep, strict=True)}
        for group, stays in zip(plan.groups, keep, strict=True):
            assert counts[group.kind] == {int(stays.sum())}


def test_bounds_and_multiples() -> None:
    backbone = bert()
    plan = Plan(backbone, backbone.example(1, 8), ("neurons", "heads"), 0.3, 5)
    nothing = [torch.zeros(group.count) for group in plan.groups]
    counts = {
        g.kind: int(k.sum()) for g, k in zip(plan.groups, plan.above(nothing, 1), strict=True)
    }
    assert counts == {"heads": 2, "neurons": 10}  # 1.2 of 4, and 7.2 of 24
    plan = Plan(backbone, backbone.example(1, 8), ("neurons",), 0.0, 64)
    assert plan.smallest("macs") == plan.cost("macs")


def test_what_a_resumed_run_finds_it_had_before() -> None:
    torch.manual_seed(0)
    backbone = TextEncoder(config=BERT | {"model_type": "deberta-v2"}, vocab_size=50)
    batch = backbone.example(1, 8)
    plan = Plan(backbone, batch, ("neurons", "heads"), 0.0, 1)
    keep = [torch.arange(g.count) < (g.count if g.kind == "neurons" else 1) for g in plan.groups]
    remove(backbone, indices(plan.groups, keep))
    again = Plan(backbone, batch, ("neurons", "heads"), 0.0, 1, plan.original)
    assert [group.kind for group in again.groups] == ["neurons", "neurons"]
    assert again.smallest("macs") < again.cost("macs")


class PastItself(Toy):
    """Reads the weight of a layer elsewhere too."""

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Features:
        """Add what the first layer has of its own."""
        tokens, pooled = super().forward(input_ids, attention_mask)
        first: Any = self.layers[0]
        return Features(tokens, pooled + first[0].weight.sum())


def test_layers_that_are_read_past_themselves_are_not_two() -> None:
    batch = {
        "input_ids": torch.ones(2, 3, dtype=torch.long),
        "attention_mask": torch.ones(2, 3).bool(),
    }
    with pytest.raises(ValueError, match="LowRank: linear layers of a PastItself are read past"):
        layers(PastItself(), batch)
    assert [*layers(PastItself(), batch, ("1.0",))] == ["layers.1.0"]
