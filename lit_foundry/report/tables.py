"""What the tables of a report say of runs: facts, what is missing, and settings that differ."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from lit_foundry.recipe import differences
from lit_foundry.report.blocks import NONE
from lit_foundry.report.sections import score
from lit_foundry.runs.past import COMMAND, SPLITS, Run, as_named_today

# How the titles of facts begin, in their order.
ORDER = (
    *("best", "test", "stopped", "time", "steps", "parameters", "speed", "utilization"),
    *("code", "hardware", "data", "resumed"),
)


def facts(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return what the table of runs shows: a row by title, a cell for each run."""
    rows = [dict(about(run)) for run in runs]
    titles = list(dict.fromkeys(title for row in rows for title in row))
    # Scores of a split stand together, whichever run has them.
    titles.sort(key=lambda title: ORDER.index(re.split("[ /]", title)[0]))
    return {title: [row.get(title, NONE) for row in rows] for title in titles}


def about(run: Run) -> Iterator[tuple[str, str]]:
    """Yield titles and values of a run; a title begins with its word in ``ORDER``."""
    summary = run.summary
    yield "best validation", best(run)
    test = run.read("test.json")
    part = f", of a part: {test['part']}" if "part" in test else ""
    for name, value in as_named_today(test).items():
        if isinstance(value, float):
            yield name, f"{value:.4f}{part}"
    steps = max((steps[-1] + 1 for steps, _ in run.metrics.values()), default=0)
    yield "steps", f"{summary.get('steps', steps):,}" + ("" if summary else ", not finished")
    if summary:
        if "stopped_early" in summary:
            yield "stopped early", summary["stopped_early"]
        yield "time", duration(summary["seconds"])
        yield "parameters", f"{summary['parameters']:,}"
        speeds = ((key, summary.get(f"{key}_per_s")) for key in ("samples", "tokens"))
        yield "speed of training", ", ".join(f"{v:,.0f} {k}/s" for k, v in speeds if v) or NONE
        if "mfu" in summary:
            yield "utilization of the device", f"{summary['mfu']:.1%} of its matrix rate"
    first = run.read("environment.json")
    later = [run.read(name) for _, name in run.resumes]
    codes = [commit(environment.get("git")) for environment in (first, *later) if environment]
    yield "code", ", then ".join(dict.fromkeys(codes)) or NONE
    places = [hardware(environment["hardware"]) for environment in (first, *later) if environment]
    yield "hardware", ", then ".join(dict.fromkeys(places)) or NONE
    data = first.get("data", {}) | test.get("data", {})
    for split, digest in data.items():
        yield f"data {split}", digest[:12]
    yield "resumed", "at step " + ", ".join(f"{n:,}" for n, _ in run.resumes) if later else "no"


def best(run: Run) -> str:
    """Tell the best validation score with its step; of an unfinished run, how good it is so far."""
    name, best = run.summary.get("best_metric"), run.summary.get("best_score")
    if best is not None:
        steps, values = run.metrics.get(str(name), ([], []))
        at = [step + 1 for step, value in zip(steps, values, strict=True) if value == best]
        return f"{best:.4f} {name}" + (f" at step {at[0]:,}" if at else "")
    if not run.summary and "val" in run.predictions:
        found = run.predictions["val"]
        step = f" at step {found.step:,}" if found.step else ""
        return f"{said}{step}, so far" if (said := score(found)) else NONE
    return NONE


def duration(seconds: float) -> str:
    """Return a time as one reads it."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def commit(git: Mapping[str, Any] | None) -> str:
    """Name the code that ran."""
    if not git:
        return "no git"
    return f"{git['commit'][:10]}{' with uncommitted changes' if git['dirty'] else ''}"


def hardware(found: Mapping[str, Any]) -> str:
    """Name the devices."""
    gpus = found["gpus"]
    counted = [f"{gpus.count(gpu)} x {gpu}" for gpu in dict.fromkeys(gpus)]
    return ", ".join([*counted, f"{found['cpus']} CPUs", found["machine"]])


def missing(run: Run) -> Iterator[tuple[Run, str, str]]:
    """Yield what a run lacks, and the command that makes it."""
    config = shlex.quote(str(run.path / "config.yaml"))
    if not run.summary:
        name = shlex.quote(str(run.config.get("experiment") or run.path.resolve().parent.name))
        command = f"fit --config {config} --experiment {name} --resume auto"
        yield run, "It has no summary: it was interrupted, or still runs.", f"{COMMAND} {command}"
    if not run.checkpoint:
        yield run, "It has no checkpoint to evaluate.", f"{COMMAND} fit --config {config}"
        return
    checkpoint = shlex.quote(str(run.checkpoint))
    done = evaluated(run)
    for stage, split, title in (("test", "test", "test"), ("validate", "val", "validation")):
        # A task that keeps nothing of samples was evaluated, and has no predictions of any split.
        if split not in run.predictions and (run.predictions or split not in done):
            what = f"no predictions of the {title} split" if split in done else f"no {title} yet"
            yield run, f"It has {what}.", f"{COMMAND} {stage} --ckpt_path {checkpoint}"


def evaluated(run: Run) -> set[str]:
    """Return the splits that a run has scores of."""
    scores = {*run.metrics, *run.read("test.json")}
    return {name.partition("/")[0] for name in scores} & SPLITS.keys()


def settings(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Return the keys in which the runs' configurations differ, with a cell for each run."""
    lines = [line for run in runs[1:] for line in differences(runs[0].config, run.config)]
    keys = dict.fromkeys(line.partition(": ")[0] for line in lines)
    return {key: [at(run.config, key) for run in runs] for key in keys}


def at(config: Any, key: str) -> str:
    """Return what a configuration holds at a dotted key, as YAML writes it in one line."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    if config is None:
        return NONE
    text = yaml.safe_dump(config, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n...\n").strip()
