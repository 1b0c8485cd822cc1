"""Each option of fine-tuning on a BERT, a ResNet and a ViT; LoRA has a file of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lit_foundry.callbacks import EMA, Averaging
from lit_foundry.checkpoints.files import load_task
from lit_foundry.nn import ImageEncoder, TextDecoder
from lit_foundry.nn.classification_loss import classification_loss
from lit_foundry.nn.layer_depth import module_depths, parameter_depths
from lit_foundry.tasks import CausalLM, Classification, Finetune, Lora
from lit_foundry.training.optim import OptimConfig
from tests.finetuning import BLOCKS, Data, Moves, block_of, classifier, each, state
from tests.tasks.test_base import seeded, trainer  # noqa: F401

# Frozen blocks are meant to be in eval mode.
pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")


def fit(
    kind: str, finetune: Finetune, *callbacks: Callback, steps: int = 10, **options: Any
) -> tuple[Classification, Moves]:
    """Fit some steps, validating after each epoch of five; return the model and what moved."""
    model, moves = classifier(kind, finetune, **options), Moves()
    trainer(moves, *callbacks, max_steps=steps, max_epochs=-1).fit(model, Data(kind))
    assert len(moves.changed) == steps
    return model, moves


def expect(model: Classification, moves: Moves, step: int, frozen: int) -> None:
    """Check that at one step the lowest blocks stayed to the bit, and that all else moved."""
    blocks, changed = block_of(model), moves.changed[step]
    movable = {n for n, v in model.state_dict().items() if v.is_floating_point() or "num_b" in n}
    still = {n for n in movable if blocks.get(n, BLOCKS) < frozen}
    assert changed == movable - still, (step, changed ^ (movable - still))
    assert moves.training[step] == set(range(frozen, BLOCKS))


@each
@pytest.mark.parametrize(("freeze", "frozen"), [(0, 0), (2, 2), ("all", 3)])
def test_frozen_blocks_and_their_statistics_stay_to_the_bit_for_10_steps(
    kind: str, freeze: Any, frozen: int
) -> None:
    model, moves = fit(kind, Finetune(freeze))
    for step in range(10):
        expect(model, moves, step, frozen)


@each
def test_head_first_trains_the_head_alone_for_its_fraction_of_the_run(kind: str) -> None:
    model, moves = fit(kind, Finetune(head_first=0.35))
    for step in range(10):
        expect(model, moves, step, BLOCKS if step < 4 else 0)


@each
@pytest.mark.parametrize("freeze", [0, 1])
def test_blocks_join_one_by_one_from_the_top(kind: str, freeze: int) -> None:
    model, moves = fit(kind, Finetune(freeze, unfreeze=0.2))
    for step in range(10):
        expect(model, moves, step, max(freeze, BLOCKS - step // 2))


@each
def test_blocks_join_epoch_by_epoch(kind: str) -> None:
    model, moves = classifier(kind, Finetune(unfreeze=1)), Moves()
    trainer(moves, max_epochs=4).fit(model, Data(kind))
    for step in range(20):
        expect(model, moves, step, BLOCKS - step // 5)


@pytest.mark.parametrize("finetune", [Finetune(unfreeze=0.2), Finetune(head_first=0.4)])
@each
def test_what_waits_is_outside_of_the_graph_on_one_device(kind: str, finetune: Finetune) -> None:
    model, moves = fit(kind, finetune)
    named = {n: p for n, p in model.named_parameters() if n.startswith("backbone.")}
    depths = parameter_depths(model.backbone, model.backbone.blocks())
    for step, learning in enumerate(moves.learning):
        frozen = BLOCKS - step // 2 if finetune.unfreeze else BLOCKS * (step < 4)
        assert {n for n, p in named.items() if depths[p] >= frozen} == learning & named.keys()
    again = trainer(max_steps=1, max_epochs=-1)  # a second fit begins anew
    again.fit(model, Data(kind))
    grouped = [p for group in again.optimizers[0].param_groups for p in group["params"]]
    assert len(grouped) == len(list(model.parameters()))


class Graph(Callback):
    """Notes whether the features of the backbone have a graph behind them."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look at what the backbone returns."""

        def look(module: nn.Module, args: Any, features: Any) -> None:
            self.seen.append(features.pooled.requires_grad)

        pl_module.backbone.register_forward_hook(look)


@each
def test_linear_probe_builds_no_graph_of_the_backbone(kind: str) -> None:
    graph = Graph()
    fit(kind, Finetune("all"), graph, steps=2)
    assert graph.seen[:2] == [False, False]


@each
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_resume_amid_gradual_unfreezing_goes_on_with_the_same_bits(
    tmp_path: Path, kind: str, micro_batch: int | None
) -> None:
    options: dict[str, Any] = {"max_steps": 10, "max_epochs": -1}

    class Save(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if not trainer.fit_loop._should_accumulate():
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    whole = classifier(kind, Finetune(unfreeze=0.2))
    trainer(Save(), **options).fit(whole, Data(kind, micro_batch))
    want = state(whole)
    for step in (3, 4, 5):
        resumed = classifier(kind, Finetune(unfreeze=0.2), seed=5)
        path = tmp_path / f"{step}.ckpt"
        moves = Moves()
        moves.changed = [set()] * step
        trainer(moves, **options).fit(resumed, Data(kind, micro_batch), ckpt_path=path)
        got = state(resumed)
        assert [n for n in want if not torch.equal(got[n], want[n])] == []
        assert moves.training[0] == set(range(BLOCKS - step // 2, BLOCKS))


def test_blocks_that_join_warm_up_on_their_own() -> None:
    class Rates(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            groups = trainer.optimizers[0].param_groups
            seen.append([{g["lr"] for g in groups if g["below"] == i} for i in range(4)])

    seen: list[list[set[float]]] = []
    optim = OptimConfig(lr=0.1, schedule="constant", warmup=0.2)
    fit("vit", Finetune(unfreeze=0.2), Rates(), optim=optim)
    for below in range(4):
        rates = [step[below] for step in seen]
        want = [0.0] * (2 * below) + [0.05] + [0.1] * 9
        assert [rate for [rate] in map(sorted, rates)] == pytest.approx(want[:10])
    seen.clear()
    fit("vit", Finetune(unfreeze=1), Rates(), optim=optim, steps=20)
    want = [0.0] * 5 + [0.025, 0.05, 0.075] + [0.1] * 12
    assert [rate for [rate] in (step[1] for step in seen)] == pytest.approx(want)


@each
def test_layer_decay_and_unfreezing_count_the_same_blocks(kind: str) -> None:
    class Groups(Callback):
        def on_train_end(self, trainer: Any, *args: Any) -> None:
            groups = trainer.optimizers[0].param_groups
            found.extend((g["below"], round(g["peak_lr"] / 0.1, 6)) for g in groups)

    found: list[tuple[int, float]] = []
    optim = OptimConfig(lr=0.1, layer_decay=0.5)
    fit(kind, Finetune(unfreeze=0.1), Groups(), optim=optim)
    assert set(found) == {(0, 1.0), (1, 0.5), (2, 0.25), (3, 0.125)}
    found.clear()
    fit(kind, Finetune("all"), Groups(), optim=optim, steps=1)
    assert set(found) == {(0, 1.0)}


def test_fixed_batch_norms_keep_their_statistics_while_weights_learn() -> None:
    model, moves = fit("resnet", Finetune(batchnorm="eval"))
    statistics = {n for n in model.state_dict() if "running" in n or "num_batches" in n}
    assert statistics
    for changed in moves.changed:
        assert changed == model.state_dict().keys() - statistics


@each
@pytest.mark.parametrize(
    ("ema", "finetune"),
    [
        (True, Finetune(1)),
        (True, Finetune(lora=Lora(rank=2))),
        (False, Finetune(1)),
        (False, Finetune(unfreeze=0.3)),
    ],
)
def test_averages_leave_alone_what_is_frozen_and_validate_as_they_are(
    tmp_path: Path, kind: str, finetune: Finetune, ema: bool
) -> None:
    if finetune.lora:
        pytest.importorskip("peft")
    average: Any = EMA(decay=0.7) if ema else Averaging()
    model = classifier(kind, finetune)
    start, runs = state(model), []

    class Weights(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            runs.append(state(model))

        def on_validation_end(self, trainer: Any, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt", weights_only=True)

    data = Data(kind)
    fitting = trainer(Weights(), average, max_steps=10, max_epochs=-1)
    fitting.fit(model, data)
    want: dict[str, Tensor] = {}
    for i, new in enumerate(runs):
        share = 0.3 if ema else 1 / (i + 1)
        for name, value in new.items():
            old = want.get(name, value)
            want[name] = old + (value - old) * share if value.is_floating_point() else value
    moved = {n for n in want if any(not torch.equal(run[n], start[n]) for run in runs)}
    for name, value in state(model).items():
        if name in moved:
            assert torch.allclose(value, want[name], atol=1e-6), name
        else:
            assert torch.equal(value, start[name]), name
    # The last validation was of the average, statistics included, and so is what was saved.
    score = float(fitting.callback_metrics["val/loss"])
    [again] = trainer().validate(load_task(tmp_path / "10.ckpt"), data, verbose=False)
    assert again["val/loss"] == pytest.approx(score, abs=1e-6)


@each
def test_an_average_that_begins_later_is_the_network_until_then(kind: str, tmp_path: Path) -> None:
    source = trainer(max_steps=5, max_epochs=-1)
    source.fit(classifier(kind, seed=3), Data(kind))
    source.save_checkpoint(tmp_path / "source.ckpt")
    scores = []

    class Scores(Callback):
        def on_validation_end(self, trainer: Any, *args: Any) -> None:
            scores.append(float(trainer.callback_metrics["val/loss"]))

    for late in ([EMA(update_starting_at_step=99)], []):
        model = classifier(kind, init_from=tmp_path / "source.ckpt")
        trainer(*late, Scores(), max_epochs=2).fit(model, Data(kind))
        scores.append(float(model.head.out.weight.detach().sum()))
    assert scores[:3] == scores[3:]


class Losses(Callback):
    """Notes the logits, labels and loss of each training step."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, Tensor, float]] = []
        self._logits: Tensor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look at what the head returns."""

        def look(module: nn.Module, args: Any, logits: Tensor) -> None:
            self._logits = logits.detach()

        pl_module.head.register_forward_hook(look)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note a step."""
        assert self._logits is not None
        self.seen.append((self._logits, batch["label"], float(pl_module.step_loss)))


@each
@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize(
    ("smoothing", "weights", "gamma"),
    [(0.1, None, 0.0), (0.0, [0.6, 5.0], 0.0), (0.0, None, 2.0), (0.1, [0.6, 5.0], 1.0)],
)
def test_losses_and_balance_are_those_of_the_config(
    kind: str, smoothing: float, weights: list[float] | None, gamma: float, balanced: bool
) -> None:
    options = {"label_smoothing": smoothing, "class_weights": weights, "focal_gamma": gamma}
    model, losses = classifier(kind, **options), Losses()
    before = state(model)
    trainer(losses).fit(model, Data(kind, balanced=balanced))
    tensor = None if weights is None else torch.tensor(weights)
    others = []
    for logits, label, loss in losses.seen:
        want, _ = classification_loss(logits, label, tensor, smoothing, gamma)
        assert loss == pytest.approx(float(want), rel=1e-5)
        others.append(abs(loss - float(F.cross_entropy(logits, label))))
    assert max(others) > 1e-6, "the data tells the losses apart"
    labels = torch.cat([label for _, label, _ in losses.seen])
    assert labels.sum() == (20 if balanced else 4)
    assert all(n in before and not torch.equal(v, before[n]) for n, v in model.named_parameters())


@pytest.mark.parametrize("freeze", [0, "all"])
def test_no_branch_of_a_frozen_block_is_dropped(freeze: Any) -> None:
    dino = {"model_type": "dinov2", "mlp_ratio": 2, "hidden_size": 16, "patch_size": 4}
    dino |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    backbone = ImageEncoder(config=dino, image_size=8, drop_path=0.9)
    model, features = Classification(backbone, 2, finetune=Finetune(freeze)), []

    class Twice(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, i: int) -> None:
            features.extend(backbone.encode(batch).pooled.detach() for _ in range(2))

    trainer(Twice(), max_steps=1, max_epochs=-1).fit(model, Data("vit"))
    assert torch.equal(*features) == (freeze == "all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": "all", "unfreeze": 0.1}, "unfreeze=0.1 means nothing under .*freeze=all"),
        ({"freeze": "all", "head_first": 0.1}, "head_first=0.1 means nothing under .*freeze=all"),
        ({"head_first": 0.1, "unfreeze": 0.1}, "both say how long the head learns alone: keep one"),
        ({"unfreeze": 1.5}, r"unfreeze is a fraction of the run in \[0, 1\), or a whole number"),
        ({"unfreeze": -1}, r"unfreeze is a fraction of the run in \[0, 1\), or a whole number"),
        ({"batchnorm": "fixed"}, "batchnorm is train or eval, got fixed"),
        ({"freeze": -1}, "freeze is a number of blocks, got -1"),
    ],
)
def test_settings_that_contradict_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Finetune(**options)


@each
@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        (Finetune(4), "freeze=4, but backbone has 3 blocks; lower it"),
        (Finetune(3, unfreeze=0.1), "unfreeze=0.1 means nothing under model.finetune.freeze=3"),
        (Finetune(unfreeze=0.4), "the last of the 3 blocks of backbone join after 1.2 of the run"),
        (Finetune(unfreeze=1), "join after 3 of 2 epochs: lower it, or keep the lowest ones"),
    ],
)
def test_what_a_network_or_a_run_has_no_room_for_is_refused(
    kind: str, finetune: Finetune, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(max_epochs=2).fit(classifier(kind, finetune), Data(kind))


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_batch_norm_is_refused_where_there_is_none(kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"batchnorm=eval, but backbone, a .*Encoder, has no Batch"
    ):
        trainer().fit(classifier(kind, Finetune(batchnorm="eval")), Data(kind))


def test_a_head_without_weights_of_its_own_cannot_come_first() -> None:
    gpt = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    model = CausalLM(
        TextDecoder(config=gpt | {"vocab_size": 50}), finetune=Finetune(head_first=0.1)
    )
    with pytest.raises(
        ValueError, match="head_first has the head learn alone first, but that of C"
    ):
        trainer().fit(model, Data("bert"))


def test_what_lies_in_no_block_goes_with_the_block_before() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1))
            self.stem, self.norm = nn.Linear(1, 1), nn.BatchNorm1d(1)
            self.layers = nn.ModuleList(nn.Linear(1, 1) for _ in "12")
            self.last = nn.BatchNorm1d(1)

    net = Network()
    blocks = [net.stem, *net.layers]
    depths = parameter_depths(net, blocks)
    assert {n: depths[p] for n, p in net.named_parameters() if n.endswith(("weight", "token"))} == {
        "token": 0,
        "stem.weight": 0,
        "norm.weight": 0,
        "layers.0.weight": 1,
        "layers.1.weight": 2,
        "last.weight": 2,
    }
    modules = module_depths(net, blocks)
    assert modules[net.norm] == 0
    assert modules[net.last] == 2
    assert net not in modules
    assert net.layers not in modules
