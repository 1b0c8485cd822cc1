"""Programs of torch with weights of 8 and 4 bits: smaller, in memory too, and of the same mind."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lit_foundry
from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.checkpoints.torch_program import load_program
from lit_foundry.cli.main import main
from lit_foundry.compress.artifact import open_artifact, weights
from lit_foundry.compress.evaluation import evaluate
from lit_foundry.compress.memory import growth
from lit_foundry.export import command as exporting
from lit_foundry.nn import TextDecoder, quantization
from lit_foundry.tasks import CausalLM
from tests.conftest import reviews, tiny_config, write_config, write_csv
from tests.export.test_quantization import image, text  # noqa: F401

METHODS = ("int8-weight-only", "int4-weight-only")


@pytest.mark.parametrize("method", [pytest.param(METHODS[0], marks=pytest.mark.slow), METHODS[1]])
def test_texts_are_labelled_as_before_by_a_smaller_program(
    text: Path,  # noqa: F811
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torchao")
    exporting.main(["--ckpt_path", str(text), "--format", "torch", "--quantize", method])
    folder = text.parents[1] / "export" / f"torch-{method}"
    said = json.loads((folder / "lit_foundry.json").read_text(encoding="utf-8"))
    assert said["quantization"] == method
    assert said["agreement"] >= 0.95
    assert open_artifact(folder).format == f"torch {method}"
    assert weights(folder)[0] == weights(text)[0]
    # No weight is there in floats a second time; one byte holds one number, or two.
    tensors = load_program(folder / "model.pt2").state_dict.values()
    floats = sum(t.numel() for t in tensors if t.is_floating_point())
    integers = sum(t.numel() for t in tensors if t.dtype in (torch.int8, torch.uint8))
    per_byte = 2 if method == "int4-weight-only" else 1
    assert integers * per_byte + floats >= weights(text)[0]
    assert integers * per_byte > 0.9 * weights(text)[0]
    accuracy = [evaluate(path).scores["accuracy"] for path in (text, folder)]
    assert accuracy[0] > 0.9
    assert accuracy[1] >= accuracy[0] - 0.05
    # What it was made by is not needed any more.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchao"]:
        monkeypatch.setitem(sys.modules, name, None)
    texts = ["a bright story with great actors", "an awful dull plot", "poor awful camera"]
    loaded = (lit_foundry.load(path).predict(texts).labels for path in (text, folder))
    assert next(loaded) == next(loaded)


@pytest.mark.slow
def test_memory_falls_by_what_the_weights_lose(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    write_csv(tmp_path / "train.csv", reviews(160, seed=0))
    write_csv(tmp_path / "test.csv", reviews(60, seed=1))
    config = tiny_config(tmp_path)
    bert = config["model"]["init_args"]["backbone"]["init_args"]["config"]
    bert |= {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 3}
    config["model"]["init_args"]["optim"] = {"lr": 1e-4}
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 6}
    run: Any = main(["fit", "--config", str(write_config(tmp_path / "big.yaml", config))]).run.path
    best = run / "checkpoints" / "best.ckpt"
    folders = [exporting.export(best, "torch", tmp_path / "float")]
    folders += [exporting.export(best, "torch", tmp_path / m, m) for m in METHODS]
    ids = torch.randint(5, 50, (1, 16))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sizes = [weights(folder)[1] for folder in folders]
    grown = [growth(folder, batch) for folder in folders]
    one_layer = 4 * 768 * 3072  # which is in floats while it is multiplied, and packed for that
    for size, memory in zip(sizes[1:], grown[1:], strict=True):
        assert sizes[0] - size > 0.7 * sizes[0]
        assert grown[0] - memory > 0.8 * (sizes[0] - size) - 3 * one_layer


def test_tied_weights_stay_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao")
    from lit_foundry.export.weight_only import quantize_weights

    gpt = {"model_type": "llama", "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64}
    gpt |= {"num_hidden_layers": 1, "num_attention_heads": 2, "tie_word_embeddings": True}
    task: Any = CausalLM(TextDecoder(config=gpt))
    quantize_weights(task, "int4-weight-only")
    tables = [m for m in task.modules() if isinstance(m, quantization.IntegerEmbedding)]
    assert len(tables) == 1
    assert tables[0].values.shape == (50, 16)


def test_what_is_refused_is_told_in_a_line(
    text: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for format in ("onnx", "hf", "safetensors"):
        with pytest.raises(CheckpointError, match=f"is for --format torch, and not {format}"):
            exporting.export(text, format, None, "int8-weight-only")
    with pytest.raises(CheckpointError, match="int8-dynamic is for --format onnx, and not torch"):
        exporting.export(text, "torch", None, "int8-dynamic")
    from lit_foundry.export import weight_only

    monkeypatch.setattr(weight_only, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"^--quantize int4-weight-only: pip inst"):
        exporting.export(text, "torch", tmp_path / "export", "int4-weight-only")
    assert not (tmp_path / "export").exists()


def test_missing_training_data_are_told_of_before_a_program_is_made(
    text: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torchao")
    made: list[Any] = []
    monkeypatch.setattr(exporting, "write_torch", lambda *args: made.append(args))
    gone = {"train": str(tmp_path / "gone.csv")}
    with pytest.raises(FileNotFoundError, match=r"gone\.csv: no such file"):
        exporting.export(text, "torch", tmp_path / "q", "int4-weight-only", gone)
    assert not made


@pytest.mark.slow
def test_convolutions_are_refused_and_an_older_export_stays(image: Path, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("torchao")
    folder = exporting.export(image, "torch", tmp_path / "export")
    before = (folder / "model.pt2").read_bytes()
    with pytest.raises(CheckpointError, match="int8-weight-only leaves layers such as Conv2d"):
        exporting.export(image, "torch", folder, "int8-weight-only")
    assert (folder / "model.pt2").read_bytes() == before
