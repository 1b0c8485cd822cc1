"""What Lightning brings and a run cannot use is refused before training, in one line."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    WeightAveraging,
)

from lit_foundry.callbacks import Compatibility
from lit_foundry.cli.main import main
from tests.tasks.test_base import data, seeded, task, trainer  # noqa: F401


@pytest.mark.parametrize(
    ("callback", "remedy"),
    [
        (GradientAccumulationScheduler({0: 2}), "set data.micro_batch"),
        (LearningRateFinder(), "set model.optim.lr"),
        (BatchSizeFinder(), "set data.batch_size"),
        (EMAWeightAveraging(), "take lit_foundry.callbacks.EMA"),
        (WeightAveraging(), "take lit_foundry.callbacks.EMA or Averaging"),
    ],
)
def test_callbacks_that_set_what_is_set_elsewhere_are_refused(
    callback: Callback, remedy: str, tmp_path: Path
) -> None:
    fit = trainer(callback, Compatibility())
    with pytest.raises(ValueError, match=f"{type(callback).__name__} does not work here; {remedy}"):
        fit.fit(task(), data(tmp_path))
    assert fit.global_step == 0


def test_an_average_whose_checkpoints_hold_other_weights_is_refused_without_our_callbacks(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="EMAWeightAveraging does not work here; take lit_foundry"):
        trainer(EMAWeightAveraging()).fit(task(), data(tmp_path))


def test_a_monitor_of_what_is_never_logged_is_told_before_the_first_step(tmp_path: Path) -> None:
    fit = trainer(EarlyStopping("val_loss"), Compatibility(), num_sanity_val_steps=1)
    with pytest.raises(ValueError, match=r"EarlyStopping monitors val_loss, .*mean val/loss\?"):
        fit.fit(task(), data(tmp_path))
    assert fit.global_step == 0


def test_monitors_of_what_is_logged_pass(tmp_path: Path) -> None:
    watching = EarlyStopping("val/acc"), ModelCheckpoint(tmp_path / "c", monitor="step")
    options = {"num_sanity_val_steps": 1, "enable_checkpointing": True}
    fit = trainer(*watching, Compatibility(), **options)
    fit.fit(task(), data(tmp_path))
    assert fit.global_step == 4


LIGHTNINGS = "lightning.pytorch.callbacks"


@pytest.mark.parametrize(
    "callback",
    [
        {"class_path": f"{LIGHTNINGS}.TQDMProgressBar", "init_args": {"refresh_rate": 0}},
        {"class_path": f"{LIGHTNINGS}.Timer", "init_args": {"duration": "00:00:10:00"}},
    ],
)
def test_lightnings_own_bar_replaces_ours_and_its_timer_is_written_down(
    callback: dict[str, Any], tiny: Path
) -> None:
    words = ["fit", "--config", str(tiny), "--trainer.max_epochs=1"]
    words += ["--trainer.enable_progress_bar=true", f"--trainer.callbacks={[callback]}"]
    cli = main(words)
    assert callback["class_path"] in (cli.run.path / "config.yaml").read_text(encoding="utf-8")


def test_a_run_without_checkpoints_is_refused(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"enable_checkpointing=false.* Leave it out"):
        main(["fit", "--config", str(tiny), "--trainer.enable_checkpointing=false"])
    assert not (tiny.parent / "runs").exists()
