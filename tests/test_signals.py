"""A signal saves the run at the next boundary of a step, and it then ends with the same bits."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lit_foundry.checkpoints.files import read_checkpoint, recoveries, step_of
from lit_foundry.cli.main import main
from lit_foundry.signals import HANDLER, Stopped, leave_signals_to_main
from tests.conftest import REPO
from tests.runs.test_resume import assert_same, end_of, fit

# By hook and its call. 27 micro-steps an epoch, three of which are a step; validations after
# micro-steps 11 and 23 of each epoch, in three batches.
PLACES = [
    ("on_train_batch_start", 0),
    ("on_before_optimizer_step", 3),  # of the step that a validation follows
    ("on_validation_batch_start", 1),
    ("on_validation_end", 1),
    ("on_train_batch_start", 26),
    ("on_train_epoch_end", 0),
    ("on_train_epoch_start", 1),
    ("on_train_batch_start", 53),
]


def words(hook: str, at: int, signum: int = signal.SIGTERM, rank: int | None = None) -> list[str]:
    send = "--trainer.callbacks+=tests.processes.Send"
    options = {"hook": hook, "at": at, "signum": int(signum)}
    if rank is not None:
        options["rank"] = rank
    sane = "--trainer.num_sanity_val_steps=0"
    return [sane, send, *(f"--trainer.callbacks.{key}={value}" for key, value in options.items())]


def compare(tiny: Path, name: str) -> None:
    """Compare a run with the one that was let alone."""
    (want, want_rows, want_order), (got, rows, order) = end_of(tiny, "whole"), end_of(tiny, name)
    assert order == want_order, name
    assert rows == want_rows, name
    for part in ("state_dict", "optimizer_states", "loops", "global_step"):
        assert_same(got[part], want[part], f"{name}: {part}")
    runs = [tiny.parent / "runs" / one / "1" for one in ("whole", name)]
    best, mine = (read_checkpoint(run / "checkpoints" / "best.ckpt") for run in runs)
    assert_same(mine["state_dict"], best["state_dict"], f"{name}: best")
    said = [pq.read_table(run / "predictions" / "val.parquet") for run in runs]
    assert said[0].equals(said[1]), name


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [False, True])
def test_sigterm_saves_wherever_it_comes_and_nothing_is_done_twice(
    averaged: bool, tiny: Path
) -> None:
    ema = ["--trainer.callbacks+=EMA"] * averaged
    assert fit(tiny, "whole", None, *ema) == 0

    def stop_and_resume(place: tuple[str, int]) -> None:
        name = "-".join(map(str, place))
        assert fit(tiny, name, None, *ema, *words(*place)) == 143, place
        run = tiny.parent / "runs" / name / "1"
        assert recoveries(run / "checkpoints"), place
        assert not (run / "summary.json").exists()
        assert fit(tiny, name, None, *ema, "--resume", "auto") == 0, place
        compare(tiny, name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(stop_and_resume, PLACES[1:3] if averaged else PLACES))


# Between the collectives of a step, amid a validation, at an epoch's end.
MOMENTS = [
    ("on_after_backward", 5, 0),
    ("on_validation_batch_start", 1, 1),
    ("on_train_epoch_end", 0, None),
]


@pytest.mark.slow
def test_ranks_agree_on_a_signal_to_any_of_them(tiny: Path) -> None:
    # Two ranks halve what one takes, so that a step has the micro-steps of one process.
    ddp = ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.micro_batch=2"]
    assert fit(tiny, "whole", None, *ddp, ranks=2) == 0
    for hook, at, rank in MOMENTS:
        name = f"{hook}-{at}"
        send = words(hook, at, rank=rank)
        assert fit(tiny, name, None, *ddp, *send, ranks=2) == 143, name
        assert recoveries(tiny.parent / "runs" / name / "1" / "checkpoints"), name
        assert fit(tiny, name, None, *ddp, "--resume", "required", ranks=2) == 0, name
        compare(tiny, name)


@pytest.mark.slow
def test_a_signal_to_a_rank_that_another_launched_stops_both(tiny: Path) -> None:
    overlay = str(REPO / "configs" / "trainer" / "ddp.yaml")
    config = ["--config", str(tiny), "--config", overlay, "--trainer.accelerator=cpu"]
    send = words("on_after_backward", 7, rank=1)
    command = [sys.executable, "-m", "lit_foundry", "fit", *config, *send]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        command, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 143, done.stderr[-3000:]
    *_, saved, how = done.stderr.splitlines()
    assert saved.startswith("SIGTERM: stopped; the run is saved in ")
    assert how.startswith("To go on: python -m lit_foundry fit ")
    assert list((tiny.parent / "runs").rglob("recovery-*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_other_signals_save_too_and_say_so_by_their_exit_code(signum: int, tiny: Path) -> None:
    place = ("on_train_batch_start", 16)
    assert fit(tiny, "ended", None, *words(*place, signum)) == 128 + signum
    [saved, *_] = recoveries(tiny.parent / "runs/ended/1/checkpoints")
    assert step_of(saved) == 6


def test_the_last_line_says_how_to_go_on(tiny: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = ("on_train_batch_start", 4)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(tiny), *words(*place)])
    assert stopped.value.code == 143
    *_, done, how = capfd.readouterr().err.splitlines()
    assert done.startswith("SIGTERM: stopped; the run is saved in ")
    assert done.endswith("checkpoints/recovery-2.ckpt.")
    assert how.startswith(f"To go on: python -m lit_foundry fit --config {tiny} ")
    assert how.endswith(" --resume required")


def test_before_the_first_step_a_signal_stops_at_once_and_claims_nothing(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(tiny), *words("on_fit_start", 0)])
    assert stopped.value.code == 1
    assert capfd.readouterr().err.splitlines()[-1] == "SIGTERM: stopped; nothing was saved."
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_evaluation_stops_at_once(tiny: Path) -> None:
    main(["fit", "--config", str(tiny), "--trainer.max_epochs=1"])
    best = next((tiny.parent / "runs").rglob("best.ckpt"))
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--ckpt_path", str(best), *words("on_test_batch_start", 0)])
    assert stopped.value.code == 1


def test_a_second_interrupt_stops_at_once() -> None:
    with HANDLER as handler:
        handler.waits = True
        os.kill(os.getpid(), signal.SIGINT)
        assert handler.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_what_is_ignored_stays_ignored_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with HANDLER, HANDLER:
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Stopped, match="SIGUSR1: stopped; nothing was saved"):
                os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_forked_process_handles_signals_of_its_own_only_if_it_asks_to() -> None:
    codes = []
    with HANDLER:
        for asks in (False, True):
            child = os.fork()
            if not child:
                try:
                    with HANDLER if asks else nullcontext():
                        os.kill(os.getpid(), signal.SIGTERM)
                    os._exit(3)
                except Stopped:
                    os._exit(4)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    assert codes == [3, 4]


def test_a_loader_worker_lives_through_what_its_group_is_sent() -> None:
    worker = os.fork()
    if not worker:
        leave_signals_to_main(0)
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "limits"),
    [
        # Of a run whose limit lies inside an epoch, the last step is followed by its end at once.
        (("on_train_batch_start", 14), ["--trainer.max_steps=5", "--trainer.max_epochs=-1"]),
        (("on_train_batch_start", 11), ["--trainer.max_steps=4", "--trainer.max_epochs=-1"]),
        # The validation that is owed is that of an epoch's last step.
        (("on_validation_start", 1), ["--trainer.val_check_interval=1.0"]),
        (("on_train_batch_end", 26), ["--trainer.val_check_interval=1.0"]),
    ],
)
def test_a_signal_at_an_end_loses_nothing(
    place: tuple[str, int], limits: list[str], tiny: Path
) -> None:
    assert fit(tiny, "whole", None, *limits) == 0
    assert fit(tiny, "ended", None, *words(*place), *limits) == 143
    assert fit(tiny, "ended", None, *limits, "--resume", "auto") == 0
    compare(tiny, "ended")
    [last] = recoveries(tiny.parent / "runs" / "ended" / "1" / "checkpoints")
    assert "Recovery" not in read_checkpoint(last)["callbacks"], "a validation is still owed"


def test_a_signal_after_the_last_step_names_what_is_saved(
    tiny: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", str(tiny), "--trainer.max_epochs=1", *words("on_fit_end", 0)])
    assert stopped.value.code == 143
    assert "the run is saved in" in capfd.readouterr().err
