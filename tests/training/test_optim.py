"""Optimizers, schedules and the finishing of gradients."""

import copy
import io
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Muon, Optimizer

from lit_foundry.nn import TextDecoder, TextEncoder, TorchvisionEncoder
from lit_foundry.training.optim import (
    Blocks,
    MuonWith,
    OptimConfig,
    build_optimizer,
    finish_gradients,
    lr_factor,
    param_groups,
    place_steps,
    set_lr,
)

TOTAL = 1000
STEP = 1 / TOTAL


class Toy(nn.Module):
    """A stem with a class token, three blocks and a final norm in the backbone, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Module()
        self.backbone.token = nn.Parameter(torch.zeros(4))
        self.backbone.embed = nn.Embedding(5, 4)
        self.backbone.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.backbone.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def blocks(self) -> Blocks:
        """Return the backbone with its blocks, embeddings first."""
        return [(self.backbone, [self.backbone.embed, *self.backbone.blocks])]

    def forward(self, ids: Tensor) -> Tensor:
        """Map (B, T) ids to (B, T, 2) outputs."""
        x = self.backbone.embed(ids) + self.backbone.token
        for block in self.backbone.blocks:
            x = x + block(x).tanh()
        return self.head(self.backbone.norm(x))


def toy(name: str = "adamw", **kwargs: object) -> tuple[Toy, OptimConfig, Optimizer]:
    model, config = Toy(), OptimConfig(name=name, lr=0.01, **kwargs)  # type: ignore[arg-type]
    return model, config, build_optimizer(model, config, model.blocks())


def backward(model: Toy, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, (6, 3), generator=generator)
    loss = (model(ids) - torch.randn(6, 3, 2, generator=generator)).square().sum()
    model.zero_grad()
    loss.backward()
    return loss


def train(model: Toy, config: OptimConfig, optimizer: Optimizer, steps: range) -> None:
    for i in steps:
        backward(model, i)
        set_lr(optimizer, config, i / 10, 1 / 10)
        finish_gradients(optimizer, 1 / 18, 1.0)
        optimizer.step()


def names(model: Toy, keep: Callable[[dict[str, object]], bool], **kwargs: object) -> set[str]:
    """Name the parameters of the groups that ``keep`` accepts."""
    name = {p: n for n, p in model.named_parameters()}
    groups = param_groups(model, OptimConfig(**kwargs), model.blocks())  # type: ignore[arg-type]
    return {name[p] for group in groups if keep(group) for p in group["params"]}


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("final", [0.0, 0.1])
@pytest.mark.parametrize("progress", [0.2, 0.3, 0.5, 0.75, 0.999, 1.0])
def test_schedules_follow_their_formulas_after_the_warmup(progress: float, final: float) -> None:
    done = (progress - 0.2) / 0.8
    tail = max(0.0, (progress - 0.6) / 0.4)
    expected = {
        "constant": 1.0,
        "linear": 1 - done + final * done,
        "cosine": final + (1 - final) * (1 + math.cos(math.pi * done)) / 2,
        "wsd": 1 - tail + final * tail,
    }
    for schedule, factor in expected.items():
        config = OptimConfig(schedule=schedule, warmup=0.2, decay=0.4, final=final)  # type: ignore[arg-type]
        assert lr_factor(progress, STEP, config) == pytest.approx(factor)
    sqrt = OptimConfig(schedule="wsd", warmup=0.2, decay=0.4, final=final, decay_shape="sqrt")
    fallen = 1 - (1 - final) * math.sqrt(tail)
    assert lr_factor(progress, STEP, sqrt) == pytest.approx(fallen)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_rate_rises_to_the_peak_then_never_rises(schedule: str) -> None:
    config = OptimConfig(schedule=schedule, warmup=0.1)  # type: ignore[arg-type]
    factors = [lr_factor(i / TOTAL, STEP, config) for i in range(TOTAL)]
    assert factors[:100] == pytest.approx([(i + 1) / 100 for i in range(100)])
    assert max(factors) == 1
    assert factors[100:] == sorted(factors[100:], reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_neither_first_nor_last_step_is_wasted(schedule: str, warmup: float) -> None:
    config = OptimConfig(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    assert lr_factor(0.0, 0.0, config) >= 0.01
    assert lr_factor(0.0, STEP, config) == pytest.approx(STEP / warmup if warmup else 1.0)
    assert lr_factor(1 - STEP, STEP, config) > 0


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_rate_stays_final_beyond_the_end(schedule: str) -> None:
    config = OptimConfig(schedule=schedule, final=0.3)  # type: ignore[arg-type]
    assert lr_factor(1.0, 0.0, config) == lr_factor(1.5, 0.0, config) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"warmup": 500}, r"model.optim.warmup is a fraction of the run in \[0, 1\), got 500."),
        ({"warmup": -0.1}, r"model.optim.warmup is a fraction of the run in \[0, 1\), got -0.1."),
        ({"decay": 2}, r"model.optim.decay is a fraction of the run in \(0, 1\], got 2."),
        ({"decay": 0.0}, r"model.optim.decay is a fraction of the run in \(0, 1\], got 0.0."),
        ({"lr": 0.0}, "model.optim.lr is the peak learning rate, above 0, got 0.0."),
        ({"lr": math.nan}, "model.optim.lr is the peak learning rate, above 0, got nan."),
        ({"muon_lr": 0.0}, "model.optim.muon_lr is a rate above 0, or null, got 0.0."),
        ({"weight_decay": -1}, "model.optim.weight_decay is at least 0, got -1."),
        ({"final": 1.5}, r"model.optim.final is a multiple of the peak rate in \[0, 1\], got 1.5."),
        ({"layer_decay": 0.0}, r"model.optim.layer_decay is a multiple per block in \(0, 1\], got"),
        ({"name": "adam"}, "model.optim.name is one of adamw, sgd, muon, muon_sgd, got adam."),
        ({"schedule": "cos"}, "schedule is one of constant, linear, cosine, wsd, got cos."),
        (
            {"schedule": "wsd", "warmup": 0.9, "decay": 0.2},
            "warmup and model.optim.decay share the run .* got 0.9 and 0.2: lower one of them.",
        ),
    ],
)
def test_bad_value_is_named_with_its_rule(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**values)  # type: ignore[arg-type]


def test_only_matrices_decay() -> None:
    model = Toy()
    decayed = names(model, lambda group: group["weight_decay"] == 0.5, weight_decay=0.5)
    assert decayed == {n for n, p in model.named_parameters() if p.ndim == 2}
    rest = names(model, lambda group: group["weight_decay"] == 0, weight_decay=0.5)
    assert rest == {n for n, p in model.named_parameters() if p.ndim == 1}


def test_layer_decay_shrinks_rates_block_by_block() -> None:
    model, _, optimizer = toy(layer_decay=0.5)
    rate = {p: group["peak_lr"] for group in optimizer.param_groups for p in group["params"]}
    scale = {n: rate[p] / 0.01 for n, p in model.named_parameters()}
    assert scale["head.weight"] == scale["head.bias"] == 1
    assert [scale[f"backbone.blocks.{i}.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert scale["backbone.embed.weight"] == scale["backbone.token"] == 0.0625
    assert scale["backbone.norm.weight"] == 0.5


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_each_trainable_parameter_is_in_one_group_in_a_fixed_order(name: str) -> None:
    orders = []
    for _ in range(2):
        model = Toy()
        model.decoder = nn.Linear(4, 5)
        model.decoder.weight = model.backbone.embed.weight  # tied
        model.head.bias.requires_grad_(False)
        config = OptimConfig(name=name, layer_decay=0.5)  # type: ignore[arg-type]
        groups = build_optimizer(model, config, model.blocks()).param_groups
        grouped = [p for group in groups for p in group["params"]]
        trainable = {p for p in model.parameters() if p.requires_grad}
        assert len(grouped) == len(trainable)
        assert set(grouped) == trainable
        assert all(group["params"] for group in groups)
        ids = {p: n for n, p in model.named_parameters()}
        orders.append([ids[p] for p in grouped])
    assert orders[0] == orders[1]


def test_muon_takes_hidden_matrices_only() -> None:
    model = Toy()
    model.backbone.blocks[2].table = nn.Embedding(3, 4)
    kwargs = {"name": "muon", "lr": 0.01, "muon_lr": 0.04, "layer_decay": 0.5}
    taken = names(model, lambda group: bool(group["muon"]), **kwargs)
    assert taken == {f"backbone.blocks.{i}.weight" for i in range(3)}
    assert names(model, lambda group: group["peak_lr"] == 0.02, **kwargs) == {
        "backbone.blocks.2.weight"
    }
    assert not names(model, lambda group: bool(group["muon"]), name="adamw")


def test_nothing_trainable_is_an_error_with_a_remedy() -> None:
    model = Toy().requires_grad_(False)
    with pytest.raises(ValueError, match=r"Toy has no trainable parameter.*freeze less"):
        build_optimizer(model, OptimConfig(), model.blocks())


def test_config_reaches_the_optimizers() -> None:
    _, _, adamw = toy(betas=(0.8, 0.9), eps=1e-6)
    assert isinstance(adamw, AdamW)
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.8, 0.9), 1e-6)
    _, _, sgd = toy("sgd", momentum=0.7)
    assert isinstance(sgd, SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.7, True)
    _, _, both = toy("muon", betas=(0.8, 0.9))
    assert {group.get("betas") for group in both.param_groups if not group["muon"]} == {(0.8, 0.9)}
    assert {g["adjust_lr_fn"] for g in both.param_groups if g["muon"]} == {"match_rms_adamw"}


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("fused", [False, True])
def test_resumed_training_continues_to_the_bit(name: str, fused: bool) -> None:
    straight, config, optimizer = toy(name, layer_decay=0.5, warmup=0.2, fused=fused)
    train(straight, config, optimizer, range(6))

    first, config, optimizer = toy(name, layer_decay=0.5, warmup=0.2, fused=fused)
    train(first, config, optimizer, range(3))
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)

    resumed, config, optimizer = toy(name, layer_decay=0.5, warmup=0.2, fused=fused)
    resumed.load_state_dict(weights)
    optimizer.load_state_dict(state)
    assert not same(resumed, straight)
    train(resumed, config, optimizer, range(3, 6))
    assert same(resumed, straight)


def test_composite_equals_its_parts_run_separately() -> None:
    model, config, optimizer = toy("muon")
    other = copy.deepcopy(model)
    groups = build_optimizer(other, config, other.blocks()).param_groups
    muon = Muon([g for g in groups if g["muon"]], adjust_lr_fn="match_rms_adamw")
    adamw = AdamW([g for g in groups if not g["muon"]])
    for i in range(4):
        for part in (muon, adamw):
            set_lr(part, config, i / 10, 1 / 10)
        set_lr(optimizer, config, i / 10, 1 / 10)
        backward(model, i)
        backward(other, i)
        optimizer.step()
        muon.step()
        adamw.step()
    assert same(model, other)
    assert not same(model, Toy())


def test_rates_reach_both_parts_of_the_composite_also_after_loading() -> None:
    model, config, optimizer = toy("muon")
    for _ in range(2):
        backward(model, 0)
        before = copy.deepcopy(model)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        assert same(model, before)
        set_lr(optimizer, config, 0.0, 0.1)
        optimizer.step()
        pairs = zip(model.parameters(), before.parameters(), strict=True)
        assert not any(torch.equal(p, q) for p, q in pairs)
        optimizer.load_state_dict(optimizer.state_dict())


def test_copied_composite_is_independent_and_whole() -> None:
    model, config, optimizer = toy("muon")
    train(model, config, optimizer, range(2))
    other, twin = copy.deepcopy((model, optimizer))
    train(model, config, optimizer, range(2, 4))
    assert not same(model, other)
    train(other, config, twin, range(2, 4))
    assert same(model, other)


@pytest.mark.parametrize("muon", [True, False])
def test_composite_works_with_one_part_empty_and_takes_groups_later(muon: bool) -> None:
    p, q = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = MuonWith([{"params": [p], "lr": 0.1, "muon": muon}])
    optimizer.add_param_group({"params": [q], "lr": 0.1, "muon": not muon})
    (p @ q).sum().backward()
    optimizer.step()
    assert not torch.equal(p, torch.ones(2, 2))
    assert not torch.equal(q, torch.ones(2, 2))
    assert MuonWith([{"params": [p], "lr": 0.1, "muon": muon}]).step() is None


def test_composite_evaluates_the_closure_once_with_gradients() -> None:
    model, _, optimizer = toy("muon")
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return backward(model, 0)

    loss = optimizer.step(closure)  # type: ignore[arg-type]
    assert calls == [True]
    assert torch.equal(torch.as_tensor(loss), backward(Toy(), 0))


def thawing(progress: float, start: float) -> Callable[[int], float]:
    """Return since when backbones have learnt that begin at ``start``."""
    return lambda below: progress - start if below else math.inf


def test_backbones_wait_for_their_thaw_then_warm_up() -> None:
    _, config, optimizer = toy(schedule="constant", warmup=0.1)

    def rates(progress: float, step: float = 0.05) -> dict[str, float]:
        set_lr(optimizer, config, progress, step, thawing(progress, 0.5))
        return {group["part"]: group["lr"] / group["peak_lr"] for group in optimizer.param_groups}

    assert rates(0.0) == pytest.approx({"backbone": 0.0, "head": 0.5})
    assert rates(0.49) == {"backbone": 0.0, "head": 1.0}
    assert rates(0.5) == pytest.approx({"backbone": 0.5, "head": 1.0})
    assert rates(0.5, step=0.0) == pytest.approx({"backbone": 0.01, "head": 1.0})
    assert rates(0.6) == {"backbone": 1.0, "head": 1.0}
    set_lr(optimizer, config, 0.0, 0.05)
    assert {group["lr"] for group in optimizer.param_groups} == {0.005}  # no second warmup
    set_lr(optimizer, replace(config, warmup=0.0), 0.5, 0.05, thawing(0.5, 0.5))
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("clip", [0.5, 1e6, None])
@pytest.mark.parametrize("tensor", [True, False])
def test_finished_gradients_equal_scaling_then_clipping(
    dtype: torch.dtype, clip: float | None, tensor: bool
) -> None:
    model, _, optimizer = toy()
    backward(model, 0)
    model.to(dtype)  # the gradients too
    reference = copy.deepcopy(model).double()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert p.grad is not None
        q.grad = p.grad.double() / 18
    expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip or math.inf)
    norm = finish_gradients(optimizer, torch.tensor(1 / 18) if tensor else 1 / 18, clip)
    assert norm.shape == ()
    assert norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(norm.double(), expected, rtol=1e-5, atol=0)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert p.grad.dtype == dtype
        rtol = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(p.grad.double(), q.grad, rtol=rtol, atol=1e-9)


def test_gradients_of_several_dtypes_share_one_norm() -> None:
    p = nn.Parameter(torch.zeros(1))
    q = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    p.grad, q.grad = torch.full_like(p, 3), torch.full_like(q, 4)
    norm = finish_gradients(SGD([p, q], lr=1.0), 1.0, 1.0)
    assert norm == pytest.approx(5)
    assert (p.grad.item(), q.grad.item()) == pytest.approx((0.6, 0.8), rel=1e-2)


def test_finishing_no_gradients_yields_norm_zero() -> None:
    _, _, optimizer = toy()
    assert finish_gradients(optimizer, 1.0, 1.0) == 0


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
@pytest.mark.parametrize("fused", [False, True])
def test_groups_at_rate_zero_stay_to_the_bit_without_state(name: str, fused: bool) -> None:
    model, config, optimizer = toy(name, weight_decay=0.5, fused=fused)
    before = copy.deepcopy(model)
    for i in range(3):
        backward(model, i)
        gradients = [model.head.weight.grad, model.head.bias.grad]
        expected = torch.nn.utils.get_total_norm([g for g in gradients if g is not None])
        set_lr(optimizer, config, i / 10, 1 / 10, thawing(i / 10, 0.9))
        assert finish_gradients(optimizer, 1.0, 1.0) == pytest.approx(expected.item())
        optimizer.step()
    assert same(model.backbone, before.backbone)
    assert not same(model.head, before.head)
    assert set(optimizer.state) == set(model.head.parameters())


def test_fused_follows_the_config_and_the_device() -> None:
    assert {group["fused"] for group in toy()[2].param_groups} == {True}
    assert {group["fused"] for group in toy(fused=False)[2].param_groups} == {None}
    assert {group["fused"] for group in toy(fused=True)[2].param_groups} == {True}
    assert {group["fused"] for group in toy("sgd")[2].param_groups} == {None}


@pytest.mark.parametrize("fused", [False, True])
def test_state_goes_on_under_the_other_kernels(fused: bool) -> None:
    model, config, optimizer = toy(fused=fused)
    train(model, config, optimizer, range(3))
    straight = copy.deepcopy(model)
    state = copy.deepcopy(optimizer.state_dict())  # loading shares the tensors
    train(straight, config, reloaded(straight, state, fused), range(3, 6))
    train(model, config, reloaded(model, state, not fused), range(3, 6))
    for ours, theirs in zip(model.parameters(), straight.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def reloaded(model: Toy, state: dict[str, Any], fused: bool) -> Optimizer:
    """Build an optimizer that goes on from ``state``, as a resume does."""
    optimizer = build_optimizer(model, OptimConfig(lr=0.01, fused=fused), model.blocks())
    options = [group["fused"] for group in optimizer.param_groups]
    optimizer.load_state_dict(copy.deepcopy(state))
    for group, option in zip(optimizer.param_groups, options, strict=True):
        group["fused"] = option
    place_steps(optimizer)
    return optimizer


def test_step_counts_lie_where_the_kernels_want_them() -> None:
    p = nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = AdamW([p])
    for fused, device in ((True, "meta"), (None, "cpu")):
        optimizer.param_groups[0]["fused"] = fused
        optimizer.state[p] = {"step": torch.tensor(3.0)}
        place_steps(optimizer)
        assert optimizer.state[p]["step"].device.type == device


def test_tables_tokens_and_scales_are_no_matrices() -> None:
    swin = TorchvisionEncoder("swin_t")
    convnext = TorchvisionEncoder("convnext_tiny")
    config = OptimConfig(name="muon", weight_decay=0.1, bias_lr=0.5, lr=0.01)
    for backbone, ends in (
        (swin, "relative_position_bias_table"),
        (convnext, "layer_scale"),
    ):
        groups = param_groups(backbone, config, [(backbone, backbone.blocks())])
        named = {id(p): name for name, p in backbone.named_parameters()}
        found = [g for g in groups for p in g["params"] if named[id(p)].endswith(ends)]
        assert found
        assert {(g["muon"], g["weight_decay"], g["peak_lr"]) for g in found} == {(False, 0.0, 0.5)}


TEXT = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 20}
TEXT |= {"intermediate_size": 16, "pad_token_id": 0, "eos_token_id": 1}
TEXTS = {
    "bert": TEXT,
    "modernbert": TEXT | {"bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1},
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8, "vocab_size": 20},
    "mixtral": TEXT | {"num_local_experts": 3, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("family", TEXTS)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_of_text_networks_all_that_is_no_vector_is_a_matrix(family: str, name: str) -> None:
    decodes = family in ("gpt2", "mixtral")
    backbone = (TextDecoder if decodes else TextEncoder)(
        config={"model_type": family} | TEXTS[family]
    )
    model: Any = nn.ModuleDict({"backbone": backbone, "head": nn.Linear(8, 1)})
    config = OptimConfig(name=name, weight_decay=0.1, bias_lr=0.5)  # type: ignore[arg-type]
    groups = param_groups(model, config, [(backbone, backbone.blocks())])
    embeddings = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    hidden = {p for block in backbone.blocks()[1:] for p in block.parameters() if p.ndim >= 2}
    for group in groups:
        for p in group["params"]:
            assert group["weight_decay"] == (0.1 if p.ndim >= 2 else 0.0)
            assert group["muon"] == (name == "muon" and p in hidden - embeddings)
            assert (group["peak_lr"] == 0.5) == (p.ndim < 2)
