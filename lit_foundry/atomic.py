"""Files and folders that are whole, or not there: a crash or a full disk leaves no part of one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a place to write a file or a folder to, which takes the place of ``path`` at the end.

    It lies beside ``path``, is flushed to disk before it is renamed, and is removed if anything
    fails; what a killed writer left there goes first. A folder must not exist yet, or be empty.

    Raises:
        OSError: If the disk is full, read-only or the like; it names ``path``.
    """
    partial = path.with_name(f".{path.name}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)
    try:
        with naming(path):
            yield partial
            for part in [*partial.rglob("*"), partial] if partial.is_dir() else [partial]:
                sync(part)
            partial.replace(path)
            sync(path.parent)
    finally:
        remove(partial)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file whose writing failed; torch hides a full disk behind an error of its own.

    An error that names a file elsewhere, such as one that could not be read, is left as it is.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        told = cause.filename
        if told is not None and not Path(os.fsdecode(told)).is_relative_to(path.parent):
            raise
        raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
