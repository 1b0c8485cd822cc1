"""ONNX models in fewer bits: smaller, and of the same mind as their checkpoint."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import lit_foundry
from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.cli.main import main
from lit_foundry.compress.evaluation import evaluate
from lit_foundry.export import command as exporting
from lit_foundry.export import quantization
from lit_foundry.usage import UsageError
from tests.conftest import digits_config, reviews, tiny_config, write_config, write_csv

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit a classifier of texts that is sure of what it says."""
    folder = tmp_path_factory.mktemp("text")
    write_csv(folder / "train.csv", reviews(160, seed=0))
    write_csv(folder / "test.csv", reviews(60, seed=1))
    config = tiny_config(folder)
    bert = config["model"]["init_args"]["backbone"]["init_args"]["config"]
    bert |= {"hidden_size": 64, "intermediate_size": 256}
    config["model"]["init_args"]["optim"] = {"lr": 3e-3}
    config["trainer"]["max_epochs"] = 5
    best: Path = main(["fit", "--config", str(write_config(folder / "text.yaml", config))]).run.path
    return best / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fit a convolutional network."""
    folder = tmp_path_factory.mktemp("image")
    config = digits_config(folder)
    config["model"]["init_args"]["backbone"]["init_args"]["width"] = 8
    del config["model"]["init_args"]["mixing"], config["data"]["init_args"]["max_train_samples"]
    config["data"]["init_args"] |= {"batch_size": 32, "micro_batch": 32}
    best: Path = main(
        ["fit", "--config", str(write_config(folder / "image.yaml", config))]
    ).run.path
    return best / "checkpoints" / "best.ckpt"


def size(folder: Path) -> int:
    return (folder / "model.onnx").stat().st_size


def in_floats(folder: Path) -> float:
    """Return the share of a model's weights that have 32 bits."""
    import onnx

    tensors = onnx.load(str(folder / "model.onnx")).graph.initializer
    kinds = {onnx.TensorProto.FLOAT: 1, onnx.TensorProto.INT8: 0, onnx.TensorProto.UINT8: 0}
    counts = [(math.prod(t.dims), kinds[t.data_type]) for t in tensors if t.data_type in kinds]
    return sum(n * is_float for n, is_float in counts) / sum(n for n, _ in counts)


# Positions stay in floats, and where activations have fixed ranges, embeddings too.
@pytest.mark.parametrize(
    ("method", "most"),
    [
        ("int8-dynamic", 0.1),
        pytest.param("int4", 0.2, marks=pytest.mark.slow),
        pytest.param("int8-static", 0.3, marks=pytest.mark.slow),
    ],
)
def test_texts_are_labelled_as_before_in_fewer_bits(text: Path, method: str, most: float) -> None:
    exporting.main(["--ckpt_path", str(text), "--format", "onnx", "--quantize", method])
    folder = text.parents[1] / "export" / f"onnx-{method}"
    said = json.loads((folder / "lit_foundry.json").read_text(encoding="utf-8"))
    assert said["quantization"] == method
    assert said["agreement"] >= 0.95
    accuracy = [evaluate(path).scores["accuracy"] for path in (text, folder)]
    assert accuracy[0] > 0.9
    assert accuracy[1] >= accuracy[0] - 0.05
    assert in_floats(folder) < most


@pytest.mark.slow
def test_convolutions_are_calibrated_on_training_images(image: Path) -> None:
    exporting.main(["--ckpt_path", str(image), "--format", "onnx", "--quantize", "int8-static"])
    exporting.main(["--ckpt_path", str(image), "--format", "onnx"])
    folder, plain = (image.parents[1] / "export" / name for name in ("onnx-int8-static", "onnx"))
    assert size(folder) < 0.5 * size(plain)
    accuracy = [evaluate(path).scores["accuracy"] for path in (image, folder)]
    assert accuracy[0] > 0.5
    assert accuracy[1] >= accuracy[0] - 0.03
    with pytest.raises(CheckpointError, match="leaves convolutions alone"):
        exporting.export(image, "onnx", None, "int8-dynamic")


@pytest.mark.slow
def test_what_disagrees_leaves_an_older_export_alone(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exporting.export(text, "onnx", tmp_path / "export")
    before = (folder / "model.onnx").read_bytes()
    monkeypatch.setattr(exporting, "agreement", lambda *args: 0.5)
    with pytest.raises(CheckpointError, match=r"agree with the checkpoint's on 50% of training"):
        exporting.export(text, "onnx", folder, "int8-dynamic")
    assert (folder / "model.onnx").read_bytes() == before


def test_calibration_takes_training_samples_from_all_over_the_split() -> None:
    asked: list[str] = []

    class Samples:
        lengths = np.arange(1000)[::-1] % 7

        def __getitem__(self, rows: list[int]) -> dict[str, torch.Tensor]:
            return {"x": torch.tensor(rows), "label": torch.zeros(len(rows))}

    data = SimpleNamespace(load=lambda split: asked.append(split) or Samples())
    batches = quantization.calibration(data, ["x"])
    assert asked == ["train"]
    assert [{*batch} for batch in batches] == [{"x"}] * 16
    found = torch.cat([batch["x"] for batch in batches])
    assert found.sort().values.diff().unique().tolist() == [7, 8]
    assert np.all(np.diff(Samples.lengths[found]) >= 0)
    again = quantization.calibration(data, ["x"])
    assert all(torch.equal(one["x"], other["x"]) for one, other in zip(batches, again, strict=True))


def test_agreement_counts_what_is_predicted_alike() -> None:
    batches: Any = [
        {"x": torch.tensor([[1.0, 2.0], [3.0, 0.0]])},
        {"x": torch.tensor([[5.0, 4.0]])},
    ]

    def agreement(predicts: str, weigh: Any, part: Any = lambda x: x) -> float:
        return quantization.agreement(
            lambda b: part(b["x"]), lambda b: weigh(part(b["x"])), batches, predicts
        )

    assert agreement("class", lambda x: x * torch.tensor([1, 3])) == pytest.approx(2 / 3)
    assert agreement("class", lambda x: 2 - x, lambda x: x[:, :1]) == pytest.approx(1 / 3)
    # Of several classes each counts by itself, not the most probable one.
    assert agreement("classes", lambda x: x * torch.tensor([1, 3])) == 1
    assert agreement("classes", lambda x: x - 1.5) == pytest.approx(2 / 3)
    # Values lie near each other: their deviations here are 2.
    for part in (lambda x: x, lambda x: x[:, :1], lambda x: x[:, 0]):
        assert agreement("value", lambda x: x + 0.4, part) == 1
        assert agreement("value", lambda x: x + 0.6, part) == 0
        assert agreement("value", lambda x: x.clamp(max=4.2), part) == pytest.approx(2 / 3)


def test_agreement_of_tags_leaves_padding_out() -> None:
    logits = torch.tensor([[[1.0, 0], [0, 1], [1, 0]]])
    batches: Any = [{"x": logits, "attention_mask": torch.tensor([[1, 1, 0]])}]
    for change, expected in (([1, 1, -1], 1), ([1, -1, 1], 0.5)):
        other = logits * torch.tensor(change)[:, None]
        found = quantization.agreement(lambda b: b["x"], lambda b, o=other: o, batches, "tags")
        assert found == expected


def test_only_onnx_is_quantized_so(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="is for --format onnx, and not hf"):
        exporting.main(["--ckpt_path", str(text), "--format", "hf", "--quantize", "int4"])
    with pytest.raises(UsageError, match="invalid choice: 'int2'"):
        exporting.main(["--ckpt_path", str(text), "--format", "onnx", "--quantize", "int2"])


@pytest.mark.slow
def test_quantized_folder_labels_texts_in_a_line(text: Path, tmp_path: Path) -> None:
    folder = exporting.export(text, "onnx", tmp_path / "q", "int8-dynamic")
    texts = ["a bright story with great actors", "an awful dull plot", "poor awful camera"]
    assert (
        lit_foundry.load(folder).predict(texts).labels
        == lit_foundry.load(text).predict(texts).labels
    )
