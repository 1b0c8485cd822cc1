"""What every task inherits: steps, resumes, averaging, transfer, reproducible dropout."""

import csv
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_foundry.callbacks import EMA
from lit_foundry.checkpoints.files import CheckpointError, load_data, load_task, read_checkpoint
from lit_foundry.cli.main import main
from lit_foundry.data import DataModule, TextFiles
from lit_foundry.data.text.tokenizer_training import TrainTokenizer
from lit_foundry.datamodule import data_of
from lit_foundry.nn import Backbone
from lit_foundry.nn.features import Features
from lit_foundry.nn.text.encoder import TextEncoder, masked_mean
from lit_foundry.randomness import seed_dropout
from lit_foundry.recipe import Recorded
from lit_foundry.runs.metrics_csv import MetricsCSV
from lit_foundry.tasks import Classification, Finetune, Stage, Step
from lit_foundry.training.optim import OptimConfig, lr_factor
from tests.conftest import reviews, tiny_config, write_csv

# Frozen blocks are meant to be in eval mode.
pytestmark = pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
SGD = OptimConfig(name="sgd", lr=0.5, momentum=0.0, weight_decay=0.0, schedule="constant")


class Toy(Backbone):
    """Embeddings and two residual layers, averaged over the tokens."""

    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")

    def __init__(self, vocab_size: int = 400, dim: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
        self.embed = nn.Embedding(vocab_size, dim)
        layers = (nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Dropout(dropout)) for _ in "12")
        self.layers = nn.ModuleList(layers)

    def blocks(self) -> list[nn.Module]:
        """Return the embeddings and the layers."""
        return [self.embed, *self.layers]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Compute features of (B, T) ids."""
        tokens = self.embed(input_ids)
        for layer in self.layers:
            tokens = tokens + layer(tokens)
        return Features(tokens, masked_mean(tokens, attention_mask))


class Tape(Callback):
    """Remembers the samples, weights and gradients of each optimizer step."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.micro: list[int] = []
        self.weights: list[dict[str, Tensor]] = []
        self.grads: list[dict[str, Tensor]] = []
        self._open: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a micro-batch; close the step that it completes."""
        self._open += batch["index"].tolist()
        self.micro.append(len(batch["index"]))
        if trainer.global_step > len(self.rows):
            self.rows.append(self._open)
            self._open = []
            self.weights.append(snapshot(pl_module))
            named = pl_module.named_parameters()
            self.grads.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copy the weights of a module."""
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Tell whether two sets of weights are the same to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def data(folder: Path, **options: Any) -> TextFiles:
    """Return 48 training and 22 validation reviews."""
    files = {"train": 48, "val": 22}
    for seed, (name, count) in enumerate(files.items()):
        if not (folder / f"{name}.csv").exists():
            write_csv(folder / f"{name}.csv", reviews(count, seed))
    options = {"max_length": 32, "batch_size": 12} | options
    paths = {name: str(folder / f"{name}.csv") for name in files}
    return TextFiles(TrainTokenizer(vocab_size=300), **paths, **options)


def task(
    seed: int = 1, dropout: float = 0.0, num_classes: int = 2, **options: Any
) -> Classification:
    """Return a classifier on a Toy."""
    torch.manual_seed(seed)
    options = {"optim": SGD} | options
    return Classification(Toy(dropout=dropout), num_classes, **options)


def trainer(*callbacks: Callback, **changes: Any) -> Trainer:
    """Return a quiet Trainer."""
    options = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "max_epochs": 1,
    }
    return Trainer(callbacks=list(callbacks), **options | changes)


def logged(path: Path, name: str) -> list[float]:
    """Read the values of one metric, in the order of the steps."""
    with path.open(newline="", encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")


def by_hand(
    model: Classification, module: TextFiles, steps: list[list[int]], lr: float, clip: float | None
) -> list[float]:
    """Train on whole steps in plain torch; return the losses."""
    dataset = module.load("train")
    optimizer = torch.optim.SGD(model.parameters(), lr)
    losses = []
    for rows in steps:
        batch: Any = dataset[rows]
        loss = F.cross_entropy(model(batch).float(), batch["label"], model.class_weights)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize(
    ("sizes", "weights", "clip"),
    [
        ({"batch_size": 12, "micro_batch": 4}, None, None),
        ({"batch_size": 12, "micro_batch": 5}, [0.3, 2.0], None),
        ({"batch_size": 12, "micro_batch": 4}, [0.3, 2.0], 0.02),
        ({"batch_size": None, "batch_tokens": 288, "micro_batch": 96}, None, None),
        ({"batch_size": None, "batch_tokens": 288, "micro_batch": 96}, [0.3, 2.0], 0.02),
    ],
)
def test_accumulated_steps_equal_whole_steps_by_hand(
    tmp_path: Path, sizes: dict[str, Any], weights: list[float] | None, clip: float | None
) -> None:
    module, tape = data(tmp_path, **sizes), Tape()
    ours, plain = (task(class_weights=weights).double() for _ in range(2))
    for model in (ours, plain) if weights else ():
        model.class_weights = model.class_weights.float()  # as the logits
    log = MetricsCSV(tmp_path / "metrics.csv")
    fit = trainer(tape, max_epochs=2, gradient_clip_val=clip, logger=log)
    fit.fit(ours, module)
    assert fit.accumulate_grad_batches == 3
    assert len(tape.rows) >= 8
    if sizes["batch_size"] is None:
        assert len(set(tape.micro)) > 2, "micro-batches of unequal size were asked for"
    losses = by_hand(plain, module, tape.rows, 0.5, clip)
    for (name, got), want in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-6), name
    assert np.allclose(logged(tmp_path / "metrics.csv", "train/loss"), losses, rtol=0, atol=1e-6)
    norms = logged(tmp_path / "metrics.csv", "train/grad_norm")
    assert clip is None or min(norms) > clip, "clipping was not exercised"


def test_micro_batches_change_no_weight(tmp_path: Path) -> None:
    weights = []
    for micro_batch in (None, 4):
        model = task().double()
        trainer(max_epochs=2).fit(model, data(tmp_path, micro_batch=micro_batch))
        weights.append(snapshot(model))
    assert not equal(*weights), "both ran the same way"
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], rtol=0, atol=1e-6), name


def test_gradient_of_a_step_is_the_mean_over_its_samples(tmp_path: Path) -> None:
    module, tape, model = data(tmp_path, micro_batch=5), Tape(), task().double()
    before = task().double()
    trainer(tape, max_steps=1).fit(model, module)
    dataset, total = module.load("train"), 0.0
    for row in tape.rows[0]:
        batch: Any = dataset[[row]]
        total = total + F.cross_entropy(before(batch).float(), batch["label"])
    want = torch.autograd.grad(total / len(tape.rows[0]), list(before.parameters()))
    for (name, _), grad in zip(before.named_parameters(), want, strict=True):
        assert torch.allclose(tape.grads[0][name], grad, rtol=0, atol=1e-7), name


class Disturbance(Callback):
    """Draws random numbers between the batches."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, idx: int) -> None:
        """Draw some."""
        torch.rand(7 + idx)
        np.random.rand(3)  # noqa: NPY002 - the global generator is what is disturbed


def test_dropout_depends_on_seed_and_micro_step_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fitted(*callbacks: Callback) -> dict[str, Tensor]:
        model = task(dropout=0.3)
        trainer(*callbacks).fit(model, data(tmp_path, micro_batch=4, batch_size=48))
        return snapshot(model)

    whole = fitted()
    assert equal(fitted(Disturbance()), whole)
    torch.rand(5)
    assert equal(fitted(), whole)
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    assert not equal(fitted(), whole)


def test_each_micro_step_drops_other_units(tmp_path: Path) -> None:
    class Masks(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen.append(float(torch.rand(())))

    seen: list[float] = []
    trainer(Masks(), max_epochs=2).fit(task(), data(tmp_path, micro_batch=4))
    assert len(set(seen)) == len(seen) == 24


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_every_optimizer_fits_and_resumes(tmp_path: Path, name: Any) -> None:
    optim = OptimConfig(name=name, lr=0.01, schedule="constant")
    whole, half, resumed = (task(optim=optim, dropout=0.1) for _ in range(3))
    trainer(max_epochs=2).fit(whole, data(tmp_path))
    first = trainer(max_epochs=1)
    start = snapshot(half)
    first.fit(half, data(tmp_path))
    assert not equal(snapshot(half), start)
    first.save_checkpoint(tmp_path / "half.ckpt")
    second = trainer(max_epochs=2)
    second.fit(resumed, data(tmp_path), ckpt_path=tmp_path / "half.ckpt")
    assert second.global_step == 8
    assert equal(snapshot(resumed), snapshot(whole))
    assert not equal(snapshot(resumed), snapshot(half))


def test_config_wins_over_the_checkpoint_on_resume(tmp_path: Path) -> None:
    options = {"schedule": "constant", "name": "adamw"}
    first = trainer(max_epochs=1)
    first.fit(task(optim=OptimConfig(lr=0.01, weight_decay=0.1, **options)), data(tmp_path))
    first.save_checkpoint(tmp_path / "first.ckpt")
    changed = OptimConfig(lr=0.002, weight_decay=0.3, betas=(0.8, 0.9), **options)
    second, model = trainer(max_epochs=2), task(optim=changed)
    second.fit(model, data(tmp_path), ckpt_path=tmp_path / "first.ckpt")
    groups = second.optimizers[0].param_groups
    assert {g["lr"] for g in groups} == {g["peak_lr"] for g in groups} == {0.002}
    assert {g["weight_decay"] for g in groups} == {0.0, 0.3}
    assert {tuple(g["betas"]) for g in groups} == {(0.8, 0.9)}
    state = next(iter(second.optimizers[0].state.values()))
    assert int(state["step"]) == 8, "the moments were to be kept"


def test_rates_reach_the_optimizer_and_the_log(tmp_path: Path) -> None:
    optim = OptimConfig(lr=0.01, warmup=0.25, schedule="cosine", layer_decay=0.5)
    log = MetricsCSV(tmp_path / "metrics.csv")
    fit = trainer(max_epochs=2, logger=log)
    fit.fit(task(optim=optim), data(tmp_path, micro_batch=4))
    factors = np.array([lr_factor(i / 8, 1 / 8, optim) for i in range(8)])
    assert np.allclose(logged(tmp_path / "metrics.csv", "lr/head"), 0.01 * factors, atol=1e-9)
    # The block below the head is logged.
    assert np.allclose(logged(tmp_path / "metrics.csv", "lr/backbone"), 0.005 * factors, atol=1e-9)
    peaks = {g["peak_lr"] for g in fit.optimizers[0].param_groups if g["part"] == "backbone"}
    assert sorted(peaks) == pytest.approx([0.00125, 0.0025, 0.005])


def test_clipping_works_with_fused_adamw_and_bf16(tmp_path: Path) -> None:
    tape, optim = Tape(), OptimConfig(lr=0.01, fused=True)
    fit = trainer(tape, precision="bf16-mixed", gradient_clip_val=0.01)
    fit.fit(task(optim=optim), data(tmp_path, micro_batch=4))
    assert fit.optimizers[0].param_groups[0]["fused"]
    for grads in tape.grads:
        norm = torch.stack([g.norm() for g in grads.values()]).norm()
        assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_clipping_by_value_is_refused(tmp_path: Path) -> None:
    fit = trainer(gradient_clip_val=0.1, gradient_clip_algorithm="value")
    with pytest.raises(ValueError, match="gradient_clip_algorithm can only be norm"):
        fit.fit(task(), data(tmp_path))


@pytest.mark.parametrize("most", [0.0, -1.0, float("nan"), float("inf")])
def test_clipping_to_what_is_no_positive_number_is_refused(tmp_path: Path, most: float) -> None:
    with pytest.raises(ValueError, match="gradient_clip_val must be a positive number, got"):
        trainer(gradient_clip_val=most).fit(task(), data(tmp_path))


class Poisoned(Classification):
    """Yields a bad loss for one training sample."""

    poison = (17, float("nan"))

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Spoil the loss of the batch that holds the sample."""
        result = super().step(batch, stage)
        row, factor = self.poison
        if stage == "train" and row in batch["index"]:
            # A sum with infinity leaves finite gradients.
            bad = result.loss + factor if factor == float("inf") else result.loss * factor
            return Step(bad, result.count, result.preds, result.target)
        return result


class OptimizerTape(Callback):
    """Copies the optimizer's state after each step."""

    def __init__(self) -> None:
        self.states: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Copy all tensors of the state."""
        values = (v for s in trainer.optimizers[0].state.values() for v in s.values())
        self.states.append([v.clone() for v in values if isinstance(v, Tensor)])


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_nonfinite_losses_change_nothing_and_name_their_samples(
    tmp_path: Path, name: Any, factor: float
) -> None:
    torch.manual_seed(0)
    optim = OptimConfig(name=name, lr=0.01)
    model = Poisoned(Toy(), 2, optim=optim)
    model.poison = (17, factor)
    tape, states = Tape(), OptimizerTape()
    log = MetricsCSV(tmp_path / "metrics.csv")
    fit = trainer(tape, states, max_epochs=3, logger=log)
    with pytest.warns(UserWarning, match="not finite") as record:
        fit.fit(model, data(tmp_path, micro_batch=4, batch_size=12))
    after = states.states[2::3]
    skipped = [i for i, rows in enumerate(tape.rows) if 17 in rows]
    assert len(skipped) == 3
    for i in range(1, 12):
        assert equal(tape.weights[i], tape.weights[i - 1]) == (i in skipped), i
        same = all(map(torch.equal, after[i], after[i - 1])) if after[i - 1] else i in skipped
        assert same == (i in skipped), i
    assert logged(tmp_path / "metrics.csv", "train/skipped_steps") == [1.0] * 3
    texts = [str(w.message) for w in record if "not finite" in str(w.message)]
    assert len(texts) == 3
    for i, text in zip(skipped, texts, strict=True):
        assert f"epoch {i // 4}" in text
        assert f"step {i}" in text
        assert "17" in text
        [listed] = [text[text.index("[") + 1 : text.index("]")]]
        rows = [int(row) for row in listed.split(",")]
        assert 17 in rows
        assert set(rows) <= set(tape.rows[i])
        assert len(rows) <= 4, "only the micro-batches to blame are named"


class Normalized(Toy):
    """Has running statistics, which one training sample spoils from within."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def encode(self, batch: Mapping[str, Any]) -> Features:
        """Normalize what Toy yields; the sample 17 is spoilt before."""
        features = super().encode(batch)
        poison = float("nan") if self.training else 0.0
        spoilt = torch.where(batch["index"] == 17, poison, 0.0)
        return features._replace(pooled=self.norm(features.pooled + spoilt[:, None]))


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_skipped_step_leaves_running_statistics_as_they_were(
    tmp_path: Path, micro_batch: int | None
) -> None:
    means: list[Tensor] = []

    class Means(Tape):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            super().on_train_batch_end(trainer, pl_module, *args)
            if len(self.rows) > len(means):
                means.append(pl_module.backbone.norm.running_mean.clone())

    model, tape = Classification(Normalized(), 2, optim=SGD), Means()
    with pytest.warns(UserWarning, match="not finite"):
        trainer(tape, max_epochs=2).fit(model, data(tmp_path, micro_batch=micro_batch))
    skipped = [i for i, rows in enumerate(tape.rows) if 17 in rows]
    assert len(skipped) == 2
    for i in range(1, 8):
        assert torch.equal(means[i], means[i - 1]) == (i in skipped), i
    assert means[-1].isfinite().all()


@pytest.mark.parametrize("limits", [{}, {"max_steps": 3, "max_epochs": -1}])
def test_a_run_that_skips_every_step_fails(tmp_path: Path, limits: dict[str, int]) -> None:
    class Hopeless(Poisoned):
        def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
            self.poison = (int(batch["index"][0]), float("nan"))
            return super().step(batch, stage)

    steps = limits.get("max_steps", 4)
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(ValueError, match=rf"All {steps} steps were skipped, .*optim\.lr"),
    ):
        trainer(**limits).fit(Hopeless(Toy(), 2, optim=SGD), data(tmp_path))


class Recorder(Classification):
    """Keeps the weights that validation uses."""

    seen: list[dict[str, Tensor]]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Copy them once an epoch."""
        if batch_idx == 0:
            self.seen = [*getattr(self, "seen", []), snapshot(self)]
        super().validation_step(batch, batch_idx)


def test_weight_averages_are_validated_and_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tiny_config(tmp_path)["model"]["init_args"]["backbone"]["init_args"]["config"]
    model = Recorder(TextEncoder(config=config, vocab_size=400), 2, optim=SGD)
    tape, ema = Tape(), EMA(decay=0.9)
    best = ModelCheckpoint(
        tmp_path / "saves", "best", monitor="val/loss", mode="min", save_weights_only=True
    )
    positions = model.backbone.encoder.embeddings.position_ids
    want_positions = positions.clone()
    fit = trainer(tape, ema, best, max_epochs=2, enable_checkpointing=True)
    averages = []

    fit.fit(model, data(tmp_path))
    average: dict[str, Tensor] = {}
    for i, weights in enumerate(tape.weights):
        for name, w in weights.items():
            average[name] = 0.9 * average[name] + 0.1 * w if i else w
        if i % 4 == 3:
            averages.append(dict(average))
    for seen, want in zip(model.seen, averages, strict=True):
        for name in want:
            assert torch.allclose(seen[name], want[name], atol=1e-6), name
    assert not torch.allclose(averages[-1]["head.out.weight"], tape.weights[-1]["head.out.weight"])
    assert torch.equal(positions, want_positions), "integer buffers have no average"
    saved = dict(load_task(best.best_model_path).named_parameters())
    epoch = torch.load(best.best_model_path, weights_only=True)["epoch"]
    for name in saved:
        assert torch.equal(saved[name], model.seen[epoch][name]), name


def test_weight_averages_resume(tmp_path: Path) -> None:
    whole, half, resumed = (task(optim=OptimConfig(schedule="constant")) for _ in range(3))
    trainer(EMA(decay=0.9), max_epochs=2).fit(whole, data(tmp_path))
    first = trainer(EMA(decay=0.9), SaveAt(4, tmp_path / "half.ckpt"), max_epochs=1)
    first.fit(half, data(tmp_path))
    second = trainer(EMA(decay=0.9), max_epochs=2)
    second.fit(resumed, data(tmp_path), ckpt_path=tmp_path / "half.ckpt")
    assert equal(snapshot(resumed), snapshot(whole))


class SaveAt(Callback):
    """Saves a checkpoint at the end of the epoch in which a step was done."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_init_from_takes_the_backbone_of_another_task(tmp_path: Path) -> None:
    source = trainer()
    teacher = task(num_classes=2)
    source.fit(teacher, data(tmp_path))
    source.save_checkpoint(tmp_path / "source.ckpt")
    rows = [(text, f"{label}{i % 3 == 0}") for i, (text, label) in enumerate(reviews(48, 5))]
    for name in ("train", "val"):
        (tmp_path / "other").mkdir(exist_ok=True)
        write_csv(tmp_path / "other" / f"{name}.csv", rows)
    model = task(seed=9, num_classes=4, init_from=tmp_path / "source.ckpt")
    before = snapshot(model.head)
    tape = Tape()
    frozen = trainer(tape, max_steps=1)
    model.finetune = Finetune(freeze="all")
    other = data(tmp_path / "other")
    with pytest.raises(CheckpointError, match="another tokenizer"):
        frozen.fit(task(num_classes=4, init_from=tmp_path / "source.ckpt"), other)
    other.tokenizer = data(tmp_path).tokenizer
    frozen.fit(model, other)
    assert equal(snapshot(model.backbone), snapshot(teacher.backbone))
    assert not equal(snapshot(model.head), before)
    assert model.head.out.out_features == 4


def test_init_from_is_ignored_on_resume(tiny: Path, tmp_path: Path) -> None:
    words = ["fit", "--config", str(tiny), "--experiment"]
    source = main([*words, "source", "--trainer.max_epochs", "1"]).run.path / "checkpoints"
    start = ["--model.init_from", str(source / "best.ckpt")]
    main([*words, "next", *start, "--trainer.max_epochs", "1"])
    (source / "best.ckpt").unlink()
    with pytest.raises(CheckpointError, match=r"best\.ckpt is no checkpoint file"):
        main([*words, "next", *start])
    resumed = main([*words, "next", *start, "--resume", "required"])
    assert resumed.trainer.current_epoch == 2
    assert load_task(resumed.run.checkpoints / "best.ckpt").recipe()["init_args"]["init_from"]


def test_init_from_lists_the_tensors_that_do_not_fit(tmp_path: Path) -> None:
    source = trainer(max_steps=1)
    source.fit(task(), data(tmp_path))
    source.save_checkpoint(tmp_path / "source.ckpt")
    wide = Classification(Toy(dim=12), 2, optim=SGD, init_from=tmp_path / "source.ckpt")
    with pytest.raises(CheckpointError, match="does not fit the model") as error:
        trainer(max_steps=1).fit(wide, data(tmp_path))
    assert "embed.weight: (400, 8) in the checkpoint, (400, 12) in the model" in str(error.value)


def test_dropout_is_seeded_as_torch_does_but_queues_nothing() -> None:
    queued = len(torch.cuda._queued_calls)
    for seed in (0, 7, 2**62 + 5):
        seed_dropout(seed, torch.device("cpu"))
        ours = torch.rand(5)
        assert len(torch.cuda._queued_calls) == queued
        assert torch.equal(ours, torch.rand(5, generator=torch.Generator().manual_seed(seed)))


class Plain(LightningDataModule, Recorded):
    """Records its arguments, and has nothing else that ours have."""

    def __init__(self, rows: int = 4) -> None:
        super().__init__()
        self.rows = rows

    def train_dataloader(self) -> Any:
        """Return samples of one class."""
        fields = {"input_ids": torch.ones(self.rows, 3, dtype=torch.long)}
        fields["attention_mask"] = torch.ones(self.rows, 3, dtype=torch.bool)
        fields |= {"label": torch.zeros(self.rows).long(), "index": torch.arange(self.rows)}
        return DataLoader([fields] * 2, batch_size=None)  # type: ignore[arg-type]

    val_dataloader = train_dataloader


def test_a_data_module_with_a_recipe_alone_is_a_plain_one(tmp_path: Path) -> None:
    fit, found = trainer(), task()
    fit.fit(found, Plain())
    fit.save_checkpoint(tmp_path / "plain.ckpt")
    assert fit.global_step == 2
    assert read_checkpoint(tmp_path / "plain.ckpt")["lit_foundry"]["data"] is None
    assert load_task(tmp_path / "plain.ckpt").state_dict().keys() == found.state_dict().keys()
    with pytest.raises(CheckpointError, match="does not tell its data"):
        load_data(tmp_path / "plain.ckpt")


def test_what_a_data_module_lacks_is_named(tmp_path: Path) -> None:
    class Mine(DataModule):
        """Has all but the type of a batch."""

        facts: ClassVar[dict[str, int]] = {}  # type: ignore[misc]

        def load(self, split: str) -> Any:
            """Fail: it is not asked."""
            raise AssertionError

    with pytest.raises(ValueError, match=r"Mine is no whole.*it lacks batch_type\."):
        data_of(trainer_of(Mine()))

    class Wrapped:
        """Is another one."""

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

    inner = data(tmp_path)
    assert data_of(trainer_of(Wrapped())) is not None


def trainer_of(datamodule: Any) -> Any:
    return SimpleNamespace(datamodule=datamodule)
