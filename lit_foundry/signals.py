"""SIGINT, SIGTERM, SIGHUP and SIGUSR1: a fit saves, stops, and says so by its exit code."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

# Windows lacks two of them.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
OBEYED = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Stopped(SystemExit):
    """A signal ended the process: exit code 128 + signal where the run was saved, else 1.

    Args:
        signum: The signal.
        saved: Checkpoint from which the run goes on; None if there is none.
    """

    def __init__(self, signum: int, saved: Path | None = None) -> None:
        super().__init__()
        self.signal = signal.Signals(signum)
        self.keep(saved)

    def keep(self, saved: Path | None) -> None:
        """Take note of what is saved."""
        self.saved, self.code = saved, 1 if saved is None else 128 + self.signal

    def __str__(self) -> str:
        done = f"the run is saved in {self.saved}" if self.saved else "nothing was saved"
        return f"{self.signal.name}: stopped; {done}."


class SignalHandler:
    """Stops the process at once, or, while ``waits`` is set, leaves that to who asks.

    A second SIGINT stops at once in any case. What the process was told to ignore, as ``nohup``
    does with SIGHUP, stays ignored.

    Attributes:
        received: Number of the first signal, 0 before.
        waits: Whether a signal is only remembered.
    """

    def __init__(self) -> None:
        self.received, self.waits = 0, False
        self._before: dict[int, Any] = {}
        self._depth = self._owner = 0

    def __enter__(self) -> "SignalHandler":
        """Handle signals from now on; may be nested."""
        self._depth = self._depth + 1 if self._owner == os.getpid() else 1  # a forked rank
        if self._depth == 1:
            self.received, self.waits, self._owner = 0, False, os.getpid()
            if threading.current_thread() is threading.main_thread():
                found = {signum: signal.getsignal(signum) for signum in OBEYED}
                self._before = {k: v for k, v in found.items() if v != signal.SIG_IGN}
                for signum in self._before:
                    signal.signal(signum, self)
        return self

    def __exit__(self, *error: object) -> None:
        """Hand signals back to who handled them before."""
        self._depth -= 1
        if self._depth == 0:
            self._owner = 0
            for signum, handler in self._before.items():
                signal.signal(signum, handler)
            self._before = {}

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Remember a signal, or stop."""
        if os.getpid() != self._owner:
            return  # a forked loader worker: the main process decides
        if self.received and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        if self.received and self.waits:
            return
        self.received = signum
        if not self.waits:
            raise Stopped(signum)
        if signum == signal.SIGINT:  # print() may be what was interrupted
            os.write(2, b"\nSaving at the end of this step; Ctrl-C again stops at once.\n")


HANDLER = SignalHandler()  # signals come to a process


def leave_signals_to_main(worker: int) -> None:
    """Let a loader worker live through what is sent to its whole group: the run needs it to save.

    A second SIGTERM ends it, as those come that torch sends to a worker that hangs; in C code it
    ends no sooner than that does.
    """
    for signum in OBEYED:
        signal.signal(signum, signal.SIG_IGN)

    def spare_once(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, spare_once)
