"""Base class of all tasks."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from math import inf, isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import MeanMetric, Metric, MetricCollection

from lit_foundry import __version__
from lit_foundry.checkpoints.files import FORMAT, CheckpointError
from lit_foundry.checkpoints.initialization import load_submodule
from lit_foundry.nn import Backbone
from lit_foundry.nn.lora import merge_adapters
from lit_foundry.recipe import Recorded
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.agreement import check_fit, check_resumed, check_tokenizer
from lit_foundry.training.averaging import follow_start, keep_equals, save_average
from lit_foundry.training.dropout import seed_dropout
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.metric_state import metric_states, restore_metrics
from lit_foundry.training.optim import (
    OptimConfig,
    build_optimizer,
    finish_gradients,
    place_steps,
    set_lr,
)
from lit_foundry.training.progress import is_logged, progress
from lit_foundry.training.running_statistics import RunningStatistics
from lit_foundry.training.step_totals import Window
from lit_foundry.training.thaw import Thaw


class Task(Recorded, LightningModule, ABC):
    """A training paradigm: backbones, an objective and its metrics.

    A subclass implements :meth:`step` once and gets the training, validation and test
    loops, logging as ``{stage}/{name}``, the optimizer and portable checkpoints.

    Args:
        optim: Optimizer and schedule.
        finetune: What is frozen, and when.
        init_from: Checkpoint of any task whose backbones initialize those of the same name;
            ignored on resume.
        metrics: Evaluation metrics, fed with ``Step.preds`` and ``Step.target``.
        train_metrics: Those worth their cost in training.

    Attributes:
        step_loss: Training loss of the last optimizer step, a scalar on the device.
        run_progress: Fraction of the run that was done when the current step began.
        results: Matrices and other metrics of the last epoch that are no scalars, by log key.
    """

    monitor: ClassVar[str] = "val/loss"
    mode: ClassVar[Literal["min", "max"]] = "min"

    def __init__(
        self,
        optim: OptimConfig,
        finetune: Finetune = Finetune(),
        init_from: Path | None = None,
        metrics: Mapping[str, Metric] | None = None,
        train_metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.optim, self.finetune, self.init_from = optim, finetune, init_from
        scores = MetricCollection(dict(metrics or {}))
        self.val_metrics = scores.clone(prefix="val/")
        self.test_metrics = scores.clone(prefix="test/")
        self.train_metrics = MetricCollection(
            dict(train_metrics or {}), prefix="train/", compute_groups=False
        )
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.results: dict[str, Tensor] = {}
        self.run_progress = 0.0
        self.step_loss: Tensor | None = None
        self._window = Window()
        self._options: list[dict[str, Any]] = []
        self._unfit: CheckpointError | None = None
        self._thaw = Thaw()

    @abstractmethod
    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Compute the loss of a batch, and what the metrics need."""

    def from_loss(self, stage: Stage, loss: Tensor) -> dict[str, Tensor]:
        """Return scores that are functions of the mean loss of an evaluation, by name."""
        return {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what Lightning sets fifty times a step, past torch's checks."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
            return
        if isinstance(value, Backbone):  # here, so that a task rebuilt from its recipe has them
            self.finetune.adapt(value)
        super().__setattr__(name, value)

    @property
    def backbones(self) -> dict[str, Backbone]:
        """The backbones by attribute name."""
        return {n: m for n, m in self.named_children() if isinstance(m, Backbone)}

    def merge(self) -> None:
        """Add adapters to the weights that they adapt; recipe and weights are then plain ones."""
        if self.finetune.lora:
            merge_adapters(self)
            self.finetune = replace(self.finetune, lora=None)
            self.__dict__["_init_args"]["finetune"] = self.finetune

    def _run(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        result = self.step(batch, stage)
        if stage != "train":
            getattr(self, f"{stage}_loss").update(result.loss, result.count)
        if result.preds is not None:
            getattr(self, f"{stage}_metrics").update(result.preds.detach(), result.target)
        return result

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the summed training loss; the gradients are divided once the step is whole."""
        # Dropout is a function of (seed, micro-step, rank): a resume continues with the same.
        micro_step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        seed_dropout(((seed << 40) + (micro_step << 12) + self.global_rank) % 2**63, self.device)
        result = self._run(batch, "train")
        total = result.loss * result.count
        self._window.add(total, result.count, batch.get("index"))
        return total

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Any:
        """Score a validation batch; return ``index``, ``prob`` and ``target`` of its samples."""
        return self._run(batch, "val").of_samples(batch)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Any:
        """Score a test batch; return ``index``, ``prob`` and ``target`` of its samples."""
        return self._run(batch, "test").of_samples(batch)

    def _log_epoch(self, stage: Stage) -> None:
        metrics: MetricCollection = getattr(self, f"{stage}_metrics")
        values = metrics.compute() if len(metrics) else {}
        metrics.reset()
        if stage != "train":
            mean: MeanMetric = getattr(self, f"{stage}_loss")
            loss = values[f"{stage}/loss"] = mean.compute()
            values |= {f"{stage}/{k}": v for k, v in self.from_loss(stage, loss).items()}
            mean.reset()
        self.results |= {k: v.cpu() for k, v in values.items() if v.numel() != 1}
        self.log_dict({k: v for k, v in values.items() if v.numel() == 1})

    def on_train_end(self) -> None:
        """Fail if nothing was learnt."""
        self._window.demand_a_step(self.global_step)

    def on_train_epoch_end(self) -> None:
        """Log the training metrics."""
        if self.trainer.precision != "16-mixed":  # which may skip a short epoch to find its scale
            self._window.demand_a_step(self.global_step)
        follow_start(self.trainer, self)
        self._log_epoch("train")

    def on_validation_start(self) -> None:
        """Validate no average before there is one."""
        follow_start(self.trainer, self)

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_epoch("test")

    def check_data(self, data: Any) -> None:
        """Check data against the network, before they are prepared.

        Raises:
            ValueError: If the data lacks a field that a backbone reads, or states other
                facts, such as ``num_classes``, than the network was built with.
        """
        if hasattr(data, "facts"):
            check_fit(self, self.backbones, data)

    def setup(self, stage: str) -> None:
        """Check the data against the network; initialize and freeze the backbones."""
        if data := getattr(self.trainer, "datamodule", None):
            self.check_data(data)
        if stage == "fit":
            if (how := self.trainer.gradient_clip_algorithm) not in (None, "norm"):
                raise ValueError(
                    f"trainer.gradient_clip_algorithm can only be norm, got {how.value}: remove "
                    "it; trainer.gradient_clip_val bounds the norm of all gradients."
                )
            most = self.trainer.gradient_clip_val
            if most is not None and not 0 < most < inf:
                raise ValueError(
                    f"trainer.gradient_clip_val must be a positive number, got {most}; leave it "
                    "out to clip nothing."
                )
            for name, backbone in self.backbones.items():
                self._initialize(backbone, name)
            self._thaw.begin(self.finetune, self.backbones, self.trainer)
            keep_equals(self.trainer)

    def _initialize(self, backbone: Backbone, name: str) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        if backbone.fitted_rows and data is not None:
            samples = data.load("train")
            count = min(backbone.fitted_rows, len(samples.lengths))
            rows = [i * len(samples.lengths) // count for i in range(count)]  # from all over
            backbone.fit_to(samples[rows])
        if self.init_from:
            try:
                check_tokenizer(self.init_from, getattr(self.trainer, "datamodule", None))
                load_submodule(backbone, self.init_from, name)
            except CheckpointError as error:
                self._unfit = error  # harmless on a resume, of which setup does not know yet

    def on_fit_start(self) -> None:
        """Demand what initializes the run, unless it is a resume."""
        error, self._unfit = self._unfit, None
        if error and not self.trainer.ckpt_path:
            raise error

    def train(self, mode: bool = True) -> "Task":
        """Switch the mode of all but what is frozen, which stays in eval mode."""
        super().train(mode)
        self._thaw.settle()
        return self

    def configure_optimizers(self) -> Optimizer:
        """Build what ``self.optim`` describes."""
        blocks = [(backbone, backbone.blocks()) for backbone in self.backbones.values()]
        fused16 = self.trainer.precision == "16-mixed" and self.optim.fused is None
        # The gradient scaler leaves unscaling to fused optimizers: too late for clipping.
        config = replace(self.optim, fused=False) if fused16 else self.optim
        optimizer = build_optimizer(self, config, blocks, by_block=bool(self.finetune.unfreeze))
        self._thaw.check_heads(self, optimizer)
        keep = {"params", "lr"}
        groups = optimizer.param_groups
        self._options = [{k: v for k, v in g.items() if k not in keep} for g in groups]
        return optimizer

    def on_train_start(self) -> None:
        """Let the config win over the rates and decays that a checkpoint brought along."""
        self._window = Window()
        self._statistics = RunningStatistics(self)
        for group, options in zip(
            self.trainer.optimizers[0].param_groups, self._options, strict=True
        ):
            group.update(options)
        place_steps(self.trainer.optimizers[0])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates, a pure function of the run's progress."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._window.clear()
            self._statistics.keep()
            self.run_progress, step = progress(self.trainer, batch_idx)
            thawed = self._thaw.follow(self.trainer, batch_idx, self.run_progress, step)
            for optimizer in self.trainer.optimizers:
                set_lr(optimizer, self.optim, self.run_progress, step, thawed)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Divide summed gradients by the step's count, clip them by norm, drop non-finite ones.

        Lightning's own clipping refuses fused optimizers under bf16.
        """
        self._thaw.check_gradients()
        total, count = self._window.reduce(self.trainer)
        # Lightning averaged over micro-batches and ranks; the sums over both are wanted.
        parts = self.trainer.accumulate_grad_batches * self.trainer.world_size
        norm = finish_gradients(optimizer, parts / count, gradient_clip_val)
        # The one place where a step waits for the device: a later check would come too late.
        if not isfinite((norm + total).item()):
            self._statistics.restore()
            self._window.skip(total, self.current_epoch, self.global_step)
            self.log("train/skipped_steps", 1.0, reduce_fx="sum", on_step=False, on_epoch=True)
            optimizer.zero_grad()  # without gradients, the optimizer touches nothing
        self.step_loss = total / count
        if is_logged(self.trainer):
            rates: dict[str, float] = {}  # of a part's groups, the highest
            for group in optimizer.param_groups:
                rates[group["part"]] = max(group["lr"], rates.get(group["part"], 0.0))
            self.log("train/loss", self.step_loss, prog_bar=True)
            self.log_dict({"train/grad_norm": norm} | {f"lr/{k}": v for k, v in rates.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe and the state of the epoch's metrics, all of it plain."""
        data: Any = getattr(self.trainer, "datamodule", None) if self._trainer else None
        if self._trainer:
            save_average(self.trainer, self, checkpoint)
        checkpoint["lit_foundry"] = {
            "version": __version__,
            "format": FORMAT,
            "model": self.recipe(),
            "data": data.recipe() if isinstance(data, Recorded) else None,
            "data_state": data.state() if hasattr(data, "state") else None,
            "train_metrics": metric_states(self.train_metrics, self._trainer),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue the metrics of an interrupted epoch, all of them on one rank.

        Raises:
            CheckpointError: If a run would go on with other tokens or classes.
        """
        ours = checkpoint.get("lit_foundry", {})
        if self._trainer and self.trainer.training:
            check_resumed(self.trainer, ours.get("data_state") or {})
        saved = ours.get("train_metrics", {})
        restore_metrics(self.train_metrics, saved if self.global_rank == 0 else {}, self.device)
