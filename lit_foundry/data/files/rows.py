"""Rows of files with columns, one at a time, and the errors of data.

Errors name, in one line, the file, the line of a text file or the row of another (both from 1;
a header is line 1), the rule and the remedy.
"""

import csv
import gzip
import json
import re
import sys
import zlib
from bisect import bisect_right
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from textwrap import shorten
from typing import IO, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

Rows = Iterator[tuple[str, Sequence[Any]]]  # where in which file, and the cells read there
# How a table uses quotation marks: around texts, not at all, or as is found out.
Quoting = Literal["auto", "minimal", "none"]
_QUOTED = re.compile(r'(?:(?<=\t)|^)"[^"]*+(?:""[^"]*+)*+"(?=\t|\Z)')


class DatasetNotFoundError(FileNotFoundError):
    """Says which data is missing, where it was looked for, and what to do."""


class DataError(ValueError):
    """Says which row of which file breaks which rule, and what to do."""


MOST = 10_000_000  # characters of a text, which take 0.5 GB to tokenize; a book has a million
SHORTER = "Cut it, or leave it out."
KEYS = "data.text, data.label"  # what names the columns, for messages


def rows_of(
    path: Path,
    names: Sequence[str],
    start: int = 0,
    keys: str = KEYS,
    quoting: Quoting = "auto",
    most: int | None = None,
) -> Rows:
    """Yield the cells of a table file in columns of these names, from a row (from 0) on.

    Files of JSON lines may be compressed with gzip. Errors are those of ``read_table``, and name
    the ``keys`` that name columns. ``most`` is the most characters of a text.
    """
    source, suffix = str(path), Path(Path(path).name.lower().removesuffix(".gz")).suffix
    if suffix == ".parquet":
        yield from _parquet_rows(path, names, start, keys)
    elif suffix == ".jsonl":
        yield from islice(json_rows(lines_of(path, most), source, names, keys), start, None)
    else:
        tabs = suffix != ".csv"
        quoted = quoting == "minimal" or (quoting == "auto" and (not tabs or is_quoted(path, most)))
        rows = _csv_rows(lines_of(path, most), source, names, tabs, quoted, keys)
        yield from islice(rows, start, None)


def is_quoted(path: Path, most: int | None = None) -> bool:
    """Tell whether a file of tab-separated values quotes fields, as spreadsheets write them.

    It does if every quotation mark in it belongs to a field that is quoted as a whole, its own
    marks doubled, in a row of as many fields as the header has, whose lines are no rows by
    themselves. In GLUE's files, and others that quote nothing, marks stand within texts as well.
    """
    width, held, found = 0, "", False
    for line in lines_of(path, most):
        if not held and '"' not in line:
            width = width or line.count("\t") + 1
            continue
        held += line
        if held.count('"') % 2 == 0:
            fields = held.rstrip("\r\n")
            bare = _QUOTED.sub("", fields)
            width = width or bare.count("\t") + 1
            lines = fields.split("\n")
            rows = width > 1 < len(lines) and all(part.count("\t") + 1 == width for part in lines)
            if '"' in bare or bare.count("\t") + 1 != width or rows:
                return False
            held, found = "", True
        elif len(held) > (most or MOST):
            return False
    return found and not held


def existing(path: Path) -> Path:
    """Return a path, ``~`` expanded; raise an error unless a file that is not empty is there."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise DatasetNotFoundError(f"{path.absolute()}: no such file. Correct its path in data.*.")
    if not path.stat().st_size:
        raise DataError(f"{path}: empty file. Write it again, or name another.")
    return path


def decoded(data: bytes, where: str) -> str:
    """Return UTF-8 as a string; ``where`` begins the error's message."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        rule = f"not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start})"
        raise DataError(f"{where}: {rule}. Convert it, as with iconv -t utf-8.") from None
    if "\0" in text:  # UTF-16 without its mark passes for UTF-8
        raise DataError(f"{where}: a NUL byte, as in no text. Convert it to UTF-8.")
    return text


@contextmanager
def opened(source: Path | Literal["-"]) -> Iterator[IO[bytes]]:
    """Open a file that is not empty, through gzip if its name says so, or standard input."""
    if source == "-":
        yield sys.stdin.buffer
    elif (path := existing(source)).suffix.lower() != ".gz":
        with path.open("rb") as file:
            yield file
    else:
        try:
            with gzip.open(path) as unpacked:
                yield cast(IO[bytes], unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: not valid gzip ({error}). Compress it again.") from error


def lines_of(source: Path | Literal["-"], most: int | None = None) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, or of standard input, with their ends.

    Args:
        source: The file.
        most: Most characters of a text; of a line, eight times as many bytes, as JSON escapes.
    """
    place = "standard input" if source == "-" else str(source)
    limit = -1 if most is None else 8 * most
    with opened(source) as file:
        for number, line in enumerate(iter(partial(file.readline, limit), b""), 1):
            data = line.removeprefix(BOM_UTF8) if number == 1 else line  # Excel writes one
            if len(line) == limit:
                raise DataError(f"{place}, line {number}: {limit:,} bytes and no end. {SHORTER}")
            yield decoded(data, f"{place}, line {number}")


def check_length(where: str, text: str) -> None:
    """Raise DataError if a text is so long that to tokenize it may take all memory."""
    if len(text) > MOST:
        rule = f"a text of {len(text):,} characters, where at most {MOST:,} are taken"
        raise DataError(f"{where}: {rule}. {SHORTER}")


def check_columns(
    where: str, names: Sequence[str], columns: Sequence[str], keys: str = KEYS
) -> list[int]:
    """Return the places of the columns of these names, or raise DataError."""
    for name in names:
        if (count := columns.count(name)) != 1:
            near = get_close_matches(name, columns, 1, cutoff=0.4)
            hint = f" (did you mean {near[0]!r}?)" if near and not count else ""
            rule = f"{count} columns named {name!r}" if count else f"no column {name!r}{hint}"
            there = shorten(", ".join(columns), 200)
            raise DataError(f"{where}: {rule}. Set {keys} to its columns: {there}.")
    return [columns.index(name) for name in names]


def _csv_rows(
    lines: Iterable[str], source: str, names: Sequence[str], tabs: bool, quoted: bool, keys: str
) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 kB
    form: Any = {"delimiter": "\t" if tabs else ","}
    if not quoted:
        form["quoting"] = csv.QUOTE_NONE
    reader = csv.reader(lines, strict=True, **form)
    where = f"{source}, line 1"
    try:
        header = next(reader, [])
        places = check_columns(where, names, header, keys)
        where = f"{source}, line {reader.line_num + 1}"
        for record in reader:
            if not record and tabs and len(header) == 1:
                record = [""]  # a blank line of a one-column .tsv is a text; others hold nothing
            if record and len(record) != len(header):
                rule = f"{len(record)} fields, where the header has {len(header)}"
                remedy = f"{'Quote' if quoted else 'Replace'} {'tabs' if tabs else 'commas'}"
                raise DataError(f"{where}: {rule}. {remedy} and newlines inside texts.")
            if record:
                yield where, [record[place] for place in places]
            # Not one more than the last: a record has several lines if a text has newlines.
            where = f"{source}, line {reader.line_num + 1}"
    except csv.Error as error:
        lost = "a quotation mark opens a text here that none closes"
        rule = lost if "unexpected end" in str(error) else str(error)
        raise DataError(f'{where}: {rule}. Quote texts, and double each " in them.') from None


def json_rows(lines: Iterable[str], source: str, names: Sequence[str], keys: str = KEYS) -> Rows:
    """Yield the cells of JSON lines in columns of these names."""
    for number, line in enumerate(lines, 1):
        where = f"{source}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line, object_pairs_hook=_unique)
            if "\\ud" in line.lower():  # half of an escaped emoji, which no tokenizer takes
                json.dumps(record, ensure_ascii=False).encode()
        except ValueError as error:
            reason = str(error).replace("line 1 ", "")
            raise DataError(f"{where}: not JSON ({reason}). Write one object a line.") from None
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise DataError(f"{where}: a JSON {kind}, not an object. Write one object a line.")
        check_columns(where, names, list(record), keys)
        yield where, [record[name] for name in names]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return record


def _parquet_rows(path: Path, names: Sequence[str], start: int, keys: str) -> Rows:
    source, found = str(path), existing(path)
    try:
        with pq.ParquetFile(found) as file:
            check_columns(source, names, file.schema_arrow.names, keys)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = list(accumulate(sizes))
            first = bisect_right(ends, start)  # whole groups before it are not read
            done = ends[first - 1] if first else 0
            groups = range(first, len(sizes))
            batches = file.iter_batches(1000, row_groups=groups, columns=names)
            rows = arrow_rows(batches, file.schema_arrow, source, names, done)
            yield from islice(rows, start - done, None)
    except (pa.ArrowException, OSError) as error:  # OSError: damaged inside
        reason = shorten(str(error), 200)
        raise DataError(f"{path}: not valid parquet ({reason}). Write it again.") from error


def arrow_rows(
    batches: Iterable[Any], schema: Any, source: str, names: Sequence[str], done: int = 0
) -> Rows:
    """Yield the cells of columns of these names; ``done`` rows came before the batches."""
    info = json.loads((schema.metadata or {}).get(b"huggingface", "{}")).get("info") or {}
    features = info.get("features") or {}
    for batch in batches:
        columns = []
        for name in names:
            try:
                cells = batch.column(name).to_pylist()
            except UnicodeDecodeError:  # arrow does not check what it reads; find the row
                for row, cell in enumerate(batch.column(name).cast(pa.large_binary()), done + 1):
                    decoded(cell.as_py() or b"", f"{source}, row {row}")
                raise
            if known := _class_names(features.get(name)):
                cells = [_named(cell, known) for cell in cells]
            columns.append(cells)
        for row, record in enumerate(zip(*columns, strict=True), done + 1):
            yield f"{source}, row {row}", record
        done += batch.num_rows


def _class_names(feature: Any) -> Sequence[str]:
    """Return the names of class numbers that a column of ``datasets`` holds, maybe in lists."""
    while not (isinstance(feature, Mapping) and "names" in feature):
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, Mapping) and "feature" in feature:
            feature = feature["feature"]
        else:
            return ()
    names: Sequence[str] = feature["names"]
    return names


def _named(cell: Any, names: Sequence[str]) -> Any:
    if isinstance(cell, list):
        return [_named(part, names) for part in cell]
    return None if cell is None or cell < 0 else names[cell]  # -1 stands for no label


def wrong_cell(where: str, name: str, cell: Any, rule: str) -> DataError:
    """Return the error of a cell that breaks a rule."""
    kind = "null" if cell is None else f"of type {type(cell).__name__}"
    return DataError(f"{where}: {name!r} is {kind}. Make it {rule}, or drop the row.")
