"""Runs in processes of their own, which share one import of torch and can be killed."""

import json
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing import get_context, set_start_method
from pathlib import Path
from threading import Lock
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "lit_foundry.cli",
        "tests.processes",
        "torch.utils.tensorboard",
        "transformers.models.bert.modeling_bert",
    ]
)
_LOCK = Lock()  # starting a process reads the exit codes of others: never two threads at once


class OrderLog(Callback):
    """Writes which samples each micro-step of training sees, at once."""

    def __init__(self, path: Path, kill_at: int | None = None) -> None:
        self.path, self.kill_at = Path(path), kill_at

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a micro-step, or die in it."""
        micro_step = trainer.fit_loop.epoch_loop.total_batch_idx
        if micro_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([os.getpid(), micro_step, batch["index"].tolist()]) + "\n")


def _main(args: list[str]) -> None:
    import torch

    from lit_foundry.cli import main

    # Loader workers as in a user's run; those of a fork server would outlive a run that is killed.
    set_start_method("fork", force=True)
    torch.set_num_threads(1)
    main(args)


def run(args: Sequence[str]) -> int:
    """Run the command line in a process of its own and return its exit code; from any thread."""
    with _LOCK:
        process = _CONTEXT.Process(target=_main, args=(list(args),))
        process.start()
    end = time.monotonic() + 300
    while time.monotonic() < end:
        time.sleep(0.05)
        with _LOCK:
            if process.exitcode is not None:
                return process.exitcode
    raise AssertionError("the run hangs")


class Send(Callback):
    """Sends a signal to its own process, as a scheduler would, in one call of a hook."""

    def __init__(self, hook: str, at: int, signum: int = signal.SIGTERM) -> None:
        self.hook, self.at, self.signum = hook, at, signum
        self.calls = 0
        setattr(self, hook, self._call)

    def _call(self, *args: Any, **kwargs: Any) -> None:
        if self.calls == self.at:
            os.kill(os.getpid(), self.signum)
        self.calls += 1
