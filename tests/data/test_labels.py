"""Labels: which names are likely one, and what is left once validation was taken."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_foundry.data import ImageFolder, TextFiles
from lit_foundry.data.files.table import Table
from lit_foundry.data.files.text_tables import DataError
from lit_foundry.data.labels import check_labels
from tests.images import write_class_folders


def labelled(*labels: str) -> Table:
    return Table([str(i) for i in range(len(labels))], labels=labels, source="x.csv")


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (("pos", "Pos", "neg"), "'Pos' and 'pos' are classes of their own"),
        (("True", "true"), "'True' and 'true'"),
        (("1", "1.0", "2"), "'1' and '1.0'"),
        (("1", "01"), "'01' and '1'|'1' and '01'"),
        (("caf\u00e9", "cafe\u0301"), "are classes of their own"),
        (("no  go", "no go"), "'no  go' and 'no go'"),
    ],
)
def test_labels_that_differ_by_their_spelling_alone_are_named(
    labels: tuple[str, ...], named: str
) -> None:
    with pytest.warns(UserWarning, match=f"x.csv: .*{named}"):
        check_labels(labelled(*labels), "train", None)


@pytest.mark.parametrize("labels", [("pos", "neg"), ("1", "2", "10"), ("nan", "NaN?"), ("a", "b")])
def test_other_labels_are_not_remarked_on(labels: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_labels(labelled(*labels), "train", None)


def text_files(path: Path, rows: list[tuple[str, str]], **options: Any) -> TextFiles:
    path.write_text("text,label\n" + "".join(f"{t},{y}\n" for t, y in rows), encoding="utf-8")
    return TextFiles("none", train=str(path), **options)


def test_classes_of_one_sample_are_named(tmp_path: Path) -> None:
    data = text_files(tmp_path / "x.csv", [(f"t{i}", f"c{i:02}") for i in range(30)])
    with pytest.raises(DataError, match=r"the class 'c00' \(and of 29 more\) has one sample"):
        data.table("train")
    copies = [("same", "a"), ("same", "a"), ("other", "b"), ("others", "b")]
    with pytest.raises(DataError, match=r"class 'a' has one .* add samples, or set data\.val to"):
        text_files(tmp_path / "y.csv", copies).table("val")


def test_a_share_that_leaves_nothing_to_train_on_is_named(tmp_path: Path) -> None:
    rows = [(f"t{i}", "ab"[i % 2]) for i in range(20)]
    data = text_files(tmp_path / "x.csv", rows, val_fraction=0.99)
    rule = r"data\.val_fraction=0\.99 holds out all of the class 'a' \(and of 1 more\), .* lower it"
    with pytest.raises(DataError, match=rule):
        data.table("train")


@pytest.mark.parametrize(
    ("fraction", "rule"), [(0.99, "holds out all of"), (0.1, "has one sample")]
)
def test_the_same_is_told_of_images(tmp_path: Path, fraction: float, rule: str) -> None:
    write_class_folders(tmp_path, 8 if fraction > 0.5 else 2)
    data = ImageFolder(str(tmp_path), size=4, val_fraction=fraction)
    with pytest.raises(DataError, match=rf"{rule}.*"):
        data.table("train")


def test_a_class_of_one_sample_beside_others_stays_in_training(tmp_path: Path) -> None:
    rows = [(f"t{i}", "ab"[i % 2]) for i in range(20)] + [("alone", "c")]
    data = text_files(tmp_path / "x.csv", rows)
    assert set(np.unique(data.table("val").labels or ())) == {"a", "b"}
    assert data.labels == ["a", "b", "c"]
