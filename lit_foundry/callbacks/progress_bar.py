"""A progress bar with the time that the whole run still takes."""

import sys
import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from lit_foundry.callbacks.throughput import Throughput
from lit_foundry.randomness import Moment


class ProgressBar(TQDMProgressBar):
    """Shows loss, throughput and time left; quiet where the output is no terminal."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self._from: tuple[float, float] | None = None
        if not sys.stdout.isatty():
            self.disable()

    def enable(self) -> None:
        """Show the bar, on a terminal only."""
        self._enabled = sys.stdout.isatty()

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Add throughput and time left to what the task logs for the bar."""
        items = super().get_metrics(trainer, pl_module)
        items.pop("v_num", None)
        # Measured by the task: on several ranks, measuring is a collective call.
        moment: Moment | None = getattr(pl_module, "moment", None)
        if not trainer.training or moment is None:
            return items
        done, loss = moment.progress, getattr(pl_module, "step_loss", None)
        if loss is not None:
            items["train/loss"] = f"{float(loss):.3f}"
        if self._from is None:
            self._from = done, time.monotonic()
        speed = next((c for c in trainer.callbacks if isinstance(c, Throughput)), None)  # type: ignore[attr-defined]
        if speed and speed.seconds:
            name, rate = list(speed.rates().items())[-1]
            items[name.replace("_per_s", "/s")] = f"{rate:,.0f}"
        if done > self._from[0]:
            spent = time.monotonic() - self._from[1]
            left = spent * (1 - done) / (done - self._from[0])
            items["left"] = f"{left // 60:.0f}:{left % 60:02.0f}"
        return items
