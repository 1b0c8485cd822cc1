"""Tracking with Weights & Biases, in a process of its own.

Nothing of ``wandb`` is imported here: whatever happens to it, to its server or to the network, a
run neither waits for it, nor fails, nor changes.
"""

import atexit
import json
import logging
import os
import queue
import secrets
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import yaml
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_foundry import ranges
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.predictions import Predictions

_log = logging.getLogger(__name__)
_SCRIPT = Path(__file__).with_name("wandb_process.py")
_OFFLINE = 10  # exit code of the script
_BACKLOG = 100_000  # messages; a process that far behind hangs
STEP = "trainer/global_step"
MISSING = "Tracking needs the package wandb: pip install 'lit-foundry[wandb]'."


class WandbTracker(Logger):
    """Records a run with Weights & Biases; offline without a key or a network.

    ``RunRecord`` opens it. Metrics are drawn over the optimizer steps; those that an interrupted
    run logged after its last checkpoint are logged again, with the same values.

    Args:
        project: Project of a new run; one that is continued stays where it is.
        entity: User or team; the default of the key if None.
        name: Name shown; ``<experiment>/<n>`` if None.
        log_checkpoint: Whether the best checkpoint is uploaded, at the end of a fit.
        wait: Seconds that the end of a run waits for what is not yet written or uploaded.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """

    def __init__(
        self,
        project: str = "lit_foundry",
        entity: str | None = None,
        name: str | None = None,
        log_checkpoint: bool = True,
        wait: float = 60.0,
    ) -> None:
        super().__init__()
        if find_spec("wandb") is None:
            raise ModuleNotFoundError(MISSING)
        rules = {"wait": (wait >= 0, "is a number of seconds, 0 at least")}
        ranges.check("WandbTracker", {"wait": wait}, rules)
        self.log_checkpoint, self.wait = log_checkpoint, wait
        self.identity = {"id": "", "project": project, "entity": entity, "name": name}
        self._run: RunFolder | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._failed = False

    @property
    def name(self) -> str:
        """Name of the project."""
        return str(self.identity["project"])

    @property
    def version(self) -> str:
        """The id of the run; empty until it is opened."""
        return str(self.identity["id"])

    @property
    @rank_zero_experiment
    def experiment(self) -> "WandbTracker":
        """The logger itself."""
        return self

    @rank_zero_only
    def open(self, run: RunFolder) -> None:
        """Begin to record a run folder, or continue under the id that its ``wandb.json`` holds."""
        self._run = run
        file = run.path / "wandb.json"
        if file.exists():
            self.identity = json.loads(file.read_text(encoding="utf-8"))
        else:
            # From the system: the global generators belong to the training.
            name = self.identity["name"] or "/".join(run.path.parts[-2:])
            self.identity |= {"id": secrets.token_hex(4), "name": name}
            run.write("wandb.json", self.identity)
        self._start(run.path)

    def _start(self, folder: Path) -> None:
        self._folder = folder / "wandb"
        # Else copies of artifacts would go to the home directory.
        files = str(self._folder.resolve() / ".files")
        own = {"WANDB_DATA_DIR": files, "WANDB_CACHE_DIR": files}
        try:
            self._folder.mkdir(exist_ok=True)
            with (self._folder / "process.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(_SCRIPT)],  # -P: our modules are not the script's
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=own | os.environ,
                    start_new_session=True,  # Ctrl-C is for the training; no terminal, so no prompt
                )
        except OSError as error:  # a full or read-only disk
            self._failed = True
            _log.warning("Weights & Biases: %s. The run goes on without it.", error)
            return
        assert self._process.stdin is not None
        self._queue: queue.Queue[dict[str, Any]] = queue.Queue(_BACKLOG)
        args = (self._queue, self._process.stdin)
        self._thread = threading.Thread(target=_feed, args=args, daemon=True)
        self._thread.start()
        atexit.register(self.finalize, "failed")
        start = {"dir": str(folder.resolve()), "config": _config(folder), "step": STEP}
        self._send(**self.identity, **start, wait=self.wait, init_timeout=self.wait / 2)

    @rank_zero_only
    def _send(self, **message: Any) -> None:
        """Hand a message on, without waiting."""
        if self._failed:
            return
        if self._run is None:
            raise ValueError(
                "WandbTracker was not opened: give the Trainer callbacks=run_callbacks(run, task), "
                "or call open(run), with run = RunFolder.start(...)."
            )
        if self._process is None:  # a test after the fit
            self.open(self._run)
        assert self._process is not None
        if self._process.poll() is not None:
            self._give_up("has ended early")
        elif self._queue.full():
            self._give_up("hangs")
        else:
            self._queue.put(message)

    def _give_up(self, why: str) -> None:
        assert self._process is not None
        self._failed = True
        self._process.kill()
        _end_of(self._process, 1)
        _log.warning(
            "Tracking with Weights & Biases %s, and the run goes on without it; see "
            "%s/process.log. To upload what it recorded: wandb sync --no-skip-online %s",
            why,
            self._folder,
            shlex.quote(str(self._folder)),
        )

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of an optimizer step."""
        self._send(metrics={k: float(v) for k, v in metrics.items()} | {STEP: int(step or 0)})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Leave these to the run's configuration."""

    def log_summary(self, summary: Mapping[str, Any]) -> None:
        """Set values of the whole run."""
        self._send(summary=dict(summary))

    def log_samples(self, texts: Sequence[str], step: int) -> None:
        """Log texts of a language model as a table."""
        samples = {"columns": ["sample"], "data": [[text] for text in texts]}
        self._send(metrics={STEP: step}, tables={"samples": samples})

    def log_images(self, images: Mapping[str, Path], step: int) -> None:
        """Log pictures, PNG by name."""
        paths = {f"pictures/{name}": str(path.resolve()) for name, path in images.items()}
        self._send(metrics={STEP: step}, images=paths)

    def log_evaluation(self, stage: str, step: int) -> None:
        """Log the predictions and the confusion matrix that lie in the run's folder.

        Args:
            stage: Split that they are of.
            step: Optimizer steps that the network had taken, if no predictions tell.
        """
        if self._run is None:  # another rank than 0
            return
        folder = self._run.path.resolve()
        said = folder / "predictions" / f"{stage}.parquet"
        plot = folder / "plots" / f"{stage}_confusion.png"
        images = {f"{stage}/confusion": str(plot)} if plot.exists() else {}
        tables = {}
        if said.exists():
            predictions = Predictions.read(said)
            step, tables = predictions.step, {f"{stage}/predictions": table(predictions)}
        if tables or images:
            self._send(metrics={STEP: step}, tables=tables, images=images)

    def log_artifact(
        self,
        path: str | Path,
        type: str = "model",
        name: str = "model",
        aliases: Sequence[str] = (),
    ) -> None:
        """Log a file or a folder, as version of ``<name>-<id of the run>``."""
        self._send(
            artifact={
                "path": str(Path(path).resolve()),
                "type": type,
                "name": f"{name}-{self.version}",
                "aliases": ["latest", *aliases],
            }
        )

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Wait, for a bounded time, until all is written; say how to upload what is offline."""
        if self._process is None:
            return
        self._send(exit_code=0 if status == "success" else 1)
        code = _end_of(self._process, 0 if self._failed else self.wait)
        if not self._failed and code is None:
            self._give_up(f"did not end within {self.wait:.0f} s")
        elif not self._failed and code not in (0, _OFFLINE):
            self._give_up("failed")
        elif code == _OFFLINE:
            where = shlex.quote(str(self._folder))
            print(f"Recorded offline for Weights & Biases; to upload: wandb sync {where}")
        self._thread.join(1)
        self._process = None
        atexit.unregister(self.finalize)


def _feed(messages: "queue.Queue[dict[str, Any]]", pipe: IO[bytes]) -> None:
    """Write messages until the last; the pipe blocks where the process hangs, hence a thread."""
    try:
        with pipe:
            while "exit_code" not in (message := messages.get()):
                pipe.write(json.dumps(message, default=str).encode() + b"\n")
                pipe.flush()
            pipe.write(json.dumps(message).encode() + b"\n")
    except OSError:  # it was killed, which `finalize` tells
        pass


def _end_of(process: "subprocess.Popen[bytes]", seconds: float) -> int | None:
    """Return the exit code of a process, None if it is still running after some seconds."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _config(folder: Path) -> dict[str, Any]:
    """Return the resolved configuration of a run, with the environments that it ran in."""
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    environments = sorted(folder.glob("environment*.json"))
    return {
        **config,
        **{path.stem: json.loads(path.read_text(encoding="utf-8")) for path in environments},
    }


def table(predictions: Predictions, rows: int = 200) -> dict[str, list[Any]]:
    """Return columns and rows of a table: the worst first, the most confident mistakes of a class.

    Args:
        predictions: What a network says of a split.
        rows: Length of the table, at most.
    """
    samples = {name: column for name, column in predictions.samples.items() if name != "image"}
    columns = {**samples, **predictions.told()}
    if predictions.kind == "class":  # then the least sure
        columns["prob"] = predictions.probs.max(1)
    order = np.argsort(-predictions.wrongness, kind="stable")[:rows]
    return {
        "columns": list(columns),
        "data": [[plain(column[i]) for column in columns.values()] for i in order.tolist()],
    }


def plain(cell: Any) -> Any:
    """Return a cell as JSON has it; names in a list as one text."""
    if isinstance(cell, list):
        return ", ".join(map(str, cell))
    return cell.item() if isinstance(cell, np.generic) else cell


def trackers(trainer: Trainer) -> list[WandbTracker]:
    """Return the trackers among the loggers of a Trainer."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbTracker)]


def tracker_of(folder: str | Path) -> WandbTracker | None:
    """Continue the tracking of a run folder, if it was tracked.

    Returns:
        A tracker, to be ended with ``finalize("success")``, or None.
    """
    run = RunFolder(Path(folder))
    if not (run.path / "wandb.json").exists():
        return None
    try:
        tracker = WandbTracker()
    except ModuleNotFoundError as error:  # the run was tracked elsewhere; no reason to fail here
        _log.warning("%s This run was tracked, and is not continued.", error)
        return None
    tracker.open(run)
    return tracker
