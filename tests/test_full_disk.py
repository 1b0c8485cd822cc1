"""On a full disk every writer names its file, leaves nothing half written, and keeps the old."""

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer

from lit_foundry.cli import main as cli
from lit_foundry.data import ImageFolder
from lit_foundry.data.files.digests import digests
from lit_foundry.data.text.token_cache import tokenize
from lit_foundry.export import command as export
from lit_foundry.report import command as report
from lit_foundry.report import plots
from lit_foundry.report.analysis import by_length, calibration
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.metrics_csv import MetricsCSV
from lit_foundry.runs.predictions import Predictions
from lit_foundry.runs.tensorboard_logger import TensorBoard
from tests.conftest import full_disk, reviews, tiny_config, write_config, write_csv


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    write_csv(folder / "train.csv", reviews(60, seed=0))
    write_csv(folder / "test.csv", reviews(40, seed=1))
    changes = {"max_epochs": 1, "val_check_interval": 3}
    content = tiny_config(folder)
    content["trainer"] |= changes
    return write_config(folder / "tiny.yaml", content)


@pytest.fixture(scope="module")
def run(config: Path) -> Path:
    return Path(cli.main(["fit", "--config", str(config)]).run.path)


def predictions() -> Predictions:
    probs = np.random.default_rng(0).dirichlet([1, 1], 50).astype(np.float32)
    columns = {"prob": probs, "target": probs.argmax(1)}
    return Predictions(["a", "b"], columns, {"tokens": list(range(50))})


def images(folder: Path) -> Path:
    for i in range(12):
        path = folder / "photos" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(path)
    return folder / "photos"


# What is written into a folder, of a run.
WRITERS: dict[str, Callable[[Path, Path], Any]] = {
    "a file of a run": lambda folder, run: RunFolder(folder).write("environment.json", {"a": 1}),
    "predictions kept": lambda folder, run: predictions().write(folder / "val.parquet"),
    "predictions": lambda folder, run: cli.main(
        f"predict --ckpt_path {run}/checkpoints/best.ckpt --input {folder}/in.txt "
        f"--output {folder}/out.csv".split()
    ),
    "confusion": lambda folder, run: plots.plot_confusion(np.eye(2), ["a", "b"], folder / "c.png"),
    "reliability": lambda folder, run: plots.plot_reliability(
        calibration(predictions()), folder / "r.png"
    ),
    "lengths": lambda folder, run: plots.plot_lengths(
        {"a": (0, by_length(predictions(), np.array([0, 50])))}, [0, 50], folder / "l.png"
    ),
    "curves": lambda folder, run: plots.plot_curves({"a": run / "metrics.csv"}, folder / "u.png"),
    "report": lambda folder, run: report.write([run], folder / "report"),
    "cache of tokens": lambda folder, run: tokenize(
        ["a text"], AutoTokenizer.from_pretrained(run / "tokenizer"), folder / "cache", "texts"
    ),
    "cache of pixels": lambda folder, run: ImageFolder(
        str(folder / "photos"), cache_dir=folder / "cache"
    ).load("train"),
    **{
        f"export for {format}": lambda folder, run, format=format: export.export(  # type: ignore[misc]
            run / "checkpoints" / "best.ckpt", format, folder / "export"
        )
        for format in export.TOLERANCE
    },
    "TensorBoard": lambda folder, run: TensorBoard(folder, "", "tensorboard").save(),
}
SLOW = {"export for onnx": pytest.mark.slow}


@pytest.mark.parametrize("writer", [pytest.param(w, marks=SLOW.get(w, ())) for w in WRITERS])
def test_a_full_disk_is_one_line_with_the_file_and_leaves_nothing(
    writer: str, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.txt").write_text("a bright story\n" * 900, encoding="utf-8")
    images(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    # Room for what comes before, such as the temporary file that a tokenizer is read from.
    room = 2**14 if "export" in writer or writer == "predictions" else 0
    with full_disk(room), pytest.raises(OSError, match="File too large") as caught:
        WRITERS[writer](tmp_path, run)
    assert str(caught.value.filename).startswith(str(tmp_path))
    assert ".partial-" not in caught.value.filename
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(left) == [path for path in before if path.is_file()]
    assert not list(tmp_path.rglob(".partial-*"))


def test_digests_are_computed_again_where_they_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(os.urandom(2**20))
    with full_disk():
        found = digests([tmp_path / "large"], tmp_path / "cache")
    assert found == digests([tmp_path / "large"], tmp_path / "cache")


def test_a_fit_on_a_full_disk_names_a_file_and_can_be_repeated(config: Path) -> None:
    words = ["fit", "--config", str(config), "--experiment", "again"]
    with full_disk(), pytest.raises(OSError, match="File too large") as caught:
        cli.main(words)
    assert "again/1" in caught.value.filename
    assert not list(config.parent.rglob(".partial-*"))
    assert cli.main(words).run.path.name == "2"


def test_training_outlives_a_tensorboard_without_room_and_tells_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = TensorBoard(tmp_path, name="", version="tensorboard")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    with caplog.at_level(logging.WARNING), full_disk():
        for step in range(100):  # more than its queue holds
            logger.log_metrics({"loss": 2.0}, step)
        logger.experiment.add_text("samples", "a text", 1)
        logger.save()
        logger.finalize("success")
    assert len(caplog.messages) == 1
    assert f"{tmp_path / 'tensorboard'}: File too large. The run goes on" in caplog.text
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss")] == [1.0]


def test_metrics_wait_for_room_and_are_then_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, calm = MetricsCSV(tmp_path / "metrics.csv"), MetricsCSV(tmp_path / "calm.csv")
    with caplog.at_level(logging.WARNING):
        for step in range(60):
            for one in (log, calm):
                one.log_metrics({"loss": step / 7} | ({"acc": 0.5} if step == 20 else {}), step)
            calm.save()
            with full_disk(100) if 10 < step < 40 else nullcontext():
                log.save()
    assert caplog.messages == [f"{log.path}: File too large. The run goes on."]
    assert log.path.read_bytes() == calm.path.read_bytes()


def test_a_whole_cache_is_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    data = ImageFolder(str(images(tmp_path)), cache_dir=tmp_path / "cache")
    first = data.load("train")
    for lock in (tmp_path / "cache").rglob("*.lock"):
        lock.unlink()
    with full_disk():
        again = ImageFolder(str(tmp_path / "photos"), cache_dir=tmp_path / "cache").load("train")
    assert len(again.lengths) == len(first.lengths)
    assert not list((tmp_path / "cache").rglob("*.lock"))
