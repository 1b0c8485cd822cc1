"""Make a trained network smaller in stages, and measure what each of them costs and gains."""

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml

from lit_foundry.cli.arguments import load_value
from lit_foundry.compress.command import changes_of, machine, show
from lit_foundry.compress.evaluation import Split
from lit_foundry.compress.page import write
from lit_foundry.compress.pipeline import (
    NAMED,
    START,
    LimitError,
    Limits,
    Pipeline,
    Stage,
    run,
    texts,
)
from lit_foundry.compress.result import Result, conclusion, costs, warned, worth
from lit_foundry.export.command import TOLERANCE
from lit_foundry.export.quantization import METHODS
from lit_foundry.recipe import import_named
from lit_foundry.runs.folder import ROOT
from lit_foundry.usage import OWN_HELP, Parser, UsageError

LIMITS = {each.name for each in fields(Limits)}
OF_STAGE = ("fit", "set", "export", "quantize", "limits")
OF_PIPELINE = ("start", "stages", "limits", "split", "data", "batch", "size", "repeats", "within")
NAME = re.compile(r"[A-Za-z][\w-]*")


def main(args: list[str]) -> None:
    """Run the command."""
    parser = Parser("compress", OWN_HELP["compress"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--experiment")
    parser.add_argument("--import", dest="modules", nargs="+", default=[])
    changes, own = changes_of(args)
    given = parser.parse_args(own)
    import_named(given.modules)
    folder = Path(ROOT, given.experiment or given.config.stem)
    pipeline = Reader(given.config).pipeline(folder, given.start, changes, given.modules)
    results: list[Result] = []
    stopped = ""
    try:
        for results in run(pipeline):
            report(pipeline, results)
    except LimitError as error:
        stopped = f"Stopped: {error}"
        report(pipeline, results, [stopped])
    summary(pipeline, results)
    if stopped:
        print(stopped, file=sys.stderr)
        sys.exit(1)


def report(pipeline: Pipeline, results: Sequence[Result], stopped: Sequence[str] = ()) -> None:
    """Write the page of what there is until now."""
    lines = [conclusion(results, pipeline.within), *notes(pipeline, results)]
    write(pipeline.folder / "report", results, lines, [*stopped, *warned(results)])


def summary(pipeline: Pipeline, results: Sequence[Result]) -> None:
    """Print the tables, and what they say."""
    print()
    scores, times = notes(pipeline, results)
    show(worth(results), [scores])
    show(costs(results), [times, machine()])
    for line in warned(results):
        print(f"Warning: {line}")
    print(conclusion(results, pipeline.within))
    print(f"Report written to {pipeline.folder / 'report' / 'index.html'}")


def notes(pipeline: Pipeline, results: Sequence[Result]) -> tuple[str, str]:
    """Say what the columns of both tables hold."""
    samples = f"{results[0].scored.samples:,} samples of {pipeline.split}"
    return (
        f"{samples}; intervals of 95 %. agreement, difference: with and to the "
        f"{START}. as before, of this stage: with and to the stage before. logits: largest "
        "difference to what was exported.",
        f"ratio: of the latency to the {START}'s, in {pipeline.repeats} rounds in turn. weights, "
        "MMAC, peak: as benchmark tells them.",
    )


class Reader:
    """Reads the config of a pipeline, and tells its mistakes.

    Args:
        config: The file; paths of configs are relative to it.

    Raises:
        UsageError: If it cannot be read.
    """

    def __init__(self, config: Path) -> None:
        self.config = config
        if not config.exists():
            raise UsageError(f"--config {config}: there is no such file.")
        self.content = self._mapping(_content(config), "", OF_PIPELINE)

    def pipeline(
        self,
        folder: Path,
        start: Path | None = None,
        data: Mapping[str, Any] | None = None,
        modules: Sequence[str] = (),
    ) -> Pipeline:
        """Return what the file says; what is given goes before it.

        Raises:
            UsageError: If there is a mistake in it.
        """
        content = self.content
        if start is None and not isinstance(content.get("start"), str):
            raise self._error("start", "names a checkpoint, or a folder that export wrote")
        start = start or Path(content["start"])
        if not start.exists():
            raise UsageError(
                f"{self.config}: start: there is no {start}: fit it first, or name another by "
                "--start."
            )
        stages = self._mapping(content.get("stages"), "stages")
        if not stages:
            raise self._error("stages", "names one stage at least")
        common = self._mapping(content.get("limits", {}), "limits", LIMITS)
        known = [START]
        found: list[Stage] = []
        for name, settings in stages.items():
            stage = self._stage(name, settings, common, known)
            if stage.export and start.is_dir() and not any(each.fit for each in found):
                raise self._error(
                    f"stages.{name}.export",
                    f"is of a checkpoint, and none comes before it, as {start} is an export",
                )
            found.append(stage)
            known.append(name)
        options = {"split": content.get("split", "test"), "within": content.get("within", 0.01)}
        if options["split"] not in get_args(Split):
            raise self._error("split", f"is {' or '.join(get_args(Split))}")
        self._number("within", options["within"])
        for key in ("size", "repeats"):
            if (value := content.get(key)) is not None:
                self._whole(key, value)
                options[key] = value
        if (batch := content.get("batch")) is not None:
            options["batch"] = batch if isinstance(batch, list) else [batch]
            for rows in options["batch"] or [batch]:
                self._whole("batch", rows)
        changes = {**self._mapping(content.get("data", {}), "data"), **(data or {})}
        return Pipeline(folder, start, found, data=changes, modules=modules, **options)

    def _stage(
        self,
        name: str,
        settings: Any,
        limits: dict[str, Any],
        known: Sequence[str],
    ) -> Stage:
        key = f"stages.{name}"
        if not (isinstance(name, str) and NAME.fullmatch(name)) or name in (START, "report"):
            raise self._error(
                key, f"is a word of letters, digits, - and _, other than {START} or report"
            )
        settings = self._mapping(settings, key, OF_STAGE)
        if ("fit" in settings) == ("export" in settings):
            raise self._error(key, "has either fit (a config) or export (a format)")
        own = self._mapping(settings.get("limits", {}), f"{key}.limits", LIMITS)
        for limit, value in (limits | own).items():
            if value is not None:
                self._number(f"{key}.limits.{limit}", value)
        most = Limits(**(limits | own))
        if "export" in settings:
            return Stage(name, limits=most, **self._export(key, settings))
        if "quantize" in settings:
            raise self._error(f"{key}.quantize", "goes with export")
        configs = settings["fit"] if isinstance(settings["fit"], list) else [settings["fit"]]
        if not configs:
            raise self._error(f"{key}.fit", "names one config at least")
        paths = []
        for config in configs:
            path = self.config.parent / str(config)
            if not path.is_file():
                raise self._error(f"{key}.fit", f"is a config, and there is no {path}")
            _content(path)  # it can be read
            paths.append(path)
        keys = self._mapping(settings.get("set", {}), f"{key}.set")
        used = [each for text in texts(keys) for each in NAMED.findall(text)]
        for each in used:
            if each not in known:
                near = f"{', '.join(known)} come before it"
                raise self._error(f"{key}.set", f"names ${{{each}}}, where {near}")
        if not used:
            last = known[-1]
            raise self._error(
                f"{key}.set",
                f"has to say what it begins with, as model.init_from: ${{{last}}} or "
                f"model.teacher: ${{{last}}} do",
            )
        return Stage(name, paths, keys, limits=most)

    def _export(self, key: str, settings: Mapping[str, Any]) -> Any:
        format, method = settings["export"], settings.get("quantize")
        if format not in list(TOLERANCE):
            raise self._error(f"{key}.export", f"is one of {', '.join(TOLERANCE)}")
        if method is not None and method not in METHODS:
            raise self._error(f"{key}.quantize", f"is one of {', '.join(METHODS)}")
        if "set" in settings:
            raise self._error(f"{key}.set", "goes with fit")
        return {"export": format, "quantize": method}

    def _mapping(self, value: Any, key: str, known: Collection[str] = ()) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self._error(key or "it", f"holds keys, got {value!r}")
        for name in value if known else ():
            if name not in known:
                close = get_close_matches(str(name), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}."
                raise UsageError(f"{self.config}: {key or 'it'} has no {name}: {hint}")
        return dict(value)

    def _number(self, key: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise self._error(key, f"is a number from 0 on, got {value!r}")

    def _whole(self, key: str, value: Any) -> None:
        if type(value) is not int or value < 1:
            raise self._error(key, f"is a whole number from 1 on, got {value!r}")

    def _error(self, key: str, rule: str) -> UsageError:
        return UsageError(f"{self.config}: {key} {rule}.")


def _content(config: Path) -> Any:
    try:
        return load_value(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{config}: {' '.join(str(error).split())}") from error
