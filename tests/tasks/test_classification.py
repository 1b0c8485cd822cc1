"""Classification: its metrics, and what fine-tuning trains and leaves alone."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_foundry.nn.text.encoder import TextEncoder
from lit_foundry.tasks import Classification, Finetune
from lit_foundry.training.optim import OptimConfig
from tests.conftest import reviews, tiny_config, write_csv
from tests.tasks.test_base import Tape, Toy, data, equal, seeded, snapshot, trainer  # noqa: F401

# Frozen blocks are meant to be in eval mode.
pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
SIZES = (7, 1, 30, 12, 3)


class Scripted(Classification):
    """Takes its logits from a table."""

    table: Tensor

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the rows of the table; the backbone counts for nothing."""
        rows: Tensor = self.table[batch["index"]]
        return rows + 0 * self.head.out.bias.sum()


def scripted(**options: Any) -> tuple[Scripted, Tensor, Tensor, DataLoader[Any]]:
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(sum(SIZES), 4, generator=generator)
    label = torch.randint(4, (sum(SIZES),), generator=generator)
    label = torch.where(torch.rand(len(label), generator=generator) < 0.4, logits.argmax(1), label)
    model = Scripted(Toy(), 4, **options)
    model.table = logits
    index = torch.arange(len(label)).split(SIZES)
    batches: Any = [{"index": rows, "label": label[rows]} for rows in index]
    return model, logits, label, DataLoader(batches, batch_size=None)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_agree_with_scikit_learn(stage: str) -> None:
    model, logits, label, loader = scripted(label_smoothing=0.3)
    runner = trainer()
    evaluate = runner.validate if stage == "val" else runner.test
    for _ in range(2):  # the second pass must not remember the first
        [scores] = evaluate(model, loader, verbose=False)
        preds = logits.argmax(1)
        assert scores[f"{stage}/acc"] == pytest.approx(accuracy_score(label, preds))
        assert scores[f"{stage}/f1_macro"] == pytest.approx(f1_score(label, preds, average="macro"))
        matrix = model.results[f"{stage}/confusion"]
        assert matrix.tolist() == confusion_matrix(label, preds).tolist()
        assert scores[f"{stage}/calibration_error"] == pytest.approx(ece(logits, label), abs=1e-6)
        # Without smoothing, and over samples, which are spread unevenly over the batches.
        mean = float(F.cross_entropy(logits, label))
        assert scores[f"{stage}/loss"] == pytest.approx(mean, abs=1e-6)
        parts = zip(logits.split(SIZES), label.split(SIZES), strict=True)
        of_batches = np.mean([float(F.cross_entropy(x, y)) for x, y in parts])
        assert abs(of_batches - mean) > 0.01, "the data tells the two means apart"


def test_f1_of_two_classes_is_that_of_the_second_beside_the_mean() -> None:
    probs, label = torch.rand(50, 2).softmax(1), torch.randint(2, (50,))
    two = Classification(Toy(), 2).scores.of("val")
    two.update(probs, label)
    scores, preds = two.compute(), probs.argmax(1)
    assert scores["val/f1"].item() == pytest.approx(f1_score(label, preds))
    assert scores["val/f1_macro"].item() == pytest.approx(f1_score(label, preds, average="macro"))
    assert "val/f1" not in Classification(Toy(), 3).scores.of("val").keys()  # noqa: SIM118


def ece(logits: Tensor, label: Tensor) -> float:
    """Return the expected calibration error of 15 bins (Guo et al. 2017)."""
    confidence, preds = logits.softmax(1).max(1)
    bins = (confidence * 15).ceil()
    error = 0.0
    for b in bins.unique():
        rows = bins == b
        gap = (preds[rows] == label[rows]).float().mean() - confidence[rows].mean()
        error += float(rows.float().mean() * gap.abs())
    return error


def test_weighted_loss_is_the_weighted_mean_over_samples() -> None:
    weights = [0.2, 3.0, 1.0, 0.5]
    model, logits, label, loader = scripted(class_weights=weights)
    [scores] = trainer().validate(model, loader, verbose=False)
    want = float(F.cross_entropy(logits, label, torch.tensor(weights)))
    assert scores["val/loss"] == pytest.approx(want, abs=1e-6)


def test_labels_are_smoothed_in_training_only() -> None:
    model, logits, label, loader = scripted(label_smoothing=0.3)
    seen = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            seen.append(float(trainer.callback_metrics["train/loss"]))

    trainer(Losses()).fit(model, loader, loader)
    parts = zip(logits.split(SIZES), label.split(SIZES), strict=True)
    want = [float(F.cross_entropy(x, y, label_smoothing=0.3)) for x, y in parts]
    assert seen == pytest.approx(want, abs=1e-6)


def bert(folder: Path, freeze: Any = 0, head_first: float = 0.0, **options: Any) -> Classification:
    """Return a classifier on a BERT of two layers, with dropout."""
    config = tiny_config(folder)["model"]["init_args"]["backbone"]["init_args"]["config"]
    torch.manual_seed(0)
    options = {"optim": OptimConfig(lr=0.005)} | options
    backbone = TextEncoder(config=config, vocab_size=400)
    return Classification(backbone, 2, finetune=Finetune(freeze, head_first), **options)


def test_overfits_one_batch(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", reviews(8, seed=0))
    model = bert(tmp_path, optim=OptimConfig(lr=0.005, warmup=0.1))
    fit = trainer(max_epochs=60, limit_val_batches=0)
    fit.fit(model, data(tmp_path, batch_size=8))
    assert fit.global_step == 60
    assert float(fit.callback_metrics["train/loss"]) < 0.05
    assert float(fit.callback_metrics["train/acc"]) == 1


class Modes(Callback):
    """Notes which blocks are in training mode at each training batch."""

    def __init__(self) -> None:
        self.seen: list[list[bool]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Note a block only if all its modules agree."""
        blocks = pl_module.backbone.blocks()
        # A list of modules is built anew by each call of blocks().
        modes = [
            {m.training for m in block.modules() if not isinstance(m, nn.ModuleList)}
            for block in blocks
        ]
        assert all(len(mode) == 1 for mode in modes)
        self.seen.append([mode.pop() for mode in modes])


class Switch(Callback):
    """Switches the whole task to training mode, as loops and users do."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, i: int) -> None:
        """Switch there and back."""
        pl_module.eval()
        pl_module.train()


@pytest.mark.parametrize("switch", [True, False])
@pytest.mark.parametrize(("freeze", "frozen"), [(1, 1), (2, 2), ("all", 3)])
def test_frozen_blocks_stay_to_the_bit_and_in_eval_mode(
    tmp_path: Path, freeze: Any, frozen: int, switch: bool
) -> None:
    model, modes = bert(tmp_path, freeze), Modes()
    before = [snapshot(block) for block in model.backbone.blocks()]
    head = snapshot(model.head)
    others = [Switch()] if switch else []
    # A validation after each epoch of 4 steps, and the sanity check before, switch modes.
    trainer(modes, *others, max_steps=10, max_epochs=-1, num_sanity_val_steps=1).fit(
        model, data(tmp_path)
    )
    assert len(modes.seen) == 10
    assert all(seen == [False] * frozen + [True] * (3 - frozen) for seen in modes.seen)
    same = [equal(a, snapshot(b)) for a, b in zip(before, model.backbone.blocks(), strict=True)]
    assert same == [True] * frozen + [False] * (3 - frozen)
    assert not equal(snapshot(model.head), head)


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1}])
def test_head_learns_alone_for_its_fraction_of_the_run(
    tmp_path: Path, limit: dict[str, Any]
) -> None:
    model, tape = bert(tmp_path, head_first=0.5), Tape()
    start = snapshot(model)
    trainer(tape, **limit).fit(model, data(tmp_path, micro_batch=6))
    assert len(tape.weights) == 12
    steps = [start, *tape.weights]
    for i, (old, new) in enumerate(pairwise(steps)):
        names = [name for name in old if name.startswith("backbone.")]
        same = [torch.equal(old[name], new[name]) for name in names]
        assert all(same) if i < 6 else not any(same), i
        assert not torch.equal(old["head.out.weight"], new["head.out.weight"]), i
