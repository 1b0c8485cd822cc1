"""What Lightning's weight averaging leaves undone."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def _callbacks(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, WeightAveraging)]


def copy_integers(trainer: Trainer) -> None:
    """Copy integer buffers, such as position ids: an average of equals may round down."""
    for callback in _callbacks(trainer):
        model = callback._average_model
        average = model.avg_fn
        if average is None:
            continue

        def avg_fn(mean: Tensor, new: Tensor, count: Any, average: Any = average) -> Any:
            return average(mean, new, count) if torch.is_floating_point(mean) else new

        model.avg_fn = avg_fn


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
