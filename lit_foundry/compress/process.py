"""A fit in a process of its own, which ends when the one that asked for it does.

usage: python -m lit_foundry.compress.process fit WORDS
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
        SystemExit: With the exit code of the fit, if it is not 0.
    """
    places = os.pathsep.join(place for place in sys.path if place)
    environment = os.environ | {"PYTHONPATH": places}
    with _held(folder / HELD) as lock:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, "fit", *words],
            env=environment,
            pass_fds=[lock],  # the lock lasts as long as the fit has it open
            process_group=0,  # what a terminal sends comes once, from here
        )
        with _handed_on(process):
            code = process.wait()
    if code:
        sys.exit(code if code > 0 else 128 - code)


@contextmanager
def _held(path: Path) -> Iterator[int]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("An earlier fit of this pipeline is still at work: waiting for its end.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield lock
    finally:
        os.close(lock)


@contextmanager
def _handed_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Leave it to the fit what signals mean."""

    def hand_on(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    before = {number: signal.getsignal(number) for number in OBEYED}
    before = {n: how for n, how in before.items() if how not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, hand_on)
    try:
        yield
    finally:
        for number, how in before.items():
            signal.signal(number, how)


if __name__ == "__main__":
    with suppress(OSError, AttributeError):  # another system than Linux
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGTERM)
    runpy.run_module("lit_foundry", run_name="__main__", alter_sys=True)
