"""What of Lightning's own callbacks does not go with a run, told before training begins."""

from difflib import get_close_matches

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
)

from lit_foundry.training.loop import check_averaging

REMEDIES: dict[type[Callback], str] = {
    BatchSizeFinder: "set data.batch_size, and data.micro_batch to what fits into memory",
    GradientAccumulationScheduler: "set data.micro_batch, which accumulates by itself",
    LearningRateFinder: "set model.optim.lr; rates are set anew at each step",
}
LOGGED_IN_TRAINING = ("train/", "lr/", "throughput/")  # unknown before the first step


class Compatibility(Callback):
    """Refuses callbacks that would fail or be undone, and monitors of what is never logged."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse callbacks.

        Raises:
            ValueError: If one sets what the data module or the task sets.
        """
        check_averaging(trainer)  # for a module that is no Task
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            name = type(callback).__name__
            for refused, remedy in REMEDIES.items():
                if isinstance(callback, refused):
                    raise ValueError(f"trainer.callbacks: {name} does not work here; {remedy}.")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for what callbacks monitor among what the trial validation has just logged.

        Raises:
            ValueError: If one is missing, and like another.
        """
        if not trainer.sanity_checking:
            return
        logged = sorted(trainer.callback_metrics)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            if not monitor or monitor in logged or monitor.startswith(LOGGED_IN_TRAINING):
                continue
            # What is like none of them may be logged in training by a task of the user.
            for like in get_close_matches(monitor.replace("_", "/", 1), logged, n=1):
                raise ValueError(
                    f"trainer.callbacks: {type(callback).__name__} monitors {monitor}, which no "
                    f"validation logs. Did you mean {like}? There are {', '.join(logged)}."
                )
