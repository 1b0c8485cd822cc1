"""Digests of files, computed once for each content."""

import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from tqdm.auto import tqdm

from lit_foundry.atomic import replacing
from lit_foundry.sources import cache_root

BLOCK = 2**20  # bytes read at once; a file below it is as fast to read as its digest
NOTHING = blake2b(digest_size=16).hexdigest()
SHOWN = 2**30  # bytes, some seconds, from which on there is a progress bar


def digests(files: Sequence[Path], cache: Path | None = None) -> list[str]:
    """Return a digest of the bytes of each file.

    Those of large files are kept in ``cache`` under path, size and time of the last change, so
    that a terabyte is read once.
    """
    folder = cache_root(cache) / "digests"
    kept = [_kept(folder, path) for path in files]
    found = [
        None if place is None or not place.exists() else place.read_text(encoding="utf-8")
        for place in kept
    ]
    todo = sum(p.stat().st_size for p, known in zip(files, found, strict=True) if not known)
    shown = None if todo > SHOWN else True
    with tqdm(None, "Hashing", todo, unit="B", unit_scale=True, disable=shown) as bar:
        return [
            known or _digest(path, place, bar)
            for path, place, known in zip(files, kept, found, strict=True)
        ]


def joint_digests(files: Sequence[Path], cache: Path | None = None) -> list[str]:
    """Return the same of many small files, whose digests are kept together.

    A million photos are then read once, and looked at later: some seconds. Files that are not there
    or may not be read have the digest of no bytes.
    """
    readable = [path for path in files if os.access(path, os.R_OK)]
    if len(readable) < len(files):
        known = dict(zip(readable, joint_digests(readable, cache), strict=True))
        return [known.get(path, NOTHING) for path in files]
    hasher = blake2b(digest_size=16)
    for path in files:
        stat = path.stat()
        key = f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}\0"
        hasher.update(key.encode(errors="surrogateescape"))
    place = cache_root(cache) / "digests" / hasher.hexdigest()
    found = place.read_text(encoding="utf-8").split() if place.exists() else []
    if len(found) != len(files):
        found = digests(files, cache)
        _keep("\n".join(found), place)
    return found


def _kept(folder: Path, path: Path) -> Path | None:
    stat = path.stat()
    key = f"{path.absolute()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    name = blake2b(key.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return folder / name if stat.st_size >= BLOCK else None


def _digest(path: Path, place: Path | None, bar: "tqdm[None]") -> str:
    hasher = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
            bar.update(len(block))
    if place is not None:
        _keep(hasher.hexdigest(), place)
    return hasher.hexdigest()


def _keep(digest: str, place: Path) -> None:
    """Write a digest; where the disk is full, it is computed again instead."""
    with suppress(OSError), replacing(place) as partial:
        partial.write_text(digest, encoding="utf-8")
