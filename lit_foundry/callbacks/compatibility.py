"""What of Lightning's own callbacks does not go with a run, told before training begins."""

from difflib import get_close_matches

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
)

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
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            for refused, remedy in REMEDIES.items():
                if isinstance(callback, refused):
                    raise ValueError(
                        f"trainer.callbacks: {refused.__name__} does not work here; {remedy}."
                    )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for what callbacks monitor among what the trial validation has just logged.

        Raises:
            ValueError: If one is missing.
        """
        if not trainer.sanity_checking:
            return
        logged = sorted(trainer.callback_metrics)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            monitor = getattr(callback, "monitor", None)
            if not monitor or monitor in logged or monitor.startswith(LOGGED_IN_TRAINING):
                continue
            [like] = get_close_matches(monitor.replace("_", "/", 1), logged, n=1) or [None]
            meant = f"Did you mean {like}? " if like else ""
            raise ValueError(
                f"trainer.callbacks: {type(callback).__name__} monitors {monitor}, which no "
                f"validation logs. {meant}There are {', '.join(logged)}."
            )
