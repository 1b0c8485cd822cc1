"""What steers Lightning's loop from the data: accumulation, reloading, and where a resume begins.

And what it is refused, as gradients are finished by the task.
"""

from math import inf
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loops.loop import _Loop

from lit_foundry.datamodule import data_of


def steer(trainer: Trainer) -> None:
    """Let the loop of a fit follow the data, whenever it sets up its loader."""
    loop: Any = trainer.fit_loop
    if getattr(loop, "follows_data", False):
        return
    setup_data = loop.setup_data

    def followed() -> None:
        data = data_of(trainer)
        if data is not None and data.reloads:
            trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
        leave_finished_epoch(trainer)
        setup_data()
        if data is not None:
            accumulate(trainer, data.accumulate)

    loop.setup_data, loop.follows_data = followed, True


def accumulate(trainer: Trainer, batches: int) -> None:
    """Have an optimizer step consist of so many micro-batches.

    Raises:
        ValueError: If the trainer was told another number.
    """
    if trainer.accumulate_grad_batches not in (1, batches):
        raise ValueError(
            f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches} is set by "
            "data.micro_batch here; remove it and set data.micro_batch instead."
        )
    trainer.accumulate_grad_batches = batches


def leave_finished_epoch(trainer: Trainer) -> None:
    """Let a resume at the end of an epoch begin the next one.

    Lightning does so unless ``max_steps`` is set: it would then go through an epoch without
    batches, and count it.
    """
    loop: Any = trainer.fit_loop
    epochs = loop.epoch_progress.current
    if loop.restarting and epochs.ready == epochs.started == epochs.processed:
        # The loop's own setter leaves it as it is, if max_steps is set.
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]


def check_clipping(trainer: Trainer) -> None:
    """Raise ValueError unless gradients are to be clipped by their norm, or not at all."""
    if (how := trainer.gradient_clip_algorithm) not in (None, "norm"):
        raise ValueError(
            f"trainer.gradient_clip_algorithm can only be norm, got {how.value}: remove "
            "it; trainer.gradient_clip_val bounds the norm of all gradients."
        )
    most = trainer.gradient_clip_val
    if most is not None and not 0 < most < inf:
        raise ValueError(
            f"trainer.gradient_clip_val must be a positive number, got {most}; leave it "
            "out to clip nothing."
        )


def check_precision(trainer: Trainer, predicts: str | None) -> None:
    """Raise ValueError if values would be rounded: Lightning casts the batch with the network."""
    exact = torch.tensor(2049.0, dtype=torch.float32)
    if predicts == "value" and trainer.precision_plugin.convert_input(exact).item() != exact:
        raise ValueError(
            f"trainer.precision={trainer.precision} would round targets, such as 2049 to 2048, and "
            "their mean and deviation: take bf16-mixed or 32-true."
        )


def check_averaging(trainer: Trainer) -> None:
    """Raise ValueError if a callback would have checkpoints hold other weights than validated."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and not hasattr(callback, "on_save_weights"):
            raise ValueError(
                f"trainer.callbacks: {type(callback).__name__} does not work here; take "
                "lit_foundry.callbacks.EMA or Averaging, with the same arguments."
            )
