"""A run as its folder tells of it afterwards, read without torch."""

import csv
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lit_foundry.runs.predictions import Predictions

COMMAND = "python -m lit_foundry"
SPLITS = {"test": "Test", "val": "Validation"}
# One a run, or one a series of a single run. Okabe and Ito's, which all eyes tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#666666")
Series = dict[str, tuple[list[int], list[float]]]
T = TypeVar("T")


def run_folder(path: Path) -> Path:
    """Return the folder of a run, given itself, its experiment's folder or one of its checkpoints.

    Raises:
        ValueError: If there is no run.
    """
    if path.is_file() and path.parent.name == "checkpoints":
        path = path.parent.parent
    numbers = sorted((int(p.name), p) for p in path.glob("*") if p.name.isdigit())
    for folder in (path, *(p for _, p in reversed(numbers))):
        if (folder / "config.yaml").is_file():
            return folder
    there = next(p for p in (path, *path.parents, Path()) if p.is_dir())
    places = (there.glob("*/config.yaml"), there.glob("*/*/config.yaml"), Path().glob("runs/*/*/"))
    runs = {str(p.parent if p.is_file() else p) for place in places for p in place}
    known = sorted(run for run in runs if Path(run, "config.yaml").is_file())
    close = [*get_close_matches(str(path), known, n=1, cutoff=0.3), *known][:1]
    remedy = (
        f"The nearest is {shlex.quote(close[0])}."
        if close
        else f"Begin one: {COMMAND} fit --config FILE."
    )
    raise ValueError(
        f"{path} is no run: a run's folder is runs/NAME/NUMBER and holds a config.yaml. {remedy}"
    )


@dataclass(frozen=True)
class Run:
    """What a run's folder holds; whatever is missing is empty.

    Attributes:
        path: The folder.
        name: Experiment and number, or the path where that would be ambiguous.
        color: Colour in all pictures.
    """

    path: Path
    name: str
    color: str

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON file; one that a crash left damaged is as good as missing."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            return dict(yaml.safe_load(self.config_text) or {})
        except (yaml.YAMLError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.path / 'config.yaml'} is no config ({reason}).") from error

    @cached_property
    def config_text(self) -> str:
        """The resolved configuration as it was written."""
        return (self.path / "config.yaml").read_text(encoding="utf-8", errors="replace")

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What the run wrote at its end."""
        return self.read("summary.json")

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """Predictions by split."""
        paths = {split: self.path / "predictions" / f"{split}.parquet" for split in SPLITS}
        return {split: Predictions.read(p) for split, p in paths.items() if p.exists()}

    @cached_property
    def samples(self) -> tuple[int, str] | None:
        """Step and text of the last samples that a language model wrote."""
        found = [p for p in (self.path / "samples").glob("*.txt") if p.stem.isdecimal()]
        files = sorted(found, key=lambda path: int(path.stem))
        return (int(files[-1].stem), files[-1].read_text(encoding="utf-8")) if files else None

    @cached_property
    def pictures(self) -> tuple[int, dict[str, Path]] | None:
        """Step and pictures by name of the last validation that drew any."""
        steps = [p for p in (self.path / "pictures").glob("*") if p.name.isdecimal()]
        for folder in sorted(steps, key=lambda path: -int(path.name)):
            if found := {path.stem: path for path in sorted(folder.glob("*.png"))}:
                return int(folder.name), found
        return None

    @cached_property
    def metrics(self) -> Series:
        """Steps and values of each logged metric."""
        return read_metrics(self.path / "metrics.csv")

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to evaluate, if there is one."""
        folder = self.path / "checkpoints"
        recovery = sorted(folder.glob("recovery-*.ckpt"), key=lambda p: p.stat().st_mtime)
        best = folder / "best.ckpt"
        return best if best.exists() else next(reversed(recovery), None)

    @property
    def resumes(self) -> list[tuple[int, str]]:
        """Step and file of each resume."""
        files = [path.name for path in self.path.glob("environment-resumed-at-*.json")]
        return sorted((int(re.sub(r"\D", "", name)), name) for name in files)


def named(folders: Sequence[Path]) -> list[Run]:
    """Name runs as short as they can be told apart, and give each a colour."""
    short = ["/".join(path.resolve().parts[-2:]) for path in folders]
    names = short if len(set(short)) == len(short) else [str(path) for path in folders]
    pairs = enumerate(zip(folders, names, strict=True))
    return [Run(path, name, color(i)) for i, (path, name) in pairs]


def color(number: int) -> str:
    """Return the colour of a run or a series by its number."""
    return COLORS[number % len(COLORS)]


def read_metrics(path: Path) -> Series:
    """Return steps and values of each metric in a run's ``metrics.csv``; none without the file.

    What a crash left there of a row, or in place of it, is passed over.
    """
    series: Series = {}
    if not path.is_file():
        return series
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        # Line by line: a quote in the wrong place would swallow the lines after it.
        lines = (next(csv.reader([line]), []) for line in file if line.endswith("\n"))
        keys = next(lines, [])
        for cells in lines:
            row = dict(zip(keys, cells, strict=False))
            step = row.pop("step", "")
            for key, cell in row.items():
                value = _number(cell)
                if step.isdecimal() and value is not None:
                    steps, values = series.setdefault(key, ([], []))
                    steps.append(int(step))
                    values.append(value)
    return as_named_today(series)


def as_named_today(scores: Mapping[str, T]) -> dict[str, T]:
    """Return scores by their names; runs of earlier versions call the macro F1 ``f1``."""
    if any(name.endswith("/f1_macro") for name in scores):
        return dict(scores)
    return {re.sub("/f1$", "/f1_macro", name): score for name, score in scores.items()}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
