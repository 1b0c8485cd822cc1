"""Tables of images and labels from folders, lists, tables and the Hugging Face hub.

Errors name, in one line, the file, the line of a text file or the row of another (both from 1;
a header is line 1), the rule and the remedy.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lit_foundry.data.files.cells import checked, other_columns
from lit_foundry.data.files.folders import Found, entries, files_in, joined, tell_left_out
from lit_foundry.data.files.image_kinds import is_image
from lit_foundry.data.files.image_table import ArrowImages, ImageTable, distinct
from lit_foundry.data.files.rows import (
    DataError,
    DatasetNotFoundError,
    arrow_rows,
    check_columns,
    existing,
    lines_of,
    rows_of,
    wrong_cell,
)
from lit_foundry.data.files.table import LabelReader
from lit_foundry.data.files.text_tables import SUFFIXES
from lit_foundry.sources import from_hub, resolve

IMAGES = "images (.jpg, .png, .webp or another suffix of what PIL decodes)"
KEYS = "data.image, data.label"
RULE = "the bytes of an image, or its path"


def read_class_folders(root: Path, cache: Path | None = None) -> ImageTable:
    """Read images ``root/{class}/**``; the folders' names are the labels.

    Raises:
        DatasetNotFoundError: If there is no such folder, or no image in one of a class.
        DataError: If links put a file into two classes, or a folder may not be read.
    """
    folders = folders_in(root)
    if not folders:
        rule = "no folder of a class here, which holds its images"
        raise DatasetNotFoundError(f"{root}: {rule}. Set data.root to a folder of such.")
    ways: dict[str, Path] = {}
    found = [files_in(folder, is_image, within=root) for folder in folders]
    for folder, part in zip(folders, found, strict=True):
        if not part.files and folder not in part.loops:
            rule = f"no {IMAGES} in this folder of a class"
            raise DatasetNotFoundError(f"{folder}: {rule}. Add some, or remove the folder.")
        for real, file in part.files.items():
            if (other := ways.setdefault(real, file)) is not file:
                rule = f"the same file as {other}, by a link, in two classes"
                raise DataError(f"{file}: {rule}. Remove it from one of them.")
    beside = Found(left_out=[file for file in map(Path, entries(root)) if is_loose(file)])
    tell_left_out(str(root), joined(found), IMAGES)
    tell_left_out(str(root), beside, "in the folder of a class")
    files = list(ways.values())
    labels = [folder.name for folder, part in zip(folders, found, strict=True) for _ in part.files]
    ids = [file.relative_to(root).as_posix() for file in files]
    return ImageTable(files, labels, ids, str(root), cache=cache)


def folders_in(root: Path) -> list[Path]:
    """Return the folders in a folder, by name."""
    return [path for path in map(Path, entries(root)) if os.path.isdir(path)]


def is_loose(path: Path) -> bool:
    """Tell whether a path is that of an image, and not of a folder named like one."""
    return is_image(path) and not os.path.isdir(path)


def read_images(source: str, image: str, id: str | None, cache: Path | None = None) -> ImageTable:
    """Read images to predict on.

    Args:
        source: Folder, at any depth; an image; a .txt file of one path a line, relative to the
            file, or "-" for such lines on standard input; or a table file.
        image: Column of the images, where there are columns.
        id: Column that identifies rows, likewise; paths or row numbers if None.
        cache: Folder for the digests of files.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = files_in(path, is_image)
        if not found.files:
            raise DatasetNotFoundError(f"{path}: no {IMAGES} in this folder. Name another.")
        tell_left_out(source, found, IMAGES)
        files = list(found.files.values())
        return ImageTable(
            files, ids=[f.relative_to(path).as_posix() for f in files], source=source, cache=cache
        )
    if is_image(path):
        return ImageTable([existing(path)], ids=[source], source=source, cache=cache)
    if source != "-" and path.suffix.lower() != ".txt":
        return read_image_table(path, image, None, id, cache)
    return _listed("-" if source == "-" else path, cache)


def _listed(source: Any, cache: Path | None) -> ImageTable:
    place = "standard input" if source == "-" else str(source)
    lines = [line.strip() for line in lines_of(source)]
    numbered = [(f"{place}, line {n}", line) for n, line in enumerate(lines, 1) if line]
    if not numbered:
        raise DataError(f"{place}: empty. Give one path of an image a line.")
    base = Path() if source == "-" else Path(source).expanduser().parent
    files = [_there(where, base, name) for where, name in numbered]
    return ImageTable(files, ids=[name for _, name in numbered], source=place, cache=cache)


def read_image_table(
    path: Path,
    image: str,
    label: str | LabelReader | None,
    id: str | None = None,
    cache: Path | None = None,
) -> ImageTable:
    """Read columns of a .csv, .tsv, .jsonl or .parquet file.

    Args:
        path: The file; several of .parquet, if its name has a ``*``.
        image: Column of paths relative to the file, or, of a .parquet file, of bytes or of
            structs ``{bytes, path}``, as on the hub.
        label: Column of the labels: strings, ints, bools, or class numbers of ``datasets``,
            which become class names; or what reads other labels. None reads none.
        id: Column that identifies rows; paths, or else row numbers if None.
        cache: Folder for the digests of files.

    Raises:
        DatasetNotFoundError: If there is no such file, or none at a path in it.
        DataError: If it is empty or malformed, or lacks a column, an image or a label.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        rule = f"not a table of images. Convert it to one of {', '.join(SUFFIXES)}"
        raise DataError(f"{path}: {rule}, or name a folder.")
    columns = _columns(image, label, id)
    if path.suffix.lower() != ".parquet":
        rows = list(rows_of(path, [*columns.values(), *other_columns(label)], keys=KEYS))
        fields = checked(iter(rows), str(path), columns, RULE, label)
        places = zip([where for where, _ in rows], fields["images"], strict=True)
        files = [_there(where, path.parent, name) for where, name in places]
        fields.setdefault("ids", fields["images"])
        return ImageTable(files, fields.get("labels"), fields["ids"], str(path), cache=cache)
    parts = sorted(path.parent.glob(path.name)) if "*" in path.name else [existing(path)]
    if not parts:
        raise DatasetNotFoundError(f"{path}: no such file. Correct its path in data.*.")
    tables = [_parquet(part, [*columns.values(), *other_columns(label)]) for part in parts]
    whole = str(path), columns, label
    return _from_arrow(tables, [str(part) for part in parts], *whole, path.parent, cache)


def read_image_hub(
    name: str,
    split: str,
    image: str,
    label: str | LabelReader | None,
    id: str | None = None,
    remedy: str = "Check the name, or name files on this machine instead.",
) -> ImageTable:
    """Read a split of ``org/name`` or ``org/name:config`` on the hub, as ``read_image_table``.

    Raises:
        FileNotFoundError: If the hub cannot be reached, or lacks the name, config or split.
        DataError: If the split is empty, or lacks a column, an image or a label.
    """
    import datasets  # takes seconds, and most runs read files

    path, config, columns = resolve(name), None, _columns(image, label, id)
    if not Path(path).exists() and ":" in path:
        path, _, config = path.partition(":")
    source, names = f"{name}, split {split}", [*columns.values(), *other_columns(label)]
    with from_hub(path, f"(Asked for: {source}.) {remedy}"):
        data = datasets.load_dataset(path, config, split=split)
    check_columns(source, names, data.column_names, KEYS)
    table = data.with_format("arrow")[:].select(list(dict.fromkeys(names)))
    table = table.replace_schema_metadata(data.features.arrow_schema.metadata)
    return _from_arrow([table], [source], source, columns, label, Path(path), None)


def _columns(image: str, label: str | LabelReader | None, id: str | None) -> dict[str, str]:
    optional = (("labels", label), ("ids", id))
    return {"images": image} | {field: name for field, name in optional if isinstance(name, str)}


def _parquet(path: Path, names: list[str]) -> Any:
    try:
        check_columns(str(path), names, pq.read_schema(path).names, KEYS)
        return pq.read_table(path, columns=list(dict.fromkeys(names)), partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not valid parquet ({error}). Write it again.") from error


def _from_arrow(
    tables: Sequence[Any],
    sources: Sequence[str],
    source: str,
    columns: dict[str, str],
    label: str | LabelReader | None,
    base: Path,
    cache: Path | None,
) -> ImageTable:
    """Check arrow tables of these sources, and join them."""
    fields: dict[str, list[Any]] = {}
    name, others = columns["images"], {k: v for k, v in columns.items() if k != "images"}
    read = [*others.values(), *other_columns(label)]
    for table, part in zip(tables, sources, strict=True):
        if not len(table):
            raise DataError(f"{part}: no rows. Write it again, or name another.")
        if read:
            rows = arrow_rows(table.to_batches(), table.schema, part, read)
            for field, cells in checked(rows, part, others, RULE, label).items():
                fields.setdefault(field, []).extend(cells)
    encoded = [
        _encoded(t.column(name), part, name) for t, part in zip(tables, sources, strict=True)
    ]
    ids = fields.get("ids") or distinct([path for _, paths in encoded for path in paths])
    if encoded[0][0] is not None:
        data = pa.chunked_array([chunk for column, _ in encoded for chunk in column.chunks])
        images: Any = ArrowImages(data)
    else:
        wheres = [
            f"{p}, row {r}"
            for t, p in zip(tables, sources, strict=True)
            for r in range(1, len(t) + 1)
        ]
        names = [path for _, paths in encoded for path in paths]
        images = [_there(where, base, n) for where, n in zip(wheres, names, strict=True)]
    return ImageTable(images, fields.get("labels"), ids, source, cache=cache)


def _encoded(column: Any, source: str, name: str) -> tuple[Any, list[str | None]]:
    """Split a column of images into bytes, None if it has only paths, and paths."""
    kind = column.type
    paths: list[str | None] = [None] * len(column)
    if pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        paths = pc.struct_field(column, "path").to_pylist()
        column = pc.struct_field(column, "bytes")
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return None, _all_there(column.to_pylist(), source, name)
    elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        rule = f"column {name!r} is {kind}, and not of {RULE}"
        raise DataError(f"{source}: {rule}. Set data.image to another.")
    if column.null_count == len(column) and all(paths):
        return None, paths
    if column.null_count:
        row = pc.is_null(column).index(True).as_py() + 1
        raise wrong_cell(f"{source}, row {row}", name, None, RULE)
    return column, paths


def _all_there(cells: list[str | None], source: str, name: str) -> list[str | None]:
    for row, cell in enumerate(cells, 1):
        if not cell:
            raise wrong_cell(f"{source}, row {row}", name, cell, RULE)
    return cells


def _there(where: str, base: Path, name: Any) -> Path:
    file = base / Path(name).expanduser()
    if not os.path.isfile(file) and (os.path.exists(file) or not os.path.islink(file)):
        rule = "no such file, whose path is relative to the list"
        raise DatasetNotFoundError(f"{where}: {name}: {rule}. Correct it, or drop the row.")
    return file
