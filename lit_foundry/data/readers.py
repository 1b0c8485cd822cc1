"""Tables of texts and labels from files, folders, standard input and the Hugging Face hub.

Errors name, in one line, the file, the line of a text file or the row of another (both from 1;
a header is line 1), the rule and the remedy.
"""

import csv
import json
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lit_foundry.data.table import Table
from lit_foundry.sources import from_hub, resolve

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
Rows = Iterator[tuple[str, Sequence[Any]]]  # where in which file, and the cells read there


class DatasetNotFoundError(FileNotFoundError):
    """Says which data is missing, where it was looked for, and what to do."""


class DataError(ValueError):
    """Says which row of which file breaks which rule, and what to do."""


def read_table(
    path: Path, text: str | Sequence[str], label: str | None, id: str | None = None
) -> Table:
    """Read columns of a .csv, .tsv (without quoting, as in GLUE), .jsonl or .parquet file.

    Args:
        path: The file. Its suffix tells the format.
        text: Column of the texts, or the two columns of pairs.
        label: Column of the labels: strings, ints, bools, or class numbers of ``datasets``,
            which become class names. None reads no labels.
        id: Column that identifies rows in predictions.

    Raises:
        DatasetNotFoundError: If there is no such file.
        DataError: If it is empty or malformed, or lacks a column, a text or a label.
    """
    columns, source, suffix = _columns(text, label, id), str(path), Path(path).suffix.lower()
    names = list(columns.values())
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: not a table. Convert it to one of {', '.join(SUFFIXES)}.")
    if suffix == ".jsonl":
        return _table(_json_rows(_lines(path), source, names), source, columns)
    if suffix != ".parquet":
        return _table(_csv_rows(_lines(path), source, names, suffix == ".csv"), source, columns)
    found = _existing(path)
    try:
        with pq.ParquetFile(found) as file:
            _places(source, names, file.schema_arrow.names)
            batches = file.iter_batches(columns=names)
            return _table(_arrow_rows(batches, file.schema_arrow, source, names), source, columns)
    except (pa.ArrowException, OSError) as error:  # OSError: damaged inside
        reason = shorten(str(error), 200)
        raise DataError(f"{path}: not valid parquet ({reason}). Write it again.") from error


def read_hub(
    name: str,
    split: str,
    text: str | Sequence[str],
    label: str | None,
    id: str | None = None,
    remedy: str = "Check the name, or name a file on this machine instead.",
) -> Table:
    """Read a split of ``org/name`` or ``org/name:config`` on the hub, or of a dataset folder.

    Columns are as in ``read_table``; ``remedy`` says what to do if the hub cannot be reached.

    Raises:
        FileNotFoundError: If the hub cannot be reached, or lacks the name, config or split.
        DataError: If the split is empty, or lacks a column, a text or a label.
    """
    import datasets  # takes seconds, and most runs read files

    path, config, columns = resolve(name), None, _columns(text, label, id)
    if not Path(path).exists() and ":" in path:
        path, _, config = path.partition(":")
    source, names = f"{name}, split {split}", list(columns.values())
    with from_hub(path, f"(Asked for: {source}.) {remedy}"):
        data = datasets.load_dataset(path, config, split=split)
    _places(source, names, data.column_names)
    batches = data.with_format("arrow", columns=names).iter(1000)
    return _table(_arrow_rows(batches, data.features.arrow_schema, source, names), source, columns)


def read_folder(root: Path, names: Sequence[str]) -> Table:
    """Read one text a file from ``root/{name}/*.txt``, where the names are the labels."""
    files: list[Path] = []
    for name in names:
        found = sorted((root / name).glob("[!.]*.txt"))  # macOS leaves ._ files in copied folders
        if not found:
            rule = "no .txt files, one for each text"
            raise DatasetNotFoundError(f"{root / name}: {rule}. Unpack the archive again.")
        files += found
    texts = [_decode(file.read_bytes(), str(file)) for file in files]
    ids = [file.relative_to(root).as_posix() for file in files]
    return Table(texts, labels=[file.parent.name for file in files], ids=ids, source=str(root))


def read_lines(
    source: Path | Literal["-"],
    text: str | Sequence[str] = "text",
    label: str | None = None,
    id: str | None = None,
) -> Table:
    """Read texts to predict on; unless ``id`` names a column, ids are row numbers from 0.

    Args:
        source: A .txt file of one text a line, a table file, or "-": standard input, of one text
            a line or, if its first line is a JSON object with the text column, of JSON lines.
        text: Column of the texts, or the two columns of pairs, where there are columns.
        label: Column of the labels, likewise.
        id: Column that identifies rows, likewise.

    Raises:
        DatasetNotFoundError: If there is no such file.
        DataError: If there is no text, or the file is malformed.
    """
    columns, place = _columns(text, label, id), "standard input" if source == "-" else str(source)
    if source != "-" and Path(source).suffix.lower() != ".txt":
        table = read_table(source, text, label, id)
    else:
        lines = list(_lines(source))
        if not any(map(str.strip, lines)):
            raise DataError(f"{place}: empty. Give one text a line.")
        if source == "-" and _is_record(lines[0], columns["texts"]):
            table = _table(_json_rows(lines, place, list(columns.values())), place, columns)
        elif "pairs" in columns:
            raise DataError(f"{place}: one text a line, where pairs are needed. Give JSON lines.")
        else:
            table = Table([line.rstrip("\r\n") for line in lines], source=place)
    return table if table.ids else replace(table, ids=[str(row) for row in range(len(table))])


def _columns(text: str | Sequence[str], label: str | None, id: str | None) -> dict[str, str]:
    """Name the column of each field of a Table."""
    texts = [text] if isinstance(text, str) else list(text)
    if len(texts) not in (1, 2):
        raise ValueError(f"data.text={texts}: must be one column, or two for pairs of texts.")
    columns = dict(zip(("texts", "pairs"), texts, strict=False))
    return columns | {k: v for k, v in (("labels", label), ("ids", id)) if v is not None}


def _existing(path: Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise DatasetNotFoundError(f"{path.absolute()}: no such file. Correct its path in data.*.")
    if not path.stat().st_size:
        raise DataError(f"{path}: empty file. Write it again, or name another.")
    return path


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        rule = f"not UTF-8 (byte 0x{data[error.start]:02x} at position {error.start})"
        raise DataError(f"{where}: {rule}. Convert it, as with iconv -t utf-8.") from None


def _lines(source: Path | Literal["-"]) -> Iterator[str]:
    place = "standard input" if source == "-" else str(source)
    stdin = nullcontext(sys.stdin.buffer)
    with stdin if source == "-" else _existing(source).open("rb") as file:
        for number, line in enumerate(file, 1):
            data = line.removeprefix(BOM_UTF8) if number == 1 else line  # Excel writes one
            yield _decode(data, f"{place}, line {number}")


def _places(where: str, names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Find the columns of these names."""
    for name in names:
        if (count := columns.count(name)) != 1:
            near = get_close_matches(name, columns, 1, cutoff=0.4)
            hint = f" (did you mean {near[0]!r}?)" if near and not count else ""
            rule = f"{count} columns named {name!r}" if count else f"no column {name!r}{hint}"
            there = shorten(", ".join(columns), 200)
            raise DataError(f"{where}: {rule}. Set data.text, data.label to its columns: {there}.")
    return [columns.index(name) for name in names]


def _csv_rows(lines: Iterable[str], source: str, names: Sequence[str], quoted: bool) -> Rows:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 kB
    form: Any = {} if quoted else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    reader = csv.reader(lines, strict=True, **form)
    where = f"{source}, line 1"
    try:
        header = next(reader, [])
        places = _places(where, names, header)
        where = f"{source}, line {reader.line_num + 1}"
        for record in reader:
            if not record and not quoted and len(header) == 1:
                record = [""]  # a blank line of a one-column .tsv is a text; others hold nothing
            if record and len(record) != len(header):
                rule = f"{len(record)} fields, where the header has {len(header)}"
                remedy = "Quote commas and newlines" if quoted else "Replace tabs and newlines"
                raise DataError(f"{where}: {rule}. {remedy} inside texts.")
            if record:
                yield where, [record[place] for place in places]
            # Not one more than the last: a record has several lines if a text has newlines.
            where = f"{source}, line {reader.line_num + 1}"
    except csv.Error as error:
        raise DataError(f'{where}: {error}. Quote texts, and double each " in them.') from None


def _json_rows(lines: Iterable[str], source: str, names: Sequence[str]) -> Rows:
    for number, line in enumerate(lines, 1):
        where = f"{source}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "\\ud" in line.lower():  # half of an escaped emoji, which no tokenizer takes
                json.dumps(record, ensure_ascii=False).encode()
        except ValueError as error:
            reason = str(error).replace("line 1 ", "")
            raise DataError(f"{where}: not JSON ({reason}). Write one object a line.") from None
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise DataError(f"{where}: a JSON {kind}, not an object. Write one object a line.")
        _places(where, names, list(record))
        yield where, [record[name] for name in names]


def _is_record(line: str, column: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and column in record


def _arrow_rows(batches: Iterable[Any], schema: Any, source: str, names: Sequence[str]) -> Rows:
    info = json.loads((schema.metadata or {}).get(b"huggingface", "{}")).get("info") or {}
    features = {k: v for k, v in info.get("features", {}).items() if isinstance(v, dict)}
    done = 0
    for batch in batches:
        columns = []
        for name in names:
            try:
                cells = batch.column(name).to_pylist()
            except UnicodeDecodeError:  # arrow does not check what it reads; find the row
                for row, cell in enumerate(batch.column(name).cast(pa.large_binary()), done + 1):
                    _decode(cell.as_py() or b"", f"{source}, row {row}")
                raise
            if known := features.get(name, {}).get("names"):  # -1 stands for no label
                cells = [None if cell is None or cell < 0 else known[cell] for cell in cells]
            columns.append(cells)
        for row, record in enumerate(zip(*columns, strict=True), done + 1):
            yield f"{source}, row {row}", record
        done += batch.num_rows


def _table(rows: Rows, source: str, columns: dict[str, str]) -> Table:
    """Check the cells and make them strings."""
    fields: dict[str, Any] = {field: [] for field in columns}
    first, num_missing = "", 0
    for where, cells in rows:
        for (field, name), cell in zip(columns.items(), cells, strict=True):
            is_text = field in ("texts", "pairs")
            if not is_text and (cell is None or cell == ""):
                first, num_missing = first or f"{where}: no {name!r}", num_missing + 1
            elif not isinstance(cell, str if is_text else str | int):
                kind = "null" if cell is None else f"of type {type(cell).__name__}"
                rule = "a string, which may be empty" if is_text else "a string, int or bool"
                raise DataError(f"{where}: {name!r} is {kind}. Make it {rule}, or drop the row.")
            fields[field].append(str(cell))
    if not (num_rows := len(fields["texts"])):
        raise DataError(f"{source}: no rows, at most a header. Write it again, or name another.")
    if num_missing:
        share = f"missing in {num_missing} of {num_rows} rows"
        raise DataError(f"{first} ({share}). Fill it in, or drop these rows.")
    return Table(**fields, source=source)
