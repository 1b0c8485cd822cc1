"""Pruned runs: smaller networks that reload, resume to the bit, export, and are the best ones."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from lit_foundry.callbacks import EMA, EarlyStop, LowRank, Pruning, run_callbacks
from lit_foundry.callbacks.shrinking import each_backbone, shrunk_task
from lit_foundry.checkpoints.files import load_task, read_checkpoint, recoveries
from lit_foundry.runs.folder import RunFolder
from lit_foundry.tasks import Classification, Finetune, Lora
from lit_foundry.training.optim import OptimConfig
from tests.conftest import write_config
from tests.finetuning import Data, classifier, state
from tests.runs.test_resume import assert_same, kill_and_compare
from tests.runs.test_resume import fit as run_fit
from tests.tasks.test_base import trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
SHRUNK = {"begin": 0.2, "end": 0.6, "rounds": 3, "multiple_of": 1}
MUON = OptimConfig(name="muon", lr=0.01, weight_decay=0.1)


class Copies(Callback):
    """Keeps each recovery checkpoint, and notes what the network was at each step."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sizes, self.best = folder, [], []  # type: ignore[var-annotated]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Copy those that are there."""
        for path in recoveries(self.folder):
            shutil.copy(path, self.folder.parent / path.name)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Note the sizes, and whether there is a best checkpoint."""
        self.sizes.append(sum(p.numel() for p in pl_module.parameters()))
        best = self.folder / "best.ckpt"
        weights = read_checkpoint(best)["state_dict"] if best.exists() else {}
        self.best.append(sum(v.numel() for v in weights.values()))


def fit(
    folder: Path,
    kind: str,
    prune: Pruning,
    *more: Callback,
    resume: Path | None = None,
    **options: Any,
) -> tuple[Classification, Copies, Path]:
    """Fit two epochs of five steps; return the task, what was noted, and the checkpoints."""
    task = classifier(kind, **options)
    run = RunFolder.start("pruned", root=folder, every_n_steps=1)
    copies = Copies(run.checkpoints)
    # A callback that prunes comes first, whatever the order that it was given in.
    callbacks = [*more, prune, *run_callbacks(run, task), copies]
    limits = {"max_epochs": 2, "enable_checkpointing": True}
    fitted = trainer(*callbacks, **limits)
    fitted.fit(task, Data(kind), ckpt_path=resume, weights_only=True if resume else None)
    return task, copies, run.checkpoints


def outputs(task: Classification, kind: str) -> torch.Tensor:
    """Return the logits of the validation examples."""
    data = Data(kind).load("val")
    with torch.no_grad():
        logits: torch.Tensor = task.eval()(data[range(20)])
    return logits


CASES = {
    "bert": ("taylor", {}),
    "resnet": ("magnitude", {"optim": MUON}),
    "vit": ("movement", {"finetune": Finetune(unfreeze=0.1)}),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_pruned_run_reloads_and_resumes_with_the_same_bits(kind: str, tmp_path: Path) -> None:
    if kind == "resnet":
        pytest.importorskip("torch_pruning")
    score, options = CASES[kind]
    prune = Pruning(0.6, score=score, **SHRUNK)  # type: ignore[arg-type]
    task, copies, folder = fit(tmp_path, kind, prune, **options)
    # Rounds before the fifth, sixth and seventh step, of ten.
    sizes = copies.sizes
    assert sizes[3] == sizes[0] > sizes[4] > sizes[6] == sizes[-1]
    plan = prune._plans["backbone"]
    assert plan.cost("macs") <= 0.6 * prune._before["backbone"]["macs"]
    [recovery] = recoveries(folder)
    for path in (folder / "best.ckpt", recovery):
        loaded = load_task(path)
        assert loaded.recipe()["changes"] == task.recipe()["changes"]
        assert sum(p.numel() for p in loaded.parameters()) == sizes[-1]
    assert torch.equal(outputs(loaded, kind), outputs(task, kind))
    want = read_checkpoint(recovery)
    for step in (4, 5, 8):  # before the first round, between rounds, after the last one
        again = Pruning(0.6, score=score, **SHRUNK)  # type: ignore[arg-type]
        start = folder.parent / f"recovery-{step}.ckpt"
        _, _, other = fit(tmp_path, kind, again, resume=start, **options | {"seed": 7})
        got = read_checkpoint(recoveries(other)[0])
        # The measured seconds are those of the first run.
        own = {"pruned": lambda c: c["callbacks"]["Pruning"]}
        for part in ("state_dict", "optimizer_states", "lit_foundry", *own):
            read = own.get(part, lambda c, part=part: c[part])
            assert_same(read(got), read(want), f"{step}: {part}")


def test_no_larger_network_is_the_best(tmp_path: Path) -> None:
    prune = Pruning(0.7, begin=0.5, multiple_of=1)
    task, copies, folder = fit(tmp_path, "bert", prune, EarlyStop(patience=1))
    # The first epoch's best is gone as soon as the network is a smaller one.
    assert copies.best[4] == 0 == copies.best[5]
    weights = read_checkpoint(folder / "best.ckpt")["state_dict"]
    assert {k: v.shape for k, v in weights.items()} == {k: v.shape for k, v in state(task).items()}


def test_the_last_step_of_a_short_run_is_the_last_chance(tmp_path: Path) -> None:
    _, copies, folder = fit(tmp_path, "bert", Pruning(0.7, begin=0.99, multiple_of=1))
    assert copies.sizes[-1] < copies.sizes[-2] == copies.sizes[0]
    assert sum(p.numel() for p in load_task(folder / "best.ckpt").parameters()) == copies.sizes[-1]


def test_averages_are_pruned_along(tmp_path: Path) -> None:
    average = EMA(decay=0.5)
    prune = Pruning(0.7, begin=0.5, multiple_of=1)
    task, _, folder = fit(tmp_path, "bert", prune, average)
    weights = read_checkpoint(folder / "best.ckpt")["state_dict"]
    mean = average._average_model.module.state_dict()  # type: ignore[union-attr]
    assert {k: v.shape for k, v in mean.items()} == {k: v.shape for k, v in state(task).items()}
    assert_same(dict(load_task(folder / "best.ckpt").state_dict()), weights)


def test_optimizer_state_is_cut_by_the_same_indices() -> None:
    import copy

    from lit_foundry.nn.pruning.groups import Group, indices, part, remove

    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(network.parameters())
    held = network(torch.randn(4, 3)).sum()  # a graph that is still alive
    held.backward(retain_graph=True)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    group = Group("0", "neurons", (part("0", "out_features", 5), part("1", "in_features", 5)))
    keep = torch.tensor([True, False, True, True, False])
    parameters = [*network.parameters()]
    remove(network, indices([group], [keep]), optimizer.state)
    assert [*network.parameters()] == parameters == optimizer.param_groups[0]["params"]
    after = optimizer.state_dict()["state"]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after[0][key], before[0][key][keep])
        assert torch.equal(after[1][key], before[1][key][keep])
        assert torch.equal(after[2][key], before[2][key][:, keep])
        assert torch.equal(after[3][key], before[3][key])
    assert after[0]["step"] == before[0]["step"]
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    del held


def test_latency_becomes_a_share_of_multiply_adds(tmp_path: Path, monkeypatch: Any) -> None:
    from lit_foundry.nn.pruning import cost

    monkeypatch.setattr(cost, "latency", lambda net, batch: cost.macs(net, batch) / 1e9)
    prune = Pruning(0.7, of="latency", multiple_of=1)
    fit(tmp_path, "bert", prune)
    assert 0.5 < prune._shares["backbone"] <= 0.7
    now = prune._plans["backbone"].cost("macs") / prune._before["backbone"]["macs"]
    assert now <= prune._shares["backbone"]


@pytest.mark.parametrize(
    ("options", "changes", "why"),
    [
        ({"target": 0.1}, {}, r"Pruning.target=0.1 of macs is out of reach: 0\.\d+ stays"),
        ({"parts": ["channels"]}, {}, "a TextEncoder has none of channels that learn"),
        ({}, {"finetune": Finetune(freeze="all")}, "none of channels, neurons, heads"),
        (
            {"score": "taylor", "begin": 0.5},
            {"finetune": Finetune(head_first=0.5)},
            r"taylor needs gradients of all blocks before the first round, after 0\.5 of the run",
        ),
        (
            {"score": "movement", "begin": 0.2, "end": 0.6, "rounds": 3},
            {"finetune": Finetune(unfreeze=0.2)},
            r"after 0\.33 of the run: .* or model\.finetune\.unfreeze lower",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    options: Any, changes: Any, why: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=why):
        fit(tmp_path, "bert", Pruning(**{"target": 0.7, "multiple_of": 1} | options), **changes)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"target": 1.0}, r"Pruning.target is a share in \(0, 1\), got 1.0"),
        ({"of": "flops"}, "Pruning.of is one of macs, parameters, latency, got flops"),
        ({"score": "taylor"}, "above 0 where taylor has to see gradients, got 0.0"),
        ({"begin": 0.5, "end": 0.3}, "Pruning.end is a fraction of the run from begin on"),
        ({"parts": ["tokens"]}, "Pruning.parts are some of channels, neurons, heads"),
    ],
)
def test_values_outside_of_their_range(options: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Pruning(**{"target": 0.5} | options)


def test_scores_need_gradients() -> None:
    prune: Any = Pruning(0.5, score="taylor", begin=0.1)
    with pytest.raises(ValueError, match="has seen no gradients yet"):
        prune._score("backbone", SimpleNamespace(groups=[SimpleNamespace(name="a")]), 0)


@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_rounds_after_the_last_unit_that_can_go(score: Any, tmp_path: Path) -> None:
    options = {"score": score, "parts": ["heads"], "least": 0.0}
    prune = Pruning(0.75, **SHRUNK | options)  # type: ignore[arg-type]
    task, copies, _ = fit(tmp_path, "bert", prune)
    assert prune._plans["backbone"].groups == []
    start = copies.folder.parent / "recovery-6.ckpt"
    with pytest.raises(ValueError, match=r"other options of Pruning \(.*target"):
        fit(tmp_path, "bert", Pruning(0.8, **SHRUNK | options), resume=start)  # type: ignore[arg-type]
    again = Pruning(0.75, **SHRUNK | options)  # type: ignore[arg-type]
    resumed, _, _ = fit(tmp_path, "bert", again, resume=start)
    assert_same(state(resumed), state(task))


def test_a_run_that_ends_before_the_target_says_so(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = True

    with pytest.warns(UserWarning, match="the run ended after round 0 of 1, before the target"):
        fit(tmp_path, "bert", Pruning(0.7, begin=0.8, multiple_of=1), Stop())


@pytest.mark.parametrize("options", [{"energy": 0.6}, {"share": 0.5, "targets": ["dense"]}])
def test_low_rank_reloads_and_resumes_with_the_same_bits(options: Any, tmp_path: Path) -> None:
    low: Any = LowRank(**options)
    _, copies, folder = fit(tmp_path, "bert", low, EMA(decay=0.5), optim=MUON)
    [recovery] = recoveries(folder)
    loaded = load_task(recovery)
    names = [change["module"] for change in loaded.recipe()["changes"]]  # type: ignore[operator]
    assert names
    assert all(name.endswith("dense") for name in names) == ("targets" in options)
    assert sum(p.numel() for p in loaded.parameters()) == copies.sizes[0]
    whole = sum(p.numel() for p in classifier("bert").parameters())
    assert copies.sizes[0] < whole
    want = read_checkpoint(recovery)
    again: Any = LowRank(**options)
    start = folder.parent / "recovery-4.ckpt"
    _, _, other = fit(tmp_path, "bert", again, EMA(decay=0.5), resume=start, optim=MUON, seed=7)
    got = read_checkpoint(recoveries(other)[0])
    for part in ("state_dict", "optimizer_states", "lit_foundry"):
        assert_same(got[part], want[part], part)


def test_each_run_of_a_callback_has_low_rank(tmp_path: Path) -> None:
    low: Any = LowRank(energy=0.6)
    sizes = [fit(tmp_path, "bert", low)[1].sizes[0] for _ in range(2)]
    assert sizes[0] == sizes[1] < sum(p.numel() for p in classifier("bert").parameters())


def test_what_is_in_the_way_is_told_in_a_line(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    low: Any = LowRank(share=0.5)
    prune = Pruning(0.7, multiple_of=1)
    with pytest.raises(ValueError, match="LowRank and Pruning change a network one after"):
        fit(tmp_path, "bert", prune, low)
    with pytest.raises(ValueError, match=r"adapters belong to: leave out model\.finetune"):
        fit(tmp_path, "bert", prune, finetune=Finetune(lora=Lora(rank=2)))
    with pytest.raises(ValueError, match=r"model\.losses compares attention: leave heads out"):
        prune._check_compared({"attention"})
    several: Any = SimpleNamespace(world_size=2, strategy=None)
    with pytest.raises(ValueError, match=r"Pruning runs on one device: set trainer\.devices to 1"):
        shrunk_task(several, classifier("bert"), "Pruning")
    with pytest.raises(ValueError, match="LowRank takes energy or share, got None and None"):
        LowRank()
    with pytest.raises(ValueError, match="LowRank makes no linear layer of backbone smaller"):
        fit(tmp_path, "bert", LowRank(energy=0.9999999))  # type: ignore[arg-type]


def test_a_backbone_of_two_names_is_pruned_once() -> None:
    task = classifier("bert")
    task.other = task.backbone
    assert [*task.backbones] == ["backbone", "other"]
    assert [*each_backbone(task)] == ["backbone"]


@pytest.mark.slow
@pytest.mark.parametrize("score", ["magnitude", "movement"])
def test_a_killed_pruned_run_ends_with_the_same_bits(score: str, tiny: Path) -> None:
    config = yaml.safe_load(tiny.read_text(encoding="utf-8"))
    options = {"target": 0.6, "begin": 0.2, "end": 0.7, "rounds": 4, "score": score}
    config["trainer"]["callbacks"] = [
        {"class_path": "Pruning", "init_args": options | {"multiple_of": 4}}
    ]
    config["model"]["init_args"]["optim"]["name"] = "muon"
    write_config(tiny, config)
    assert run_fit(tiny, "whole") == 0
    # Steps have three micro-steps; rounds are at a third, near half and later of 54.
    kill_and_compare(tiny, ([8], [16], [18, 26], [27], [38], [50]))
