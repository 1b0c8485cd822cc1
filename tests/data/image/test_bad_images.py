"""Images that cannot be read end early, in a line that names the place, the rule, the remedy."""

import json
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_foundry.__main__ import foreseen, message
from lit_foundry.data import (
    CIFAR10,
    DataError,
    DatasetNotFoundError,
    Digits,
    ImageFiles,
    ImageFolder,
)
from lit_foundry.data.image.decoding import BadImageError, Form
from lit_foundry.data.image.labelled import ImageData
from tests.images import encoded, noise, rows, write_cifar, write_class_folders, write_parquet


@dataclass(frozen=True)
class Case:
    """One bad input, and what has to be said about it.

    Args:
        parts: What the message holds; ``{folder}`` is filled in.
        prepare: Damages the folder, which has ``pets/{cat,dog}`` and ``train.parquet``.
        build: Makes the data module.
        split: What is loaded.
        error: Type of the exception.
    """

    parts: tuple[str, ...]
    prepare: Callable[[Path], Any] = lambda folder: None
    build: Callable[[Path], ImageData] = lambda folder: ImageFolder(str(folder / "pets"))
    split: Any = "train"
    error: type[Exception] = DataError
    options: dict[str, Any] = field(default_factory=dict)


def overwritten(data: bytes, name: str = "pets/dog/001.png") -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(data)


def table(folder: Path, **options: Any) -> ImageFiles:
    return ImageFiles(str(folder / "train.parquet"), **options)


def listed(text: str, name: str = "train.csv") -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def bad_row(**changes: Any) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        records = rows(20)
        records[12] |= changes
        write_parquet(folder / "train.parquet", records)

    return write


def bomb(width: int, height: int) -> bytes:
    """Make a small PNG that claims to be huge."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def as_float(folder: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(folder / "pets/dog/zzz.tiff")


def pickled(content: Any) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        write_cifar(folder)
        data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
        (folder / "cifar-10-batches-py/data_batch_3").write_bytes(data)

    return write


class Exploit:
    """Runs a command when it is unpickled, if it is let."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("exploited",)


PNG = encoded(noise(0))
REMEDY = "data.bad_images"
NO_PIXELS = {b"data": np.zeros((3, 100), np.uint8), b"labels": [0, 1, 2]}
CASES = {
    # images
    "truncated": Case(
        ("pets/dog/001.png", "truncated", "Mend or remove it", REMEDY), overwritten(PNG[:-30])
    ),
    "no bytes": Case(("pets/dog/001.png", "0 bytes", REMEDY), overwritten(b"")),
    "not an image": Case(("pets/dog/001.png", "not an image", REMEDY), overwritten(b"a" * 99)),
    "decompression bomb": Case(
        ("pets/dog/001.png", "limit", "MAX_IMAGE_PIXELS", REMEDY), overwritten(bomb(60000, 60000))
    ),
    "bomb of which PIL only warns": Case(
        ("pets/dog/001.png", "limit", "MAX_IMAGE_PIXELS"), overwritten(bomb(10000, 10000))
    ),
    "mode without conversion": Case(("pets/dog/zzz.tiff", "mode F", "8 bit"), as_float),
    "another size": Case(
        ("pets/dog/001.png", "9x4 pixels", "8x8", "Set data.size"),
        overwritten(encoded(noise(1, 4, 9))),
    ),
    "bad bytes in a table": Case(
        ("train.parquet, row 13", "not an image", REMEDY),
        bad_row(image={"bytes": b"hello", "path": None}),
        table,
    ),
    "bad bytes in a table of chosen classes": Case(
        ("train.parquet, row 13", "not an image", REMEDY),
        bad_row(image={"bytes": b"hello", "path": None}),
        lambda folder: table(folder, classes=["0", "1"]),
    ),
    "another size among streamed images": Case(
        ("pets/dog/001.png", "9x4 pixels", "8x8", "Set data.size"),
        overwritten(encoded(noise(1, 4, 9))),
        lambda folder: ImageFolder(str(folder / "pets"), cache=False),
    ),
    # tables
    "no image": Case(
        ("train.parquet, row 13", "'image' is null", "bytes of an image"),
        bad_row(image=None),
        table,
    ),
    "no label": Case(
        ("train.parquet, row 13", "no 'label'", "1 of 20 rows"), bad_row(label=None), table
    ),
    "no image column": Case(
        ("train.parquet", "no column 'img'", "did you mean 'image'", "data.image"),
        build=lambda folder: table(folder, image="img"),
    ),
    "no image column in a list": Case(
        ("train.csv, line 1", "no column 'image'", "data.image"),
        listed("file,label\na,b\n"),
        lambda folder: ImageFiles(str(folder / "train.csv")),
    ),
    "column of numbers": Case(
        ("train.parquet", "'label' is int64", "data.image"),
        build=lambda folder: table(folder, image="label"),
    ),
    "damaged parquet": Case(
        ("train.parquet", "not valid parquet"), overwritten(b"PAR1" * 9, "train.parquet"), table
    ),
    "unknown suffix": Case(
        ("train.xlsx", "not a table", ".parquet", "folder"),
        build=lambda folder: ImageFiles(str(folder / "train.xlsx")),
    ),
    "no such table": Case(
        ("{folder}/trian.parquet", "no such file"),
        build=lambda folder: ImageFiles(str(folder / "trian.parquet")),
        error=DatasetNotFoundError,
    ),
    "missing file of a list": Case(
        ("train.csv, line 3", "pets/none.png", "no such file", "relative to the list"),
        listed("image,label\npets/dog/001.png,dog\npets/none.png,cat\n"),
        lambda folder: ImageFiles(str(folder / "train.csv")),
        error=DatasetNotFoundError,
    ),
    "unknown label in test": Case(
        ("test.parquet", "'2'", "row 3", "test split", "mend the label"),
        lambda folder: write_parquet(folder / "test.parquet", rows(6, names=("a", "b", "c"))),
        lambda folder: table(folder, test=str(folder / "test.parquet")),
        "test",
    ),
    "test without its data": Case(
        ("data.test is not set", "name the file"), build=table, split="test"
    ),
    "wrong label_names": Case(
        ("data.label_names", "each class", "['0', '1']"),
        build=lambda folder: table(folder, label_names=["0", "2"]),
    ),
    # folders
    "no such folder": Case(
        ("{folder}/none", "no such folder", "data.root"),
        build=lambda folder: ImageFolder(str(folder / "none")),
        error=DatasetNotFoundError,
    ),
    "empty folder": Case(
        ("{folder}/void", "no folder of a class", "data.root"),
        lambda folder: (folder / "void").mkdir(),
        lambda folder: ImageFolder(str(folder / "void")),
        error=DatasetNotFoundError,
    ),
    "folder without classes": Case(
        ("pets/dog", "no folder of a class", "data.root"),
        build=lambda folder: ImageFolder(str(folder / "pets/dog")),
        error=DatasetNotFoundError,
    ),
    "class without images": Case(
        ("pets/eel", "no image", ".png", "remove the folder"),
        lambda folder: (folder / "pets/eel").mkdir(),
        error=DatasetNotFoundError,
    ),
    "one class": Case(
        ("only the class 'cat'", "at least two. Add another."),
        lambda folder: (
            write_class_folders(folder / "one/train", 20)
            and (folder / "one/train/dog").rename(folder / "dogs")
        ),
        lambda folder: ImageFolder(str(folder / "one")),
    ),
    "one class in a file that validates": Case(
        ("val split", "only the class '1'", "set data.val to null"),
        lambda folder: write_parquet(folder / "val.parquet", rows(40)[1::2]),
        lambda folder: table(folder, val=str(folder / "val.parquet")),
        "val",
    ),
    "class that training lacks": Case(
        ("val", "'eel'", "val split", "['cat', 'dog']"),
        lambda folder: [
            write_class_folders(folder / "both/train", 20),
            write_class_folders(folder / "both/val", 4),
            (folder / "both/val/dog").rename(folder / "both/val/eel"),
        ],
        lambda folder: ImageFolder(str(folder / "both")),
        "val",
    ),
    "splits without one to train on": Case(
        ("{folder}/both", "Testing is named like a split", "{folder}/both/train"),
        lambda folder: [
            write_class_folders(folder / "both/Testing", 20),
            write_class_folders(folder / "both/val", 20),
        ],
        lambda folder: ImageFolder(str(folder / "both")),
    ),
    "a split beside classes": Case(
        ("{folder}/pets", "test is named like a split", "{folder}/pets/train"),
        lambda folder: write_class_folders(folder / "pets/test", 20),
    ),
    "two folders of a split": Case(
        ("{folder}/both", "Train and training are both the train split", "Rename"),
        lambda folder: [
            write_class_folders(folder / "both/Train", 20),
            write_class_folders(folder / "both/training", 20),
        ],
        lambda folder: ImageFolder(str(folder / "both")),
    ),
    "folders of data sets": Case(
        (
            "{folder}/sets",
            "part1 and all folders beside it hold folders",
            "data.root",
            "/sets/train",
        ),
        lambda folder: [
            write_class_folders(folder / "sets/part1", 20),
            write_class_folders(folder / "sets/part2", 20),
        ],
        lambda folder: ImageFolder(str(folder / "sets")),
    ),
    "no folder to test": Case(
        ("{folder}/pets/test", "no such folder", "data.root"),
        split="test",
        error=DatasetNotFoundError,
    ),
    # CIFAR
    "no CIFAR": Case(
        ("{folder}/pets", "no train split of CIFAR-10", "cifar-10-batches-py", "uoft-cs/cifar10"),
        build=lambda folder: CIFAR10(str(folder / "pets")),
        error=DatasetNotFoundError,
    ),
    "torn pickle": Case(
        ("data_batch_3", "damaged", "Unpack the archive again"),
        pickled(pickle.dumps(NO_PIXELS)[:-40]),
        lambda folder: CIFAR10(str(folder)),
    ),
    "pickle that runs code": Case(
        ("data_batch_3", "damaged", "print"),
        pickled(Exploit()),
        lambda folder: CIFAR10(str(folder)),
    ),
    "pickle of other arrays": Case(
        ("data_batch_3", "damaged", "(N, 3072)"),
        pickled(NO_PIXELS),
        lambda folder: CIFAR10(str(folder)),
    ),
    "missing batch": Case(
        ("data_batch_3", "no such file", "Unpack the archive again"),
        lambda folder: [
            write_cifar(folder),
            (folder / "cifar-10-batches-py/data_batch_3").unlink(),
        ],
        lambda folder: CIFAR10(str(folder)),
        error=DatasetNotFoundError,
    ),
    "label that is none": Case(
        ("train.parquet, row 13", "'77'", "CIFAR-10 has 0 to 9"),
        lambda folder: write_parquet(
            folder / "train.parquet",
            [row | {"label": 77 if i == 12 else 1} for i, row in enumerate(rows(20))],
            "img",
        ),
        lambda folder: CIFAR10(str(folder)),
    ),
    # prediction
    "empty folder to predict on": Case(
        ("void", "no image", ".png"),
        lambda folder: (folder / "void").mkdir(),
        lambda folder: ImageFolder("none", size=8, predict=str(folder / "void")),
        "predict",
        DatasetNotFoundError,
    ),
    "missing file to predict on": Case(
        ("list.txt, line 2", "b.png", "no such file"),
        listed("pets/dog/001.png\nb.png\n", "list.txt"),
        lambda folder: ImageFolder("none", size=8, predict=str(folder / "list.txt")),
        "predict",
        DatasetNotFoundError,
    ),
    "empty list to predict on": Case(
        ("list.txt", "empty"),
        listed("\n \n", "list.txt"),
        lambda folder: ImageFolder("none", size=8, predict=str(folder / "list.txt")),
        "predict",
    ),
}


def taken(data: ImageData, split: Any) -> None:
    """Read, decode and take every image of a split."""
    dataset = data.load(split)
    for row in range(len(dataset)):
        dataset[[row]]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "-") for name in CASES])
def test_error_says_what_where_and_what_to_do(case: Case, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "pets", 20)
    write_parquet(tmp_path / "train.parquet", rows(20))
    case.prepare(tmp_path)
    cache = tmp_path / "cache"
    data = case.build(tmp_path)
    data.cache = cache
    with pytest.raises(case.error) as caught:
        taken(data, case.split)
    text = str(caught.value)
    assert foreseen(caught.value)
    assert "\n" not in text
    missing = [
        p for p in (p.replace("{folder}", str(tmp_path)) for p in case.parts) if p not in text
    ]
    assert not missing, text
    assert not [path for path in cache.glob("images/*") if path.suffix != ".lock"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"size": 0}, r"data.size must be at least 1 pixel, got 0"),
        ({"bad_images": -1}, r"data.bad_images must be at least 0, got -1"),
        ({"val_fraction": 1.0}, r"data.val_fraction must lie in \(0, 1\), got 1.0"),
        ({"classes": ["a", "a"]}, r"data.classes must name each class once"),
        ({"transform": {"init_args": {}}}, r"data.transform takes class_path and init_args"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ImageFolder("somewhere", **options)


def damaged(root: Path, count: int = 3) -> Path:
    write_class_folders(root, 40)
    files = sorted(root.rglob("*.png"))
    for file in files[1 : count + 1]:
        file.write_bytes(file.read_bytes()[:-30])
    return root


@pytest.mark.parametrize("cache", [True, False])
def test_bad_images_within_the_budget_are_skipped_and_listed(tmp_path: Path, cache: bool) -> None:
    root = damaged(tmp_path / "pets")
    data = ImageFolder(str(root), bad_images=3, cache=cache, cache_dir=tmp_path / "cache")
    with pytest.warns(UserWarning, match=r"3 of 40 train images are skipped: .*truncated.*See "):
        sizes = [len(data.load(split)) for split in ("train", "val")]
    assert sum(sizes) == 37
    bad = [str(file) for file in sorted(root.rglob("*.png"))[1:4]]
    assert [skipped.path for skipped in data.skipped["train"]] == bad
    assert all("truncated" in skipped.reason for skipped in data.skipped["train"])
    [record] = (tmp_path / "cache").glob("images/*/skipped.json")
    assert [path for _, path, _ in json.loads(record.read_text(encoding="utf-8"))] == bad
    for split in ("train", "val"):
        ids = data.table(split).ids or ()
        assert not {str(root / name) for name in ids} & {*bad}
        for image, name in zip(data.images(split, range(len(ids))), ids, strict=True):
            assert np.array_equal(image, Form().pixels(root / name))


def test_more_bad_images_than_the_budget_are_an_error_also_where_they_are_known(
    tmp_path: Path,
) -> None:
    root = damaged(tmp_path / "pets")
    cache = tmp_path / "cache"
    with pytest.raises(DataError, match=r"more than data.bad_images=2 .*raise data.bad_images"):
        ImageFolder(str(root), bad_images=2, cache_dir=cache).load("train")
    with pytest.warns(UserWarning, match="skipped"):
        ImageFolder(str(root), bad_images=9, cache_dir=cache).load("train")
    with pytest.raises(DataError, match=r"more than data.bad_images=2"):
        ImageFolder(str(root), bad_images=2, cache_dir=cache).load("train")
    with pytest.raises(DataError, match=r"cat/\d+.png: truncated.*set data.bad_images"):
        ImageFolder(str(root), cache_dir=cache).load("train")


def test_what_a_worker_cannot_decode_is_one_line_too(tmp_path: Path) -> None:
    root = damaged(tmp_path / "pets")
    data = ImageFolder(str(root), size=8, cache=False, batch_size=6, num_workers=1)
    with pytest.raises(DataError) as caught:
        list(data.train_dataloader())
    assert foreseen(caught.value)
    assert message(caught.value).startswith(str(root))
    assert message(caught.value).endswith("may be skipped.")
    assert "\n" not in message(caught.value)


def test_whatever_the_damage_an_image_is_bad_or_has_pixels() -> None:
    rng = np.random.default_rng(0)
    files = [
        encoded(noise(0, 16, 16), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    ]
    bad = 0
    for i in range(600):
        data = bytearray(files[i % len(files)])
        for place in rng.integers(0, len(data), 3):
            data[place] = rng.integers(256)
        cut = len(data) if i % 2 else rng.integers(len(data))
        try:
            assert Form(8).pixels(bytes(data[:cut])).shape == (8, 8, 3)
        except BadImageError:
            bad += 1
    assert 200 < bad < 500


def test_missing_scikit_learn_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"Digits come with scikit-learn.*lit-foundry\[digits\]"
    ):
        Digits().load("train")
