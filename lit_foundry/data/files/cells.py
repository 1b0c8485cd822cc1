"""Cells of tables of texts or images, checked and turned into strings and labels."""

import warnings
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

import numpy as np

from lit_foundry.data.files.rows import DataError, Rows, check_length, wrong_cell
from lit_foundry.data.files.table import WORD, LabelReader

OTHER = {list: ", set data.target to classes or tags", float: ", set data.target to value"}
NAMES = ("labels", "ids")  # fields whose cells may be ints as well
LARGEST = float(np.finfo(np.float32).max)  # labels are of 32 bits
FLAGS = {"0": False, "false": False, "0.0": False, "1": True, "true": True, "1.0": True}


def other_columns(label: str | LabelReader | None) -> Sequence[str]:
    """Name the columns of labels that are no strings."""
    return () if label is None or isinstance(label, str) else label.columns


def checked(
    rows: Rows,
    source: str,
    columns: dict[str, str],
    rule: str,
    label: str | LabelReader | None = None,
    words: bool = False,
) -> dict[str, list[Any]]:
    """Return cells as strings by field, and the labels; of labels and ids, none is missing.

    Blanks around labels are no part of their names.

    Args:
        rows: Cells of the columns, in their order, and then of :func:`other_columns`.
        source: File that they come from, for messages.
        columns: Column of each field that is a string.
        rule: What a cell of another field has to be; it is a string.
        label: What reads labels that are no strings.
        words: Whether a text may be a list of words.
    """
    reader = None if label is None or isinstance(label, str) else label
    fields: dict[str, list[Any]] = {field: [] for field in columns}
    labels: list[Any] = []
    first, num_missing, num_rows, width = "", 0, 0, len(columns)
    for where, cells in rows:
        num_rows, blank = num_rows + 1, None
        for (field, name), cell in zip(columns.items(), cells[:width], strict=True):
            if field in NAMES and is_blank(cell):
                blank = blank or name
            fields[field].append(
                _string(where, name, cell, None if field in NAMES else rule, words)
            )
        if reader:
            text = fields["texts"][-1] if "texts" in fields else ""
            labels.append(reader.read(where, cells[width:], text))
            if labels[-1] is None:
                named = zip(reader.columns, cells[width:], strict=True)
                blank = blank or next(name for name, cell in named if is_blank(cell))
        if blank is not None:
            first, num_missing = first or f"{where}: no {blank!r}", num_missing + 1
    if not num_rows:
        raise DataError(f"{source}: no rows, at most a header. Write it again, or name another.")
    if num_missing:
        share = f"missing in {num_missing} of {num_rows} rows"
        raise DataError(f"{first} ({share}). Fill it in, or drop these rows.")
    if "labels" in fields:
        fields["labels"] = _stripped(fields["labels"], source)
    return fields | ({"labels": labels} if reader else {})


def is_blank(cell: Any) -> bool:
    """Tell whether a cell holds nothing, or blanks alone."""
    return cell is None or not str(cell).strip()


def _string(where: str, name: str, cell: Any, rule: str | None, words: bool) -> str:
    """Return a cell as a string; no rule lets it be the name of something, or missing."""
    if rule is None:
        if not isinstance(cell, str | int | None):
            raise wrong_cell(where, name, cell, f"a string, int or bool{OTHER.get(type(cell), '')}")
    elif words and isinstance(cell, list):
        cell = _joined(where, name, cell)
    elif not isinstance(cell, str):
        raise wrong_cell(where, name, cell, rule)
    check_length(where, text := str(cell))
    return text


def _joined(where: str, name: str, words: list[Any]) -> str:
    """Join words to a text in which they are found again."""
    for number, word in enumerate(words, 1):
        if not isinstance(word, str) or not WORD.fullmatch(word):
            raise DataError(
                f"{where}: word {number} of {name!r} is {shorten(repr(word), 50)}, and no string "
                "without a blank in it. Mend it, or drop it along with its tag."
            )
    return " ".join(words)


def _stripped(labels: list[str], source: str) -> list[str]:
    """Return labels without the blanks around them, with a warning if that joins classes."""
    spellings = set(labels)
    if len(set(map(str.strip, spellings))) < len(spellings):
        padded = ", ".join(repr(name) for name in sorted(spellings) if name != name.strip())
        message = (
            f"{source}: labels are read without the blanks around them: {shorten(padded, 100)}."
        )
        warnings.warn(message, stacklevel=2)
    return [label.strip() for label in labels]


def strings_in(where: str, column: str, cell: Any) -> list[str]:
    """Return names of classes or tags, without the blanks around them."""
    names = cell if isinstance(cell, list) else [cell]
    for name in names:
        if not isinstance(name, str | int):
            raise wrong_cell(where, column, name, "a list of strings or ints")
    return [str(name).strip() for name in names]


def flag_in(where: str, column: str, cell: Any) -> bool:
    """Return whether a cell of 0 or 1, or false or true, is 1."""
    flag = FLAGS.get(str(cell).strip().casefold())
    if flag is None:
        rule = f"{column!r} is {shorten(repr(cell), 50)}, neither 0 nor 1"
        raise DataError(f"{where}: {rule}. Mend it, or drop the row.")
    return flag


def number_in(where: str, column: str, cell: Any) -> float | None:
    """Return the finite number in a cell, None if it is blank."""
    if is_blank(cell):
        return None
    try:
        number = float("nan" if isinstance(cell, bool) else cell)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not abs(number) <= LARGEST:
        rule = f"{column!r} is {shorten(repr(cell), 50)}, no finite number (of 32 bits)"
        raise DataError(f"{where}: {rule}. Mend it, or drop the row.")
    return number
