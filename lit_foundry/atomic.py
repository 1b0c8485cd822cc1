"""Files and folders that are whole, or not there: a crash or a full disk leaves no part of one."""

import errno
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".partial-"  # of the folders in which things are written
OLD = f"{PREFIX}old"  # where a folder lies that is being replaced


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a place to write a file or a folder to, which takes the place of ``path`` at the end.

    What was there before stays until the new one is on disk, and if anything fails. Of several
    processes that write the same at once, the last one wins.

    Raises:
        OSError: If the disk is full, read-only or the like; it names ``path``.
    """
    target = path.resolve()  # a link stays, and what it leads to is replaced
    with naming(path), workspace(target.parent) as place:
        yield place / target.name
        move(place / target.name, target)


@contextmanager
def workspace(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder inside of ``folder``, which is made; it is removed at the end.

    So is ``folder``, if it is new and nothing came into it. What processes left that were killed
    goes first: a living one keeps a lock on its own.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    clear_stale(folder)
    while True:
        place = Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))
        lock = _locked(place, fcntl.LOCK_SH)
        if place.exists():  # else it was taken for left over before it was locked
            break
    try:
        yield place
    finally:
        _clear(place)
        if lock is not None:
            os.close(lock)
        if made:
            with suppress(OSError):  # it holds something, as it should
                folder.rmdir()


def clear_stale(folder: Path) -> None:
    """Remove what killed processes left of their writing in a folder."""
    for stale in folder.glob(f"{PREFIX}*"):
        if (held := _locked(stale, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            _clear(stale)
            os.close(held)


def _locked(folder: Path, how: int) -> int | None:
    """Lock a folder; return a descriptor that holds the lock, or None if that cannot be."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, how)
    except OSError:  # held by another process, or unknown to the file system
        os.close(descriptor)
        return None
    return descriptor


def _clear(place: Path) -> None:
    """Remove a workspace; what it was about to replace goes back, if nothing came instead."""
    for old in place.glob(f"{OLD}/*"):
        if not (place.parent / old.name).exists():
            old.rename(place.parent / old.name)
    shutil.rmtree(place, ignore_errors=True)


def move(new: Path, path: Path) -> None:
    """Flush a file or a folder of a workspace to disk, and move it to its place."""
    for part in [*new.rglob("*"), new] if new.is_dir() else [new]:
        sync(part)
    lock = _locked(path.parent, fcntl.LOCK_EX)  # else others come between the two renames
    try:
        if new.is_dir() and path.is_dir():  # which cannot be replaced at one stroke
            (new.parent / OLD).mkdir()
            path.rename(new.parent / OLD / path.name)
        new.replace(path)
    finally:
        if lock is not None:
            os.close(lock)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems have it for files only
            raise
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file whose writing failed: libraries hide a full disk behind errors of their own.

    An error that names a file elsewhere, such as one that could not be read, is left as it is.
    """
    try:
        yield
    except Exception as error:
        told = _said_by_the_system(error)
        if told is None or told.errno is None:
            raise
        here, named = path.resolve().parent, os.fsdecode(told.filename or path)
        if not Path(named).resolve().is_relative_to(here):
            raise
        raise OSError(told.errno, os.strerror(told.errno), str(path)) from error


def _said_by_the_system(error: Exception) -> OSError | None:
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):  # torch
        return error.__context__
    rust = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(rust[1]), "") if rust and not isinstance(error, ValueError) else None
