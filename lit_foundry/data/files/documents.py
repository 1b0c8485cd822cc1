"""Documents to pretrain on, read one at a time: text of any size is never all in memory."""

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from functools import cached_property, partial
from glob import glob, has_magic
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from lit_foundry.data.files.digests import digests
from lit_foundry.data.files.folders import Found, files_in, joined, tell_left_out
from lit_foundry.data.files.rows import (
    DataError,
    DatasetNotFoundError,
    Rows,
    arrow_rows,
    check_columns,
    lines_of,
    opened,
    rows_of,
    wrong_cell,
)
from lit_foundry.sources import from_hub, resolve

FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz")
BLOCK = 2**20  # characters of a .txt file that are read at once
# How files begin that are no text, whatever their name says.
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\xfd7zXZ": "xz",
    b"\x89PNG": "a PNG image",
    b"%PDF-": "PDF",
    b"PAR1": "parquet",
}


class Documents:
    """Texts in the same order each time; those without any word are left out.

    Args:
        sources: Files (.txt, .csv, .tsv, .jsonl, .parquet; .txt and .jsonl also with .gz), folders
            with such files at any depth, in the order of their paths, and patterns such as
            ``data/*.txt``. Links are followed, and each file is read once. Hidden files in folders
            are skipped; a warning counts those of other kinds.
        text: Column of the texts, where there are columns.
        delimiter: Cuts .txt files, such as a blank line (two newlines); None makes each file one
            document.
        cache: Folder that keeps the digests of large files; by default ``$LIT_FOUNDRY_CACHE`` or
            ``~/.cache/lit_foundry``.

    Raises:
        DatasetNotFoundError: If a source has no such file.
        DataError: If a file is of another kind; while reading, if it is malformed, or if there is
            no text in any of them.
    """

    def __init__(
        self,
        sources: str | Path | Sequence[str | Path],
        text: str = "text",
        delimiter: str | None = None,
        cache: Path | None = None,
    ) -> None:
        if delimiter == "":
            raise ValueError("data.delimiter is empty: set what parts documents, or null.")
        sources = [sources] if isinstance(sources, str | Path) else sources
        found = joined(_found(source) for source in sources)
        self.files, self.text, self.cache = list(found.files.values()), text, cache
        # A shell passes the two characters on.
        self.delimiter = delimiter and delimiter.replace(r"\n", "\n").replace(r"\t", "\t")
        self.name = ", ".join(map(str, sources))
        tell_left_out(self.name, found, ", ".join(FORMATS))

    @staticmethod
    def of_hub(
        name: str, split: str = "train", text: str = "text", cache: Path | None = None
    ) -> "Documents":
        """Stream a split of ``org/name`` or ``org/name:config`` on the hub, or of a dataset folder.

        Raises:
            FileNotFoundError: If the hub cannot be reached, or lacks the name, config or split.
        """
        return _HubDocuments(name, split, text, cache)

    @property
    def num_files(self) -> int:
        """Files in all."""
        return len(self.files)

    def __iter__(self) -> Iterator[str]:
        return (text for _, _, text in self.stream())

    def stream(self, file: int = 0, row: int = 0) -> Iterator[tuple[int, int, str]]:
        """Yield texts with the numbers of their file and their row in it, from a place on.

        Args:
            file: First file, from 0; those before it are not read.
            row: First row in it, from 0: of a table, or what delimiters part.
        """
        empty = not (file or row)
        for number in range(file, self.num_files):
            start = row if number == file else 0
            try:
                for place, text in enumerate(self._texts(number, start), start):
                    if text and not text.isspace():
                        empty = False
                        yield number, place, text
            except DataError as error:  # whose traceback would keep files open
                raise error.with_traceback(None) from None
        if empty:
            raise DataError(f"{self.name}: no text at all. Name other files, or another column.")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content and of how it is read, wherever it lies."""
        quoted = ["quoting"] if any(_format(file) == ".tsv" for file in self.files) else []
        content = json.dumps([self.text, self.delimiter, self._contents(), *quoted])
        return blake2b(content.encode(), digest_size=16).hexdigest()

    def _contents(self) -> list[list[str]]:
        found = digests(self.files, self.cache)
        return [[_format(f), digest] for f, digest in zip(self.files, found, strict=True)]

    def _texts(self, file: int, start: int) -> Iterator[str]:
        path = self.files[file]
        if _format(path).startswith(".txt"):
            blocks = _blocks(path)
            texts = iter(["".join(blocks)]) if self.delimiter is None else self._cut(blocks)
            return islice(texts, start, None)
        if _format(path) != ".parquet":
            _check_magic(path)
        return self._cells(rows_of(path, [self.text], start))

    def _cells(self, rows: Rows) -> Iterator[str]:
        for where, (cell,) in rows:
            if not isinstance(cell, str):
                raise wrong_cell(where, self.text, cell, "a string, which may be empty")
            yield cell

    def _cut(self, blocks: Iterable[str]) -> Iterator[str]:
        delimiter, held = str(self.delimiter), ""
        searched = 0  # characters of ``held`` in which no delimiter begins
        for block in blocks:
            held += block
            if held.find(delimiter, searched) >= 0:
                *texts, held = held.split(delimiter)
                yield from texts
            searched = max(0, len(held) - len(delimiter) + 1)
        yield held


class _HubDocuments(Documents):
    def __init__(self, name: str, split: str, text: str, cache: Path | None) -> None:
        import datasets  # takes seconds, and most runs read files

        super().__init__([], text, None, cache)
        path, config = resolve(name), None
        if not Path(path).exists() and ":" in path:
            path, _, config = path.partition(":")
        self.name = f"{name}, split {split}"
        remedy = "Check the name, or name files on this machine instead."
        with from_hub(path, f"(Asked for: {self.name}.) {remedy}"):
            builder = datasets.load_dataset_builder(path, config)
        paths = {str(key): list(value) for key, value in builder.config.data_files.items()}
        if split not in paths:
            rule = f"no split {split!r}, only {', '.join(paths)}"
            raise DatasetNotFoundError(f"{name}: {rule}. Name one of these.")
        self._paths = paths[split]
        with from_hub(path, f"(Asked for: {self.name}.) {remedy}"):
            self._data: Any = builder.as_streaming_dataset(split)

    @property
    def num_files(self) -> int:
        return 1

    def _contents(self) -> list[list[str]]:
        """Digest what lies here; addresses on the hub contain the revision."""
        remote = [path for path in self._paths if "://" in path]
        local = [Path(path) for path in self._paths if "://" not in path]
        return [remote, digests(local, self.cache)]

    def _texts(self, file: int, start: int) -> Iterator[str]:
        columns = self._data.column_names or list(next(iter(self._data), {}))
        check_columns(self.name, [self.text], columns)
        tables = self._data.select_columns([self.text]).skip(start).with_format("arrow").iter(1000)
        for table in tables:
            rows = arrow_rows([table], table.schema, self.name, [self.text], start)
            yield from self._cells(rows)
            start += table.num_rows


def _found(source: str | Path) -> Found:
    """Find the files of a source; a pattern may match folders."""
    path = Path(source).expanduser().absolute()
    if path.is_file():
        if not _format(path):
            raise DataError(f"{path}: no text. Convert it to one of {', '.join(FORMATS)}.")
        return Found({os.path.realpath(path): path})
    parts = list(_matched(path))
    found = joined(parts)
    if not found.files:
        kinds = ", ".join(FORMATS)
        rule = f"no file that ends in {kinds}" if parts else "no such file or folder"
        raise DatasetNotFoundError(f"{path}: {rule}. Correct its path in data.*.")
    for file in found.files.values():
        if not os.path.exists(file):
            raise DataError(f"{file}: a link to a file that is not there. Mend or remove it.")
    return found


def _matched(path: Path) -> Iterator[Found]:
    """Yield what lies in a folder, or at each place that a pattern matches."""
    places, rest = [path] if path.is_dir() else [], path.parts[:0]
    if not places and has_magic(str(path)):
        # Through links that lead back up, glob would follow ** for ever.
        depth = path.parts.index("**") if "**" in path.parts else len(path.parts)
        before, rest = Path(*path.parts[:depth]), path.parts[depth:]
        places = [Path(place) for place in sorted(glob(str(before)))]
    for place in places:
        below = files_in(place, _any) if place.is_dir() else Found({os.path.realpath(place): place})
        names = {file: file.relative_to(place) for file in below.files.values()}
        pairs = [pair for pair in below.files.items() if _fits(names[pair[1]].parts, rest)]
        pairs.sort(key=lambda pair: names[pair[1]].as_posix())
        if pairs or not rest:
            kept = {real: file for real, file in pairs if _format(file)}
            yield Found(kept, [file for _, file in pairs if not _format(file)], below.loops)


def _any(path: Path) -> bool:
    return True


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tell whether a pattern matches a path or a folder that it is in."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_fits(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _format(path: Path) -> str:
    """Return the one of FORMATS that a file has; "" for another kind."""
    return next((form for form in FORMATS if path.name.lower().endswith(form)), "")


def _check_magic(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(8)
    for magic, kind in MAGIC.items():
        if head.startswith(magic) and not (kind == "gzip" and path.suffix.lower() == ".gz"):
            rule = f"by its first bytes {kind}, which its name does not say"
            raise DataError(f"{path}: {rule}. Unpack, convert or rename it.")


def _blocks(path: Path) -> Iterator[str]:
    """Yield a .txt file in parts, each end of a line as one newline; an empty file has none."""
    if path.is_file() and not path.stat().st_size:
        return
    with opened(path) as file:
        _check_magic(path)
        reader, line = io.TextIOWrapper(file, encoding="utf-8-sig"), 1
        try:
            for block in iter(partial(reader.read, BLOCK), ""):
                if (at := block.find("\0")) >= 0:
                    where = f"{path}, line {line + block.count(chr(10), 0, at)}"
                    raise DataError(f"{where}: a NUL byte, as in no text. Convert it to UTF-8.")
                line += block.count("\n")
                yield block
        except UnicodeDecodeError:
            for _ in lines_of(path):  # finds the line
                pass
            raise
