"""What a run leaves behind for a reader: configuration, environment, plots, a summary."""

import shlex
import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from lit_foundry.callbacks.best import Best
from lit_foundry.callbacks.early_stop import EarlyStop
from lit_foundry.callbacks.evaluation_record import EvaluationRecord
from lit_foundry.callbacks.throughput import Throughput
from lit_foundry.checkpoints.files import newest
from lit_foundry.datamodule import data_of
from lit_foundry.report.plots import plot_curves
from lit_foundry.runs.folder import RunFolder, environment
from lit_foundry.runs.tracking import trackers


class RunRecord(EvaluationRecord):
    """Writes config, environment and tokenizer first, plots and summary.json at the end.

    Predictions and confusion matrix are those of the best validation so far.

    Args:
        run: The folder of the run.
        config: Resolved configuration as YAML; the recipes of task and data if None.
    """

    def __init__(self, run: RunFolder, config: str | None = None) -> None:
        super().__init__(run)
        self.config = config
        self._start = time.perf_counter()
        self._before = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of the run until now."""
        return {"seconds": time.perf_counter() - self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count the seconds before an interruption too."""
        self._before = float(state_dict["seconds"])

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the run is; a summary that a resumed run has is no longer true."""
        (self.run.path / "summary.json").unlink(missing_ok=True)
        data = data_of(trainer)
        parts: dict[str, Any] = {"model": pl_module, "data": data}
        recipes = {key: part.recipe() for key, part in parts.items() if hasattr(part, "recipe")}
        self.run.write("config.yaml", self.config or yaml.safe_dump(recipes, sort_keys=False))
        state = {} if data is None else data.state()
        for name, text in state.get("tokenizer", {}).items():
            self.run.write(f"tokenizer/{name}", text)
        fingerprint = {} if data is None else data.fingerprint()
        suffix = f"-resumed-at-{self.run.start_step}" if self.run.ckpt_path else ""
        self.run.write(f"environment{suffix}.json", environment(fingerprint))
        for tracker in trackers(trainer):
            tracker.open(self.run)
        self._start = time.perf_counter() - self._before

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what the validation said, if it is the best so far."""
        if trainer.sanity_checking:
            return
        best = _best(trainer)
        score = trainer.callback_metrics.get(best.monitor) if best and best.monitor else None
        # Asked before the checkpoint is saved: Lightning calls checkpoint callbacks last.
        if best is None or score is None or best.check_monitor_top_k(trainer, score):
            self.record(trainer, pl_module, "val", trainer.global_step)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves; write and print the summary, unless the run was cut short."""
        metrics = {self.run.path.name: self.run.path / "metrics.csv"}
        plot_curves(metrics, self.run.path / "plots" / "curves.png")
        if trainer.received_sigterm or trainer.interrupted:
            return
        self._summarize(trainer, pl_module)

    def _summarize(self, trainer: Trainer, task: LightningModule) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        best = _best(trainer)
        speed = next((c for c in callbacks if isinstance(c, Throughput)), None)
        score = best.best_model_score if best else None
        scored = None
        if best and score is not None:  # Lightning makes the path an absolute one
            scored = self.run.checkpoints / Path(best.best_model_path).name
        checkpoint = scored or newest(self.run.checkpoints)
        summary = {
            "best_metric": best.monitor if best else None,
            "best_score": None if score is None else float(score),
            "checkpoint": str(checkpoint),
            "steps": trainer.global_step,
            "seconds": time.perf_counter() - self._start,
            **({"stopped_early": why} if (why := _stopped_early(trainer)) else {}),
            "parameters": sum(p.numel() for p in task.parameters()),
            **(speed.rates() if speed and speed.seconds else {}),
        }
        self.run.write("summary.json", summary)
        for tracker in trackers(trainer):
            tracker.log_summary(summary)
            tracker.log_evaluation("val", trainer.global_step)
            if tracker.log_checkpoint and checkpoint:
                tracker.log_artifact(checkpoint, aliases=["best"] if scored else [])
        images = "pixel_values" in getattr(getattr(task, "backbone", None), "inputs", ())
        inputs = "images/" if images else "texts.txt"
        _print(summary, self.run, _limit(trainer), _test(trainer), inputs)


def _best(trainer: Trainer) -> Best | None:
    """Return our own, not a ModelCheckpoint that the user adds."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((c for c in callbacks if isinstance(c, Best)), None)


def _stopped_early(trainer: Trainer) -> str | None:
    """Say why a fit ended before its time; None if it did not."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    stops = [callback for callback in callbacks if isinstance(callback, EarlyStop)]
    return next((stop.reason for stop in stops if stop.reason), None)


def _limit(trainer: Trainer) -> str:
    """Return the option of the trainer that ended the fit, to be raised for a longer one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    left = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
    if any(seconds is not None and seconds <= 0 for seconds in left):
        return "max_time DD:HH:MM:SS"
    return "max_steps N" if trainer.global_step == trainer.max_steps else "max_epochs N"


def _test(trainer: Trainer) -> str:
    """Return what ``test`` needs beside the checkpoint: data, if those of the run name none."""
    data = data_of(trainer)
    named = data is None or data.recipe()["init_args"].get("test", True)
    return "" if named else " --data.test FILES"


def _print(summary: dict[str, Any], run: RunFolder, limit: str, test: str, inputs: str) -> None:
    table = Table(show_header=False, title=f"Run {run.path}", title_justify="left")
    if summary["best_score"] is not None:
        table.add_row(f"best {summary['best_metric']}", f"{summary['best_score']:.4f}")
    elif summary["best_metric"]:
        table.add_row(f"best {summary['best_metric']}", "none: it ended before a validation")
    table.add_row("checkpoint", summary["checkpoint"])
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    if "stopped_early" in summary:
        table.add_row("stopped early", summary["stopped_early"])
    table.add_row("time", f"{minutes} min {seconds:02d} s, {summary['steps']} steps")
    speeds = [
        f"{summary[f'{key}_per_s']:,.0f} {key}/s"
        for key in ("samples", "tokens")
        if f"{key}_per_s" in summary
    ]
    table.add_row("training speed", ", ".join(speeds))
    table.add_row("plots", str(run.path / "plots"))
    command = "python -m lit_foundry"
    config = run.path / "config.yaml"
    # The name may be several folders.
    written = yaml.safe_load(config.read_text(encoding="utf-8")).get("experiment")
    parts = summary["checkpoint"], run.path, config, written or run.path.resolve().parent.name
    checkpoint, path, config_file, experiment = (shlex.quote(str(part)) for part in parts)
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print(table)
    # Plain lines: a table would break commands that one wants to copy.
    console.print(
        f"""test     {command} test --ckpt_path {checkpoint}{test}
predict  {command} predict --ckpt_path {checkpoint} --input {inputs}
report   {command} report {path}"""
    )
    if "stopped_early" in summary:
        return  # a later end would not be reached
    console.print(
        f"""\
longer   {command} fit --config {config_file} --experiment {experiment} \\
             --resume required --trainer.{limit}"""
    )
