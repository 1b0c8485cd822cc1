"""The progress of a run, in whatever limits it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Timer

from lit_foundry.runs.metrics_csv import MetricsCSV
from lit_foundry.training.optim import OptimConfig
from lit_foundry.training.progress import progress
from tests.tasks.test_base import data, logged, seeded, task, trainer  # noqa: F401


class Clock:
    """A clock that is set by hand, in place of the Timer's."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", clock)
    return clock


def stub(**state: Any) -> Any:
    values = {
        "max_steps": -1,
        "max_epochs": -1,
        "global_step": 0,
        "current_epoch": 0,
        "num_training_batches": 12,
        "accumulate_grad_batches": 3,
        "world_size": 1,
        "callbacks": [],
    }
    return SimpleNamespace(**values | state)


def timer(elapsed: float, duration: float | None = 100.0) -> Timer:
    built = Timer(None if duration is None else {"seconds": duration})
    built.load_state_dict({"time_elapsed": {"train": elapsed}})
    return built


@pytest.mark.parametrize(
    ("state", "batch_idx", "want"),
    [
        ({}, 0, (0.0, 0.0)),
        ({"max_steps": 40}, 0, (0.0, 1 / 40)),
        ({"max_steps": 40, "global_step": 10}, 3, (0.25, 1 / 40)),
        ({"max_steps": 40, "global_step": 41}, 0, (1.0, 1 / 40)),
        ({"max_epochs": 5}, 0, (0.0, 1 / 20)),
        ({"max_epochs": 5, "current_epoch": 2, "global_step": 9}, 3, (0.45, 1 / 20)),
        ({"max_epochs": 1, "num_training_batches": float("inf")}, 9, (0.0, 0.0)),
        # The limit that is nearest counts.
        ({"max_epochs": 5, "current_epoch": 1, "max_steps": 8, "global_step": 4}, 0, (0.5, 1 / 8)),
        ({"max_epochs": 2, "current_epoch": 1, "max_steps": 40, "global_step": 4}, 0, (0.5, 1 / 8)),
    ],
)
def test_steps_and_epochs_measure_the_run(
    state: dict[str, Any], batch_idx: int, want: tuple[float, float]
) -> None:
    assert progress(stub(**state), batch_idx) == pytest.approx(want)


def test_steps_of_an_epoch_add_up_to_the_run() -> None:
    at = [
        progress(stub(max_epochs=3, current_epoch=epoch), batch)
        for epoch in range(3)
        for batch in (0, 3, 6, 9)
    ]
    assert [done for done, _ in at] == pytest.approx([i / 12 for i in range(12)])
    assert all(step == pytest.approx(1 / 12) for _, step in at)


def test_wall_clock_measures_the_run_and_steps_by_their_mean() -> None:
    state = {"global_step": 5, "max_steps": 1000}
    assert progress(stub(callbacks=[timer(30.0)], **state), 0) == pytest.approx((0.3, 0.06))
    assert progress(stub(callbacks=[timer(120.0)], **state), 0)[0] == 1.0
    # A timer without a limit measures nothing.
    assert progress(stub(callbacks=[timer(30.0, None)], **state), 0) == pytest.approx((0.005, 1e-3))


def test_ranks_agree_on_the_wall_clock_of_the_first() -> None:
    strategy = SimpleNamespace(broadcast=lambda value: 0.4)
    state = stub(callbacks=[timer(30.0)], world_size=2, strategy=strategy)
    assert progress(state, 0)[0] == 0.4


class Tick(Callback):
    """Lets time pass with each batch, and stops after some steps."""

    def __init__(self, clock: Clock, seconds: float, stop_at: int | None = None) -> None:
        self.clock, self.seconds, self.stop_at = clock, seconds, stop_at

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        """Let it pass."""
        self.clock.now += self.seconds
        trainer.should_stop |= trainer.global_step == self.stop_at


def test_rates_follow_the_wall_clock_across_a_resume(tmp_path: Path, clock: Clock) -> None:
    optim = OptimConfig(name="sgd", lr=1.0, schedule="linear")
    limit = {"max_time": {"seconds": 100}, "max_epochs": None}
    log = MetricsCSV(tmp_path / "first.csv")
    first = trainer(Tick(clock, 10.0, stop_at=4), logger=log, **limit)
    first.fit(task(optim=optim), data(tmp_path))
    assert logged(tmp_path / "first.csv", "lr/head") == pytest.approx([1.0, 0.9, 0.8, 0.7])
    first.save_checkpoint(tmp_path / "first.ckpt")
    saved = torch.load(tmp_path / "first.ckpt", weights_only=True)["callbacks"]["Timer"]
    assert saved["time_elapsed"]["train"] == pytest.approx(40)
    clock.now += 10_000  # the time between the runs does not count
    log = MetricsCSV(tmp_path / "second.csv")
    second = trainer(Tick(clock, 20.0), logger=log, **limit)
    second.fit(task(optim=optim), data(tmp_path), ckpt_path=tmp_path / "first.ckpt")
    assert logged(tmp_path / "second.csv", "lr/head") == pytest.approx([0.6, 0.4, 0.2])
    assert second.global_step == 7
    assert second.should_stop


@pytest.mark.parametrize("limit", [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1}])
def test_rates_follow_steps_and_epochs_alike(tmp_path: Path, limit: dict[str, int]) -> None:
    optim = OptimConfig(name="sgd", lr=1.0, schedule="linear")
    log = MetricsCSV(tmp_path / "metrics.csv")
    trainer(logger=log, **limit).fit(task(optim=optim), data(tmp_path, micro_batch=4))
    want = [1 - i / 12 for i in range(12)]
    assert logged(tmp_path / "metrics.csv", "lr/head") == pytest.approx(want)
