"""What a page shows of predicted values.

Shapes: N samples, K values.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_foundry.report import plots
from lit_foundry.report.blocks import Block, Column, Section, Table, View
from lit_foundry.report.parts import cards, number, sample_table
from lit_foundry.runs.past import Run
from lit_foundry.runs.predictions import Predictions

Floats = NDArray[np.float64]
DRAWN = 8  # values, at most


def blocks(view: View) -> list[Block]:
    """Show scores, predicted against true values, and the largest errors."""
    pictures = []
    for run, found in view.found.items():
        args = "values", "Predicted against true values", run, plot_values
        pictures.append(view.picture(*args, dict(pairs(found)[:DRAWN]), run.color, wide=True))
    most = max(len(found.labels) for found in view.found.values())
    note = f"The first {DRAWN} of {most} values." if most > DRAWN else ""
    return [
        Block("Scores", [scores_table(view)]),
        Block("Predicted and true values", pictures, note, grid=True),
        *cards(view, card),
        Block("Largest errors", [errors(*pair) for pair in view.found.items()]),
    ]


def pairs(found: Predictions) -> list[tuple[str, tuple[Floats, Floats]]]:
    """Return what is true and what is predicted of each value, shape (N,), by its name."""
    target, value = (c.reshape(len(found), -1).T for c in (found.target, found.predicted))
    both = zip(target.astype(float), value.astype(float), strict=True)
    return list(zip(found.labels, both, strict=True))


def scores(target: Floats, value: Floats) -> dict[str, float]:
    """Compute errors and correlations; those that nothing defines are NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        off = value - target
        spread = ((target - target.mean()) ** 2).sum()
        return {
            "MAE": float(np.abs(off).mean()),
            "RMSE": float(np.sqrt((off**2).mean())),
            "R\N{SUPERSCRIPT TWO}": float(1 - (off**2).sum() / spread) if spread else np.nan,
            "Pearson": correlation(target, value),
            "Spearman": correlation(ranks(target), ranks(value)),
        }


def correlation(one: Floats, two: Floats) -> float:
    """Compute Pearson's correlation."""
    one, two = one - one.mean(), two - two.mean()
    return float((one * two).sum() / np.sqrt((one**2).sum() * (two**2).sum()))


def ranks(values: Floats) -> Floats:
    """Return the rank of each value, the mean one where several are equal."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    found: Floats = (counts.cumsum() - (counts - 1) / 2)[places]
    return found


def scores_table(view: View) -> Table:
    """Tell the scores of each run and value."""
    lines = [
        (run, name, scores(*pair), len(found))
        for run, found in view.found.items()
        for name, pair in pairs(found)
    ]
    columns: list[Column] = [("run", "run"), ("value", "")]
    columns += [(name, "number") for name in (*lines[0][2], "samples")]
    rows = [[run, name, *map(number, each.values()), f"{n:,}"] for run, name, each, n in lines]
    if {name for _, name, *_ in lines} == {"value"}:  # without a name
        columns.pop(1)
        rows = [[run, *cells] for run, _, *cells in rows]
    return Table(columns, rows)


def plot_values(values: Mapping[str, tuple[Floats, Floats]], tint: str, path: Path) -> None:
    """Draw predicted against true values, and how far they are apart.

    Args:
        values: What is true and what is predicted, shape (N,), by name.
        tint: Colour of the run.
        path: The image.
    """
    figure = plots.new_figure(9, 4 * len(values))
    grid = figure.subplots(len(values), 2, squeeze=False)
    for (name, pair), (left, right) in zip(values.items(), grid, strict=True):
        target, value = (side[np.isfinite(pair).all(0)] for side in pair)
        alpha = float(np.clip(300 / max(len(target), 1), 0.1, 0.7))
        left.scatter(target, value, s=12, color=tint, alpha=alpha, lw=0)
        left.axline((0, 0), slope=1, ls="--", color="#333333", lw=1, label="predicted = true")
        left.set(xlabel="true", ylabel="predicted", title=plots.shorten(name, 40), box_aspect=1)
        if len(target):
            low, high = (float(f((target, value))) for f in (np.min, np.max))
            room = 0.05 * (high - low) or 1
            left.set(xlim=(low - room, high + room), ylim=(low - room, high + room))
        left.legend(fontsize=8)
        left.grid(alpha=0.3)
        off = value - target
        right.hist(off, bins=40, color=tint)
        right.axvline(0, ls="--", color="#333333", lw=1)
        right.set(xlabel="predicted minus true", ylabel="samples")
        if len(off):
            right.set_title(f"mean {off.mean():.4g}, deviation {off.std():.4g}", fontsize=10)
        for axes in (left, right):
            axes.locator_params(axis="x", nbins=5)  # long numbers do not touch
        right.grid(alpha=0.3, axis="y")
    plots.save(figure, path)


def errors(run: Run, found: Predictions) -> Table:
    """Tell of the samples that are farthest off, of several values by the worst of them."""
    values = pairs(found)
    columns: list[Column] = [(name, "number") for name in ("true", "predicted", "error")]
    names: list[Column] = [("value", "")] if len(values) > 1 else []

    def cells(row: int) -> list[str]:
        name, (target, value) = values[int(found.errors[row].argmax())]
        told = map(number, (target[row], value[row], value[row] - target[row]))
        return [name, *told][not names :]

    worst = found.worst().tolist()
    caption = f"{len(worst)} of {len(found):,}"
    return sample_table(run, worst, found, [*names, *columns], cells, caption)


def card(found: Predictions, row: int) -> tuple[list[str], bool]:
    """Tell what was predicted of a picture, and what is true."""
    told = [(number(value[row]), number(target[row])) for _, (target, value) in pairs(found)]
    said, true = (", ".join(cells) for cells in zip(*told[:3], strict=True))
    return [said, f"is {true}"], False


def score(found: Predictions) -> str:
    """Tell the mean absolute error."""
    return f"{np.abs(found.predicted - found.target).mean():.4g} mean absolute error"


SECTION = Section("value", Predictions.worst, blocks, score)
