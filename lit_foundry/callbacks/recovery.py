"""Checkpoints from which an interrupted run continues with the same bits."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info

from lit_foundry.checkpoint import VerifiedCheckpointIO
from lit_foundry.run import MetricsCSV


class Recovery(Checkpoint):
    """Saves the whole state of a run, at boundaries of optimizer steps only.

    It holds where the run is, not what was best. A save that falls on a validation waits for
    it, so that a resumed run neither skips nor repeats one. SIGTERM saves and stops.

    Args:
        folder: Where ``recovery-<step>.ckpt`` goes; the older one is removed once the newer
            one was read back.
        every_minutes: Wall-clock between saves.
        every_n_steps: Optimizer steps between saves, in place of minutes.
    """

    def __init__(
        self, folder: Path, every_minutes: float = 5.0, every_n_steps: int | None = None
    ) -> None:
        self.folder = Path(folder)
        self.every_minutes, self.every_n_steps = every_minutes, every_n_steps
        self._saved_step = self._seen_step = 0
        self._saved_time = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make every checkpoint of the run a verified one."""
        trainer.strategy.checkpoint_io = VerifiedCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._saved_step = self._seen_step = trainer.global_step
        self._saved_time = time.monotonic()

    def _due(self, trainer: Trainer) -> bool:
        if trainer.global_step == self._saved_step:
            return False
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        if self._on_any_rank(trainer, trainer.received_sigterm or stops):
            return True
        if trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps:
            return True
        if self.every_n_steps:
            return trainer.global_step - self._saved_step >= self.every_n_steps
        late = time.monotonic() - self._saved_time >= 60 * self.every_minutes
        return self._on_any_rank(trainer, late)

    @staticmethod
    def _on_any_rank(trainer: Trainer, flag: bool) -> bool:
        """Agree on a flag: ranks that decide apart would wait for each other for ever."""
        if trainer.world_size == 1:
            return flag
        agreed: bool = trainer.strategy.reduce_boolean_decision(flag, all=False)
        return agreed

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step that no validation follows."""
        if trainer.global_step == self._seen_step:
            return  # inside an accumulation window
        self._seen_step = trainer.global_step
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if self._due(trainer) and not (
            loop.batch_progress.is_last_batch or loop._should_check_val_fx(fetcher)
        ):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation inside an epoch."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and not last and self._due(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch, and of the last one in any case."""
        epochs = trainer.max_epochs or -1
        final = 0 < epochs <= trainer.current_epoch + 1
        if self._due(trainer) or (final and trainer.global_step != self._saved_step):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        path = self.folder / f"recovery-{trainer.global_step}.ckpt"
        flush_metrics(trainer)
        trainer.save_checkpoint(path, weights_only=False)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            for old in self.folder.glob("recovery-*.ckpt"):
                if old != path:
                    trainer.strategy.remove_checkpoint(old)
        if trainer.received_sigterm:
            rank_zero_info(f"SIGTERM: saved {path} and stopped; --resume required continues.")


def flush_metrics(trainer: Trainer) -> None:
    """Write the row that Lightning logs only after the hooks in which checkpoints are saved.

    A process killed between the two would leave a checkpoint whose last row is on no disk.
    """
    connector = trainer._logger_connector
    epoch_ended = connector._first_loop_iter is None
    if not epoch_ended and not connector.should_update_logs:
        return
    step = trainer.fit_loop.epoch_loop._batches_that_stepped - int(epoch_ended)
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCSV):
            scalars = {name: float(value) for name, value in connector.metrics["log"].items()}
            logger.log_metrics(scalars, step)
            logger.save()
