"""What runs beside the training: recovery, throughput, the bar; and a run from Python."""

import hashlib
import json
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from lit_foundry.callbacks import ProgressBar, Recovery, Throughput, run_callbacks
from lit_foundry.checkpoints.files import (
    FORMAT,
    CheckpointError,
    VerifiedCheckpointIO,
    load_task,
    newest,
    read_checkpoint,
)
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.metrics_csv import MetricsCSV
from tests.tasks.test_base import data, equal, logged, seeded, snapshot, task, trainer  # noqa: F401


class Spy(Recovery):
    """Looks into the folder after each save."""

    def __init__(self, folder: Path, **cadence: Any) -> None:
        super().__init__(folder, **cadence)
        self.saves: list[tuple[int, int]] = []

    def _save(self, trainer: Trainer) -> None:
        super()._save(trainer)
        name = f"recovery-{trainer.global_step}.ckpt"
        kept = {name, *(f"recovery-{step}.ckpt" for step, _ in self.saves[-1:])}
        found = {p.name for p in self.folder.iterdir()}
        assert found == kept | {f"{name}.sha256.json" for name in kept}
        saved = read_checkpoint(self.folder / name)
        progress = saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        micro = saved["epoch"] * trainer.num_training_batches + progress["processed"]
        self.saves.append((saved["global_step"], micro))


@pytest.mark.parametrize(
    ("cadence", "steps"),
    [
        ({"every_minutes": 0.0}, range(1, 9)),
        ({"every_n_steps": 3}, [3, 4, 7, 8]),
        ({"every_minutes": 60.0}, [4, 8]),
    ],
)
def test_recovery_saves_whole_steps_and_epochs_and_keeps_two_files_then_one(
    tmp_path: Path, cadence: dict[str, Any], steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_foundry.callbacks.recovery.MOST_OF_TIME", float("inf"))
    spy = Spy(tmp_path / "saves", **cadence)
    fit = trainer(spy, max_epochs=2, enable_checkpointing=True)
    fit.fit(task(), data(tmp_path, micro_batch=4))
    assert spy.saves == [(step, 3 * step) for step in steps]
    [path] = (tmp_path / "saves").glob("*.ckpt")
    assert path.name == "recovery-8.ckpt"
    sums = json.loads(path.with_name("recovery-8.ckpt.sha256.json").read_text(encoding="utf-8"))
    content = path.read_bytes()
    assert sums == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_the_record_is_the_same_whenever_checkpoints_are_saved(tmp_path: Path) -> None:
    records = []
    for name, cadence in {"rare": {"every_minutes": 9.0}, "each": {"every_n_steps": 1}}.items():
        log = MetricsCSV(tmp_path / f"{name}.csv")
        recovery = Recovery(tmp_path / name, **cadence)  # type: ignore[arg-type]
        options = {"logger": log, "val_check_interval": 6, "enable_checkpointing": True}
        fit = trainer(recovery, max_epochs=2, **options)
        fit.fit(task(), data(tmp_path, micro_batch=4))
        records.append(log.path.read_text(encoding="utf-8"))
    assert records[0] == records[1]
    steps = [line.split(",")[0] for line in records[0].splitlines()[1:]]
    assert steps == [str(step) for step in range(8)]


def test_truncated_checkpoints_are_refused_with_their_sizes(tmp_path: Path) -> None:
    path, io = tmp_path / "one.ckpt", VerifiedCheckpointIO()
    io.save_checkpoint({"x": torch.ones(1000)}, path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    message = f"one.ckpt is damaged: it has {size - 100} bytes and was saved with {size}"
    with pytest.raises(CheckpointError, match=message):
        io.load_checkpoint(path)


@pytest.mark.parametrize("sums", ["whole", "gone", "", '{"sha', "[]", '{"sha256": 1}'])
def test_changed_checkpoints_of_the_same_size_are_refused(sums: str, tmp_path: Path) -> None:
    path, io = tmp_path / "one.ckpt", VerifiedCheckpointIO()
    io.save_checkpoint({"x": torch.ones(1000)}, path)
    manifest = path.with_name("one.ckpt.sha256.json")
    if sums == "gone":
        manifest.unlink()
    elif sums != "whole":
        manifest.write_text(sums, encoding="utf-8")
    assert io.load_checkpoint(path)["x"].sum() == 1000
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    told = "its content changed" if sums == "whole" else "checksums in the archive do not match"
    with pytest.raises(CheckpointError, match=told):
        io.load_checkpoint(path)


def test_a_flipped_bit_in_a_copied_checkpoint_never_reaches_a_weight(tmp_path: Path) -> None:
    path, io = tmp_path / "best.ckpt", VerifiedCheckpointIO()
    state = {"a": torch.arange(500.0), "b": {"c": torch.ones(7, dtype=torch.int64)}, "d": "text"}
    io.save_checkpoint(state, path)
    path.with_name("best.ckpt.sha256.json").unlink()
    content = path.read_bytes()
    for at in range(0, len(content), 23):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with suppress(CheckpointError):
            found = io.load_checkpoint(path)
            assert equal({"a": found["a"], "c": found["b"]["c"]}, {"a": state["a"], **state["b"]})
            assert found["d"] == "text"


def test_a_checkpoint_of_a_later_format_is_refused_with_the_version(tmp_path: Path) -> None:
    path, io = tmp_path / "one.ckpt", VerifiedCheckpointIO()
    io.save_checkpoint({"lit_foundry": {"format": FORMAT + 1, "version": "9.9"}}, path)
    with pytest.raises(CheckpointError, match=r"format 2 and was written by lit_foundry 9\.9"):
        io.load_checkpoint(path)


@pytest.mark.parametrize("same_name", [True, False])
def test_full_disk_leaves_the_older_checkpoint_and_nothing_else(
    tmp_path: Path, same_name: bool
) -> None:
    io, old = VerifiedCheckpointIO(), tmp_path / "recovery-1.ckpt"
    io.save_checkpoint({"x": torch.ones(10)}, old)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    path = old if same_name else tmp_path / "recovery-2.ckpt"
    most, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes that a file may have
    try:
        with pytest.raises(OSError, match="File too large") as error:
            io.save_checkpoint({"x": torch.zeros(10**6)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    assert error.value.filename == str(path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert newest(tmp_path) == old
    assert float(io.load_checkpoint(old)["x"].sum()) == 10


def test_checkpoints_that_hold_more_than_plain_values_never_get_a_name(tmp_path: Path) -> None:
    io, path = VerifiedCheckpointIO(), tmp_path / "one.ckpt"
    with pytest.raises(Exception, match="Path"):
        io.save_checkpoint({"where": tmp_path}, path)
    assert list(tmp_path.iterdir()) == []


def test_throughput_counts_samples_and_real_tokens(tmp_path: Path) -> None:
    speed, module = Throughput(), data(tmp_path, micro_batch=4)
    trainer(speed, max_epochs=2).fit(task(), module)
    lengths = module.load("train").lengths
    assert speed.samples == 2 * len(lengths) == 96
    assert speed.tokens == 2 * int(lengths.sum())
    assert speed.seconds > 0
    assert speed.rates()["tokens_per_s"] == pytest.approx(speed.tokens / speed.seconds)


def test_throughput_leaves_validation_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(Callback):
        now = 0.0

        def on_train_batch_start(self, *args: Any) -> None:
            self.now += 1

        def on_validation_batch_start(self, *args: Any) -> None:
            self.now += 1000

    clock, speed = Clock(), Throughput()
    monkeypatch.setattr("lit_foundry.callbacks.throughput.time.perf_counter", lambda: clock.now)
    fit = trainer(clock, speed, max_epochs=2, val_check_interval=2)
    fit.fit(task(), data(tmp_path))
    assert clock.now > 4000
    assert speed.seconds == 8


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_throughput_is_logged_with_everything_else(tmp_path: Path, micro_batch: int | None) -> None:
    log = MetricsCSV(tmp_path / "metrics.csv")
    # 4 steps an epoch, whereas every fifth step is logged: 5 and 10 of 12.
    fit = trainer(Throughput(), max_epochs=3, logger=log, log_every_n_steps=5)
    fit.fit(task(), data(tmp_path, micro_batch=micro_batch))
    steps = logged(tmp_path / "metrics.csv", "train/loss")
    assert len(logged(tmp_path / "metrics.csv", "throughput/tokens_per_s")) == len(steps) == 2


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_is_quiet_where_the_output_is_no_terminal(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    fit = trainer(Throughput(), ProgressBar(), max_epochs=2, enable_progress_bar=True)
    fit.fit(task(), data(tmp_path))
    out, err = capsys.readouterr()
    assert "Epoch" not in err
    if terminal:
        assert all(word in out for word in ("Epoch 1", "train/loss", "tokens/s", "left=0:0"))
    else:
        assert out == ""


# ModelCheckpoint does not know of resumes.
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
def test_ten_lines_of_python_run_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIT_FOUNDRY_RUN", "")  # restored afterwards
    last = {}
    for epochs, resume in ((1, "never"), (2, "required")):
        run = RunFolder.start("ten", root=tmp_path / "runs", resume=resume)  # type: ignore[arg-type]
        module, model = data(tmp_path, micro_batch=4), task(dropout=0.1)
        fit = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            log_every_n_steps=1,
            logger=run.loggers(),
            callbacks=run_callbacks(run, model),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        fit.fit(model, module, ckpt_path=run.ckpt_path)
        assert fit.global_step == 4 * epochs
        last = snapshot(model)
    assert run.path == tmp_path / "runs" / "ten" / "1"
    assert run.start_step == 4
    assert [p.name for p in run.path.parent.iterdir()] == ["1"]
    assert len(logged(run.path / "metrics.csv", "train/loss")) == 8
    assert json.loads((run.path / "summary.json").read_text(encoding="utf-8"))["steps"] == 8
    assert (run.path / "environment-resumed-at-4.json").exists()
    assert "val/acc" in capsys.readouterr().out
    assert load_task(run.checkpoints / "best.ckpt").training is False
    # Constant rates: the same as two epochs at once.
    whole = task(dropout=0.1)
    trainer(max_epochs=2).fit(whole, data(tmp_path, micro_batch=4))
    assert equal(snapshot(whole), last)
