"""A pipeline makes what its stages say, measures it, and goes on where it was stopped."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.cli import compress_command
from lit_foundry.cli.main import main
from lit_foundry.compress import benchmark, pipeline, process
from lit_foundry.compress.evaluation import Evaluation, compare
from lit_foundry.compress.page import front
from lit_foundry.compress.result import keep, smallest
from lit_foundry.runs.predictions import Predictions
from lit_foundry.usage import UsageError
from tests.conftest import digits_config, write_config

QUICK = {"batch": [1], "repeats": 1, "split": "val"}
PRUNING = {"class_path": "Pruning", "init_args": {"target": 0.6, "begin": 0.0, "multiple_of": 1}}
PRUNE = {
    "fit": "prune.yaml",
    "set": {"model.init_from": "${start}", "trainer.callbacks": [PRUNING]},
}


def in_process(words: Sequence[str], folder: Path) -> None:
    main(["fit", *words])


def stages(**changes: Any) -> dict[str, Any]:
    return {"prune": PRUNE, "small": {"export": "safetensors"}, **changes}


def write(folder: Path, **content: Any) -> Path:
    """Write a config, with the start if there is one; return its path."""
    start = {"start": "tiny/1/checkpoints/best.ckpt"}
    return write_config(folder / "small.yaml", {**start, **QUICK, "stages": stages(), **content})


def compress(config: Path, *words: str) -> dict[str, Any]:
    """Run the command; return what was measured, by stage."""
    compress_command.main(["--config", str(config), *words])
    return measured(config.parent)


def measured(folder: Path) -> dict[str, Any]:
    files = sorted((folder / "runs" / "small").glob("*/result.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run on digits, a config that prunes it, and what stages made."""
    folder = tmp_path_factory.mktemp("pipeline")
    config = digits_config(folder)
    config["trainer"]["default_root_dir"] = str(folder)
    main(["fit", "--config", str(write_config(folder / "tiny.yaml", config))])
    config["trainer"]["max_epochs"] = 1
    write_config(folder / "prune.yaml", config)
    with pytest.MonkeyPatch.context() as patch:
        use(folder, patch)
        compress(write(folder))
    return folder


def use(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work in a folder; fits take place in this process, and what is tested elsewhere does not."""
    patch.chdir(folder)
    patch.setattr(pipeline, "fit", in_process)
    patch.setattr(pipeline, "mistake", lambda words: None)
    patch.setattr(benchmark, "growth", lambda *args: 0)


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with that run and config."""
    shutil.copytree(made / "tiny", tmp_path / "tiny")
    shutil.copy(made / "prune.yaml", tmp_path)
    use(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def compressed(made: Path, folder: Path) -> Path:
    """Return a folder with what stages made, too."""
    shutil.copytree(made / "runs", folder / "runs")
    return folder


def test_stages_are_made_and_measured_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    int8 = {"export": "onnx", "quantize": "int8-static"}
    pytest.importorskip("onnxscript")
    config = write(folder, stages={"prune": PRUNE, "int8": int8})
    found = compress(config)
    assert [*found] == ["int8", "prune", "start"]
    printed = capsys.readouterr().out
    assert "Smallest within 0.01 of start's accuracy" in printed
    start, prune, int8 = (found[name] for name in ("start", "prune", "int8"))
    assert start["beside_start"] is None
    for each in (prune, int8):
        assert 0 <= each["beside_start"]["agreement"] <= 1
        assert each["scored"]["scores"].keys() == start["scored"]["scores"].keys()
        assert each["scored"]["interval"][0] < each["scored"]["scores"]["accuracy"]
    assert prune["cost"]["multiply_adds"] < 0.61 * start["cost"]["multiply_adds"]
    assert int8["cost"]["files"] == ["model.onnx"]
    assert prune["difference"] is None
    assert int8["difference"] > 0
    assert int8["beside_previous"]["agreement"] >= 0.9
    page = (folder / "runs" / "small" / "report" / "index.html").read_text(encoding="utf-8")
    assert "int8" in page
    assert "data:image/png" in page
    assert (folder / "runs" / "small" / "report" / "pareto.png").stat().st_size > 5000
    assert f"{prune['scored']['scores']['accuracy']:.4f}" in page

    def never(*args: Any) -> None:
        raise AssertionError("made twice")

    for name in ("fit", "export", "evaluate", "benchmark"):
        monkeypatch.setattr(pipeline, name, never)
    assert compress(config) == found


def test_what_is_made_otherwise_is_set_aside(
    compressed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, first = compressed, measured(compressed)
    quick = {**PRUNE["set"], "model.optim.lr": 1e-4}
    second = compress(write(folder, stages=stages(prune={**PRUNE, "set": quick})))
    assert "runs/small/prune.1" in capsys.readouterr().out
    aside = folder / "runs" / "small" / "prune.1"
    assert (aside / "1" / "checkpoints" / "best.ckpt").is_file()
    assert second["start"] == first["start"]
    for stage in ("prune", "small"):  # which begins with the other
        assert second[stage]["scored"] != first[stage]["scored"]


def test_a_stage_that_was_prolonged_is_measured_and_exported_anew(compressed: Path) -> None:
    folder, first = compressed, measured(compressed)
    for file in (folder / "tiny" / "1" / "checkpoints").glob("best.ckpt*"):
        shutil.copy(file, folder / "runs" / "small" / "prune" / "1" / "checkpoints")
    second = compress(write(folder))
    assert second["start"] == first["start"]
    for stage in ("prune", "small"):
        assert second[stage]["scored"]["scores"] == first["start"]["scored"]["scores"]


def test_exports_read_the_data_where_they_lie_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def export(*args: Any) -> None:
        seen.append(args[-1])
        raise CheckpointError("enough")

    monkeypatch.setattr(pipeline, "export", export)
    config = write(folder, stages={"small": {"export": "safetensors"}})
    with pytest.raises(CheckpointError, match="enough"):
        compress(config, "--data.max_train_samples", "20")
    assert seen == [{"max_train_samples": 20}]


def test_what_is_learnt_from_besides_changes_no_measurement(
    compressed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(pipeline, "evaluate", lambda *args: seen.append(args) or 1 / 0)
    monkeypatch.setattr(pipeline, "fit", lambda *args: 1 // 0)
    config = write(compressed)
    with pytest.raises(ZeroDivisionError, match="integer"):  # the start was not measured again
        compress(config, "--data.transfer", "images/")
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        compress(config, "--data.transfer", "images/", "--data.max_train_samples", "20")
    assert [args[-1] for args in seen] == [{"max_train_samples": 20}]


def test_other_measurements_leave_what_was_made(compressed: Path) -> None:
    folder = compressed
    best = folder / "runs" / "small" / "prune" / "1" / "checkpoints" / "best.ckpt"
    before = best.stat().st_mtime_ns
    found = compress(write(folder, batch=2))
    assert {*found["prune"]["cost"]["latency"]} == {"2"}
    assert best.stat().st_mtime_ns == before


def test_a_limit_ends_it_with_what_was_measured(
    compressed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = compressed
    config = write(folder, stages=stages(prune={**PRUNE, "limits": {"size": 0.1}}))
    for _ in range(2):  # once more, it says the same
        with pytest.raises(SystemExit, match="1"):
            compress(config)
        out, err = capsys.readouterr()
        assert "prune" in out.split("stage ")[-1]
        assert "times start's bytes, where 0.1 is the most" in err
    page = (folder / "runs" / "small" / "report" / "index.html").read_text(encoding="utf-8")
    assert "Stopped: the stage prune went beyond its limits" in page
    assert "small/export" not in page
    assert [*compress(write(folder))] == ["prune", "small", "start"]


def test_a_config_is_read_with_its_parts(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    texts = {"whole.yaml": "a: {b: [parts/one.yml, none.yaml]}", "parts/one.yml": "c: two.json"}
    for name, text in {**texts, "parts/two.json": '{"d": ["one.yml", "bad.yaml"]}'}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "parts" / "bad.yaml").write_bytes(b"a: [\xff")
    found = pipeline.parts_of(tmp_path / "whole.yaml")
    assert [path.stem for path in found] == ["whole", "one", "two", "bad"]


def result(
    score: float, bytes: int = 1, latency: float = 1.0, agreement: float | None = 1.0
) -> Any:
    """Return what limits look at."""

    class Fake:
        name, score_name = "one", "accuracy"
        beside_start = beside_previous = type("Beside", (), {"agreement": agreement})
        cost = type("Cost", (), {"bytes": bytes, "latency": {1: None}})

        def ratio(self, rows: int) -> float:
            return latency

    fake = Fake()
    fake.score = score  # type: ignore[attr-defined]
    return fake


def test_limits_tell_by_how_much() -> None:
    limits = pipeline.Limits(lost=0.02, stage_lost=0.005, agreement=0.9, latency=0.5, size=0.5)
    assert limits.broken([result(0.9, 10), result(0.89), result(0.885, 5, 0.5, 0.9)]) == []
    told = limits.broken([result(0.9, 10), result(0.89), result(0.87, 6, 0.6, 0.8)])
    assert [text.split()[0] for text in told] == ["0.0300", "0.0200", "0.6000", "0.6000", "0.8000"]
    assert pipeline.Limits().broken([result(0.9), result(0.1), result(float("nan"))]) == []
    assert pipeline.Limits(lost=1.0).broken([result(0.9), result(0.9), result(float("nan"))])
    value = result(0.9, agreement=None)
    assert pipeline.Limits(agreement=0).broken([result(0.9), value]) == [
        "agreement is of classes and tags, and not of values: leave it out"
    ]
    value.beside_start = None
    for limit in ("lost", "agreement"):
        told = pipeline.Limits(**{limit: 0.5}).broken([result(0.9), value])
        assert told == ["it was scored on other samples than one: not compared"]
    assert pipeline.Limits(stage_lost=0, size=1).broken([result(0.9), value]) == []


def test_front_is_what_nothing_is_beyond() -> None:
    assert front([3, 1, 2, 2], [0.9, 0.5, 0.7, 0.8]) == [1, 3, 0]
    assert front([1, 2], [0.9, 0.9]) == [0]
    assert front([1, 2], [float("nan"), 0.9]) == [1]


def test_smallest_is_of_those_that_can_be_compared() -> None:
    first, near, small, other = result(0.9, 9), result(0.9, 8), result(0.8, 7), result(0.9, 6)
    other.beside_start = None
    assert smallest([first, near, small, other], 0.01) is near
    undefined = result(float("nan"), 9)
    assert smallest([undefined, near], 0.01) is undefined


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("value", {"value": np.ones((2, 1), np.float32), "target": np.eye(2, 1, dtype=np.float32)}),
        ("tags", {"tag": np.array([[1, -100, 0]]), "target": np.array([[1, -100, 1]])}),
    ],
)
def test_what_is_read_again_is_compared(tmp_path: Path, kind: str, columns: Any) -> None:
    found = Predictions(["a", "b"][: 1 + (kind == "tags")], columns, predicts=kind)
    fresh = Evaluation("a", "onnx", "val", kind, len(found), {}, None, found)
    kept = keep(fresh, tmp_path)
    again = replace(fresh, predictions=Predictions.read(tmp_path / "predictions.parquet"))
    assert compare(fresh, again) is None
    assert compare(kept, again) == compare(fresh, fresh)


def test_what_a_name_stands_for_is_part_of_a_stage(tmp_path: Path) -> None:
    def key(*names: str) -> str:
        found, work = "", pipeline.Pipeline(tmp_path, tmp_path, [])
        for name in names:
            found = pipeline._begin_stage(work, pipeline.Stage(name, set={"a": "${one}"}), found)
        return found

    assert key("one", "two", "three") == key("one", "two", "three") != key("two", "one", "three")
    assert not [*tmp_path.glob("*.1")]  # there was nothing in them


def test_a_start_that_another_process_works_on_is_refused(folder: Path) -> None:
    config, place = write(folder), folder / "runs" / "small"
    place.mkdir(parents=True)
    code = (
        "import sys, pathlib; from lit_foundry.runs.lock import lock\n"
        "lock(pathlib.Path(sys.argv[1])); print('held', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(CheckpointError, match=r"small is in use by process \d+.* --experiment"):
            compress(config)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"stages": {}}, "stages names one stage at least"),
        (
            {"stages": {"prune": {"fit": "prune.yaml"}}},
            r"stages.prune.set has to say what it begin",
        ),
        ({"stages": {"a": {**PRUNE, "export": "onnx"}}}, "stages.a has either fit .* or export"),
        ({"stages": {"a": {}}}, "stages.a has either fit"),
        ({"stages": {"a": {"fit": "no.yaml"}}}, r"stages.a.fit is a config, and there is no .*no"),
        ({"stages": {"a": {"export": "onyx"}}}, "stages.a.export is one of hf, onnx"),
        ({"stages": {"a": {"export": "onnx", "quantize": "int3"}}}, "quantize is one of int8-"),
        ({"stages": {"a": {"export": "onnx", "set": {}}}}, "stages.a.set goes with fit"),
        ({"stages": {"a": {**PRUNE, "quantize": "int4"}}}, "stages.a.quantize goes with export"),
        ({"stages": {"a": {**PRUNE, "limit": {}}}}, "stages.a has no limit: did you mean limits?"),
        ({"stages": {"a": {**PRUNE, "set": {"model.init_from": "${b}"}}}}, r"names \$\{b\}, where"),
        ({"stages": {"start": PRUNE}}, "stages.start is a word"),
        ({"stages": {"a/b": PRUNE}}, "stages.a/b is a word"),
        ({"stages": [PRUNE]}, r"stages holds keys, got \["),
        ({"limits": {"lots": 1}}, "limits has no lots: did you mean lost?"),
        ({"limits": {"lost": "1 %"}}, "limits.lost is a number from 0 on, got '1 %'"),
        ({"split": "train"}, "split is test or val"),
        ({"repeats": 0}, "repeats is a whole number from 1 on, got 0"),
        ({"batch": []}, r"batch is a whole number from 1 on, got \[\]"),
        ({"stages": {"a": {"fit": []}}}, "stages.a.fit names one config at least"),
        ({"stages": {"a": {"export": ["onnx"]}}}, "stages.a.export is one of hf, onnx"),
        ({"start": ".", "stages": {"a": {"export": "onnx"}}}, "stages.a.export is of a checkp"),
        ({"stages": {"a": {**PRUNE, "fit": "damaged.yaml"}}}, "damaged.yaml: while parsing a flow"),
        ({"batch": [1, "2"]}, "batch is a whole number from 1 on, got '2'"),
        ({"start": "nowhere.ckpt"}, "start: there is no nowhere.ckpt: fit it first"),
        ({"start": None}, "start names a checkpoint"),
        ({"begin": 1}, "small.yaml: it has no begin"),
    ],
)
def test_mistakes_of_a_config(folder: Path, content: dict[str, Any], told: str) -> None:
    (folder / "damaged.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(UsageError, match=told):
        compress(write(folder, **content))
    assert not (folder / "runs").exists()


def test_a_stage_of_any_name_is_named(folder: Path) -> None:
    names = {"a-b": "${start}", "caf\N{LATIN SMALL LETTER E WITH ACUTE}": "${a-b}"}
    parts = {n: {"fit": "prune.yaml", "set": {"model.init_from": v}} for n, v in names.items()}
    found = compress_command.Reader(write(folder, stages=parts)).pipeline(folder / "runs")
    made = {"start": folder, "a-b": folder / "one"}
    assert pipeline._filled(found.stages[1].set, made) == {"model.init_from": f"{folder / 'one'}"}


def test_a_file_that_is_none(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--config no.yaml: there is no such file"):
        compress(Path("no.yaml"))
    (folder / "two.yaml").write_text("start: a\nstart: b\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"two.yaml: A key stands twice"):
        compress(folder / "two.yaml")


def test_a_missing_backend_is_told_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_foundry.export.command.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-foundry\[onnx\]'"):
        compress(write(folder, stages=stages(last={"export": "onnx"})))
    assert not (folder / "runs").exists()


def test_a_signal_that_comes_at_the_end_of_a_fit_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    )
    popen = subprocess.Popen

    def begin(words: Sequence[str], **options: Any) -> Any:
        return popen([sys.executable, "-c", code], **options)

    monkeypatch.setattr(process.subprocess, "Popen", begin)
    with pytest.raises(SystemExit) as stopped:
        process.fit([], tmp_path)
    assert stopped.value.code == 128 + signal.SIGTERM


def test_a_fit_whose_pipeline_is_gone_does_not_begin() -> None:
    words = [sys.executable, "-m", process.__name__, "-1", "fit", "--help"]
    ended = subprocess.run(words, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, b"")


def test_no_folder_is_set_aside_that_an_orphaned_fit_works_in(
    compressed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, stays = compressed / "runs" / "small", []
    held = os.open(place / process.HELD, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)

    def end() -> None:
        stays.append(not (place / "start.1").exists())
        os.close(held)

    monkeypatch.setattr(pipeline, "_measured", lambda *args: None)
    (compressed / "other").write_bytes(b"")
    threading.Timer(0.3, end).start()
    next(pipeline.run(pipeline.Pipeline(place, compressed / "other", [])))
    assert stays == [True]
    assert (place / "start.1").exists()


@pytest.mark.slow
def test_a_wrong_key_of_a_fit_is_told_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "mistake", process.mistake)
    wrong = {**PRUNE, "set": {**PRUNE["set"], "model.optim.lrr": 1}}
    with pytest.raises(UsageError, match=r"stage last: --model\.optim\.lrr: .* Did you mean 'lr'"):
        compress(write(folder, stages={"last": wrong}))
    assert not (folder / "runs").exists()
