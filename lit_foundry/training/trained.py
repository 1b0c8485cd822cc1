"""How any network is trained: one optimizer step after the other, whatever it learns."""

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, Self

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from lit_foundry.nn import Backbone
from lit_foundry.nn.lora import merge_adapters
from lit_foundry.randomness import Moment, run_seed
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.objectives import ObjectiveGradients
from lit_foundry.training.optim import (
    OptimConfig,
    build_optimizer,
    finish_gradients,
    options_of,
    place_steps,
    rates,
    set_lr,
)
from lit_foundry.training.progress import is_logged, progress
from lit_foundry.training.running_statistics import RunningStatistics
from lit_foundry.training.step_totals import StepTotals
from lit_foundry.training.thaw import Thaw

SET_IN_A_STEP = {"_current_fx_name", "_skips", "moment", "step_loss"}  # no modules, no parameters


class Trained(LightningModule):
    """Takes optimizer steps: rates, freezing, micro-batches, gradients, clipping, skipped steps.

    Args:
        optim: Optimizer and schedule.
        finetune: What is frozen, and when.
        objectives: Names of the objectives, of which one alone may have the empty one.

    Attributes:
        moment: Seed, epoch and progress when the current optimizer step began.
        step_loss: Training loss of the last optimizer step, a scalar on the device.
    """

    def __init__(self, optim: OptimConfig, finetune: Finetune, objectives: tuple[str, ...]) -> None:
        super().__init__()
        self.optim, self.finetune, self.objectives = optim, finetune, objectives
        self.moment = Moment()
        self.step_loss: Tensor | None = None
        self._totals, self._thaw, self._gradients = StepTotals(), Thaw(), ObjectiveGradients()
        self._options: list[dict[str, Any]] = []
        self._skips = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what a step sets, one fifty times, past torch's checks: 0.2 ms."""
        if name in SET_IN_A_STEP:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def backbones(self) -> dict[str, Backbone]:
        """The backbones by name, wherever they are, none of them within another."""
        found: dict[str, Backbone] = {}
        for name, module in self.named_modules(remove_duplicate=False):
            if isinstance(module, Backbone) and not any(name.startswith(f"{n}.") for n in found):
                found[name] = module
        return found

    def merge(self) -> None:
        """Add adapters to the weights that they adapt; recipe and weights are then plain ones."""
        if self.finetune.lora:
            merge_adapters(self)
            self.finetune = replace(self.finetune, lora=None)
            self.__dict__["_init_args"]["finetune"] = self.finetune

    def updated(self) -> None:
        """Run after each optimizer step that was not skipped, for what follows the weights."""

    def resized(self) -> None:
        """Run after layers got smaller, for what was counted of them."""

    def train(self, mode: bool = True) -> Self:
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
        self._options = options_of(optimizer)
        return optimizer

    def on_train_start(self) -> None:
        """Let the config win over the rates and decays that a checkpoint brought along."""
        self._totals, self._statistics = StepTotals(), RunningStatistics(self)
        [optimizer] = self.trainer.optimizers
        for group, options in zip(optimizer.param_groups, self._options, strict=True):
            group.update(options)
        place_steps(optimizer)
        self._gradients.begin(self.trainer, len(self.objectives))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rates, a pure function of the run's progress."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._totals.clear()
            self._statistics.keep()
            done, step = progress(self.trainer, batch_idx)
            self.moment = Moment(run_seed(), self.current_epoch, done)
            thawed = self._thaw.follow(self.trainer, batch_idx, done, step)
            for optimizer in self.trainer.optimizers:
                set_lr(optimizer, self.optim, done, step, thawed)

    def summed(
        self, steps: Mapping[str, tuple[Tensor, Tensor | int]], rows: Tensor | None
    ) -> Tensor:
        """Return the summed loss of a micro-batch, and remember what it sums.

        Args:
            steps: Mean loss of each objective, and the number of terms that it averages; one that
                is left out has none here.
            rows: Those of its samples.
        """
        if len(steps) < len(self.objectives):
            empty = next(iter(steps.values()))[0].detach() * 0, 0
            steps = {name: steps.get(name, empty) for name in self.objectives}
        parts = [steps[name] for name in self.objectives]
        totals = [loss * count for loss, count in parts]
        self._totals.add(totals, [count for _, count in parts], rows)
        self._gradients.pending = totals if len(totals) > 1 else []
        return sum(totals[1:], totals[0])

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate the summed loss, or of several objectives each for itself."""
        if self._gradients.pending:
            self._gradients.add([p for p in self.parameters() if p.requires_grad])
        else:
            super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        """Finish the gradients; Lightning's own clipping refuses fused optimizers under bf16."""
        self.finish(optimizer)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "on_gradients"):  # which has no hook in Lightning
                callback.on_gradients(self.trainer, self)

    def finish(self, optimizer: Optimizer) -> None:
        """Make the gradients of a step those of its mean loss, clip and check them, and log.

        Each objective is divided by its own count over micro-batches and ranks. A step whose loss
        or gradients are not finite is skipped, and so is one without a single term.
        """
        self._thaw.check_gradients()
        sums = self._totals.reduce(self.trainer)
        losses: Mapping[str, Tensor] = {}
        scale: float | Tensor = 1.0
        if len(self.objectives) > 1:
            totals, counts = sums.unbind(1)
            means = (totals / counts).where(counts > 0, 0.0)
            self._gradients.combine(self.trainer, (1 / counts).where(counts > 0, 0.0))
            self.step_loss = means.sum()
            total = totals.sum() / (counts.sum() > 0)  # not finite without any term, as with one
            losses = dict(zip(self.objectives, means, strict=True))
        else:
            total, count = sums[0].unbind()
            # Lightning averaged over micro-batches and ranks; the sums over both are wanted.
            scale = self.trainer.accumulate_grad_batches * self.trainer.world_size / count
            self.step_loss = total / count
            total = total / (count > 0)  # not finite without any term
        norm = finish_gradients(optimizer, scale, self.trainer.gradient_clip_val)
        # Here a step of one objective waits for the device, and nowhere else; later is too late.
        self._skips = not isfinite((norm + total).item())
        if self._skips:
            self._statistics.restore()
            self._totals.skip(sums, self.current_epoch, self.global_step)
            self.log("train/skipped_steps", 1.0, reduce_fx="sum", on_step=False, on_epoch=True)
            optimizer.zero_grad()  # without gradients, the optimizer touches nothing
        if is_logged(self.trainer):
            self.log("train/loss", self.step_loss, prog_bar=True)
            each: dict[str, Any] = {"train/grad_norm": norm, **rates(optimizer)}
            self.log_dict(each | {f"train/{name}/loss": loss for name, loss in losses.items()})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and have followed what follows the weights."""
        super().optimizer_step(*args, **kwargs)
        if not self._skips:
            self.updated()

    def on_train_end(self) -> None:
        """Fail if nothing was learnt."""
        self._totals.demand_a_step(self.global_step)
