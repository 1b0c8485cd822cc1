"""Checkpoints from which an interrupted run continues with the same bits."""

import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lit_foundry.callbacks.averaging import Averaging
from lit_foundry.checkpoints.files import VerifiedCheckpointIO, recoveries
from lit_foundry.runs.metrics_csv import MetricsCSV
from lit_foundry.signals import HANDLER, Stopped

FIRST_MINUTES = 1.0  # until the first checkpoint of a run
MOST_OF_TIME = 0.05  # that saving at the end of each epoch may take


class Recovery(Checkpoint):
    """Saves the whole state of a run, at boundaries of optimizer steps only.

    It holds where the run is, not what was best. A save that falls on a validation waits for
    it, so that a resumed run neither skips nor repeats one. A signal (see ``lit_foundry.signals``)
    saves and stops at the end of the step: before a due validation, which the resumed run makes up
    for, or amid it.

    Args:
        folder: Where ``recovery-<step>.ckpt`` goes. The two latest are kept, of a run that has
            ended the last one.
        every_minutes: Wall-clock between saves; the first comes after a minute. The end of an
            epoch saves as well, unless that would take more than a twentieth of the time.
        every_n_steps: Optimizer steps between saves, in place of minutes.
    """

    def __init__(
        self, folder: Path, every_minutes: float = 5.0, every_n_steps: int | None = None
    ) -> None:
        self.folder = Path(folder)
        self.every_minutes, self.every_n_steps = every_minutes, every_n_steps
        self._saved_step = self._seen_step = 0
        self._saved_time = self._cost = 0.0
        self._is_first = True
        self._signal = 0  # that all ranks know of
        self._handles = False
        self._owes_validation = False
        self._val_progress: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make every checkpoint of the run a verified one, and take over the signals."""
        trainer.strategy.checkpoint_io = VerifiedCheckpointIO()
        self._owes_validation = False
        if not self._handles:
            HANDLER.__enter__()
            self._handles = True
            use_own_signals(trainer)

    def _hand_back(self) -> None:
        if self._handles:
            HANDLER.__exit__()
            self._handles = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hand the signals back."""
        self._hand_back()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Hand the signals back; take along the ranks that would wait for this one for ever."""
        HANDLER.waits = True  # what comes now finds a process that is about to end
        self._hand_back()
        launcher = trainer.strategy.launcher
        if isinstance(exception, Stopped) and exception.saved is None:
            if trainer.state.fn == "fit":
                found = (self._path(trainer), Path(trainer.ckpt_path or ""))
                exception.keep(next((path for path in found if path.is_file()), None))
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(signal.SIGKILL)

    def state_dict(self) -> dict[str, Any]:
        """Return that the validation of this step is still to come, if so."""
        return {"owes_validation": True} if self._owes_validation else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember whether a validation is owed."""
        self._owes_validation = bool(state_dict["owes_validation"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting; let the epoch loop make up for a validation that a signal cut off."""
        self._saved_step = self._seen_step = trainer.global_step
        self._saved_time = time.monotonic()
        self._is_first = trainer.global_step == 0
        self._signal = 0
        HANDLER.waits = True
        if self._owes_validation:
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.restarting = False  # from its first batch
            validation._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            # Due by the clock, then and not now.
            trainer._last_val_time = float("-inf")  # type: ignore[attr-defined]
            self._saved_step = -1  # what is on disk still owes it

    def _due(self, trainer: Trainer, late_after: float | None = None) -> bool:
        """Agree whether to save now: ranks that decide apart would wait for each other for ever.

        Args:
            trainer: At a boundary of optimizer steps.
            late_after: Seconds since the last save that make the next one due.
        """
        step, since = trainer.global_step, time.monotonic() - self._saved_time
        if late_after is None:
            first = min(FIRST_MINUTES, self.every_minutes)
            late_after = 60 * (first if self._is_first else self.every_minutes)
            if self.every_n_steps:
                late_after = float("inf")
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        self._signal, due = self._most(trainer, HANDLER.received, stops or since >= late_after)
        every = self.every_n_steps
        counted = every is not None and step - self._saved_step >= every
        last = 0 < trainer.max_steps <= step
        return step != self._saved_step and bool(due or self._signal or counted or last)

    @staticmethod
    def _most(trainer: Trainer, *numbers: int) -> list[int]:
        """Return the largest of each number over the ranks."""
        if trainer.world_size == 1:
            return list(numbers)
        ours = torch.tensor(numbers, device=trainer.strategy.root_device)
        agreed: list[int] = trainer.strategy.reduce(ours, reduce_op="max").tolist()
        return agreed

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after an optimizer step, before a validation only if a signal asks for it."""
        if trainer.global_step == self._seen_step:
            return  # inside an accumulation window
        self._seen_step, self._owes_validation = trainer.global_step, False
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        assert fetcher is not None
        due, validates = self._due(trainer), loop._should_check_val_fx(fetcher)
        if validates and self._signal and not self._is_over(trainer):
            self._val_progress = loop.val_loop.batch_progress.state_dict()
            self._stop_before_validation(trainer)
        if not (validates or loop.batch_progress.is_last_batch):
            self._settle(trainer, due)

    @staticmethod
    def _is_over(trainer: Trainer) -> bool:
        """Tell whether a resumed run would not enter the epoch again; it is about to be closed."""
        stops = trainer.should_stop and trainer.fit_loop._can_stop_early
        return stops or 0 < trainer.max_steps <= trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember how far earlier validations came."""
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        self._val_progress = progress.state_dict()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Obey a signal amid a validation; of several ranks, each may have another number left."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not (fitting and trainer.world_size == 1 and HANDLER.received):
            return
        if self._is_over(trainer):
            return
        self._signal = HANDLER.received
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Averaging):  # it lent its weights for the validation
                callback.on_validation_epoch_end(trainer, pl_module)
        self._stop_before_validation(trainer)

    def _stop_before_validation(self, trainer: Trainer) -> None:
        self._owes_validation = True
        self._settle(trainer, trainer.global_step != self._saved_step)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Show the loops as after the validation that is owed: there they resume exactly."""
        if self._owes_validation and "loops" in checkpoint:
            loops = checkpoint["loops"]["fit_loop"]
            for part in ("total", "current"):
                counts = loops["epoch_loop.batch_progress"][part]
                counts["completed"] = counts["processed"]
            loops["epoch_loop.val_loop.batch_progress"] = self._val_progress

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a validation inside an epoch."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._owes_validation = False
            if not last:
                self._settle(trainer, self._due(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch, and of the last one in any case."""
        epochs = trainer.max_epochs or -1
        final = 0 < epochs <= trainer.current_epoch + 1
        due = self._due(trainer, late_after=self._cost / MOST_OF_TIME)
        self._settle(trainer, due or (final and trainer.global_step != self._saved_step), over=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal stop the process at once, as all is saved."""
        HANDLER.waits = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep one checkpoint of a run that has ended."""
        self._keep(trainer, 1)

    def _settle(self, trainer: Trainer, due: bool, over: bool = False) -> None:
        """Save if that is due, then stop if a signal asked for it.

        Args:
            trainer: At a boundary of optimizer steps.
            due: Whether to save.
            over: Whether the epoch is; the last one is closed first.
        """
        if due:
            self._save(trainer)
        if self._signal and (over or not self._is_over(trainer)):
            if not due:  # an epoch's row comes after the checkpoint that a limit inside of it made
                flush_metrics(trainer)
            stopped = Stopped(self._signal, self._path(trainer))
            environment = getattr(trainer.strategy, "cluster_environment", None)
            if isinstance(environment, LightningEnvironment) and trainer.local_rank:
                stopped.code = 0  # else the process that started this one is killed for it
            raise stopped

    def _path(self, trainer: Trainer) -> Path:
        return self.folder / f"recovery-{trainer.global_step}.ckpt"

    def _save(self, trainer: Trainer) -> None:
        start = time.monotonic()
        flush_metrics(trainer)
        trainer.save_checkpoint(self._path(trainer), weights_only=False)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        self._cost, self._is_first = self._saved_time - start, False
        self._keep(trainer, 2)

    def _keep(self, trainer: Trainer, count: int) -> None:
        if trainer.is_global_zero:
            for old in recoveries(self.folder)[count:]:
                trainer.strategy.remove_checkpoint(old)


def use_own_signals(trainer: Trainer) -> None:
    """Keep Lightning from handling signals: it broadcasts amid the collectives of a step.

    It also asks all ranks before each micro-batch whether one was told to stop.
    """
    trainer._signal_connector.register_signal_handlers = _nothing  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def _nothing() -> None:
    """Do nothing; unlike a lambda, it can be pickled."""


def flush_metrics(trainer: Trainer) -> None:
    """Write the row that Lightning logs only after the hooks in which checkpoints are saved.

    A process killed between the two would leave a checkpoint whose last row is on no disk. What a
    validation logs is there before its last hook.
    """
    connector = trainer._logger_connector
    epoch_ended = connector._first_loop_iter is None
    logged = not trainer.validating and (epoch_ended or connector.should_update_logs)
    step = trainer.fit_loop.epoch_loop._batches_that_stepped - int(epoch_ended)
    for logger in trainer.loggers:
        if isinstance(logger, MetricsCSV):
            if logged:
                scalars = {name: float(value) for name, value in connector.metrics["log"].items()}
                logger.log_metrics(scalars, step)
            logger.sync()
