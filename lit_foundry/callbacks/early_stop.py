"""The end of a run that no longer gets better."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lit_foundry import ranges


class EarlyStop(EarlyStopping):
    """Ends a fit after some validations in a row without a better score, also across a resume.

    Args:
        patience: Number of validations.
        min_delta: Least change of the score that counts as better.
        monitor: Logged metric; None takes what the task is judged by.
        mode: Whether the smallest or the largest value is best (``min``, ``max``); None takes the
            task's.

    Raises:
        ValueError: If a value lies outside its range, or only one of ``monitor`` and ``mode`` is
            set.
    """

    def __init__(
        self,
        patience: int = 3,
        min_delta: float = 0.0,
        monitor: str | None = None,
        mode: str | None = None,
    ) -> None:
        rules = {
            "patience": (patience >= 1, "is a number of validations, 1 at least"),
            "min_delta": (min_delta >= 0, "is at least 0"),
        }
        ranges.check("EarlyStop", {"patience": patience, "min_delta": min_delta}, rules)
        if (monitor is None) != (mode is None):
            raise ValueError(
                f"EarlyStop.monitor={monitor} and EarlyStop.mode={mode} go together: set both, or "
                "neither for those of the task."
            )
        # Validations count, wherever in an epoch they are.
        self._options: dict[str, Any] = {
            "patience": patience,
            "min_delta": min_delta,
            "check_on_train_epoch_end": False,
        }
        super().__init__(monitor or "", mode=mode or "min", **self._options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over what the task is judged by."""
        if not self.monitor:
            task: Any = pl_module
            super().__init__(task.monitor, mode=task.mode, **self._options)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting; the patience is that of the config."""
        super().load_state_dict(state_dict | {"patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop at once what was to stop when the checkpoint was saved."""
        if self.reason:
            trainer.should_stop = True

    @property
    def reason(self) -> str | None:
        """Why the fit ends; None while it goes on."""
        if self.stopping_reason is EarlyStoppingReason.NON_FINITE_METRIC:
            return f"{self.monitor} is not finite"
        if self.wait_count < self.patience:
            return None
        best = f"{self.monitor} got no better than {float(self.best_score):.4f}"
        return f"{best} in {self.wait_count} validation{'s' * (self.wait_count > 1)}"
