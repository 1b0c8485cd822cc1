"""What a program hands to ``predict``, in whatever container, as rows that data modules frame."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from textwrap import shorten
from typing import Any

import numpy as np
from PIL import Image

from lit_foundry.data.files.rows import DataError

TEXTS = "a text, a pair of texts, or a record with {}"
IMAGES = "a path, bytes, an image of PIL, an array (H, W, C) of uint8, or a record with {}"
CONTAINERS = "a list, an array, a Series, a DataFrame or a generator"


def text_rows(inputs: Any, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the texts of each input.

    Args:
        inputs: One input, or several in any container that has an order.
        columns: What holds the texts of records and of a DataFrame.

    Raises:
        DataError: If the container, or what it holds, is of another type.
    """
    rule = TEXTS.format(" and ".join(columns))
    rows = []
    for where, item in _several(inputs, lambda value: isinstance(value, str), rule):
        if isinstance(item, Mapping):
            parts = _cells(item, columns, where)
        else:
            parts = list(item) if isinstance(item, (list, tuple, np.ndarray)) else [item]
        if wrong := [part for part in parts if not isinstance(part, str)]:
            raise DataError(f"{where} is or holds a {type(wrong[0]).__name__}: give {rule}.")
        rows.append(tuple(map(str, parts)))  # plain ones of those of numpy
    return rows


def image_rows(inputs: Any, column: str) -> list[Any]:
    """Return the image of each input; as ``text_rows``."""
    rule = IMAGES.format(column)
    rows = []
    for where, item in _several(inputs, _is_image, rule):
        [image] = _cells(item, [column], where) if isinstance(item, Mapping) else [item]
        if not _is_image(image):
            raise DataError(f"{where} is or holds a {type(image).__name__}: give {rule}.")
        if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[-1] > 4:
            raise DataError(
                f"{where} is an array {image.shape}, and no image has {image.shape[-1]} channels: "
                "give (H, W, C), or (N, H, W, C) of several."
            )
        rows.append(image)
    return rows


def _several(inputs: Any, is_one: Callable[[Any], bool], rule: str) -> Iterable[tuple[str, Any]]:
    """Return the items of a container, or an input alone, each with its name for messages."""
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):  # a DataFrame
        inputs = inputs.to_dict("records")
    elif isinstance(inputs, np.ndarray) and not inputs.ndim:
        inputs = inputs.item()
    if is_one(inputs) or isinstance(inputs, Mapping):
        inputs = [inputs]
    # Sets have no order in which to answer.
    if not isinstance(inputs, Iterable) or isinstance(inputs, (bytes, set, frozenset)):
        kind = type(inputs).__name__
        raise DataError(f"A {kind} cannot be predicted on: give {rule}, or {CONTAINERS} of such.")
    return ((f"Input {number}", item) for number, item in enumerate(inputs))


def _is_image(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3) and value.dtype.kind in "biufc"
    return isinstance(value, (str, bytes, PathLike, Image.Image))


def _cells(record: Mapping[str, Any], columns: Sequence[str], where: str) -> list[Any]:
    """Return the cells of some columns."""
    if missing := [name for name in columns if name not in record]:
        there = shorten(", ".join(map(str, record)), 200)
        raise DataError(f"{where} has no {missing[0]!r}, as in training, but {there}: rename them.")
    return [record[name] for name in columns]
