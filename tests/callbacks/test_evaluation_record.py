"""The record of an evaluation: what batches yield of samples, gathered and kept by its kind."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from lit_foundry.callbacks.evaluation_record import EvaluationRecord, SampleOutputs
from lit_foundry.report.sections import shown_rows
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.predictions import Predictions
from tests.predicted import COUNT, LABELS, columns, told_data

TASK: Any = SimpleNamespace(predicts=None)


def trainer(datamodule: Any = None) -> Any:
    return SimpleNamespace(is_global_zero=True, world_size=1, datamodule=datamodule)


def batches(kind: str, size: int = 8) -> list[dict[str, torch.Tensor]]:
    """Return the samples of a kind in batches of any order."""
    every = {"index": np.arange(COUNT), **columns(kind)}
    order = np.random.default_rng(5).permutation(COUNT)
    parts = [order[i : i + size] for i in range(0, COUNT, size)]
    return [{n: torch.from_numpy(c[part]) for n, c in every.items()} for part in parts]


def some_data(**told: Any) -> Any:
    """Return what a record reads of a data module of ours."""
    nothing: dict[str, Any] = {"labels": [], "thumbnail": lambda stage, row: None}
    nothing["describe"] = lambda stage, rows: {"id": rows}
    return told_data(**nothing | told)


def recorded(folder: Path, kind: str, datamodule: Any) -> Predictions:
    """Have samples recorded, and read what was kept."""
    record = EvaluationRecord(RunFolder(folder))
    for batch in batches(kind):
        record.on_validation_batch_end(trainer(), TASK, batch)
    record.record(trainer(datamodule), None, "val", 3)
    return Predictions.read(folder / "predictions" / "val.parquet")


@pytest.mark.parametrize("kind", LABELS)
def test_samples_of_each_kind_are_kept_in_the_order_of_the_split(kind: str, tmp_path: Path) -> None:
    data = some_data(
        labels=LABELS[kind], describe=lambda stage, rows: {"id": [f"{stage}{i}" for i in rows]}
    )
    found = recorded(tmp_path, kind, data)
    assert found.step == 3
    assert found.samples["id"] == [f"val{i}" for i in range(COUNT)]
    assert found.labels == (LABELS[kind] or (["value"] if kind == "value" else []))
    for name, column in columns(kind).items():
        np.testing.assert_array_equal(found.columns[name], column)


@pytest.mark.parametrize("data", [None, SimpleNamespace()])
def test_data_that_tell_nothing_are_numbered(data: Any, tmp_path: Path) -> None:
    found = recorded(tmp_path, "class", data)
    assert found.labels == ["0", "1", "2"]
    assert found.samples == {"id": list(range(COUNT))}


@pytest.mark.parametrize("kind", LABELS)
def test_samples_that_the_page_shows_have_pictures(kind: str, tmp_path: Path) -> None:
    data = some_data(thumbnail=lambda stage, row: Image.new("RGB", (4, 4), (row, 0, 0)))
    found = recorded(tmp_path, kind, data)
    pictured = {row for row, image in enumerate(found.samples["image"]) if image is not None}
    assert shown_rows(found) == pictured >= set(found.worst().tolist())
    assert 24 <= len(pictured) < COUNT


def test_tags_of_batches_of_any_length_are_gathered() -> None:
    outputs = SampleOutputs()
    for index, rows in (([2, 0], [[1, 2, -100], [0, 0, 3]]), ([1], [[4]])):
        tags = torch.tensor(rows)
        outputs.add({"index": torch.tensor(index), "tag": tags, "target": tags})
    found = outputs.gather(trainer())
    assert found["target"].tolist() == [[0, 0, 3], [4, -100, -100], [1, 2, -100]]
    assert found["tag"].tolist() == found["target"].tolist()
    assert outputs.gather(trainer()) == {}


def test_numbers_of_few_bits_are_kept_as_those_of_32() -> None:
    outputs = SampleOutputs()
    for dtype in (torch.bfloat16, torch.float16):
        outputs.add({"index": torch.arange(2), "loss": torch.tensor([0.5, 2.0], dtype=dtype)})
    assert outputs.gather(trainer())["loss"].dtype == np.float32


@pytest.mark.parametrize("outputs", [None, {}, torch.tensor(0.5)])
def test_a_step_that_keeps_nothing_leaves_no_file(outputs: Any, tmp_path: Path) -> None:
    record = EvaluationRecord(RunFolder(tmp_path))
    record.on_test_batch_end(trainer(), TASK, outputs)
    record.record(trainer(), None, "test", 3)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ({"loss": torch.zeros(4)}, "needs their index"),
        ({"index": torch.arange(4), "loss": torch.zeros(4, 2)}, "loss must be one number a sample"),
        ({"index": torch.arange(4), "loss": torch.zeros(3)}, "one row is kept"),
        ({"index": torch.arange(4), "prob": torch.zeros(4)}, "prob has shape"),
    ],
)
def test_samples_of_no_kind_are_refused_at_the_first_batch(outputs: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SampleOutputs().add(outputs)


@pytest.mark.parametrize(
    "outputs",
    [
        {"index": torch.arange(4), "boxes": np.zeros((4, 2))},
        {"index": torch.arange(4), "loss": torch.zeros(4), "number": 3},
        {"index": "first", "loss": torch.zeros(4)},
        {"loss": torch.zeros(4)},
    ],
)
def test_what_a_plain_module_returns_is_its_own(outputs: Any, tmp_path: Path) -> None:
    record = EvaluationRecord(RunFolder(tmp_path))
    record.on_validation_batch_end(trainer(), LightningModule(), outputs)
    record.record(trainer(), LightningModule(), "val", 3)
    assert not list(tmp_path.rglob("*.parquet"))
