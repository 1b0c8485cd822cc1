"""A network made smaller in stages, each of which is measured.

A folder ``runs/NAME/`` holds one folder for each stage, with its run or its export and what was
measured of it. What is there already is not made again, so that a pipeline that was stopped goes on
where it was.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lit_foundry.atomic import replacing
from lit_foundry.checkpoints.exported import fingerprint, read_manifest
from lit_foundry.checkpoints.files import MANIFEST, CheckpointError
from lit_foundry.compress.benchmark import benchmark
from lit_foundry.compress.command import facts
from lit_foundry.compress.evaluation import Split, compare, evaluate
from lit_foundry.compress.process import fit, mistake, wait
from lit_foundry.compress.result import SETTINGS, Result, keep
from lit_foundry.export.command import check_backend, export
from lit_foundry.runs.lock import lock
from lit_foundry.runs.past import run_folder
from lit_foundry.usage import UsageError

START = "start"  # what the network is called that everything begins with
ROUNDING = 1e-9  # of differences of scores
NAMED = re.compile(r"\$\{([^{}]*)\}")
PARTS = (".yaml", ".yml", ".json")  # of configs


@dataclass(frozen=True)
class Limits:
    """What a stage may cost; None is anything.

    Attributes:
        lost: By how much the score may lie below that of the start.
        stage_lost: By how much it may lie below that of the stage before.
        agreement: Share of samples, at least, of which the start predicts the same.
        latency: Ratio to the start's, at the smallest batch size.
        size: Ratio of the weights' bytes to the start's.
    """

    lost: float | None = None
    stage_lost: float | None = None
    agreement: float | None = None
    latency: float | None = None
    size: float | None = None

    def broken(self, results: Sequence[Result]) -> list[str]:
        """Say by how much the last of some results goes beyond the limits."""
        first, before, last = results[0], results[-2], results[-1]
        name = last.score_name
        compared = (
            ((self.lost, self.agreement), last.beside_start, first),
            ((self.stage_lost,), last.beside_previous, before),
        )
        rows = (
            (self.lost, first.score - last.score, f"of {name} below {first.name}"),
            (self.stage_lost, before.score - last.score, f"of {name} below {before.name}"),
            (self.latency, last.ratio(min(last.cost.latency)), f"times {first.name}'s latency"),
            (self.size, last.cost.bytes / first.cost.bytes, f"times {first.name}'s bytes"),
        )
        told = [
            f"{found:.4f} {what}, where {most} is the most"
            for most, found, what in rows
            if most is not None and not found <= most + ROUNDING
        ]
        for limits, beside, other in compared:
            if beside is None and limits.count(None) < len(limits):
                told.append(f"it was scored on other samples than {other.name}: not compared")
        if self.agreement is not None and (beside := last.beside_start):
            if beside.agreement is None:
                told.append("agreement is of classes and tags, and not of values: leave it out")
            elif not beside.agreement >= self.agreement:
                told.append(
                    f"{beside.agreement:.4f} of samples alike with {first.name}, where "
                    f"{self.agreement} is the least"
                )
        return told


@dataclass(frozen=True)
class Stage:
    """A step of a pipeline: a fit, or an export of the last checkpoint that was made before.

    Attributes:
        name: Its name, and that of its folder.
        fit: Configs of the fit.
        set: Keys that are set otherwise. ``${NAME}`` in a value stands for what the stage NAME
            made, or for the start.
        export: Format of the export.
        quantize: How it is put into fewer bits.
        limits: What it may cost.
    """

    name: str
    fit: Sequence[Path] = ()
    set: Mapping[str, Any] = field(default_factory=dict)
    export: str | None = None
    quantize: str | None = None
    limits: Limits = Limits()


@dataclass(frozen=True)
class Pipeline:
    """What is made of which network, and how it is measured.

    Attributes:
        folder: Where everything goes: one in the folder of all runs.
        start: Checkpoint, or folder that ``export`` wrote.
        stages: The stages, in order.
        split: ``test`` or ``val``, on which scores are measured.
        data: Arguments of the data that are set otherwise, such as ``root``, in all stages.
        batch: Batch sizes of the latencies.
        size: Tokens of a row; None takes 128, or as many as all networks take.
        repeats: Rounds of each latency.
        within: How far below the start's score the smallest network is looked for.
        modules: Those that classes of one's own lie in.
    """

    folder: Path
    start: Path
    stages: Sequence[Stage]
    split: Split = "test"
    data: Mapping[str, Any] = field(default_factory=dict)
    batch: Sequence[int] = (1, 32)
    size: int | None = None
    repeats: int = 50
    within: float = 0.01
    modules: Sequence[str] = ()


class LimitError(CheckpointError):
    """A stage costs more than its limits allow."""


def run(pipeline: Pipeline) -> Iterator[list[Result]]:
    """Make and measure the stages, or read what is there; yield the results after each of them.

    Raises:
        LimitError: If a stage goes beyond its limits, after its result.
        CheckpointError: If another process is at work in the folder, or a stage made nothing.
    """
    check(pipeline)
    pipeline.folder.mkdir(parents=True, exist_ok=True)
    lock(pipeline.folder, "take another --experiment")
    wait(pipeline.folder)
    key = fingerprint(pipeline.start)
    made = {START: pipeline.start}
    _begin(pipeline.folder / START, {"start": str(pipeline.start)}, key)
    results = [_measured(pipeline, START, pipeline.start, [])]
    yield results
    for number, stage in enumerate(pipeline.stages, 1):
        print(f"\n== {stage.name}: stage {number} of {len(pipeline.stages)}", flush=True)
        key = _begin_stage(pipeline, stage, key)
        made[stage.name] = path = _make(pipeline, stage, made)
        key += fingerprint(path)  # which a fit that is prolonged by hand changes
        results = [*results, _measured(pipeline, stage.name, path, results)]
        yield results
        if told := stage.limits.broken(results):
            raise LimitError(
                f"the stage {stage.name} went beyond its limits: {'; '.join(told)}. What it made "
                f"is {path}. Set other limits to go on from it, or change the stage."
            )


def check(pipeline: Pipeline) -> None:
    """Check all stages before the first one takes its hours.

    Raises:
        UsageError: If the keys of a fit are wrong.
        ModuleNotFoundError: If a package is missing that an export needs.
    """
    made = {START: pipeline.start}
    for stage in pipeline.stages:
        made[stage.name] = pipeline.folder / stage.name
        told = _read(pipeline.folder / stage.name / SETTINGS)
        if stage.export:
            check_backend(stage.export, stage.quantize)
            continue
        begun = told == {"key": told.get("key"), **_settings(pipeline, stage)}
        if not begun and (wrong := mistake(_words(pipeline, stage, made))):
            raise UsageError(f"The fit of the stage {stage.name}: {wrong}")


def _begin_stage(pipeline: Pipeline, stage: Stage, before: str) -> str:
    """Prepare the folder of a stage, and return what says whether it is the same as before."""
    settings = _settings(pipeline, stage)
    parts = settings["configs"].values()  # wherever these lie
    text = json.dumps([before, stage.name, *parts, settings | {"configs": None}])
    key = hashlib.sha256(text.encode()).hexdigest()
    _begin(pipeline.folder / stage.name, settings, key)
    return key


def _settings(pipeline: Pipeline, stage: Stage) -> dict[str, Any]:
    """Return what a stage is made with."""
    parts = {str(path): text for each in stage.fit for path, text in parts_of(each).items()}
    return {
        "set": dict(stage.set),
        "data": dict(pipeline.data),
        "export": stage.export,
        "quantize": stage.quantize,
        "configs": parts,
    }


def parts_of(config: Path) -> dict[Path, str]:
    """Return the texts of a config and of all others that it names, by their paths.

    The fit tells of those that are damaged.
    """
    found: dict[Path, str] = {}
    waiting = [config]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found[file] = file.read_text(encoding="utf-8", errors="replace")
            with suppress(yaml.YAMLError):
                values = texts(yaml.safe_load(found[file]))
                inner = [file.parent / value for value in values if value.endswith(PARTS)]
                waiting += [path for path in inner if path.is_file()]
    return found


def texts(value: Any) -> Iterator[str]:
    """Yield the texts among values, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from texts(inner)


def _begin(folder: Path, settings: Mapping[str, Any], key: str) -> None:
    """Make the folder of a stage; what was made with other settings is set aside."""
    told = _read(folder / SETTINGS)
    if told.get("key") == key:
        return
    if folder.exists() and any(each.name != SETTINGS for each in folder.iterdir()):
        number = 1
        while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
            number += 1
        folder.rename(aside)
        print(f"Settings, or what they begin with, are others than before: that is {aside}.")
    folder.mkdir(exist_ok=True)
    with replacing(folder / SETTINGS) as partial:
        text = json.dumps({"key": key, **settings}, indent=2)
        partial.write_text(text + "\n", encoding="utf-8")


def _make(pipeline: Pipeline, stage: Stage, made: Mapping[str, Path]) -> Path:
    """Return what a stage makes, which may be there."""
    folder = pipeline.folder / stage.name
    if stage.export:
        output = folder / "export"
        if not (output / MANIFEST).is_file():
            of = [path for path in made.values() if not path.is_dir()][-1]
            export(of, stage.export, output, stage.quantize, pipeline.data)
        return output
    if not finished(folder):
        fit([*_words(pipeline, stage, made), "--resume=auto"], pipeline.folder)
        if not finished(folder):
            raise CheckpointError(
                f"the fit of the stage {stage.name} left no finished run in {folder}: does it set "
                "trainer.fast_dev_run?"
            )
    best = run_folder(folder) / "checkpoints" / "best.ckpt"
    if not best.is_file():
        raise CheckpointError(
            f"the stage {stage.name} made no {best}, as it reached no validation: let it train "
            "longer, or validate earlier (trainer.val_check_interval)."
        )
    return best


def _words(pipeline: Pipeline, stage: Stage, made: Mapping[str, Path]) -> list[str]:
    """Return what follows ``fit`` on the command line of a stage."""
    words = [word for config in stage.fit for word in ("--config", str(config))]
    keys = {f"data.{key}": value for key, value in pipeline.data.items()}
    for key, value in (keys | {k: _filled(v, made) for k, v in stage.set.items()}).items():
        words.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    words.append(f"--trainer.default_root_dir={pipeline.folder.parent}")
    return [*words, f"--experiment={pipeline.folder.name}/{stage.name}"]


def finished(folder: Path) -> bool:
    """Tell whether the last run of an experiment has come to its end."""
    with suppress(ValueError):  # there is none
        return (run_folder(folder) / "summary.json").is_file()
    return False


def _filled(value: Any, made: Mapping[str, Path]) -> Any:
    """Put in paths where a value names what stages made."""
    if isinstance(value, str):
        return NAMED.sub(lambda found: str(made[found[1]]), value)
    if isinstance(value, Mapping):
        return {key: _filled(inner, made) for key, inner in value.items()}
    return [_filled(inner, made) for inner in value] if isinstance(value, list) else value


def _measured(pipeline: Pipeline, name: str, path: Path, before: Sequence[Result]) -> Result:
    """Measure what a stage made, or read what was measured of it in the same way."""
    folder = pipeline.folder / name
    rows, size, repeats = [*pipeline.batch], pipeline.size, pipeline.repeats
    data = {key: value for key, value in pipeline.data.items() if key != "transfer"}  # never scored
    how: dict[str, Any] = {"batch": rows, "size": size, "repeats": repeats}
    how |= {
        "path": str(path),
        "holds": fingerprint(path),
        "split": pipeline.split,
        "data": data,
    }
    hardware = facts()["hardware"]  # a pipeline may go on elsewhere
    how["hardware"] = {key: hardware[key] for key in ("cpu", "cpus", "threads")}
    if (found := Result.read(folder, how)) is not None:
        print(f"{path} was measured before.")
        return found
    scored = keep(evaluate(path, pipeline.split, data), folder)
    turns = [*dict.fromkeys(each.path for each in (*before[:1], *before[-1:]))]
    [cost] = benchmark([path], rows, size, repeats, data, pipeline.modules, turns)
    result = Result(
        name=name,
        path=path,
        scored=scored,
        cost=cost,
        beside_start=compare(scored, before[0].scored) if before else None,
        beside_previous=compare(scored, before[-1].scored) if before else None,
        difference=read_manifest(path).get("difference") if before and path.is_dir() else None,
    )
    result.write(folder, how)
    return result


def _read(path: Path) -> dict[str, Any]:
    """Read a JSON file; what is not there, or damaged, is empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
