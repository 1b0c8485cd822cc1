"""What Lightning's weight averaging leaves undone."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_swa_avg_fn


def _callbacks(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, WeightAveraging)]


def keep_equals(trainer: Trainer) -> None:
    """Keep an average of equals what it is: of frozen weights and integer buffers.

    Rounding would move the ones, and round the others down.
    """
    for callback in _callbacks(trainer):
        model = callback._average_model
        if model.multi_avg_fn is not None:
            continue
        average = model.avg_fn or get_swa_avg_fn()  # type: ignore[no-untyped-call]

        def avg_fn(mean: Tensor, new: Tensor, count: Any, average: Any = average) -> Any:
            if not torch.is_floating_point(mean):
                return new
            return torch.where(mean == new, new, average(mean, new, count))

        model.avg_fn = avg_fn


def follow_start(trainer: Trainer, task: LightningModule) -> None:
    """Let an average that begins later be the network itself until then.

    Lightning would validate and keep the weights that it copied before ``model.init_from``.
    """
    for callback in _callbacks(trainer):
        model = callback._average_model
        if model is not None and model.n_averaged == 0:
            model.module.load_state_dict(task.state_dict())


def save_average(trainer: Trainer, task: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Let a checkpoint of weights alone hold the average that was validated.

    Lightning asks no callback what such a checkpoint holds.
    """
    if "optimizer_states" in checkpoint:
        return
    for callback in _callbacks(trainer):
        callback.on_save_checkpoint(trainer, task, checkpoint)
        for key in ("current_model_state", "averaging_state"):
            checkpoint.pop(key, None)
