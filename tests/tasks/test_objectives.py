"""A task of several objectives, backbones anywhere, and what follows the weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError
from torchmetrics.classification import BinaryAUROC

from lit_foundry.checkpoints.files import read_checkpoint
from lit_foundry.nn import Backbone, TextEncoder
from lit_foundry.tasks import Finetune, Stage, Step, Task
from lit_foundry.training.objectives import ObjectiveGradients
from lit_foundry.training.optim import OptimConfig
from tests.conftest import REPO, tiny_config, write_config
from tests.runs.test_ddp import lit_foundry
from tests.tasks.test_base import SGD, Tape, Toy, data, equal, snapshot, trainer

# Frozen blocks are meant to be in eval mode.
pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
NAMES = ("neg", "pos")


class Apart(Task):
    """Fits 0 to the samples of one class, and 1 to those of the other, each a mean of its own."""

    def __init__(
        self,
        backbone: Backbone,
        optim: OptimConfig = SGD,
        finetune: Finetune = Finetune(),
        init_from: Path | None = None,
    ) -> None:
        metrics = {f"{name}/mae": MeanAbsoluteError() for name in NAMES}
        super().__init__(optim, finetune, init_from, metrics, metrics, objectives=NAMES)
        self.towers = nn.ModuleDict({"text": finetune.adapted(backbone)})
        self.out = nn.Linear(backbone.dim, 1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def updated(self) -> None:
        """Count the steps that changed something."""
        self.steps += 1  # type: ignore[operator]

    def step(self, batch: Mapping[str, Any], stage: Stage) -> dict[str, Step]:
        """Leave out a class without samples."""
        found = self.out(self.towers["text"].encode(batch).pooled)[:, 0]  # type: ignore[operator]
        steps = {}
        for number, name in enumerate(NAMES):
            mine = found[batch["label"] == number]
            if len(mine):
                goal = torch.full_like(mine, number)
                steps[name] = Step(F.mse_loss(mine, goal), len(mine), mine, goal)
        return steps


def apart(**options: Any) -> Apart:
    torch.manual_seed(1)
    return Apart(Toy(), **options)


def test_each_objective_is_divided_by_its_own_count_over_micro_batches(tmp_path: Path) -> None:
    seed_everything(0)
    tapes = []
    for micro in (None, 5, 1):  # of single samples, each has one objective alone
        tape, texts = Tape(), data(tmp_path, micro_batch=micro)
        trainer(tape, max_steps=2).fit(apart(), texts)
        tapes.append(tape)
    whole = apart()
    batch = texts.load("train")[tapes[0].rows[0]]
    steps = whole.step(batch, "train")
    sum((step.loss for step in steps.values()), torch.zeros(())).backward()
    expected = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    for tape in tapes:
        assert tape.rows == tapes[0].rows
        assert tape.grads[0].keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(tape.grads[0][name], gradient, atol=1e-6), name


def test_objectives_are_logged_by_name_and_in_sum(tmp_path: Path) -> None:
    task, fit = apart(), trainer()
    fit.fit(task, data(tmp_path))
    found = {name: float(value) for name, value in fit.callback_metrics.items()}
    for stage in ("train", "val"):
        assert found[f"{stage}/loss"] == pytest.approx(
            sum(found[f"{stage}/{name}/loss"] for name in NAMES), rel=1e-5
        )
        assert {f"{stage}/{name}/mae" for name in NAMES} <= found.keys()
    rows = data(tmp_path).load("val")
    with torch.no_grad():
        steps = task.eval().step(rows[range(len(rows.lengths))], "val")
    for name in NAMES:
        assert found[f"val/{name}/loss"] == pytest.approx(float(steps[name].loss), rel=1e-4)


def test_weights_are_followed_after_steps_that_were_not_skipped(tmp_path: Path) -> None:
    class Broken(Apart):
        def step(self, batch: Mapping[str, Any], stage: Stage) -> dict[str, Step]:
            steps = super().step(batch, stage)
            if stage == "train" and self.global_step == 1:
                first = next(iter(steps))
                steps[first] = Step(steps[first].loss * float("nan"), 1)
            return steps

    torch.manual_seed(1)
    task = Broken(Toy())
    with pytest.warns(UserWarning, match="the step is skipped"):
        trainer(max_steps=4).fit(task, data(tmp_path))
    assert int(task.steps) == 3  # type: ignore[arg-type]


def test_an_objective_that_was_not_declared_is_named() -> None:
    class Third(Apart):
        def step(self, batch: Mapping[str, Any], stage: Stage) -> dict[str, Step]:
            return {"third": Step(torch.zeros(()), 1)}

    with pytest.raises(ValueError, match=r"\['third'\] are none of its objectives="):
        Third(Toy())._run({}, "val")


def test_a_step_that_returns_nothing_is_told_rather_than_ending_the_epoch(tmp_path: Path) -> None:
    class Silent(Apart):
        def step(self, batch: Mapping[str, Any], stage: Stage) -> dict[str, Step]:
            return {}

    torch.manual_seed(1)
    with pytest.raises(ValueError, match=r"Silent\.step returned no Step"):
        trainer().fit(Silent(Toy()), data(tmp_path))


def test_a_step_in_which_no_objective_has_a_term_changes_nothing(tmp_path: Path) -> None:
    class Bare(Apart):
        def step(self, batch: Mapping[str, Any], stage: Stage) -> dict[str, Step]:
            steps = super().step(batch, stage)
            if stage == "train" and self.global_step == 1:
                return {name: Step(0 * step.loss, 0) for name, step in steps.items()}
            return steps

    torch.manual_seed(1)
    task = Bare(Toy())
    with pytest.warns(UserWarning, match="No sample has anything to learn from in epoch 0, step 1"):
        trainer(max_steps=4).fit(task, data(tmp_path))
    assert int(task.steps) == 3  # type: ignore[arg-type]


def test_what_no_rank_has_a_gradient_of_keeps_none() -> None:
    class Two:
        world_size, model = 2, None

        @property
        def strategy(self) -> Any:
            return self

        def reduce(self, found: Tensor, reduce_op: str) -> Tensor:
            return found * 2  # as if the other rank had the same

    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    gradients = ObjectiveGradients()
    gradients.pending = [used.sum(), (3 * used).sum()]
    gradients.add([used, unused])
    gradients.combine(Two(), torch.tensor([1.0, 0.5]))  # type: ignore[arg-type]
    assert used.grad is not None
    assert used.grad.tolist() == [5.0, 5.0]
    assert unused.grad is None


def test_scaled_losses_are_refused_for_several_objectives(tmp_path: Path) -> None:
    class Scaled:
        precision = "16-mixed"

    with pytest.raises(ValueError, match="scales one loss, and this task has several objectives"):
        apart()._gradients.begin(Scaled(), 2)  # type: ignore[arg-type]


def test_a_metric_of_no_objective_or_with_all_samples_is_refused() -> None:
    class Plain(Apart):
        def __init__(self, metrics: Any, train_metrics: Any) -> None:
            Task.__init__(self, SGD, metrics=metrics, train_metrics=train_metrics)

    with pytest.raises(ValueError, match="auc, a BinaryAUROC, keeps all samples of an epoch"):
        Plain({}, {"auc": BinaryAUROC()})
    Plain({"auc": BinaryAUROC()}, {"auc": BinaryAUROC(thresholds=9)})
    with pytest.raises(ValueError, match="The metric text/auc belongs to none of"):
        Plain({"text/auc": BinaryAUROC()}, {})


def test_backbones_in_containers_are_frozen_initialized_and_rated_by_name(tmp_path: Path) -> None:
    source = apart()
    assert list(source.backbones) == ["towers.text"]
    first = trainer()
    first.fit(source, data(tmp_path))
    first.save_checkpoint(tmp_path / "source.ckpt")
    torch.manual_seed(5)
    start = tmp_path / "source.ckpt"
    task = Apart(Toy(), init_from=start, finetune=Finetune(freeze="all"))
    fit = trainer(max_steps=3)
    fit.fit(task, data(tmp_path))
    assert equal(snapshot(task.towers), snapshot(source.towers))
    assert [group["part"] for group in fit.optimizers[0].param_groups] == ["head"]
    with pytest.raises(ValueError, match=r"towers\.text has 3 blocks"):
        trainer().fit(Apart(Toy(), finetune=Finetune(freeze=9)), data(tmp_path))
    with pytest.raises(ValueError, match=r"set model.towers.text.vocab_size|takes vocab_size up"):
        trainer().fit(Apart(Toy(vocab_size=7)), data(tmp_path))


def test_a_backbone_that_was_not_adapted_is_told(tmp_path: Path) -> None:
    pytest.importorskip("peft")

    class Forgetful(Apart):
        def __init__(self, backbone: Backbone, finetune: Finetune) -> None:
            super().__init__(backbone, finetune=Finetune())
            self.finetune = finetune

    from lit_foundry.tasks import Lora

    with pytest.raises(ValueError, match=r"set it as finetune\.adapted\(backbone\)"):
        trainer().fit(Forgetful(Toy(), Finetune(lora=Lora())), data(tmp_path))


class Encoded(Apart):
    """Has a backbone that a config can name."""

    def __init__(self, backbone: TextEncoder, optim: OptimConfig = SGD) -> None:
        super().__init__(backbone, optim)


@pytest.mark.slow
def test_two_ranks_divide_each_objective_like_one(tiny: Path) -> None:
    config = tiny_config(tiny.parent)
    encoder = config["model"]["init_args"]["backbone"]
    encoder["init_args"]["dropout"] = 0.0
    optim = {"name": "sgd", "lr": 0.1, "momentum": 0.0}
    config["model"] = {
        "class_path": "tests.tasks.test_objectives.Encoded",
        "init_args": {"backbone": encoder, "optim": optim},
    }
    config["data"]["init_args"]["micro_batch"] = 2  # where ranks see one objective at a time
    write_config(tiny, config)
    ends = []
    for ranks in (1, 2):
        more = ["--config", str(REPO / "configs" / "trainer" / "ddp.yaml")] * (ranks - 1)
        more += ["--trainer.devices", str(ranks), "--trainer.accelerator", "cpu"]
        lit_foundry("fit", "--config", str(tiny), "--experiment", str(ranks), *more)
        [last] = (tiny.parent / "runs" / str(ranks) / "1/checkpoints").glob("recovery-*.ckpt")
        ends.append(read_checkpoint(last)["state_dict"])
    one, two = ends
    for name, value in one.items():
        wide: Tensor = value.float()
        assert torch.allclose(wide, two[name].float(), atol=1e-5), name
