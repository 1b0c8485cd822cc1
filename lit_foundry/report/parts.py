"""What sections have in common: tables of scores and of samples, cards, reliability."""

from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

from lit_foundry.report import plots
from lit_foundry.report.analysis import ClassScores, calibration, examples
from lit_foundry.report.blocks import (
    NONE,
    Block,
    Cards,
    Column,
    Picture,
    Table,
    View,
    as_address,
)
from lit_foundry.runs.past import Run
from lit_foundry.runs.predictions import Predictions


def scores_table(
    what: str, run: Run, labels: Sequence[str], scores: ClassScores, caption: str
) -> Table:
    """Return a table of the scores of each class.

    Args:
        what: What a class is called.
        run: The run.
        labels: Names of the classes.
        scores: Their scores.
        caption: What stands above, after the run.
    """
    columns: list[Column] = [(what, "")]
    columns += [(name, "number") for name in ("precision", "recall", "F1", "support")]
    values = [column.tolist() for column in (scores.precision, scores.recall, scores.f1)]
    lines = zip(labels, *values, scores.support.tolist(), strict=True)
    rows = [[label, *(f"{x:.4f}" for x in cells), f"{n:,}"] for label, *cells, n in lines]
    return Table(columns, rows, run, caption)


def sample_table(
    run: Run,
    rows: Sequence[int],
    found: Predictions,
    columns: Sequence[Column],
    cells: Callable[[int], Sequence[str]],
    caption: str,
) -> Table:
    """Return a table of samples: id, what is told of each, and its picture or its text."""
    about: list[Column] = [("tokens", "number"), ("text", "text")]
    about = [column for column in about if column[0] in found.samples]
    if "image" in found.samples:
        about = [("image", "image")]

    def told(row: int) -> list[Any]:
        if "image" in found.samples:
            return [image_of(found, row)]
        values = [found.samples[name][row] for name, _ in about]
        return [NONE if value is None else value for value in values]

    lines = [[name_of(found, row), *cells(row), *told(row)] for row in rows]
    return Table([("id", "id"), *columns, *about], lines, run, caption)


def number(value: float) -> str:
    """Return a number as a table shows it."""
    return NONE if isnan(value) else f"{value:.4g}"


def name_of(found: Predictions, row: int) -> Any:
    """Return the id of a sample, or its row."""
    return found.samples["id"][row] if "id" in found.samples else row


def image_of(found: Predictions, row: int) -> Picture | None:
    """Return the picture of a sample that a page shows, if it has one."""
    png = found.samples["image"][row] if "image" in found.samples else None
    return None if png is None else Picture(as_address(png), str(name_of(found, row)))


def cards(
    view: View, told: Callable[[Predictions, int], tuple[Sequence[str], bool]]
) -> list[Block]:
    """Show samples from all over a split of images.

    Args:
        view: What is shown.
        told: Returns what is written below a picture, and whether it was mistaken.
    """
    found = []
    for run, predictions in view.found.items():
        pictures = {row: image_of(predictions, row) for row in examples(predictions).tolist()}
        every = [(picture, *told(predictions, row)) for row, picture in pictures.items() if picture]
        found += [Cards(run, every)] if every else []
    note = "From all over the split; what was mistaken has a thick border."
    return [Block("Samples", found, note)] if found else []


def reliability(view: View, note: str, words: plots.Words = plots.WORDS) -> Block:
    """Draw accuracy against confidence, of all runs and of each."""
    bins = {run: calibration(found) for run, found in view.found.items()}
    args = "calibration", "Reliability diagram"
    items = [
        view.picture(*args, run, plots.plot_reliability, each, words=words)
        for run, each in bins.items()
    ]
    if len(bins) > 1:
        alt = f"{words[1].capitalize()} against {words[0]} of all runs"
        shared = "reliability", alt, f"All runs; dots by number of {words[2]}"
        every = view.numbered(bins)
        items.insert(0, view.picture(*shared, plots.plot_reliabilities, every, words=words))
    return Block("Reliability", items, f"{note} 15 bins of equal width.", grid=True)
