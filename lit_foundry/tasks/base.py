"""Base class of all tasks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor
from torchmetrics import Metric

from lit_foundry.checkpoints.files import our_part
from lit_foundry.checkpoints.initialization import changes_of, load_submodule
from lit_foundry.datamodule import Data, data_of
from lit_foundry.nn import Network
from lit_foundry.nn.changes import checked, inherit
from lit_foundry.nn.image.views import Views
from lit_foundry.randomness import seed_dropout, single_precision
from lit_foundry.recipe import Recorded
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.agreement import (
    check_fit,
    check_resumed,
    check_tokenizer,
    check_unlabelled,
    fit_to_data,
)
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.loop import check_averaging, check_clipping, check_precision, steer
from lit_foundry.training.optim import OptimConfig
from lit_foundry.training.scores import Scores
from lit_foundry.training.trained import Trained


class Task(Recorded, Trained, ABC):
    """A training paradigm: backbones, an objective and its metrics.

    A subclass implements :meth:`step` once and gets the training, validation and test
    loops, logging as ``{stage}/{name}``, the optimizer and portable checkpoints. What it sets as
    backbone it passes through ``finetune.adapted`` before.

    Args:
        optim: Optimizer and schedule.
        finetune: What is frozen, and when.
        init_from: Checkpoint of any task whose backbones initialize those of the same name;
            ignored on resume by the command line; in Python, leave it out then.
        metrics: Evaluation metrics, fed with ``Step.preds`` and ``Step.target``; with several
            objectives by ``objective/name``.
        train_metrics: Those worth their cost in training.
        objectives: Names of the objectives, if :meth:`step` returns several.

    Attributes:
        monitor: Log key that makes a checkpoint the best.
        mode: Whether its smallest or largest value is.
        predicts: Kind of what is predicted of each sample: ``class``, ``classes``, ``value`` or
            ``tags``; None of none that labels could be compared with.
        job: Name of the pipeline of ``transformers`` that an export serves, if there is one.
        takes_unlabelled: Whether it can learn from samples without a label.
        results: Matrices and other metrics of the last epoch that are no scalars, by log key.
        views: What is made of images before the network sees them; None of texts.
    """

    monitor: ClassVar[str] = "val/loss"
    mode: ClassVar[Literal["min", "max"]] = "min"
    predicts: ClassVar[str | None] = None
    job: str | None = None
    takes_unlabelled: bool = False
    views: Views | None = None

    def __init__(
        self,
        optim: OptimConfig,
        finetune: Finetune = Finetune(),
        init_from: Path | None = None,
        metrics: Mapping[str, Metric] | None = None,
        train_metrics: Mapping[str, Metric] | None = None,
        objectives: tuple[str, ...] = (),
    ) -> None:
        super().__init__(optim, finetune, objectives or ("",))
        self.init_from = Path(init_from) if init_from else None
        self.scores = Scores(metrics or {}, train_metrics or {}, self.objectives)
        self.results: dict[str, Tensor] = {}

    @abstractmethod
    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step | Mapping[str, Step]:
        """Compute the loss of a batch, and what the metrics need; of each objective by its name."""

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Fields of a batch that are read, by the name of who reads them."""
        return {type(backbone).__name__: backbone.inputs for backbone in self.backbones.values()}

    @property
    def served(self) -> "Task":
        """The task whose weights and recipe a checkpoint holds."""
        return self

    def from_loss(self, stage: Stage, loss: Tensor) -> dict[str, Tensor]:
        """Return scores that are functions of the mean loss of an evaluation, by name."""
        return {}

    def network(self, data: Data) -> Network:
        """Return what an export holds and ``lit_foundry.load`` runs: a function of tensors.

        Raises:
            ValueError: If there is none.
        """
        raise ValueError(f"{type(self).__name__} declares no network that could be served.")

    def view(self, batch: Mapping[str, Any], stage: Stage, number: int = 0) -> Mapping[str, Any]:
        """Return an augmented view of a training batch; another ``number`` is another view."""
        if self.views is None or stage != "train":
            return batch
        with single_precision():  # of places and angles, bf16 has too few digits
            return self.views.augmented(batch, self.moment, number)

    def _run(self, batch: Mapping[str, Any], stage: Stage) -> dict[str, Step]:
        found = self.step(batch, stage)
        if not found:
            raise ValueError(
                f"{type(self).__name__}.step returned no Step: of a batch without any sample to "
                "learn from, return one with the count 0, and a loss such as 0 * logits.sum()."
            )
        steps = {"": found} if isinstance(found, Step) else dict(found)
        if unknown := steps.keys() - {*self.objectives}:
            raise ValueError(
                f"{type(self).__name__}.step returned the objectives {sorted(steps)}, of which "
                f"{sorted(unknown)} are none of its objectives={self.objectives}: name them there."
            )
        for name, s in steps.items():
            self.scores.update(stage, name, s.loss, s.count, s.preds, s.target)
        return steps

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the summed training loss; the gradients are divided once the step is whole."""
        # Dropout is a function of (seed, micro-step, rank): a resume continues with the same.
        micro_step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        seed = (self.moment.seed << 40) + (micro_step << 12) + self.global_rank
        seed_dropout(seed % 2**63, self.device)
        steps = self._run(batch, "train")
        parts = {name: (step.loss, step.count) for name, step in steps.items()}
        return self.summed(parts, batch.get("index"))

    def _evaluation_step(self, batch: Mapping[str, Any], stage: Stage) -> dict[str, Tensor]:
        steps = self._run(batch, stage)
        return {name: column for s in steps.values() for name, column in s.samples.items()}

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Any:
        """Score a validation batch; return what is kept of its samples."""
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Any:
        """Score a test batch; return what is kept of its samples."""
        return self._evaluation_step(batch, "test")

    def _log_epoch(self, stage: Stage) -> None:
        values = self.scores.compute(stage)
        if stage != "train":
            more = self.from_loss(stage, values[f"{stage}/loss"])
            values |= {f"{stage}/{name}": value for name, value in more.items()}
        self.results |= {k: v.cpu() for k, v in values.items() if v.numel() != 1}
        self.log_dict({k: v for k, v in values.items() if v.numel() == 1})

    def on_train_epoch_end(self) -> None:
        """Log the training metrics."""
        if self.trainer.precision != "16-mixed":  # which may skip a short epoch to find its scale
            self._totals.demand_a_step(self.global_step)
        self._log_epoch("train")

    def on_validation_epoch_end(self) -> None:
        """Log the validation metrics."""
        self._log_epoch("val")

    def on_test_epoch_end(self) -> None:
        """Log the test metrics."""
        self._log_epoch("test")

    def check_data(self, data: Data) -> None:
        """Check data against the network, before they are prepared.

        Raises:
            ValueError: If the data lacks a field that a backbone reads, or states other
                facts, such as ``num_classes``, than the network was built with.
        """
        check_fit(self, self.backbones, data)

    def setup(self, stage: str) -> None:
        """Check the data against the network; initialize and freeze the backbones."""
        data = data_of(self.trainer)
        if data is not None:
            self.check_data(data)
        check_precision(self.trainer, self.predicts)
        if stage == "fit":
            if data is not None:
                check_unlabelled(self, data)
            check_clipping(self.trainer)
            check_averaging(self.trainer)
            steer(self.trainer)
            fit_to_data(self.backbones, data)
            if self.init_from:
                check_tokenizer(self.init_from, data)
                self.inherit_changes()
                self.initialize(self.init_from)
            self._thaw.begin(self.finetune, self.backbones, self.trainer)

    def inherit_changes(self) -> None:
        """Change the backbones as those of ``init_from`` were, whose weights are to fit.

        Raises:
            ValueError: If adapters are in the way.
        """
        if self.init_from is None:
            return
        changes = {name: changes_of(self.init_from, name) for name in self.backbones}
        if self.finetune.lora and any(changes.values()):
            raise ValueError(
                f"model.init_from={self.init_from} was changed after it was built, as by pruning, "
                "and layers with adapters are not changed: leave out model.finetune.lora."
            )
        for name, made in changes.items():
            inherit(self, made, name)

    def initialize(self, path: Path) -> None:
        """Take over the backbones of a checkpoint."""
        for name, backbone in self.backbones.items():
            load_submodule(backbone, path, name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the recipe and the state of the epoch's metrics, all of it plain."""
        trainer = self._trainer
        if trainer and "optimizer_states" not in checkpoint:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if hasattr(callback, "on_save_weights"):
                    callback.on_save_weights(trainer, self, checkpoint)
        checkpoint["lit_foundry"] = our_part(self, data_of(trainer)) | {
            "train_metrics": self.scores.states(trainer)
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Be the network of the checkpoint; continue the metrics of an interrupted epoch.

        One rank has all of the latter.

        Raises:
            CheckpointError: If a run would go on with other tokens or classes.
        """
        ours = checkpoint.get("lit_foundry", {})
        inherit(self.served, checked(ours.get("model", {}).get("changes", [])))
        if self._trainer and self.trainer.training:
            check_resumed(self.trainer, ours.get("data_state") or {})
        saved = ours.get("train_metrics", {})
        self.scores.restore(saved if self.global_rank == 0 else {}, self.device)
