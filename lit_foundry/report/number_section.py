"""What a page shows of numbers that are kept of samples, such as their loss."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_foundry.report import plots
from lit_foundry.report.blocks import Block, Section, Table, View
from lit_foundry.report.parts import number, sample_table
from lit_foundry.runs.past import Run, color
from lit_foundry.runs.predictions import Predictions


def blocks(view: View) -> list[Block]:
    """Show how each number is distributed, and the samples with the highest."""
    names = dict.fromkeys(name for found in view.found.values() for name in found.numbers)
    return [block(view, name) for name in names]


def block(view: View, name: str) -> Block:
    """Show one number."""
    found = {run: said for run, said in view.found.items() if name in said.numbers}
    values = view.numbered({run: said.columns[name] for run, said in found.items()})
    args = f"number_{name}", f"Histogram of {name}", "", plot_numbers
    picture = view.picture(*args, values, name)
    return Block(name, [picture, *(highest(*pair, name) for pair in found.items())])


def highest_rows(found: Predictions, name: str, count: int = 20) -> list[int]:
    """Return the samples with the highest values."""
    values = np.nan_to_num(found.columns[name].astype(float), nan=np.inf)
    rows: list[int] = np.argsort(-values, kind="stable")[:count].tolist()
    return rows


def highest(run: Run, found: Predictions, name: str) -> Table:
    """Tell of the samples with the highest values."""
    rows = highest_rows(found, name)
    caption = f"the highest {len(rows)} of {len(found):,}"

    def cells(row: int) -> list[str]:
        return [number(float(found.columns[name][row]))]

    return sample_table(run, rows, found, [(name, "number")], cells, caption)


def plot_numbers(runs: Mapping[str, tuple[int, NDArray[Any]]], name: str, path: Path) -> None:
    """Draw how a number is distributed.

    Args:
        runs: Number, which gives the colour, and values of each run, shape (N,), by name.
        name: What the number is.
        path: The image.
    """
    figure = plots.new_figure(7.2, 4)
    axes = figure.subplots()
    finite = {run: (n, v[np.isfinite(v)].astype(float)) for run, (n, v) in runs.items()}
    edges = np.histogram_bin_edges(np.concatenate([v for _, v in finite.values()]), 40)
    for run, (tint, values) in finite.items():
        mean = f", mean {values.mean():.4g}" if len(values) else ""
        how = {"histtype": "step", "lw": 1.5} if len(runs) > 1 else {}
        label = plots.shorten(run, 50) + mean
        axes.hist(values, edges, color=color(tint), label=label, **how)
    axes.set(xlabel=plots.shorten(name, 60), ylabel="samples")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, axis="y")
    plots.save(figure, path)


def rows(found: Predictions) -> list[int]:
    """Return the samples that are shown."""
    return [row for name in found.numbers for row in highest_rows(found, name)]


SECTION = Section("number", rows, blocks)
