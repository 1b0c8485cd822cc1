"""The folder of a run: configuration, environment, metrics, checkpoints, plots."""

import csv
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_foundry.atomic import replacing
from lit_foundry.checkpoint import CheckpointError, newest
from lit_foundry.tensorboard_logger import TensorBoard

Resume = Literal["auto", "required", "never"]
PACKAGES = ("lit-foundry", "torch", "lightning", "transformers", "tokenizers", "torchmetrics")


class RunFolder:
    """``<root>/<experiment>/<n>/``, and what a Trainer needs to fill it.

    Args:
        path: The folder of this run.
        ckpt_path: Checkpoint to continue from.
        every_minutes: Wall-clock between recovery checkpoints.
        every_n_steps: Optimizer steps between them, in place of minutes.
    """

    def __init__(
        self,
        path: Path,
        ckpt_path: Path | None = None,
        every_minutes: float = 5.0,
        every_n_steps: int | None = None,
    ) -> None:
        self.path, self.ckpt_path = Path(path), ckpt_path
        self.every_minutes, self.every_n_steps = every_minutes, every_n_steps

    @classmethod
    def start(
        cls,
        experiment: str,
        root: str | Path = "runs",
        resume: Resume = "never",
        **cadence: Any,
    ) -> "RunFolder":
        """Open a new run of an experiment, or its last one again.

        Args:
            experiment: Name of the experiment.
            root: Folder of all experiments.
            resume: ``auto`` continues the last run if that was interrupted and left a
                checkpoint; ``required`` continues the last run or fails; ``never`` starts anew.
            cadence: ``every_minutes`` or ``every_n_steps``.

        Raises:
            CheckpointError: If a resume is required and there is nothing to resume.
        """
        folder = Path(root, experiment)
        numbers = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
        # One that failed before its first step left no config.yaml, and is no run to continue.
        begun = [n for n in numbers if (folder / str(n) / "config.yaml").exists()]
        last = folder / str(begun[-1]) if begun else None
        if last and resume != "never":
            finished = (last / "summary.json").exists()
            ckpt = newest(last / "checkpoints", "recovery-*.ckpt")
            if ckpt and not (finished and resume == "auto"):
                return cls(last, ckpt, **cadence)
        if resume == "required":
            where = last / "checkpoints" if last else folder
            raise CheckpointError(
                f"--resume required, but {where} has no recovery checkpoint. Name the experiment "
                "with --experiment, or start anew with --resume never."
            )
        # Children that a DDP launcher starts must not open runs of their own.
        inherited = os.environ.get("LIT_FOUNDRY_RUN")
        is_child = int(os.environ.get("LOCAL_RANK", "0")) > 0
        if inherited and is_child:
            return cls(Path(inherited), **cadence)
        number = numbers[-1] + 1 if numbers else 1
        while not is_child:
            try:
                (folder / str(number)).mkdir(parents=True)
                break
            except FileExistsError:  # another run took the number
                number += 1
        os.environ["LIT_FOUNDRY_RUN"] = str(folder / str(number))
        return cls(folder / str(number), **cadence)

    @classmethod
    def of(cls, ckpt_path: Path) -> "RunFolder":
        """Return the run of ``<run>/checkpoints/NAME.ckpt``; a folder beside one from elsewhere."""
        inside = ckpt_path.parent.name == "checkpoints"
        return cls(ckpt_path.parent.parent if inside else ckpt_path.with_suffix(""))

    @property
    def checkpoints(self) -> Path:
        """Folder of ``best.ckpt`` and of the recovery checkpoint."""
        return self.path / "checkpoints"

    @property
    def start_step(self) -> int:
        """Optimizer steps that were done before this process."""
        found = re.search(r"recovery-(\d+)", self.ckpt_path.name) if self.ckpt_path else None
        return int(found[1]) if found else 0

    def loggers(self) -> list[Logger]:
        """Return the local loggers; a resumed run continues their files without gaps."""
        start = self.start_step
        return [
            MetricsCSV(self.path / "metrics.csv", start),
            TensorBoard(self.path, name="", version="tensorboard", purge_step=start or None),
        ]

    def callbacks(self, task: LightningModule, config: str | None = None) -> list[Callback]:
        """Return what keeps the best checkpoint, the recovery checkpoint and the record.

        Args:
            task: Names the metric that makes a checkpoint the best.
            config: Resolved configuration as YAML; the recipes of task and data if None.
        """
        from lit_foundry.callbacks import Best, Recovery, RunRecord, Samples, Throughput

        monitor, mode = getattr(task, "monitor", None), getattr(task, "mode", "min")
        best = Best(self.checkpoints, monitor, mode)
        recovery = Recovery(self.checkpoints, self.every_minutes, self.every_n_steps)
        samples = [Samples(self)] if hasattr(task, "samples") else []
        return [Throughput(), RunRecord(self, config), *samples, best, recovery]

    def write(self, name: str, content: Mapping[str, Any] | str) -> Path:
        """Write a text or JSON file of the run, whole or not at all."""
        path = self.path / name
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        return path


def environment(fingerprint: Mapping[str, str]) -> dict[str, Any]:
    """Describe what a run depends on beyond its configuration."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        "git": _git(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
        "data": dict(fingerprint),
    }


def _git() -> dict[str, Any] | None:
    """Return commit and cleanliness of the checkout that the code runs from."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, encoding="utf-8"
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class MetricsCSV(Logger):
    """One row per step, all metrics side by side; a resumed run continues the file.

    Args:
        path: File to write.
        start: Optimizer steps done before; rows of later ones, which the interrupted run
            logged and the resumed one repeats, are dropped.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        super().__init__()
        self.path = Path(path)
        self._rows: dict[int, dict[str, float]] = {}
        self._columns = ["step"]
        self._written = 0  # rows on disk that will not change any more
        self._end = 0  # their size in bytes
        if start and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                # A killed process may leave half a row.
                reader = csv.DictReader(line for line in file if line.endswith("\n"))
                self._columns = list(reader.fieldnames or ["step"])
                for row in reader:
                    if int(row["step"]) < start:
                        step = int(row.pop("step"))
                        self._rows[step] = {k: float(v) for k, v in row.items() if v}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """Version of the logger, always empty."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> "MetricsCSV":
        """The logger itself."""
        return self

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Leave these to the run's configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add metrics to the row of a step."""
        values = {key: float(value) for key, value in metrics.items() if key != "epoch"}
        if not values:
            return
        row = int(step or 0)
        new = [key for key in values if key not in self._columns]
        if new or (row in self._rows and row != next(reversed(self._rows))):
            self._columns += new
            self._written = self._end = 0  # the header or an earlier row changes: write all again
        self._rows.setdefault(row, {}).update(values)

    @rank_zero_only
    def save(self) -> None:
        """Bring the file up to date; only its last row can still change."""
        if not self._rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = not self._end
        path = self.path.with_name(f".{self.path.name}.partial") if whole else self.path
        with path.open("w" if whole else "r+", newline="", encoding="utf-8") as file:
            file.seek(self._end)
            file.truncate()
            writer = csv.DictWriter(file, self._columns)
            if whole:
                writer.writeheader()
            for step, row in list(self._rows.items())[self._written :]:
                file.flush()
                self._end = file.tell()
                writer.writerow({"step": step, **row})
        if whole:
            path.replace(self.path)
        self._written = len(self._rows) - 1

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()
