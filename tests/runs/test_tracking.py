"""Tracking with the real package, offline: what it records, and that it can never do harm."""

import json
import logging
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_foundry.__main__ import foreseen
from lit_foundry.checkpoints.files import read_checkpoint
from lit_foundry.cli.main import main
from lit_foundry.runs import tracking
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.predictions import Predictions
from lit_foundry.runs.tracking import WandbTracker, table, tracker_of
from tests.conftest import REPO, corpus_config, reviews, tiny_config, write_config, write_csv
from tests.test_layers import PACKAGE, imports_of

OVERLAY = ["--config", str(REPO / "configs" / "trainer" / "wandb.yaml")]


def records(path: Path) -> Iterator[Any]:
    """Read a .wandb file: LevelDB's log format, of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, whole = path.read_bytes(), 7, b""
    while position < len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


class Recorded:
    """What the offline folders of one run hold, in order of time."""

    def __init__(self, run: Path) -> None:
        self.files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
        self.ids: list[str] = []
        self.config: list[dict[str, Any]] = []
        self.rows: list[list[dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        for file in self.files:
            self.rows.append([])
            for record in records(file):
                self._add(record)

    def _add(self, record: Any) -> None:
        match record.WhichOneof("record_type"):
            case "run":
                self.ids.append(record.run.run_id)
                update = record.run.config.update
                self.config.append({item.key: json.loads(item.value_json) for item in update})
            case "history":
                items = record.history.item
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                self.rows[-1].append(row)
            case "summary":
                for item in record.summary.update:
                    key = "/".join(item.nested_key) or item.key
                    self.summary[key] = json.loads(item.value_json)
            case "artifact":
                self.artifacts.append(record.artifact)


@pytest.fixture(autouse=True, scope="module")
def no_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the keys that a developer has."""
    patch = pytest.MonkeyPatch()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patch.delenv(name)
    patch.setenv("NETRC", str(tmp_path_factory.mktemp("home") / "netrc"))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    write_csv(folder / "train.csv", reviews(120, seed=0))
    write_csv(folder / "test.csv", reviews(40, seed=1))
    write_config(folder / "tiny.yaml", tiny_config(folder))
    return folder


@pytest.fixture(scope="module")
def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a run without tracking."""
    return main(
        ["fit", "--config", str(folder / "tiny.yaml"), "--experiment", "plain"]
    ).model.state_dict()


@pytest.fixture(scope="module")
def tracked(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A tracked run: fit, which changes no bit of the weights, then resume, then test."""
    fit = ["fit", "--config", str(folder / "tiny.yaml"), *OVERLAY]
    cli = main(fit)
    for name, want in weights.items():
        assert torch.equal(cli.model.state_dict()[name], want), name
    main([*fit, "--resume", "required", "--trainer.max_epochs", "3"])
    main(["test", "--ckpt_path", str(cli.run.path / "checkpoints" / "best.ckpt")])
    return cli.run.path


@pytest.fixture(scope="module")
def recorded(tracked: Path) -> Recorded:
    return Recorded(tracked)


def test_fit_resume_and_test_are_one_run(recorded: Recorded, tracked: Path) -> None:
    identity = json.loads((tracked / "wandb.json").read_text(encoding="utf-8"))
    assert (identity["project"], identity["name"]) == ("lit_foundry", "tiny/1")
    assert len(recorded.files) == 3
    assert set(recorded.ids) == {identity["id"]}


def test_config_and_environment_are_recorded(recorded: Recorded) -> None:
    first, *_, last = recorded.config
    assert first["model"]["init_args"]["num_classes"] == 2
    assert set(first["environment"]) >= {"git", "packages", "hardware", "data"}
    assert "environment-resumed-at-18" in last
    assert last["environment"] == first["environment"]


def test_metrics_follow_the_optimizer_step_over_the_resume(recorded: Recorded) -> None:
    losses = [
        [(row["trainer/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
        for rows in recorded.rows
    ]
    first, resumed, test = losses
    steps = [step for step, _ in [*first, *resumed]]
    assert steps == sorted(set(steps))
    assert len(first) == 18
    assert len(resumed) == 9
    assert test == []


def test_tables_plots_and_scores_are_recorded(recorded: Recorded, tracked: Path) -> None:
    scores = json.loads((tracked / "test.json").read_text(encoding="utf-8"))
    assert recorded.summary["test/acc"] == pytest.approx(scores["test/acc"])
    summary = json.loads((tracked / "summary.json").read_text(encoding="utf-8"))
    assert recorded.summary["best_score"] == pytest.approx(summary["best_score"])
    for stage, rows in (("val", 12), ("test", 40)):
        assert recorded.summary[f"{stage}/predictions/_type"] == "table-file"
        assert recorded.summary[f"{stage}/predictions/nrows"] == rows
        assert recorded.summary[f"{stage}/confusion/_type"] == "image-file"


def test_samples_of_a_language_model_are_recorded(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", corpus_config(tmp_path, "MaskedLM"))
    run = main(["fit", "--config", str(config), *OVERLAY]).run
    assert run is not None
    recorded = Recorded(run.path)
    [last] = sorted((run.path / "samples").iterdir(), key=lambda file: int(file.stem))[-1:]
    assert recorded.summary["samples/nrows"] == last.read_text(encoding="utf-8").count("\n\n") + 1
    rows = [row for row in recorded.rows[0] if any(key.startswith("samples/") for key in row)]
    assert str(rows[-1][tracking.STEP]) == last.stem


def test_each_fit_keeps_its_best_checkpoint_as_an_artifact(
    recorded: Recorded, tracked: Path
) -> None:
    models = [artifact for artifact in recorded.artifacts if artifact.type == "model"]
    assert len(models) == 2
    assert all(set(model.aliases) == {"latest", "best"} for model in models)
    [content] = models[-1].manifest.contents
    assert content.path == "best.ckpt"
    kept = Path(content.local_path)
    assert kept.is_relative_to(tracked)
    assert kept.read_bytes() == (tracked / "checkpoints" / "best.ckpt").read_bytes()


def test_wandb_finds_all_that_is_to_be_uploaded(tracked: Path) -> None:
    command = [sys.executable, "-m", "wandb", "sync", "--dry-run", str(tracked / "wandb")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=True, encoding="utf-8"
    )
    assert "Would sync 3 run(s)" in done.stdout + done.stderr


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.start("tracking", tmp_path)


def test_without_a_key_one_line_says_how_to_upload(
    run: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = WandbTracker()
    tracker.open(run)
    tracker.log_metrics({"train/loss": 1.0}, 0)
    tracker.finalize("success")
    out, err = capfd.readouterr()
    where = run.path / "wandb"
    assert out == f"Recorded offline for Weights & Biases; to upload: wandb sync {where}\n"
    assert err == ""
    assert (
        (where / "process.log")
        .read_text(encoding="utf-8")
        .startswith("offline: No API key configured.")
    )
    # What the export command does.
    again = tracker_of(run.path)
    assert again is not None
    again.log_artifact(run.path / "wandb.json", type="export", name="onnx")
    again.finalize("success")
    recorded = Recorded(run.path)
    assert set(recorded.ids) == {tracker.version}
    assert [(a.type, a.name) for a in recorded.artifacts] == [("export", f"onnx-{again.version}")]


@pytest.mark.parametrize("ends", [True, False])
def test_process_that_ends_or_hangs_costs_one_warning(
    run: RunFolder,
    ends: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = run.path / "script.py"
    script.write_text(
        "raise SystemExit(3)" if ends else "import time; time.sleep(600)", encoding="utf-8"
    )
    monkeypatch.setattr(tracking, "_SCRIPT", script)
    start = time.monotonic()
    tracker = WandbTracker(wait=2)
    tracker.open(run)
    assert tracker._process is not None
    for step in range(1000):  # more than a pipe holds
        tracker.log_metrics({"a" * 1000: 1.0}, step)
    tracker.finalize("success")
    tracker.log_metrics({"a": 1.0}, 1000)
    tracker.finalize("success")
    assert time.monotonic() - start < 20
    [warning] = caplog.records
    assert warning.levelno == logging.WARNING
    assert f"wandb sync --no-skip-online {run.path / 'wandb'}" in warning.getMessage()


@pytest.mark.slow
def test_without_a_network_it_records_offline(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    tracker = WandbTracker(wait=30)
    tracker.open(run)
    tracker.log_metrics({"train/loss": 1.0}, 0)
    tracker.finalize("success")
    assert "wandb sync" in capsys.readouterr().out
    assert [row["train/loss"] for [row] in Recorded(run.path).rows] == [1.0]


class Strike(Callback):
    """Sends a signal to a process below this one, in the middle of the training.

    Args:
        name: Beginning of the process's command: ``python`` or ``wandb-core``.
        signal: Its number.
    """

    def __init__(self, name: str, signal: int) -> None:
        self.name, self.signal = name, signal

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Wait for the process, which takes longer to start than this training, and strike."""
        if trainer.global_step == 5 and batch_idx % 3 == 0:
            end = time.monotonic() + 60
            while not (found := below(os.getpid(), "wandb-core")) and time.monotonic() < end:
                time.sleep(0.1)
            [core], [parent] = found, below(os.getpid(), "python")
            os.kill(core if self.name == "wandb-core" else parent, self.signal)
            print("struck", core)


def below(ancestor: int, name: str) -> list[int]:
    """Return the processes below another whose command begins with a name."""
    command = ["ps", "-eo", "pid=,ppid=,comm="]
    lines = subprocess.run(
        command, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout.splitlines()
    rows = [
        (int(pid), int(parent), comm) for pid, parent, comm in (x.split(None, 2) for x in lines)
    ]
    family = {ancestor}
    for _ in range(4):
        family |= {pid for pid, parent, _ in rows if parent in family}
    return [pid for pid, _, comm in rows if pid in family - {ancestor} and comm.startswith(name)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"),
    [("wandb-core", signal.SIGKILL), ("wandb-core", signal.SIGSTOP), ("python", signal.SIGKILL)],
)
def test_killed_or_stopped_logging_changes_nothing(
    folder: Path, weights: dict[str, torch.Tensor], name: str, number: int
) -> None:
    strike = [
        "--trainer.callbacks+=tests.runs.test_tracking.Strike",
        f"--trainer.callbacks.name={name}",
        f"--trainer.callbacks.signal={int(number)}",
    ]
    experiment = f"{name}-{int(number)}"
    fit = ["fit", "--config", str(folder / "tiny.yaml"), *OVERLAY, "--experiment", experiment]
    fit += ["--trainer.logger.wait", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "lit_foundry", *fit, *strike],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,  # what hangs at the exit fails here
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [core] = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("struck")]
    if number == signal.SIGSTOP:  # it is a session of its own, and ends when it goes on
        os.kill(int(core), signal.SIGKILL)
    assert done.stderr.count("Tracking with Weights & Biases") == 1
    run = folder / "runs" / experiment / "1"
    assert (run / "summary.json").exists()
    [last] = (run / "checkpoints").glob("recovery-*.ckpt")
    got = read_checkpoint(last)["state_dict"]
    for key, want in weights.items():
        assert torch.equal(got[key], want), key


def test_missing_package_is_told_before_anything_begins(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-foundry\[wandb\]'") as error:
        main(["fit", "--config", str(tiny), *OVERLAY])
    assert foreseen(error.value)
    assert not (tiny.parent / "runs").exists()


def test_tracked_run_is_tested_without_the_package(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracker_of(run.path) is None
    run.write("wandb.json", {"id": "0"})
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert tracker_of(run.path) is None
    assert "is not continued" in caplog.text


def test_package_is_imported_by_its_own_process_only() -> None:
    files = PACKAGE.rglob("*.py")
    assert [path.name for path in files if "wandb" in imports_of(path)] == ["wandb_process.py"]


def test_tracker_that_was_not_opened_says_how() -> None:
    with pytest.raises(ValueError, match=r"callbacks=run_callbacks\(run, task\)"):
        WandbTracker().log_metrics({"train/loss": 1.0}, 0)


def test_table_begins_with_the_most_confident_mistakes() -> None:
    sure = np.array([0.9, 0.6, 0.8, 0.7, 0.95], np.float32)
    target = np.array([0, 0, 1, 1, 0])  # the third and fourth are mistakes
    columns = {"prob": np.stack([sure, 1 - sure], 1), "target": target}
    said = Predictions(["no", "yes"], columns, {"id": list("abcde")})
    found = table(said, rows=4)
    assert found["columns"] == ["id", "label", "predicted", "prob"]
    assert [row[0] for row in found["data"]] == ["c", "d", "b", "a"]
    assert found["data"][0][1:3] == ["yes", "no"]
