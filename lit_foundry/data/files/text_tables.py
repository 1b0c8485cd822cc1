"""Tables of texts and labels from files, folders, standard input and the Hugging Face hub.

Errors name, in one line, the file, the line of a text file or the row of another (both from 1;
a header is line 1), the rule and the remedy.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lit_foundry.data.files.cells import checked, other_columns
from lit_foundry.data.files.rows import (
    MOST,
    DataError,
    DatasetNotFoundError,
    Quoting,
    Rows,
    arrow_rows,
    check_columns,
    check_length,
    decoded,
    json_rows,
    lines_of,
    rows_of,
)
from lit_foundry.data.files.table import LabelReader, Table
from lit_foundry.sources import from_hub, resolve

__all__ = ["DataError", "DatasetNotFoundError"]  # most users of readers need them
__all__ += ["read_folder", "read_hub", "read_lines", "read_table"]
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def read_table(
    path: Path,
    text: str | Sequence[str],
    label: str | LabelReader | None,
    id: str | None = None,
    quoting: Quoting = "auto",
    words: bool = False,
) -> Table:
    """Read columns of a .csv, .tsv, .jsonl or .parquet file.

    Args:
        path: The file. Its suffix tells the format.
        text: Column of the texts, or the two columns of pairs.
        label: Column of the labels: strings, ints, bools, or class numbers of ``datasets``,
            which become class names; or what reads other labels. None reads none.
        id: Column that identifies rows in predictions.
        quoting: Whether .csv and .tsv quote texts: ``minimal``, in which each mark of a text is
            doubled, or ``none``, in which marks are text as any other, as in GLUE; ``auto``
            takes .csv for quoted and finds out of .tsv, by :func:`is_quoted`.
        words: Whether a text may be a list of words, which blanks then join.

    Raises:
        DatasetNotFoundError: If there is no such file.
        DataError: If it is empty or malformed, lacks a column, a text or a label, or has a text of
            more than ``MOST`` characters.
    """
    columns = _columns(text, label, id)
    if Path(path).suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: not a table. Convert it to one of {', '.join(SUFFIXES)}.")
    rows = rows_of(path, _names(columns, label), quoting=quoting, most=MOST)
    return _table(rows, str(path), columns, label, words)


def read_hub(
    name: str,
    split: str,
    text: str | Sequence[str],
    label: str | LabelReader | None,
    id: str | None = None,
    remedy: str = "Check the name, or name a file on this machine instead.",
    words: bool = False,
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
    source, names = f"{name}, split {split}", _names(columns, label)
    with from_hub(path, f"(Asked for: {source}.) {remedy}"):
        data = datasets.load_dataset(path, config, split=split)
    check_columns(source, names, data.column_names)
    batches = data.with_format("arrow", columns=names).iter(1000)
    rows = arrow_rows(batches, data.features.arrow_schema, source, names)
    return _table(rows, source, columns, label, words)


def read_folder(root: Path, names: Sequence[str]) -> Table:
    """Read one text a file from ``root/{name}/*.txt``, where the names are the labels."""
    files: list[Path] = []
    for name in names:
        found = sorted((root / name).glob("[!.]*.txt"))  # macOS leaves ._ files in copied folders
        if not found:
            rule = "no .txt files, one for each text"
            raise DatasetNotFoundError(f"{root / name}: {rule}. Unpack the archive again.")
        files += found
    texts = [decoded(file.read_bytes(), str(file)) for file in files]
    for file, text in zip(files, texts, strict=True):
        check_length(str(file), text)
    ids = [file.relative_to(root).as_posix() for file in files]
    return Table(texts, labels=[file.parent.name for file in files], ids=ids, source=str(root))


def read_lines(
    source: Path | Literal["-"],
    text: str | Sequence[str] = "text",
    label: str | None = None,
    id: str | None = None,
    quoting: Quoting = "auto",
    words: bool = False,
) -> Table:
    """Read texts to predict on; unless ``id`` names a column, ids are row numbers from 0.

    Args:
        source: A .txt file of one text a line, a table file, or "-": standard input, of one text
            a line or, if its first line is a JSON object with the text column, of JSON lines.
        text: Column of the texts, or the two columns of pairs, where there are columns.
        label: Column of the labels, likewise.
        id: Column that identifies rows, likewise.
        quoting: As in :func:`read_table`, and so ``words``.
        words: Whether a text may be a list of words.

    Raises:
        DatasetNotFoundError: If there is no such file.
        DataError: If there is no text, or the file is malformed.
    """
    columns, place = _columns(text, label, id), "standard input" if source == "-" else str(source)
    if source != "-" and Path(source).suffix.lower() != ".txt":
        table = read_table(source, text, label, id, quoting, words)
    else:
        lines = list(lines_of(source, MOST))
        if not any(map(str.strip, lines)):
            raise DataError(f"{place}: empty. Give one text a line.")
        if source == "-" and _is_record(lines[0], columns["texts"]):
            rows = json_rows(lines, place, list(columns.values()))
            table = _table(rows, place, columns, label, words)
        elif "pairs" in columns:
            raise DataError(f"{place}: one text a line, where pairs are needed. Give JSON lines.")
        else:
            texts = [line.rstrip("\r\n") for line in lines]
            for number, line in enumerate(texts, 1):
                check_length(f"{place}, line {number}", line)
            table = Table(texts, source=place)
    return table if table.ids else replace(table, ids=[str(row) for row in range(len(table))])


def _columns(
    text: str | Sequence[str], label: str | LabelReader | None, id: str | None
) -> dict[str, str]:
    """Name the column of each field of a Table that is read as a string."""
    texts = [text] if isinstance(text, str) else list(text)
    if len(texts) not in (1, 2):
        raise ValueError(f"data.text={texts}: must be one column, or two for pairs of texts.")
    columns = dict(zip(("texts", "pairs"), texts, strict=False))
    return columns | {k: v for k, v in (("labels", label), ("ids", id)) if isinstance(v, str)}


def _names(columns: dict[str, str], label: str | LabelReader | None) -> list[str]:
    """Name all columns that are read, those of strings first."""
    return [*columns.values(), *other_columns(label)]


def _is_record(line: str, column: str) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and column in record


def _table(
    rows: Rows,
    source: str,
    columns: dict[str, str],
    label: str | LabelReader | None,
    words: bool,
) -> Table:
    """Check the cells and make them strings and labels."""
    rule = "a string, which may be empty"
    return Table(**checked(rows, source, columns, rule, label, words), source=source)
