"""Files below folders, each of them once, whatever links lead there."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lit_foundry.data.files.rows import DataError, DatasetNotFoundError

THUMBNAILS = "@eaDir"  # where Synology's systems keep small copies of the images beside it
TOLD = 5  # suffixes that a warning names


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        files: Those that were looked for, in the order of their paths, by real path; a link that
            leads to no file is one of them.
        left_out: Other files.
        loops: Links to a folder that they are in, which were not followed.
    """

    files: dict[str, Path] = field(default_factory=dict)
    left_out: list[Path] = field(default_factory=list)
    loops: list[Path] = field(default_factory=list)


def files_in(folder: Path, wanted: Callable[[Path], object], within: Path | None = None) -> Found:
    """Find files at any depth; hidden ones and thumbnails are passed over.

    Links are followed. What several ways lead to is found on the first of them.

    Args:
        folder: Where to look.
        wanted: Tells by its path whether a file is looked for.
        within: Folder to which links of ``folder`` may not lead back either.

    Raises:
        DatasetNotFoundError: If there is no such folder.
        DataError: If one may not be read.
    """
    found = Found()
    above = () if within is None else (Path(os.path.realpath(within)),)
    _walk(folder, above, set(), wanted, found)
    return found


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, by name, without what is hidden and thumbnails."""
    try:
        with os.scandir(folder) as found:
            # macOS leaves ._ files in copied folders
            shown = [entry for entry in found if entry.name[0] != "." and entry.name != THUMBNAILS]
    except FileNotFoundError:
        rule = "no such folder. Correct its path in data.root"
        raise DatasetNotFoundError(f"{folder.absolute()}: {rule}.") from None
    except PermissionError:
        rule = "no permission to read this folder. Grant it, or move the folder away"
        raise DataError(f"{folder}: {rule}.") from None
    return sorted(shown, key=lambda entry: entry.name)


def joined(parts: Iterable[Found]) -> Found:
    """Return what several places hold, each file once."""
    whole = Found()
    for part in parts:
        for real, file in part.files.items():
            whole.files.setdefault(real, file)
        whole.left_out.extend(part.left_out)
        whole.loops.extend(part.loops)
    return whole


def tell_left_out(source: str, found: Found, kinds: str) -> None:
    """Warn, in one line, of files that are not of these kinds and links that were not followed."""
    left_out, loops = (list(dict.fromkeys(paths)) for paths in (found.left_out, found.loops))
    parts = []
    if left_out:
        counts = Counter(path.suffix.lower() or "no suffix" for path in left_out).most_common()
        ends = ", ".join(f"{count} {end}" for end, count in counts[:TOLD])
        more = ", ..." if len(counts) > TOLD else ""
        files = f"{len(left_out)} file{'s' * (len(left_out) > 1)}"
        parts.append(f"left out {files} ({ends}{more}): not {kinds}")
    if loops:
        parts.append(
            f"links that lead back up are not followed: {', '.join(map(str, loops[:TOLD]))}"
        )
    if parts:
        warnings.warn(f"{source}: {'; '.join(parts)}.", stacklevel=3)


def _walk(
    folder: Path,
    above: tuple[Path, ...],
    seen: set[Path],
    wanted: Callable[[Path], object],
    found: Found,
) -> None:
    real = Path(os.path.realpath(folder))
    if any(real == place or real in place.parents for place in above):
        found.loops.append(folder)
        return
    if real in seen:
        return
    seen.add(real)
    for entry in entries(folder):
        path, link = folder / entry.name, entry.is_symlink()
        if os.path.isdir(path) if link else entry.is_dir():
            _walk(path, (*above, real), seen, wanted, found)
        elif not wanted(path) or not (_is_readable(path) if link else entry.is_file()):
            found.left_out.append(path)
        else:
            leads = link and os.path.exists(path)
            found.files.setdefault(
                os.path.realpath(path) if leads else str(real / entry.name), path
            )


def _is_readable(link: Path) -> bool:
    """Tell whether a link leads to a file or nowhere, and not to a pipe that a reader waits for."""
    return os.path.isfile(link) or not os.path.exists(link)
