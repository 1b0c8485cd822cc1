"""A fit in a process of its own, which ends when the one that asked for it does.

usage: python -m lit_foundry.compress.process PARENT fit WORDS
"""

import ctypes
import fcntl
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from lit_foundry.signals import OBEYED

HELD = ".fit"  # file that a living fit holds a lock on
SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def fit(words: Sequence[str], folder: Path) -> None:
    """Run ``python -m lit_foundry fit``, once an earlier one in the folder has ended.

    Where Linux kills this process, the fit is told to save and stop; elsewhere it goes on alone,
    and the next call waits for it.

    Args:
        words: What follows ``fit``.
        folder: Folder of the pipeline, which exists.

    Raises:
        SystemExit: With the exit code of the fit, if it is not 0; or after a signal, which the fit
            need not have heeded in its last step.
    """
    with _held(folder / HELD) as lock:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(os.getpid()), "fit", *words],
            env=_environment(),
            pass_fds=[lock],  # the lock lasts as long as the fit has it open
            process_group=0,  # what a terminal sends comes once, from here
        )
        with _handed_on(process) as received:
            code = process.wait() or -next(iter(received), 0)
    if code:
        sys.exit(code if code > 0 else 128 - code)


def mistake(words: Sequence[str]) -> str | None:
    """Return what is wrong with the words of a fit, as it tells that itself; None if nothing is."""
    command = [sys.executable, "-P", "-m", "lit_foundry", "fit", *words, "--print_config"]
    done = subprocess.run(
        command, env=_environment(), capture_output=True, text=True, encoding="utf-8", check=False
    )
    said = done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"]
    return said[-1].removeprefix("error: ") if done.returncode else None


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(place for place in sys.path if place)}


def wait(folder: Path) -> None:
    """Wait for the end of a fit that an earlier pipeline in the folder left, if it lives."""
    with _held(folder / HELD):
        pass


@contextmanager
def _held(path: Path) -> Iterator[int]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                "An earlier fit of this pipeline is still at work: waiting for its end.", flush=True
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield lock
    finally:
        os.close(lock)


@contextmanager
def _handed_on(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Leave it to the fit what signals mean; yield the list of those that come."""
    received: list[int] = []

    def hand_on(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        process.send_signal(signum)

    before = {number: signal.getsignal(number) for number in OBEYED}
    before = {n: how for n, how in before.items() if how not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, hand_on)
    try:
        yield received
    finally:
        for number, how in before.items():
            signal.signal(number, how)


if __name__ == "__main__":
    with suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(sys.argv.pop(1)):  # it had gone before
        sys.exit(1)
    runpy.run_module("lit_foundry", run_name="__main__", alter_sys=True)
