"""The record of a run's metrics, as a table."""

import csv
import logging
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_foundry.atomic import replacing, sync

_log = logging.getLogger(__name__)


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
        self._told = False  # of a failure to write
        if start and self.path.exists():
            self._continue(start)

    def _continue(self, start: int) -> None:
        """Take over the rows before ``start``; a crash may have left torn ones, or zeros."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        rows = csv.reader(line for line in lines[:-1] if line)
        header = next(rows, [])
        if header[:1] != ["step"]:
            return
        self._columns = header
        damaged = 0
        for cells in rows:
            try:
                row = dict(zip(header, cells, strict=True))
                step = int(row.pop("step"))
                values = {key: float(value) for key, value in row.items() if value}
            except ValueError:
                damaged += 1
                continue
            if step < start:
                self._rows[step] = values
        if damaged:
            warnings.warn(f"{self.path}: {damaged} damaged rows were left out.", stacklevel=4)

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
        """Bring the file up to date; only its last row can still change.

        Where that fails, the rows wait in memory for a better time, and the run goes on.
        """
        if not self._rows:
            return
        try:
            if self._end:
                self._append(self.path)
            else:
                with replacing(self.path) as partial:
                    self._append(partial)
        except OSError as error:
            self._end = 0  # what is there may be torn: all is written again
            self._written = 0
            if not self._told:
                _log.warning("%s: %s. The run goes on.", self.path, error.strerror or error)
            self._told = True
        else:
            self._written, self._told = len(self._rows) - 1, False

    def _append(self, path: Path) -> None:
        """Write the rows that may have changed; all of them, with a header, to a new file."""
        with path.open("r+" if self._end else "w", newline="", encoding="utf-8") as file:
            file.seek(self._end)
            file.truncate()
            writer = csv.DictWriter(file, self._columns)
            if not self._end:
                writer.writeheader()
            for step, row in list(self._rows.items())[self._written :]:
                file.flush()
                self._end = file.tell()
                writer.writerow({"step": step, **row})

    @rank_zero_only
    def sync(self) -> None:
        """Bring the file up to date on the disk, where a loss of power does not reach it."""
        self.save()
        if self._end:
            with suppress(OSError):  # the rows are in memory too
                sync(self.path)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is left."""
        self.save()
