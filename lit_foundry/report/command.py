"""Show runs side by side on one page that stands alone."""

from collections.abc import Sequence
from pathlib import Path

from lit_foundry.atomic import move, naming, workspace
from lit_foundry.recipe import import_named
from lit_foundry.report import plots
from lit_foundry.report.blocks import embed, page
from lit_foundry.report.sections import blocks
from lit_foundry.report.tables import evaluated, facts, missing, settings
from lit_foundry.runs.past import SPLITS, Run, named, run_folder
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
        text = render(named(folders), images, batch)
        (place / "index.html").write_text(text, encoding="utf-8")
        for path in (*images.glob("*"), place / "index.html"):
            move(path, output / path.name)
    return output / "index.html"


def render(runs: Sequence[Run], images: Path, batch: bool = False) -> str:
    """Draw the images into a folder and return the page that embeds them."""
    curves = images / "curves.png"
    has_curves = plots.plot_curves({run.name: run.path / "metrics.csv" for run in runs}, curves)
    return page(
        "report.html",
        runs=runs,
        facts=facts(runs),
        missing=[line for run in runs for line in missing(run)],
        settings=settings(runs),
        curves=embed(curves) if has_curves else None,
        batches=batches(runs, images) if batch else {},
        pictures=pictures(runs),
        waiting=[run for run in runs if not evaluated(run)],
        titles=SPLITS,
        splits={split: found for split in SPLITS if (found := [*blocks(split, runs, images)])},
    )


def pictures(runs: Sequence[Run]) -> dict[Run, tuple[int, dict[str, str]]]:
    """Return step and pictures of the last validation of each run that drew some."""
    last = {run: run.pictures for run in runs}
    return {
        run: (found[0], {name: embed(path) for name, path in found[1].items()})
        for run, found in last.items()
        if found
    }


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
