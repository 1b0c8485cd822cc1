"""The folder of a run: configuration, environment, metrics, checkpoints, plots."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.loggers import Logger

from lit_foundry.atomic import clear_stale, replacing
from lit_foundry.checkpoints.files import CheckpointError, newest, recoveries, step_of
from lit_foundry.runs.lock import lock
from lit_foundry.runs.metrics_csv import MetricsCSV
from lit_foundry.runs.tensorboard_logger import TensorBoard

Resume = Literal["auto", "required", "never"]
ROOT = "runs"  # of all experiments, in the working folder
PACKAGES = ("lit-foundry", "torch", "lightning", "transformers", "tokenizers", "torchmetrics")


class RunFolder:
    """``<root>/<experiment>/<n>/``, and what a Trainer needs to fill it.

    Args:
        path: The folder of this run.
        ckpt_path: Checkpoint to continue from.
        every_minutes: Wall-clock between recovery checkpoints.
        every_n_steps: Optimizer steps between them, in place of minutes.

    Attributes:
        finished: Whether the run had ended before this process.
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
        self.finished = bool(ckpt_path) and (self.path / "summary.json").exists()

    @classmethod
    def start(
        cls,
        experiment: str,
        root: str | Path = ROOT,
        resume: Resume = "never",
        **cadence: Any,
    ) -> "RunFolder":
        """Open a new run of an experiment, or its last one again, and say which and why.

        Args:
            experiment: Name of the experiment.
            root: Folder of all experiments.
            resume: ``auto`` continues the last run from its newest checkpoint, and starts anew
                if there is none; ``required`` continues it or fails; ``never`` starts anew.
            cadence: ``every_minutes`` or ``every_n_steps``.

        Raises:
            CheckpointError: If a resume is required and there is nothing to resume, if all
                checkpoints to resume from are damaged, or if another process writes to the run.
        """
        # Of all ranks, one opens runs and writes to them. Lightning's launcher hands its own on.
        rank = _get_rank() or int(os.environ.get("NODE_RANK", "0"))
        is_child = rank > 0
        if is_child and (inherited := os.environ.get("LIT_FOUNDRY_RUN")):
            ckpt = os.environ.get("LIT_FOUNDRY_RESUMED")
            return cls(Path(inherited), Path(ckpt) if ckpt else None, **cadence)
        folder = Path(root, experiment)
        numbers = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
        # One that failed before its first step left no config.yaml, and is no run to continue.
        begun = [n for n in numbers if (folder / str(n) / "config.yaml").exists()]
        last = folder / str(begun[-1]) if begun else None
        finished = last is not None and (last / "summary.json").exists()
        writes = not is_child and not (finished and resume == "auto")
        run = None
        if resume != "never":
            run = cls._continued(last, writes, **cadence) if last else None
            if run is None and resume == "required":
                where = last / "checkpoints" if last else folder
                raise CheckpointError(
                    f"--resume required, but {where} has no recovery checkpoint. Name the "
                    "experiment with --experiment, or start anew with --resume never."
                )
        anew = run is None
        if run is None:
            run = cls(_new_folder(folder, numbers, make=not is_child), **cadence)
        if not is_child:
            if writes or anew:
                lock(run.path)
            if resume != "never":
                print(run._origin(last if anew else None))
            os.environ["LIT_FOUNDRY_RUN"] = str(run.path)
            os.environ["LIT_FOUNDRY_RESUMED"] = str(run.ckpt_path or "")
        return run

    @classmethod
    def _continued(cls, path: Path, tidy: bool, **cadence: Any) -> "RunFolder | None":
        """Open a run again at its newest undamaged recovery checkpoint; None without any.

        Args:
            path: Folder of the run.
            tidy: Remove what killed writers left, and set damaged checkpoints aside, so that
                they are not taken for the newest once more.
            cadence: As of :meth:`start`.
        """
        if tidy:
            lock(path)
            for folder in [path, *path.rglob("*/")]:
                clear_stale(folder)
        saved = recoveries(path / "checkpoints")
        ckpt = newest(path / "checkpoints")
        if saved and ckpt is None:
            raise CheckpointError(
                f"All recovery checkpoints in {path / 'checkpoints'} are damaged: "
                f"{', '.join(file.name for file in saved)}. Put a copy in their place, or start "
                "anew with --resume never."
            )
        for damaged in saved[: saved.index(ckpt)] if ckpt and tidy else []:
            damaged.replace(damaged.with_name(f"{damaged.name}.damaged"))
        return cls(path, ckpt, **cadence) if ckpt else None

    def _origin(self, last: Path | None) -> str:
        """Say where the run goes on, or why it starts anew."""
        if self.finished:
            return f"{self.path} is finished, after {self.start_step} steps."
        if self.ckpt_path:
            return f"Run {self.path} continues from {self.ckpt_path.name}."
        why = f"{last} ended before its first checkpoint" if last else "no run to resume"
        return f"Run {self.path} starts anew: {why}."

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
        return step_of(self.ckpt_path) if self.ckpt_path else 0

    def loggers(self) -> list[Logger]:
        """Return the local loggers; a resumed run continues their files without gaps."""
        start = self.start_step
        return [
            MetricsCSV(self.path / "metrics.csv", start),
            TensorBoard(self.path, name="tensorboard", version="", purge_step=start or None),
        ]

    def write(self, name: str, content: Mapping[str, Any] | str) -> Path:
        """Write a text or JSON file of the run, whole or not at all."""
        path = self.path / name
        text = content if isinstance(content, str) else json.dumps(content, indent=2) + "\n"
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        return path


def _new_folder(folder: Path, numbers: list[int], make: bool) -> Path:
    """Return the folder of the next run, made by the one process that may."""
    number = numbers[-1] + 1 if numbers else 1
    while make:
        try:
            (folder / str(number)).mkdir(parents=True)
            break
        except FileExistsError:  # another run took the number
            number += 1
    return folder / str(number)


def environment(fingerprint: Mapping[str, str]) -> dict[str, Any]:
    """Describe what a run depends on beyond its configuration."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        "git": _git(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
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


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None of others."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
