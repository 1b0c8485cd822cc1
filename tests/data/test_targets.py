"""Kinds of labels: from files into batches, for texts and images; their checks and their life."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from lit_foundry.data import DataError, ImageFiles, ImageFolder, TextFiles, TrainTokenizer
from lit_foundry.data.targets import target_of
from tests.conftest import REAL
from tests.images import encoded, noise, write_class_folders

TOKENIZER = TrainTokenizer(vocab_size=300)
Records = list[dict[str, Any]]


def write(path: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Write records as .csv (lists joined by |), .tsv, .jsonl or .parquet."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [[_cell(value) for value in record.values()] for record in records]
        path.write_text(
            "\n".join(mark.join(line) for line in [list(records[0]), *lines]), encoding="utf-8"
        )
    return str(path)


def _cell(value: Any) -> str:
    return "|".join(map(str, value)) if isinstance(value, list) else str(value)


def texts(train: str, folder: Path, **options: Any) -> TextFiles:
    options = {"max_length": 16, "batch_size": 4, "cache": folder / "cache"} | options
    return TextFiles(TOKENIZER, train, **options)


def many(count: int = 40, **columns: Any) -> Records:
    """Return rows of texts with what functions of their numbers say of them."""
    return [
        {"text": f"text number {i}", **{name: of(i) for name, of in columns.items()}}
        for i in range(count)
    ]


def topics(i: int) -> list[str]:
    return [name for name, every in (("art", 2), ("law", 3), ("tax", 5)) if i % every == 0]


def number_of(data: TextFiles, row: int, split: Any = "train") -> int:
    return int(data.table(split).texts[row].split()[-1])


FILES = ["x.csv", "x.tsv", "x.jsonl", "x.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_several_classes_are_a_row_of_zeros_and_ones(tmp_path: Path, name: str) -> None:
    train = write(tmp_path / name, many(label=topics))
    data = texts(train, tmp_path, target="classes")
    assert (data.target_kind, data.labels, data.facts["num_classes"]) == (
        "classes",
        ["art", "law", "tax"],
        3,
    )
    rows = list(range(len(data.table("train"))))
    label: Tensor = data.load("train")[rows]["label"]
    expected = [[float(t in topics(number_of(data, row))) for t in data.labels] for row in rows]
    assert label.dtype == torch.float32
    assert label.tolist() == expected
    assert [0.0, 0.0, 0.0] in expected, "no class may apply"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("flag", [int, bool, float])
def test_a_column_for_each_class_is_the_same(tmp_path: Path, name: str, flag: Any) -> None:
    columns = {t: lambda i, t=t: flag(t in topics(i)) for t in ("tax", "art", "law")}
    train = write(tmp_path / name, many(**columns))
    data = texts(train, tmp_path, target="classes", label=["tax", "art", "law"])
    listed = texts(write(tmp_path / "y.jsonl", many(label=topics)), tmp_path, target="classes")
    assert data.labels == ["tax", "art", "law"]
    assert data.table("train").fingerprint == listed.table("train").fingerprint
    label: Tensor = data.load("train")[[0, 3]]["label"]
    assert torch.equal(label, listed.load("train")[[0, 3]]["label"][:, [2, 0, 1]])
    ordered = texts(
        train,
        tmp_path,
        target="classes",
        label=["tax", "art", "law"],
        label_names=["art", "law", "tax"],
    )
    assert torch.equal(ordered.load("train")[[0, 3]]["label"], label[:, [1, 2, 0]])


@pytest.mark.parametrize("name", FILES)
def test_a_value_is_a_number(tmp_path: Path, name: str) -> None:
    train = write(tmp_path / name, many(score=lambda i: i / 8, other=lambda i: -i))
    data = texts(train, tmp_path, target="value", label="score")
    assert (data.target_kind, data.labels, data.facts["num_values"]) == ("value", ["score"], 1)
    assert "num_classes" not in data.facts
    label: Tensor = data.load("train")[[4, 2]]["label"]
    assert label.dtype == torch.float32
    assert label.tolist() == [number_of(data, row) / 8 for row in (4, 2)]
    data = texts(train, tmp_path, target="value", label=["other", "score"])
    assert (data.labels, data.facts["num_values"]) == (["other", "score"], 2)
    label = data.load("val")[[1, 0]]["label"]
    assert label.tolist() == [[-n, n / 8] for n in (number_of(data, row, "val") for row in (1, 0))]


@pytest.mark.parametrize("name", FILES)
def test_texts_need_no_labels(tmp_path: Path, name: str) -> None:
    train = write(tmp_path / name, many(other=str))
    data = texts(train, tmp_path, target="none", max_train_samples=20)
    assert (data.target_kind, data.labels) == ("none", [])
    assert not {"num_classes", "num_values"} & {*data.facts}
    assert [len(data.table(split)) for split in ("train", "val")] == [20, 4]
    for batch in (*data.train_dataloader(), *data.val_dataloader()):
        assert "label" not in batch
    again = texts(train, tmp_path, target="none")
    again.restore(data.state())
    assert again.labels == []


def image_records(folder: Path, count: int = 20, **columns: Any) -> Records:
    names = [f"{i:02}.png" for i in range(count)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(encoded(noise(i)))
    return [
        {"image": name, **{column: of(i) for column, of in columns.items()}}
        for i, name in enumerate(names)
    ]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("target", ["classes", "value", "none"])
def test_images_are_labelled_alike(tmp_path: Path, name: str, target: str) -> None:
    records = image_records(tmp_path, label=topics, score=float, number=int)
    if name == "x.parquet":
        for record in records:
            record["image"] = (tmp_path / record["image"]).read_bytes()
    train = write(tmp_path / name, records)
    label = {"classes": "label", "value": "score", "none": "image"}[target]
    options: Any = {"batch_size": 4, "cache_dir": tmp_path / "cache", "id": "number"}
    data = ImageFiles(train, target=target, label=label, val_fraction=0.2, **options)
    counts = {k: v for k, v in data.facts.items() if k.startswith("num")}
    dataset, table = data.load("train"), data.table("train")
    rows = list(range(len(table)))
    numbers = [int(table.id(row)) for row in rows]
    assert len(rows) == 16
    assert data.images("train", [0]).tolist() == [noise(numbers[0]).tolist()]
    if target == "none":
        assert counts == {}
        assert "label" not in dataset[rows]
        return
    assert counts == ({"num_classes": 3} if target == "classes" else {"num_values": 1})
    expected: Any = [float(n) for n in numbers]
    if target == "classes":
        expected = [[float(t in topics(n)) for t in data.labels] for n in numbers]
    assert dataset[rows]["label"].tolist() == expected
    twin = ImageFiles(train, target=target, label=label, **options)
    twin.restore(data.state())
    assert twin.labels == data.labels


def test_folders_of_images_need_no_classes(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write_class_folders(tmp_path / "deep" / "er", 20)
    (tmp_path / "alone.png").write_bytes(encoded(noise(99)))
    cache = tmp_path_factory.mktemp("cache")
    options: Any = {"target": "none", "batch_size": 4, "cache_dir": cache}
    data = ImageFolder(str(tmp_path / "deep"), **options)
    assert [len(data.table(split)) for split in ("train", "val")] == [18, 2]
    assert len(ImageFolder(str(tmp_path), **options).source("train") or ()) == 21
    assert (data.target_kind, data.labels, data.facts) == (
        "none",
        [],
        {"in_channels": 3, "image_size": 8},
    )
    assert sorted(data.load("train")[[0, 1]]) == ["index", "pixel_values"]
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"val is named like a split.* Put the images to train on"):
        ImageFolder(str(tmp_path), **options).table("train")
    (tmp_path / "train").mkdir()
    write_class_folders(tmp_path / "train", 8)
    write_class_folders(tmp_path / "val", 4, seed=50)
    data = ImageFolder(str(tmp_path), **options)
    assert [len(data.table(split)) for split in ("train", "val")] == [8, 4]


def test_validation_and_samples_depend_on_contents_alone(tmp_path: Path) -> None:
    records = many(200, label=topics, score=lambda i: i, name=lambda i: "ab"[i % 2])
    order = np.random.default_rng(0).permutation(200)
    shuffled = [records[i] for i in order]
    held = []
    for target, label in (("classes", "label"), ("value", "score"), ("none", "none")):
        for number, rows in enumerate((records, shuffled)):
            train = write(tmp_path / f"{number}.jsonl", rows)
            data = texts(train, tmp_path, target=target, label=label, max_train_samples=50)
            held.append([set(data.table(split).texts) for split in ("val", "train")])
    assert all(part == held[0] for part in held)
    assert [len(part) for part in held[0]] == [20, 50]
    other = texts(train, tmp_path, target="none", split_seed=1)
    assert set(other.table("val").texts) != held[0][0]


def test_copies_fall_on_one_side(tmp_path: Path) -> None:
    records = [record for record in many(30, label=float) for _ in range(3)]
    data = texts(write(tmp_path / "x.jsonl", records), tmp_path, target="value")
    train, val = (set(data.table(split).texts) for split in ("train", "val"))
    assert len(val) == 3
    assert not train & val


def test_a_checkpoint_restores_the_order_of_classes(tmp_path: Path) -> None:
    train = write(tmp_path / "x.jsonl", many(label=topics))
    names = ["tax", "rare", "law", "art"]
    data = texts(train, tmp_path, target="classes", label_names=names)
    assert data.labels == names, "a class need not occur in training"
    recipe, state = data.recipe()["init_args"], data.state()
    tokenizer = recipe.pop("tokenizer")
    assert (recipe["target"], recipe["label_names"]) == ("classes", names)
    (tmp_path / "x.jsonl").unlink()
    test = write(tmp_path / "test.jsonl", many(10, label=topics))
    twin = TextFiles(TrainTokenizer(**tokenizer), **(recipe | {"test": test, "label_names": None}))
    twin.restore(state)
    assert twin.labels == names
    assert twin.load("test")[[0, 1, 9]]["label"].tolist() == [
        [1, 0, 1, 1],
        [0, 0, 0, 0],
        [0, 0, 1, 0],
    ]


BAD: dict[str, tuple[str, dict[str, Any], Records, str]] = {
    "no number": ("value", {}, [{"label": "high"}], r"line 2: 'label' is 'high', no finite number"),
    "comma": ("value", {}, [{"label": "3,5"}], r"'label' is '3,5', no finite number"),
    "nan": ("value", {}, [{"label": float("nan")}], r"'label' is nan, no finite"),
    "inf": ("value", {}, [{"label": float("inf")}], r"'label' is inf, no finite"),
    "too large": ("value", {}, [{"label": 1e39}], r"'label' is 1e\+39, no finite"),
    "true": ("value", {}, [{"label": True}], r"'label' is True, no finite"),
    "list": ("value", {}, [{"label": [1]}], r"'label' is \[1\], no finite"),
    "missing": ("value", {}, [{"label": None}], r"no 'label' \(missing in 1 of 2 rows\)"),
    "one missing": (
        "value",
        {"label": ["score", "label"]},
        [{"score": 1, "label": None}],
        r"no 'label' \(missing in 1 of 2 rows\)",
    ),
    "no column": ("value", {"label": "skore"}, [{"label": 1}], r"no column 'skore'"),
    "null": ("classes", {}, [{"label": None}], r"no 'label' \(missing in 1 of 2 rows\)"),
    "number": ("classes", {}, [{"label": [0.5]}], r"'label' is of type float\. Make it a list of"),
    "mapping": ("classes", {}, [{"label": {"a": 1}}], r"'label' is of type dict\. Make it a list"),
    "no flag": (
        "classes",
        {"label": ["score", "label"]},
        [{"score": 1, "label": -1}],
        r"'label' is -1, neither 0 nor 1",
    ),
    "several": ("class", {}, [{"label": ["a"]}], r"type list.* set data.target to classes or tags"),
    "real": ("class", {}, [{"label": 0.5}], r"of type float.* set data.target to value"),
}


@pytest.mark.parametrize("case", BAD)
def test_labels_that_are_none_are_named(tmp_path: Path, case: str) -> None:
    target, options, records, message = BAD[case]
    good = {"value": 1.0, "class": "a", "classes": ["a"]}[target]
    first = {name: 0 for name in options.get("label", []) if name in records[0]} or {"label": good}
    rows = [{"text": f"t{i}"} | record for i, record in enumerate((first, *records))]
    train = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(DataError, match=rf"x\.jsonl.*{message}") as error:
        texts(train, tmp_path, target=target, **options).table("train")
    assert "\n" not in str(error.value)


def test_an_unknown_class_is_named_with_its_row(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", many(label=topics))
    test = write(tmp_path / "test.jsonl", [*many(2, label=topics), {"text": "x", "label": ["tea"]}])
    for split in ("val", "test"):
        data = texts(train, tmp_path, target="classes", **{split: test})
        message = rf"test\.jsonl: label 'tea' of row 3 in the {split} split is none of the known"
        with pytest.raises(DataError, match=message):
            data.table(split)  # type: ignore[arg-type]


def test_splits_from_which_nothing_is_learned_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "x.jsonl", many(4, label=lambda i: []))
    with pytest.raises(DataError, match=r"the train split has only \[\] in 'label'; it needs"):
        texts(train, tmp_path, target="classes").table("train")
    copies = write(tmp_path / "y.jsonl", [{"text": "same", "label": i} for i in range(4)])
    with pytest.raises(DataError, match=r"copies of one, of which none can be held out.*data\.val"):
        texts(copies, tmp_path, target="value").table("train")
    few = write(tmp_path / "z.jsonl", many(4, label=float))
    with pytest.raises(DataError, match=r"val_fraction=0.95 holds out all samples.* lower it"):
        texts(few, tmp_path, target="value", val_fraction=0.95).table("train")


def test_names_that_likely_are_several_are_remarked_on(tmp_path: Path) -> None:
    train = write(tmp_path / "x.tsv", [{"text": f"t{i}", "label": "3,27"} for i in range(20)])
    with pytest.warns(UserWarning, match=r"some are named as '3,27'\. Set data\.label_delimiter"):
        assert texts(train, tmp_path, target="classes").labels == ["3,27"]
    assert texts(train, tmp_path, target="classes", label_delimiter=",").labels == ["3", "27"]


def test_class_names_of_datasets_are_read_from_lists(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    column = datasets.Sequence(datasets.ClassLabel(names=["joy", "grief"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": column})
    rows = {"text": [f"t{i}" for i in range(20)], "label": [[], [0], [1], [0, 1]] * 5}
    path = tmp_path / "x.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    data = texts(str(path), tmp_path, target="classes")
    assert data.labels == ["grief", "joy"]
    assert {*(data.table("train").labels or ())} == {(), ("joy",), ("grief",), ("grief", "joy")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("class", ["a", "b"]),
            r"data\.label=\['a', 'b'\] must be one column where data\.target=class",
        ),
        (("tags", ["a", "b"]), r"must be one column where data\.target=tags"),
        (("value", []), r"data\.label=\[\] must name each column once, and one at least"),
        (("value", ["a", "a"]), r"must name each column once"),
        (("value", "a", ["b"]), r"data\.label_names=\['b'\] names classes, .* data\.target=value"),
        (("classes", "a", None, ""), r"data\.label_delimiter must be at least one character"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        target_of(*arguments)


def test_only_single_classes_are_balanced_or_chosen_from(tmp_path: Path) -> None:
    train = write(tmp_path / "x.jsonl", many(label=topics, score=float))
    for target, label in (("classes", "label"), ("value", "score")):
        data = texts(train, tmp_path, target=target, label=label, balanced=True)
        rule = rf"one for each sample, and data\.target is {target}: leave it out"
        with pytest.raises(ValueError, match=rule):
            data.train_dataloader()
    with pytest.raises(ValueError, match=r"balanced=true needs classes, which TextFiles has none"):
        texts(train, tmp_path, target="none", balanced=True).train_dataloader()
    table = write(tmp_path / "y.csv", image_records(tmp_path, score=float))
    with pytest.raises(ValueError, match=r"data\.classes=\['a'\] needs data\.target=class"):
        ImageFiles(table, target="value", label="score", classes=["a"]).table("train")


def test_values_of_another_number_than_a_checkpoint_knows_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "x.jsonl", many(a=float, b=float))
    data = texts(train, tmp_path, target="value", label=["a", "b"], test=train)
    state = data.state()
    twin = texts(train, tmp_path, target="value", label="a", test=train)
    twin.restore(state)
    with pytest.raises(
        DataError, match=r"names 1 columns of values, and 2 are known: \['a', 'b'\]"
    ):
        twin.table("test")


@pytest.mark.skipif(not (REAL / "glue/STS-B").is_dir(), reason="needs the real data")
def test_similarities_of_sts_b_are_read_as_published(tmp_path: Path) -> None:
    files = {split: str(REAL / f"glue/STS-B/{name}.tsv") for split, name in (("val", "dev"),)}
    data = texts(
        str(REAL / "glue/STS-B/train.tsv"),
        tmp_path,
        target="value",
        text=["sentence1", "sentence2"],
        label="score",
        **files,
    )
    train, val = (np.array(data.table(split).labels) for split in ("train", "val"))
    assert (len(train), len(val)) == (5749, 1500)
    assert (train.min(), train.max()) == (0, 5)
    assert train.mean() == pytest.approx(2.70, abs=0.01)
    batch: Any = data.load("val")[[0, 1]]
    assert batch["label"].tolist() == [5.0, 4.75]
    assert batch["token_type_ids"].any()
