"""What artifacts cost is counted by their tensors, and told of all that can be run."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_foundry.checkpoints.exported import onnx_session
from lit_foundry.checkpoints.files import load_task
from lit_foundry.compress import benchmark as benchmarking
from lit_foundry.compress.artifact import open_artifact
from lit_foundry.compress.benchmark import Latency, benchmark
from lit_foundry.compress.memory import growth
from lit_foundry.export.command import export
from lit_foundry.usage import UsageError
from tests.conftest import corpus_config, write_config
from tests.export.test_command import SIZES, train
from tests.export.test_images import best_of
from tests.labelled import text_config


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = train(tmp_path_factory.mktemp("text"), config=SIZES)
    for format in ("hf", "onnx", "torch", "safetensors"):
        export(path, format)
    return path


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test the seconds of a process for each artifact."""
    monkeypatch.setattr(benchmarking, "growth", lambda *args: 0)


def parameters(path: Path) -> int:
    return sum(p.numel() for p in load_task(path).parameters())


@pytest.mark.slow
def test_command_measures_a_checkpoint_and_its_export(
    best: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A process for one of them will do.
    monkeypatch.setattr(
        benchmarking, "growth", lambda path, *args: growth(path, *args) if path == best else 5e6
    )
    onnx, output = best.parents[1] / "export" / "onnx", tmp_path / "costs.json"
    words = ["--batch", "1", "3", "--size", "16", "--repeats", "4", "--output", str(output)]
    benchmarking.main([str(best), str(onnx), *words])
    told = json.loads(output.read_text(encoding="utf-8"))
    first, other = told["artifacts"]
    assert first["parameters"] == parameters(best)
    assert other["parameters"] == pytest.approx(first["parameters"], rel=1e-3)
    assert first["bytes"] == 4 * first["parameters"]
    assert first["files"] == []
    assert other["files"] == ["model.onnx"]
    assert other["bytes"] == (onnx / "model.onnx").stat().st_size
    assert other["multiply_adds"] is None
    assert [each["inputs"] for each in told["artifacts"]] == ["val", "val"]  # no test.csv is there
    for each in told["artifacts"]:
        assert 1e6 < each["peak_memory"] < 1e9
        assert each["size"] == 16
        assert each["latency"].keys() == {"1", "3"}
        for latency in each["latency"].values():
            assert 0 < latency["median_ms"] <= latency["p95_ms"]
    assert first["latency"]["1"]["ratio"] == 1
    threads = torch.get_num_threads()
    hardware = told["environment"]["hardware"]
    assert hardware["threads"] == {"torch": threads, "onnxruntime": threads}
    assert hardware["cpu"]
    said = capsys.readouterr().out
    assert "rows of 16 tokens (val), 4 rounds" in said
    assert f"threads: torch {threads}, onnxruntime {threads}; torch 2." in said


@pytest.mark.usefixtures("no_process")
def test_formats_of_one_network_count_alike(best: Path) -> None:
    formats = ["hf", "torch", "safetensors"]
    paths = [best, *(best.parents[1] / "export" / format for format in formats)]
    found = benchmark(paths, batches=[2], size=8, repeats=1)
    assert [each.format for each in found] == ["checkpoint", *formats]
    assert {each.parameters for each in found} == {parameters(best)}
    # Two layers of four matrices (32, 32) and two of (32, 64), scores and sums of 8 x 8 x 32; the
    # head's (32, 32) and (32, 2) see the first token.
    layer = 8 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 8 * 8 * 32
    assert {each.multiply_adds for each in found} == {2 * layer + 32 * 32 + 32 * 2}


@pytest.mark.usefixtures("no_process")
def test_images_are_those_of_the_data(tmp_path: Path) -> None:
    best = best_of("vit", tmp_path)
    [found] = benchmark([best], batches=[2], repeats=1)
    assert (found.size, found.inputs) == (None, "test")
    assert found.parameters == parameters(best)
    assert found.multiply_adds is not None


@pytest.mark.parametrize("format", ["checkpoint", "onnx"])
def test_inputs_are_random_where_no_data_are(format: str, best: Path) -> None:
    path = best if format == "checkpoint" else best.parents[1] / "export" / format
    artifact = open_artifact(path)
    data = artifact.data({"train": "gone.csv", "test": "gone.csv"})
    batch, source = benchmarking._inputs(artifact, data, 3, 7)
    assert source == "random"
    assert {name: tuple(field.shape) for name, field in batch.items()} == {
        "input_ids": (3, 7),
        "attention_mask": (3, 7),
    }
    assert artifact.logits(batch).shape == (3, 2)


def test_rows_are_as_long_as_is_said(tmp_path: Path, best: Path) -> None:
    artifact = open_artifact(best)
    batch, source = benchmarking._inputs(artifact, artifact.data({}), 4, 20)
    assert source == "val"
    assert batch["attention_mask"].all()
    assert batch["input_ids"].shape == (4, 20)
    assert len({tuple(row) for row in batch["input_ids"].tolist()}) == 4


@pytest.mark.usefixtures("no_process")
def test_taggers_and_language_models_are_measured(tmp_path: Path) -> None:
    from lit_foundry.cli.main import main

    config = text_config(tmp_path, "TokenClassification", "tags")
    cli = main(["fit", "--config", str(config), "--trainer.max_epochs", "1"])
    [found] = benchmark([cli.run.path / "checkpoints" / "best.ckpt"], batches=[2], repeats=1)
    assert found.size == 32  # the most that the data hold
    config = write_config(tmp_path / "lm.yaml", corpus_config(tmp_path))
    cli = main(["fit", "--config", str(config), "--trainer.max_epochs", "1"])
    best = cli.run.path / "checkpoints" / "best.ckpt"
    with pytest.raises(UsageError, match=r"holds a MaskedLM, .* export it"):
        benchmark([best])
    [found] = benchmark([export(best, "hf")], batches=[2], repeats=1)
    assert found.size == 64


def test_ratio_is_the_median_of_rounds() -> None:
    found = benchmarking._latency([1.0, 2.0, 9.0], [2.0, 2.0, 3.0], [4.0, 4.0, 6.0])
    assert found == Latency(2000, pytest.approx(8300), 1, 0.5)


def test_turns_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(benchmarking, "PAUSE", 0.0)
    runs = [lambda: calls.append("a"), lambda: calls.append("b")]
    times = benchmarking._in_turn(runs, 2, "")
    assert calls == [*"aaabbb", *"aabb" * 2]
    assert [len(each) for each in times] == [2, 2]


def test_onnx_uses_as_many_threads_as_torch(best: Path) -> None:
    session = onnx_session(best.parents[1] / "export" / "onnx" / "model.onnx")
    assert session.get_session_options().intra_op_num_threads == torch.get_num_threads()


def test_process_that_fails_says_why(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="could not be run on its own"):
        growth(best, {"input_ids": torch.zeros(1, 1, dtype=torch.long)})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "required: PATH"),
        ("{best} --repeat 3", "takes no --repeat. Did you mean --repeats?"),
        ("{best} --repeats 0", "--repeats must be at least 1, got 0"),
        ("{best} --batch 4 0", "--batch must be at least 1, got 0"),
        ("{best} --batch two", "invalid int value: 'two'"),
        ("{best} --size 0", "--size must be at least 1, got 0"),
        ("{best} --size 33", "best.ckpt takes 32 tokens at most"),
        ("gone.ckpt", "gone.ckpt is no checkpoint file"),
        ("{folder}", "has no lit_foundry.json, so it is no export"),
        ("{best} --output costs.txt", "name a file that ends in .json"),
        ("{best} --data.tets x.csv", "--data.tets: a TextFiles takes no tets."),
    ],
)
def test_mistake_is_one_line(words: str, said: str, best: Path) -> None:
    places: dict[str, Any] = {"best": best, "folder": best.parent}
    with pytest.raises(ValueError, match=r".") as caught:
        benchmarking.main([word.format(**places) for word in words.split()])
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
