"""Show runs side by side on one page that stands alone."""

import base64
import re
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lit_foundry import analysis, plots
from lit_foundry.past_run import COMMAND, SPLITS, Run, named, run_folder
from lit_foundry.predictions import Predictions
from lit_foundry.recipe import differences
from lit_foundry.usage import OWN_HELP, Parser

NONE = "\N{EN DASH}"
# How the titles of facts begin, in their order.
ORDER = (
    *("best", "test", "time", "steps", "parameters", "speed", "utilization"),
    *("code", "hardware", "data", "resumed"),
)


def main(args: list[str]) -> None:
    """Write the page, and say where it is."""
    parser = Parser("report", OWN_HELP["report"])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--output", metavar="DIR", type=Path)
    parser.add_argument("--batch", action="store_true")
    given = parser.parse_args(args)
    folders = list(dict.fromkeys(run_folder(Path(word)) for word in given.runs))
    default = folders[0] / "report" if len(folders) == 1 else Path("report")
    print(f"Report written to {write(folders, given.output or default, given.batch)}")


def write(folders: Sequence[Path], output: Path, batch: bool = False) -> Path:
    """Write page and images, the page last, and return its path.

    Args:
        folders: Those of runs.
        output: Folder to write, which may be new.
        batch: Whether training images are shown as the networks see them.

    Raises:
        ValueError: If the output is no folder.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder, which may be new.")
    partial = output.resolve().with_name(f".{output.resolve().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        page = render(named(folders), partial, batch)
        partial.mkdir(parents=True, exist_ok=True)
        (partial / "index.html").write_text(page, encoding="utf-8")
        output.mkdir(parents=True, exist_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "index.html"):
            path.replace(output / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output / "index.html"


def render(runs: Sequence[Run], images: Path, batch: bool = False) -> str:
    """Draw the images into a folder and return the page that embeds them."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    curves = images / "curves.png"
    has_curves = plots.plot_curves({run.name: run.path / "metrics.csv" for run in runs}, curves)
    return environment.get_template("report.html").render(
        runs=runs,
        facts=facts(runs),
        missing=[line for run in runs for line in missing(run)],
        settings=settings(runs),
        curves=embed(curves) if has_curves else None,
        batches=batches(runs, images) if batch else {},
        sections=[section(split, runs, images) for split in SPLITS if any_of(split, runs)],
    )


def batches(runs: Sequence[Run], images: Path) -> dict[Run, str]:
    """Draw training images as the network of each run sees them."""
    from lit_foundry.batch_picture import draw_batch  # imports torch

    found = {}
    for number, run in enumerate(runs):
        if run.checkpoint is None:
            raise ValueError(f"{run.path} has no checkpoint yet, which --batch needs.")
        seed = int(run.config.get("seed_everything") or 0)
        found[run] = embed(draw_batch(run.checkpoint, seed, images / f"batch_{number}.png"))
    return found


def any_of(split: str, runs: Iterable[Run]) -> bool:
    """Tell whether a run has predictions of a split."""
    return any(split in run.predictions for run in runs)


def embed(image: Path) -> str:
    """Return an image as an address that holds it."""
    return as_address(image.read_bytes())


def as_address(png: bytes) -> str:
    """Return the content of a PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


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
    for name, value in run.read("test.json").items():
        if isinstance(value, float):
            yield name, f"{value:.4f}"
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
    data = first.get("data", {}) | run.read("test.json").get("data", {})
    for split, digest in data.items():
        yield f"data {split}", digest[:12]
    yield "resumed", "at step " + ", ".join(f"{n:,}" for n, _ in run.resumes) if later else "no"


def best(run: Run) -> str:
    """Tell the best validation score with its step; of an unfinished run, the accuracy so far."""
    name, score = run.summary.get("best_metric"), run.summary.get("best_score")
    if score is not None:
        steps, values = run.metrics.get(str(name), ([], []))
        at = [step + 1 for step, value in zip(steps, values, strict=True) if value == score]
        return f"{score:.4f} {name}" + (f" at step {at[0]:,}" if at else "")
    if not run.summary and "val" in run.predictions:
        found = run.predictions["val"]
        step = f" at step {found.step:,}" if found.step else ""
        return f"{(found.predicted == found.target).mean():.4f} accuracy{step}, so far"
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
        name = shlex.quote(run.path.resolve().parent.name)
        command = f"fit --config {config} --experiment {name} --resume auto"
        yield run, "It has no summary: it was interrupted, or still runs.", f"{COMMAND} {command}"
    if not run.checkpoint:
        yield run, "It has no checkpoint to evaluate.", f"{COMMAND} fit --config {config}"
        return
    checkpoint = shlex.quote(str(run.checkpoint))
    scored = {"test": run.read("test.json"), "val": run.metrics}
    for stage, split, title in (("test", "test", "test"), ("validate", "val", "validation")):
        # A language model labels nothing that could be kept.
        if split not in run.predictions and not (run.samples and scored[split]):
            what = f"no predictions of the {title} split" if scored[split] else f"no {title} yet"
            yield run, f"It has {what}.", f"{COMMAND} {stage} --ckpt_path {checkpoint}"


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


@dataclass(frozen=True)
class Part:
    """What the predictions of one run and split show; images as addresses."""

    run: Run
    count: int
    accuracy: float
    confusion: str
    reliability: str
    classes: list[tuple[str, float, float, float, int]]
    mistakes: list[dict[str, Any]]
    wrong: int
    examples: list[dict[str, Any]]  # with a picture


@dataclass(frozen=True)
class Section:
    """A split: its parts by run, the pictures that runs share, and how far they agree."""

    split: str
    title: str
    parts: list[Part]
    reliability: str | None
    lengths: str | None
    pairs: list[tuple[Run, Run, analysis.Agreement | None]] = field(default_factory=list)


def section(split: str, runs: Sequence[Run], images: Path) -> Section:
    """Evaluate a split's predictions, and draw them."""
    found = {run: run.predictions[split] for run in runs if split in run.predictions}
    several = len(runs) > 1
    parts = [part(run, split, images, several) for run in found]
    numbers = {run: runs.index(run) for run in found}
    shared = None
    if len(found) > 1:
        shared = images / f"{split}_reliability.png"
        each = {run.name: (numbers[run], analysis.calibration(p)) for run, p in found.items()}
        plots.plot_reliabilities(each, shared)
    measured = {run: p for run, p in found.items() if "tokens" in p.samples and len(p.target)}
    lengths = None
    if measured:
        lengths = images / f"{split}_length.png"
        edges = analysis.length_edges(list(measured.values()))
        bins = {r.name: (numbers[r], analysis.by_length(p, edges)) for r, p in measured.items()}
        plots.plot_lengths(bins, edges.tolist(), lengths)
    return Section(
        split,
        SPLITS[split],
        parts,
        embed(shared) if shared else None,
        embed(lengths) if lengths else None,
        [(a, b, analysis.agreement(found[a], found[b])) for a, b in combinations(found, 2)],
    )


def part(run: Run, split: str, images: Path, several: bool) -> Part:
    """Evaluate the predictions of one run, and draw them."""
    found = run.predictions[split]
    prefix = re.sub(r"[^\w.-]+", "_", run.name).strip("_") + "_" if several else ""
    matrix = analysis.confusion(found)
    confusion = images / f"{prefix}{split}_confusion.png"
    plots.plot_confusion(matrix, found.labels, confusion)
    reliability = images / f"{prefix}{split}_calibration.png"
    plots.plot_reliability(analysis.calibration(found), reliability)
    scores = analysis.class_scores(matrix)
    columns = (scores.precision, scores.recall, scores.f1, scores.support)
    values = [column.tolist() for column in columns]
    return Part(
        run,
        len(found.target),
        float(matrix.diagonal().sum() / max(matrix.sum(), 1)),
        embed(confusion),
        embed(reliability),
        list(zip(found.labels, *values, strict=True)),
        [mistake(found, row) for row in analysis.confident_mistakes(found).tolist()],
        int(matrix.sum() - matrix.diagonal().sum()),
        [mistake(found, row) for row in pictured(found)],
    )


def pictured(found: Predictions) -> list[int]:
    """Return rows from all over a split of images."""
    return analysis.examples(found).tolist() if "image" in found.samples else []


def mistake(found: Predictions, row: int) -> dict[str, Any]:
    """Return what the table of mistakes shows of a sample."""
    target, predicted = int(found.target[row]), int(found.predicted[row])
    columns = {k: v for k, v in found.samples.items() if k in ("id", "tokens", "text")}
    image = found.samples["image"][row] if "image" in found.samples else None
    return {
        "true": found.labels[target],
        "predicted": found.labels[predicted],
        "prob": float(found.probs[row, predicted]),
        "true_prob": float(found.probs[row, target]),
        "image": None if image is None else as_address(image),
        **{"id": row, "tokens": None, "text": None},
        **{name: column[row] for name, column in columns.items()},
    }
