"""Runs in processes of their own, which share one import of torch and can be killed."""

import faulthandler
import json
import os
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import get_context, set_start_method
from pathlib import Path
from threading import Lock
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "lit_foundry.cli.main",
        "tests.processes",
        "torch.utils.tensorboard",
        "transformers.models.bert.modeling_bert",
    ]
)
RUN_OF_PARENT = ("LIT_FOUNDRY_RESUMED", "LIT_FOUNDRY_RUN")
PATIENCE = 300  # seconds until a run is said to hang
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
        if trainer.global_rank:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([os.getpid(), micro_step, batch["index"].tolist()]) + "\n")


def _main(args: list[str], environment: Mapping[str, str]) -> None:
    import torch

    for name in RUN_OF_PARENT:  # what an earlier run in the process that starts this one left
        os.environ.pop(name, None)
    os.environ.update(environment)

    from lit_foundry.cli.main import main

    # Loader workers as in a user's run; those of a fork server would outlive a run that is killed.
    set_start_method("fork", force=True)
    torch.set_num_threads(1)
    with stacks_of(os.getpid()).open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback_later(PATIENCE - 10, file=file)
        try:
            main(args)
        finally:
            faulthandler.cancel_dump_traceback_later()
            stacks_of(os.getpid()).unlink(missing_ok=True)


def stacks_of(process: int | None) -> Path:
    """Return where a process says where it hangs."""
    return Path(tempfile.gettempdir()) / f"stacks-{process}.txt"


def run(args: Sequence[str], ranks: int = 1) -> int:
    """Run the command line in a process of its own and return its exit code; from any thread.

    Several ranks run as under torchrun, and must end alike within ten seconds of each other.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    common |= {"WORLD_SIZE": str(ranks), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0"}
    common |= {"LOCAL_WORLD_SIZE": str(ranks)}
    environments = [
        common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        for rank in range(ranks)
    ]
    with _LOCK:
        processes = [_CONTEXT.Process(target=_main, args=(list(args), e)) for e in environments]
        for process in processes:
            process.start()
    end = time.monotonic() + PATIENCE
    codes: list[int | None] = [None]
    while None in codes and time.monotonic() < end:
        time.sleep(0.05)
        with _LOCK:
            codes = [process.exitcode for process in processes]
        if any(code is not None for code in codes):
            end = min(end, time.monotonic() + 10)
    if None in codes:
        for process in processes:
            process.kill()
        files = [stacks_of(process.pid) for process in processes]
        told = "\n".join(file.read_text(encoding="utf-8") for file in files if file.exists())
        raise AssertionError(f"the run hangs: {codes}\n{told}")
    for process in processes:
        stacks_of(process.pid).unlink(missing_ok=True)  # of those that were killed
    assert len(set(codes)) == 1, codes
    return int(codes[0])  # type: ignore[arg-type]


class Send(Callback):
    """Sends a signal to its own process, as a scheduler would, in one call of a hook."""

    def __init__(
        self, hook: str, at: int, signum: int = signal.SIGTERM, rank: int | None = None
    ) -> None:
        self.hook, self.at, self.signum, self.rank = hook, at, signum, rank
        self.calls = 0
        setattr(self, hook, self._call)

    def _call(self, *args: Any, **kwargs: Any) -> None:
        mine = self.rank in (None, int(os.environ.get("LOCAL_RANK", "0")))
        if mine and self.calls == self.at:
            os.kill(os.getpid(), self.signum)
        self.calls += 1
