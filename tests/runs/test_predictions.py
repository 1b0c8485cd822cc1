"""The file of predictions: each kind is read as it was written, and by others too."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_foundry.runs.predictions import Predictions, kinds
from lit_foundry.runs.tracking import table
from tests.predicted import COUNT, LABELS, columns, predictions

FILES = {
    "class": ["label", "predicted", "prob_no", "prob_yes", "prob_perhaps"],
    "classes": ["labels", "predicted", "prob_art", "prob_sport", "prob_war & peace"],
    "value": ["target", "value"],
    "values": ["target_width", "target_height", "value_width", "value_height"],
    "tags": ["tags", "predicted"],
    "number": ["error", "count"],
}


@pytest.mark.parametrize("kind", FILES)
def test_predictions_are_read_as_they_were_written(kind: str, tmp_path: Path) -> None:
    words = [["a", "b"]] * COUNT
    loss = np.random.default_rng(3).random(COUNT)
    wrote = Predictions(LABELS[kind], {**columns(kind), "loss": loss}, {"words": words}, 7)
    found = Predictions.read(wrote.write(tmp_path / "a.parquet"))
    assert (found.labels, found.step, found.samples) == (wrote.labels, 7, {"words": words})
    assert found.kinds == wrote.kinds
    assert found.numbers[-1] == "loss"
    for name, column in wrote.columns.items():
        np.testing.assert_array_equal(found.columns[name], column)
        assert found.columns[name].dtype == column.dtype
    np.testing.assert_array_equal(found.worst(), wrote.worst())


@pytest.mark.parametrize("kind", FILES)
def test_other_readers_find_plain_columns(kind: str, tmp_path: Path) -> None:
    said = predictions(kind)
    frame = pd.read_parquet(said.write(tmp_path / "a.parquet"))
    assert list(frame) == ["id", *FILES[kind]]
    if kind == "class":
        assert frame["label"].tolist() == [LABELS[kind][i] for i in said.target]
    if kind == "classes":
        rows = [[LABELS[kind][i] for i in np.flatnonzero(row)] for row in said.probs > 0.5]
        assert [list(row) for row in frame["predicted"]] == rows
    if kind == "tags":
        rows = [[LABELS[kind][i] for i in row if i >= 0] for row in said.target]
        assert [list(row) for row in frame["tags"]] == rows


def test_file_of_an_earlier_version_is_one_of_classes(tmp_path: Path) -> None:
    old = {
        "id": ["a", "b"],
        "tokens": [3, 4],
        "label": ["neg", "pos"],
        "predicted": ["pos", "pos"],
        "prob_neg": pa.array([0.25, 0.125], pa.float32()),
        "prob_pos": pa.array([0.75, 0.875], pa.float32()),
    }
    about = json.dumps({"labels": ["neg", "pos"], "step": 5})
    pq.write_table(
        pa.table(old).replace_schema_metadata({"lit_foundry": about}), tmp_path / "old.parquet"
    )
    found = Predictions.read(tmp_path / "old.parquet")
    assert (found.kind, found.labels, found.step) == ("class", ["neg", "pos"], 5)
    assert found.samples == {"id": ["a", "b"], "tokens": [3, 4]}
    assert (found.target.tolist(), found.predicted.tolist()) == ([0, 1], [1, 1])
    np.testing.assert_array_equal(found.probs, [[0.25, 0.75], [0.125, 0.875]])
    found.write(tmp_path / "new.parquet")
    frames = [pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("old", "new")]
    pd.testing.assert_frame_equal(*frames)


def of(*shape: int, whole: bool = False) -> Any:
    return np.zeros(shape, np.int64 if whole else np.float32)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"prob": of(4, 3), "target": of(4, whole=True)}, "class"),
        ({"prob": of(4, 3), "target": of(4, 3, whole=True)}, "classes"),
        ({"prob": of(4, 4), "target": of(4, 4)}, "classes"),
        ({"prob": of(4, 3) + 1 / 3}, "class"),
        ({"prob": of(4, 3) + 0.5}, "classes"),
        ({"value": of(4), "target": of(4)}, "value"),
        ({"value": of(4, 2), "target": of(4, 2)}, "value"),
        ({"value": of(4, 1)}, "value"),
        ({"tag": of(4, 9, whole=True), "target": of(4, 9, whole=True)}, "tags"),
        ({"tag": of(4, 9, whole=True)}, "tags"),
        ({"loss": of(4)}, "number"),
    ],
)
def test_kind_follows_from_names_and_shapes(given: dict[str, Any], found: str) -> None:
    assert kinds(given) == dict.fromkeys(given, found)
    assert kinds({**given, "error": of(4)}) == {**dict.fromkeys(given, found), "error": "number"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": of(4, 2)}, r"loss must be one number a sample.* got the shape \(4, 2\)"),
        ({"loss": of()}, r"loss must be one number a sample.* got the shape \(\)"),
        ({"label": of(4)}, r"by a name other than id, label,"),
        ({"loss": of(4), "error": of(3)}, r"Of each sample of a batch one row is kept"),
        ({"prob": of(4, 2), "value": of(4)}, r"Of prob and value only one can be kept"),
        ({"prob": of(4)}, r"prob has shape \(B, C\)"),
        ({"prob": of(4, 2), "target": of(4)}, r"prob has shape \(B, C\).*'float32 \(4,\)'"),
        ({"prob": of(4, 2), "target": of(4, 3)}, r"prob has shape"),
        ({"value": of(4, 1), "target": of(4)}, r"value has shape"),
        ({"tag": of(4, 2)}, r"tag has whole numbers of shape \(B, T\)"),
        ({"tag": of(4, 2, whole=True), "target": of(4, whole=True)}, r"tag has whole numbers"),
    ],
)
def test_columns_of_no_kind_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kinds(given)


@pytest.mark.parametrize(
    ("kind", "labels", "named"),
    [
        *(("class", ["a"], ["0", "1", "2"]), ("classes", [], ["0", "1", "2"])),
        *(("value", ["a", "b"], ["value"]), ("value", ["age"], ["age"])),
        *(("values", [], ["0", "1"]), ("tags", ["O", "PER"], ["0", "1", "2"])),
        *(("tags", ["O", "PER", "LOC", "ORG"], ["O", "PER", "LOC", "ORG"]), ("number", ["a"], [])),
    ],
)
def test_what_has_no_names_is_numbered(kind: str, labels: list[str], named: list[str]) -> None:
    given = columns(kind)
    assert Predictions(labels, given).labels == (named if kind != "number" else labels)


def test_worst_samples_come_first() -> None:
    value = Predictions([], {"value": np.array([1.0, 5.0, np.nan, 2.0]), "target": np.ones(4)})
    assert value.worst().tolist() == [2, 1, 3]
    scaled = {"value": np.array([[1.0, 0], [0, 90], [0, 0]]), "target": np.zeros((3, 2))}
    scaled["target"][2] = [0.1, 1000]  # whose second value is a thousand times larger
    assert Predictions([], scaled).worst().tolist() == [0, 2, 1]
    prob = np.array([[0.9, 0.9], [0.6, 0.2], [0.9, 0.2], [0.1, 0.9]], np.float32)
    both = Predictions([], {"prob": prob, "target": np.array([[0, 0], [0, 0], [0, 0], [0, 1]])})
    assert both.worst().tolist() == [0, 2, 1]
    tag, target = np.array([[0, 1], [1, 1], [1, 0]]), np.array([[0, 1], [0, 0], [-100, 1]])
    assert Predictions([], {"tag": tag, "target": target}).worst().tolist() == [1, 2]


@pytest.mark.parametrize("kind", FILES)
def test_tracked_table_has_columns_by_kind_and_the_worst_rows(kind: str) -> None:
    said = predictions(kind, image=[b"png"] * COUNT)
    found = table(said, rows=5)
    extra = {"class": ["label", "predicted", "prob"], "classes": ["labels", "predicted"]}
    assert found["columns"] == ["id", *extra.get(kind, FILES[kind])]
    worst = said.worst(5).tolist() or range(5)
    assert [row[0] for row in found["data"]] == [f"s{i}" for i in worst]
    assert json.loads(json.dumps(found)) == found
