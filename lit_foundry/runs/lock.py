"""One process at a time writes to a run's folder."""

import errno
import fcntl
import os
import platform
from contextlib import suppress
from pathlib import Path

from lit_foundry.recipe import CheckpointError

_LOCKS: dict[Path, int] = {}  # open files by run folder, held until the process ends


def lock(path: Path, otherwise: str = "start anew with --resume never") -> None:
    """Take a run's folder for this process, until it ends however it may.

    A lock of POSIX, unlike those of ``flock``, is not inherited by loader workers, which live on
    for seconds after a process that was killed.

    Args:
        path: The folder.
        otherwise: What else than to wait, for the message.

    Raises:
        CheckpointError: If another process has it.
    """
    path = path.resolve()
    if path in _LOCKS:
        return
    file = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(file, 200).decode("utf-8", "replace")
        os.close(file)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise CheckpointError(
                f"{path} is in use by {owner or 'another process'}: two would overwrite each "
                f"other's files. Wait for it, stop it, or {otherwise}."
            ) from None
        return  # a file system without locks
    os.ftruncate(file, 0)
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.write(file, f"process {os.getpid()} on {platform.node()}".encode())
    _LOCKS[path] = file
