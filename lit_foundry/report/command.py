"""Show runs side by side on one page that stands alone."""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lit_foundry.atomic import move, naming, workspace
from lit_foundry.recipe import import_named
from lit_foundry.report import analysis, plots
from lit_foundry.report.tables import facts, missing, settings
from lit_foundry.runs.past import SPLITS, Run, named, run_folder
from lit_foundry.runs.predictions import Predictions
from lit_foundry.usage import OWN_HELP, Parser


def main(args: list[str]) -> None:
    """Write the page, and say where it is."""
    parser = Parser("report", OWN_HELP["report"])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--output", metavar="DIR", type=Path)
    parser.add_argument("--batch", action="store_true")
    parser.add_argument("--import", dest="modules", nargs="+", default=[])
    given = parser.parse_args(args)
    import_named(given.modules)
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
        ValueError: If the output is no folder, or a folder of a run that holds its records.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder, which may be new.")
    place = output.resolve()
    among_records = any(
        place.is_relative_to(folder) and not place.is_relative_to(folder / "report")
        for folder in map(Path.resolve, folders)
    )
    if among_records and output.exists() and not (output / "index.html").exists():
        raise ValueError(f"--output {output} holds records of the run: name another folder.")
    with naming(output / "index.html"), workspace(output) as place:
        images = place / "images"
        page = render(named(folders), images, batch)
        (place / "index.html").write_text(page, encoding="utf-8")
        for path in (*images.glob("*"), place / "index.html"):
            move(path, output / path.name)
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
    from lit_foundry.report.batch_picture import draw_batch  # imports torch

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
