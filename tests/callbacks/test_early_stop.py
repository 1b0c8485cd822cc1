"""Early stopping: by the task's own score, across a resume, and told in the summary."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lit_foundry.callbacks import EarlyStop, Recovery
from lit_foundry.cli.main import main
from lit_foundry.tasks import Classification
from tests.conftest import write_config
from tests.finetuning import Data, classifier, state
from tests.tasks.test_base import seeded, trainer  # noqa: F401


class Scores(Callback):
    """Replaces the validation's score by a script, and counts what was trained."""

    def __init__(self, scores: list[float], name: str = "val/acc") -> None:
        self.scores, self.name, self.steps = scores, name, 0

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the score of this epoch."""
        pl_module.scripted = (self.name, self.scores[trainer.current_epoch])

    def on_train_batch_end(self, *args: Any) -> None:
        """Count."""
        self.steps += 1


class Scripted(Classification):
    """Logs what it is told."""

    scripted: tuple[str, float] | None = None

    def on_validation_epoch_end(self) -> None:
        """Log in place of the metrics."""
        name, value = self.scripted or ("val/acc", 0.0)
        self.scores.compute("val")
        self.log(name, torch.tensor(value))


def scripted() -> Scripted:
    model = classifier("vit")
    model.__class__ = Scripted
    return model  # type: ignore[return-value]


def epochs(stop: EarlyStop, scores: list[float], name: str = "val/acc", **options: Any) -> int:
    """Return after how many epochs of five steps a fit with these scores ends."""
    log = Scores(scores, name)
    fit = trainer(log, stop, max_epochs=len(scores))
    fit.fit(scripted(), Data("vit"), **options)
    assert log.steps % 5 == 0
    return log.steps // 5


def test_it_stops_when_the_tasks_score_no_longer_rises() -> None:
    scores = [0.5, 0.6, 0.6, 0.55, 0.61, 0.6, 0.6, 0.6, 0.9]
    assert epochs(EarlyStop(patience=3), scores) == 8
    assert epochs(EarlyStop(patience=2), scores) == 4
    assert epochs(EarlyStop(patience=2, min_delta=0.05), scores[:5]) == 4
    assert epochs(EarlyStop(patience=1), [0.1, 0.2, 0.3]) == 3


def test_it_stops_by_another_score_where_that_is_named() -> None:
    scores = [0.5, 0.4, 0.45, 0.43, 0.1]
    stop = EarlyStop(2, monitor="val/loss", mode="min")
    assert epochs(stop, scores, "val/loss") == 4
    assert stop.reason == "val/loss got no better than 0.4000 in 2 validations"
    with pytest.raises(ValueError, match="go together: set both, or neither"):
        EarlyStop(monitor="val/loss")
    with pytest.raises(ValueError, match="patience is a number of validations, 1 at least, got 0"):
        EarlyStop(0)


def test_patience_goes_on_across_a_resume_and_follows_the_config(tmp_path: Path) -> None:
    scores = [0.5, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5]

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    fit = trainer(Scores(scores), EarlyStop(3), Save(), max_epochs=8)
    fit.fit(scripted(), Data("vit"))
    assert fit.current_epoch == 5

    def more(epoch: int, patience: int) -> int:
        path = tmp_path / f"{epoch}.ckpt"
        return epochs(EarlyStop(patience), scores, ckpt_path=path)

    # After epoch 3, one validation was no better; the next two end the run, as without a break.
    assert more(2, 3) == 2
    assert more(3, 3) == 1
    assert more(3, 5) == 3
    assert more(4, 3) == 0, "what had stopped trains no step more"
    assert more(4, 4) == 1


def test_a_run_killed_as_it_stopped_trains_no_step_more(tmp_path: Path) -> None:
    scores, model = [0.5, 0.4, 0.4, 0.4], scripted()
    recovery = Recovery(tmp_path, every_n_steps=100)
    fit = trainer(Scores(scores), EarlyStop(2), recovery, max_epochs=4, enable_checkpointing=True)
    fit.fit(model, Data("vit"))
    [path] = tmp_path.glob("recovery-*.ckpt")
    assert path.name == "recovery-15.ckpt"
    again, log = scripted(), Scores(scores)
    trainer(log, EarlyStop(2), max_epochs=4).fit(again, Data("vit"), ckpt_path=path)
    assert log.steps == 0
    want, got = state(model), state(again)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_config_stops_early_and_the_summary_says_so(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = {"class_path": "EarlyStop", "init_args": {"patience": 1, "min_delta": 2.0}}
    overlay = write_config(tiny.parent / "stop.yaml", {"trainer": {"callbacks": [stop]}})
    main(["fit", "--config", str(tiny), "--config", str(overlay), "--trainer.max_epochs", "9"])
    printed = capsys.readouterr().out
    summary = json.loads(
        (tiny.parent / "runs" / "tiny" / "1" / "summary.json").read_text(encoding="utf-8")
    )
    assert summary["stopped_early"].startswith("val/acc got no better than 0.")
    assert summary["stopped_early"].endswith("in 1 validation")
    assert summary["stopped_early"] in printed
    assert "longer" not in printed
    assert 0 < summary["steps"] < 9 * 9
