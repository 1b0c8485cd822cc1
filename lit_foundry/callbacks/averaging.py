"""Averages of a network's weights over its training, which are validated and kept in its place."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_swa_avg_fn

from lit_foundry.nn.changes import checked, inherit


class Averaging(WeightAveraging):
    """The mean of the weights since it began, as Lightning has it, with what that leaves undone.

    Frozen weights and integer buffers stay as they are, an average that begins late is the network
    itself until then, and ``best.ckpt`` holds the average that was validated.
    """

    @property
    def state_key(self) -> str:
        """That of Lightning's own, whose runs it continues."""
        return next(c.__qualname__ for c in type(self).__mro__ if c.__module__[:9] == "lightning")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the network as ``init_from`` changed it; keep an average of equals what it is.

        Rounding would move that, or round it down.
        """
        task: Any = pl_module
        if stage == "fit" and hasattr(task, "inherit_changes"):
            task.inherit_changes()
        super().setup(trainer, pl_module, stage)
        model = self._average_model
        if model is None or model.multi_avg_fn is not None:
            return
        average = model.avg_fn or get_swa_avg_fn()  # type: ignore[no-untyped-call]

        def avg_fn(mean: Tensor, new: Tensor, count: Any, average: Any = average) -> Any:
            if not torch.is_floating_point(mean):
                return new
            return torch.where(mean == new, new, average(mean, new, count))

        model.avg_fn = avg_fn

    def _follow(self, task: LightningModule) -> None:
        """Until there is an average, have it be the network.

        Lightning would validate and keep the weights that it copied before ``model.init_from``.
        """
        model = self._average_model
        if model is not None and model.n_averaged == 0:
            model.module.load_state_dict(task.state_dict())

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the average, if there is one."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Update it, where that is due once an epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        self._follow(pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have the average be changed as the network was, whose changes the checkpoint holds."""
        if self._average_model is not None:
            task: Any = self._average_model.module
            model = checkpoint.get("lit_foundry", {}).get("model", {})
            inherit(getattr(task, "served", task), checked(model.get("changes", [])))
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_save_weights(
        self, trainer: Trainer, task: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a checkpoint of weights alone hold the average."""
        self.on_save_checkpoint(trainer, task, checkpoint)
        for key in ("current_model_state", "averaging_state"):
            checkpoint.pop(key, None)


class EMA(Averaging, EMAWeightAveraging):
    """The exponential moving average of the weights.

    Args:
        decay: Share of the average that each update keeps.
        update_every_n_steps: Optimizer steps between updates.
        update_starting_at_step: Step of the first one; None begins at once.
        update_starting_at_epoch: Epoch of the first one, in place of a step.
    """
