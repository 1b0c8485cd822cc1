"""Run folders and the metrics file: what an interrupted run leaves, the next one continues."""

import csv
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from lit_foundry.checkpoints.files import CheckpointError, VerifiedCheckpointIO
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.lock import _LOCKS
from lit_foundry.runs.metrics_csv import MetricsCSV


def read(path: Path) -> list[dict[str, float]]:
    """Read a metrics file that must be a table, without its blank cells."""
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    header, *rows = csv.reader(text.splitlines())
    assert len(set(header)) == len(header)
    assert all(len(row) == len(header) for row in rows)
    return [
        {key: float(cell) for key, cell in zip(header, row, strict=True) if cell} for row in rows
    ]


def test_metrics_of_a_step_share_a_row_and_new_ones_get_a_column(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "metrics.csv"
    log = MetricsCSV(path)
    log.save()
    assert not path.exists()  # nothing to say yet
    expected: list[dict[str, float]] = []
    for step in range(6):
        log.log_metrics({"train/loss": 1 / (step + 1), "epoch": 3}, step)
        expected.append({"step": step, "train/loss": 1 / (step + 1)})
        log.save()
        assert read(path) == expected
        if step % 2:
            log.log_metrics({f"val/{step}": step}, step)
            expected[-1][f"val/{step}"] = step
            log.save()
            assert read(path) == expected
            log.log_metrics({"train/loss": 9.0}, step)
            expected[-1]["train/loss"] = 9.0
            log.save()
            assert read(path) == expected
    log.log_metrics({"epoch": 4}, 99)
    log.finalize("success")
    assert read(path) == expected
    assert [p.name for p in path.parent.iterdir()] == ["metrics.csv"]


def test_late_metrics_of_an_earlier_step_reach_the_file(tmp_path: Path) -> None:
    log = MetricsCSV(tmp_path / "m.csv")
    for step in (1, 2, 3):
        log.log_metrics({"a": step, "b": 0}, step)
        log.save()
    log.log_metrics({"a": 10}, 1)
    log.save()
    expected = [{"step": 1, "a": 10, "b": 0}, {"step": 2, "a": 2, "b": 0}]
    assert read(tmp_path / "m.csv") == [*expected, {"step": 3, "a": 3, "b": 0}]


def test_saving_appends_and_leaves_finished_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    log = MetricsCSV(path)
    for step in range(3):
        log.log_metrics({"a": step}, step)
    log.save()
    path.write_bytes(path.read_bytes().replace(b"0,0.0", b"0,7.7"))
    log.log_metrics({"a": 3}, 3)
    log.save()
    assert [row["a"] for row in read(path)] == [7.7, 1, 2, 3]


@pytest.mark.parametrize("killed_at", [5, 6, 9])
@pytest.mark.parametrize("tail", ["", "4", "12", "9,0."], ids=["whole", "a", "b", "c"])
def test_a_resumed_run_continues_the_file_as_if_never_stopped(
    tmp_path: Path, killed_at: int, tail: str
) -> None:
    def train(log: MetricsCSV, first: int, last: int) -> None:
        for step in range(first, last):
            log.log_metrics({"loss": step / 3}, step)
            log.save()
            if step % 4 == 3:
                log.log_metrics({"val": step / 7}, step)
                log.save()

    whole, path = tmp_path / "whole.csv", tmp_path / "m.csv"
    train(MetricsCSV(whole), 0, 12)
    train(MetricsCSV(path), 0, killed_at)
    with path.open("a", encoding="utf-8") as file:
        file.write(tail)  # half a row, as a kill may leave it
    resumed = MetricsCSV(path, start=5)
    train(resumed, 5, 12)
    assert path.read_bytes() == whole.read_bytes()
    assert [row["step"] for row in read(path)] == list(range(12))


def test_a_resumed_run_without_a_file_starts_one(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    for content in (None, b"", b"st", b"\0" * 50, b"a,b\n1,2\n"):
        if content is not None:
            path.write_bytes(content)
        log = MetricsCSV(path, start=5)
        log.log_metrics({"a": 1}, 5)
        log.save()
        assert read(path) == [{"step": 5, "a": 1}]


@pytest.mark.parametrize(
    ("torn", "warns"),
    [(b"2,0.", False), (b"2," + b"\0" * 4000, False), (b"2,0.5,9\n", True), (b"\0\0\n", True)],
)
def test_a_resumed_run_keeps_all_rows_but_those_that_a_crash_tore(
    torn: bytes, warns: bool, tmp_path: Path
) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"step,a\n0,1\n1,2\n" + torn)
    with pytest.warns(match="1 damaged rows") if warns else nullcontext():
        log = MetricsCSV(path, start=3)
    log.log_metrics({"a": 4}, 3)
    log.save()
    assert read(path) == [{"step": 0, "a": 1}, {"step": 1, "a": 2}, {"step": 3, "a": 4}]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    for name in ("LIT_FOUNDRY_RUN", "LIT_FOUNDRY_RESUMED", *ranks):
        monkeypatch.setenv(name, "")  # so that what a run sets is undone
        monkeypatch.delenv(name)
    return tmp_path / "runs"


def save(run: RunFolder, step: int, age: float = 0) -> Path:
    path = run.checkpoints / f"recovery-{step}.ckpt"
    VerifiedCheckpointIO().save_checkpoint({"step": step, "weight": torch.ones(50)}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def begun(root: Path) -> RunFolder:
    run = RunFolder.start("mine", root)
    run.write("config.yaml", "")  # what a run writes before its first step
    return run


def test_runs_of_an_experiment_are_numbered(root: Path) -> None:
    paths = [RunFolder.start("mine", root).path for _ in range(11)]
    assert [path.name for path in paths] == [str(i) for i in range(1, 12)]
    assert all(path.parent == root / "mine" and path.is_dir() for path in paths)
    (root / "mine/notes").mkdir()
    shutil.rmtree(root / "mine/3")
    assert RunFolder.start("mine", root).path.name == "12"  # no number twice
    assert RunFolder.start("other", root).path == root / "other/1"


def test_cadence_is_handed_on(root: Path) -> None:
    run = RunFolder.start("mine", root, every_n_steps=7)
    run.write("config.yaml", "")
    assert (run.every_n_steps, run.every_minutes) == (7, 5.0)
    save(run, 3)
    assert RunFolder.start("mine", root, "auto", every_minutes=2.0).every_minutes == 2.0


def test_processes_of_one_run_share_its_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RunFolder.start("mine", root)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert RunFolder.start("mine", root).path == first.path
    assert len(list((root / "mine").iterdir())) == 1


def test_never_starts_anew_and_auto_continues_what_was_interrupted(root: Path) -> None:
    first = RunFolder.start("mine", root, "auto")
    first.write("config.yaml", "")
    assert (first.path.name, first.ckpt_path, first.start_step) == ("1", None, 0)
    path = save(first, 40)
    for resume in ("auto", "required"):
        run = RunFolder.start("mine", root, resume)  # type: ignore[arg-type]
        assert (run.path, run.ckpt_path, run.start_step) == (first.path, path, 40)
    anew = RunFolder.start("mine", root, "never")
    assert (anew.path.name, anew.ckpt_path) == ("2", None)
    # The last run failed before its first step: auto goes on with the one before.
    assert RunFolder.start("mine", root, "auto").path == first.path
    # It began, and left nothing: auto does not reach back.
    anew.write("config.yaml", "")
    assert RunFolder.start("mine", root, "auto").path.name == "3"


def test_auto_and_required_open_a_finished_run_and_tell_that_it_is(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = begun(root)
    path = save(first, 40)
    assert not first.finished
    first.write("summary.json", {"steps": 40})
    for resume in ("auto", "required"):
        again = RunFolder.start("mine", root, resume)  # type: ignore[arg-type]
        assert (again.path, again.ckpt_path, again.finished) == (first.path, path, True)
        assert capsys.readouterr().out == f"{first.path} is finished, after 40 steps.\n"


def test_a_resume_says_where_it_goes_on_or_why_it_starts_anew(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = RunFolder.start("mine", root, "auto")
    assert capsys.readouterr().out == f"Run {first.path} starts anew: no run to resume.\n"
    first.write("config.yaml", "")
    second = RunFolder.start("mine", root, "auto")
    told = f"Run {second.path} starts anew: {first.path} ended before its first checkpoint.\n"
    assert capsys.readouterr().out == told
    second.write("config.yaml", "")
    save(second, 7)
    RunFolder.start("mine", root, "auto")
    assert capsys.readouterr().out == f"Run {second.path} continues from recovery-7.ckpt.\n"
    RunFolder.start("mine", root)
    assert capsys.readouterr().out == ""


def test_what_killed_writers_left_in_a_run_goes_when_it_is_resumed(root: Path) -> None:
    run = begun(root)
    save(run, 5)
    for folder in (run.path, run.checkpoints, run.path / "export"):
        (folder / ".partial-x").mkdir(parents=True)
        (folder / ".partial-x" / "recovery-6.ckpt").write_bytes(b"half")
    RunFolder.start("mine", root, "auto")
    assert not list(run.path.rglob("*partial*"))


def test_children_of_a_resumed_run_resume_it_too(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(root)
    path = save(run, 5)
    RunFolder.start("mine", root, "auto")
    monkeypatch.setenv("LOCAL_RANK", "1")
    child = RunFolder.start("mine", root, "auto")
    assert (child.path, child.ckpt_path) == (run.path, path)


@pytest.mark.parametrize("variable", ["RANK", "SLURM_PROCID", "NODE_RANK"])
def test_ranks_of_other_launchers_resume_the_run_that_the_first_has_locked(
    root: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(root)
    path = save(run, 5)
    monkeypatch.delenv("LIT_FOUNDRY_RUN")
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(
        "lit_foundry.runs.folder.lock", lambda path: pytest.fail("a rank took the lock")
    )
    assert RunFolder.start("mine", root, "required").ckpt_path == path


def test_a_checkpoint_of_a_later_format_is_not_passed_over_for_an_older_one(root: Path) -> None:
    run = begun(root)
    save(run, 5)
    later = run.checkpoints / "recovery-6.ckpt"
    VerifiedCheckpointIO().save_checkpoint({"lit_foundry": {"format": 99}}, later)
    with pytest.raises(CheckpointError, match="format 99"):
        RunFolder.start("mine", root, "auto")
    assert later.exists()


LOCKED = """
import sys
from lit_foundry.runs.lock import lock
from pathlib import Path
lock(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_run_is_resumed_by_one_process_at_a_time(root: Path) -> None:
    run = begun(root)
    save(run, 5)
    lock_of = run.path.resolve()
    os.close(_LOCKS.pop(lock_of))
    command = [sys.executable, "-c", LOCKED, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        for resume in ("auto", "required"):
            told = f"in use by process {other.pid} on .* --resume never"
            with pytest.raises(CheckpointError, match=told):
                RunFolder.start("mine", root, resume)  # type: ignore[arg-type]
        assert RunFolder.start("mine", root).path.name == "2"
        other.kill()
    assert RunFolder.start("mine", root, "auto").path == run.path  # a killed one holds nothing


def test_a_demanded_resume_that_finds_nothing_fails_and_leaves_no_folder(root: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--resume required, but .*mine has no recovery"):
        RunFolder.start("mine", root, "required")
    assert not root.exists()
    run = begun(root)
    (run.checkpoints).mkdir()
    (run.checkpoints / "best.ckpt").write_text("not for recovery", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"mine/1/checkpoints has no recovery .* --resume n"):
        RunFolder.start("mine", root, "required")
    assert [path.name for path in (root / "mine").iterdir()] == ["1"]


@pytest.mark.parametrize("with_sums", [True, False])
def test_a_truncated_checkpoint_is_named_and_passed_over(root: Path, with_sums: bool) -> None:
    run = begun(root)
    older, newer = save(run, 9, age=60), save(run, 10)
    newer.write_bytes(newer.read_bytes()[:-100])
    if not with_sums:
        newer.with_name(f"{newer.name}.sha256.json").unlink()
    os.utime(newer, (1e9, 1e9))
    with pytest.warns(UserWarning, match=r"recovery-10.ckpt (is damaged|cannot be read)"):
        resumed = RunFolder.start("mine", root, "required")
    assert (resumed.path, resumed.ckpt_path, resumed.start_step) == (run.path, older, 9)
    assert not newer.exists()  # else it would pass for the newest once more
    assert newer.with_name("recovery-10.ckpt.damaged").exists()


def test_a_resume_from_damaged_checkpoints_only_fails_and_leaves_them(root: Path) -> None:
    run = begun(root)
    for path in (save(run, 9), save(run, 10)):
        path.write_bytes(b"")
    before = sorted(path.name for path in run.checkpoints.iterdir())
    for resume in ("auto", "required"):
        with (
            pytest.warns(UserWarning, match=r"recovery-\d+.ckpt is damaged"),
            pytest.raises(CheckpointError, match=r"damaged: recovery-10.ckpt, recovery-9.ckpt\."),
        ):
            RunFolder.start("mine", root, resume)  # type: ignore[arg-type]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == before
    assert [path.name for path in (root / "mine").iterdir()] == ["1"]


def test_a_dangling_link_among_the_checkpoints_is_passed_over(root: Path) -> None:
    run = begun(root)
    path = save(run, 3)
    (run.checkpoints / "recovery-4.ckpt").symlink_to("gone.ckpt")
    with pytest.warns(UserWarning, match=r"recovery-4.ckpt is no checkpoint file"):
        assert RunFolder.start("mine", root, "auto").ckpt_path == path


def test_newest_means_the_latest_step_whenever_files_were_copied(root: Path) -> None:
    run = begun(root)
    save(run, 9, age=0)
    save(run, 100, age=10)
    save(run, 20, age=5)
    assert RunFolder.start("mine", root, "auto").start_step == 100


def test_a_file_of_the_run_is_written_whole(root: Path) -> None:
    run = RunFolder.start("mine", root)
    run.write("deep/config.yaml", "a: 1\n")
    path = run.write("deep/config.yaml", "b: 2\n")
    assert path.read_text(encoding="utf-8") == "b: 2\n"
    assert [p.name for p in path.parent.iterdir()] == ["config.yaml"]
    assert (
        run.write("s.json", {"a": [1]}).read_text(encoding="utf-8")
        == '{\n  "a": [\n    1\n  ]\n}\n'
    )
