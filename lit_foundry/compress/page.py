"""A page that shows what the stages of a pipeline made, as tables and a picture."""

import json
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path

import yaml

from lit_foundry.atomic import move, naming, workspace
from lit_foundry.compress.command import machine
from lit_foundry.compress.result import SETTINGS, Result, costs, worth
from lit_foundry.report.blocks import Column, Picture, Table, embed, page
from lit_foundry.report.plots import new_figure, save
from lit_foundry.runs.past import color

PARETO = "Score against latency and size; a cross: another is cheaper and as good"


def write(
    folder: Path, results: Sequence[Result], lines: Sequence[str], warnings: Sequence[str]
) -> Path:
    """Write page and picture, and return the page's path.

    Args:
        folder: Where the page goes, a folder of the pipeline's, which may be new.
        results: What there is of the stages, the start first.
        lines: What to say first.
        warnings: What else went wrong.
    """
    with naming(folder / "index.html"), workspace(folder) as place:
        image = place / "images" / "pareto.png"
        plot_pareto(results, image)
        picture = Picture(embed(image), "Score against cost", PARETO, wide=True)
        text = page(
            "compression.html",
            title=folder.parent.name,
            lines=lines,
            warnings=warnings,
            items=[table(worth(results)), table(costs(results)), picture],
            notes=[machine()],
            stages={
                f"{each.name}: {each.path}": _settings(folder.parent / each.name / SETTINGS)
                for each in results
            },
        )
        (place / "index.html").write_text(text, encoding="utf-8")
        for path in (image, place / "index.html"):
            move(path, folder / path.name)
    return folder / "index.html"


def _settings(path: Path) -> str:
    """Return what a stage was made with, as one would write it."""
    told = json.loads(path.read_text(encoding="utf-8"))
    configs = told.pop("configs", {})
    own = {key: value for key, value in told.items() if value and key != "key"}
    parts = [f"# {name}\n{text}" for name, text in configs.items()]
    return "\n".join([yaml.safe_dump(own, sort_keys=False), *parts])


def table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return rows as a table, whose columns are those of all of them."""
    names = [*dict.fromkeys(name for row in rows for name in row)]
    columns: list[Column] = [
        (name, "number" if number else "") for number, name in enumerate(names)
    ]
    return Table(columns, [[row.get(name, "") for name in names] for row in rows])


def plot_pareto(results: Sequence[Result], path: Path) -> None:
    """Draw the score against latency and size, and the front that no other network is beyond."""
    rows = min(results[0].cost.latency)
    first = results[0]
    panels = {
        f"latency at batch {rows}, of {first.name}'s": [each.ratio(rows) for each in results],
        "weights, MB": [each.cost.bytes / 1e6 for each in results],
    }
    figure = new_figure(10, 4.2)
    scores = [each.score for each in results]
    for axes, (title, x) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        best = front(x, scores)
        axes.step(
            [x[i] for i in best], [scores[i] for i in best], "-", where="post", color="#777777",
            lw=1, zorder=1, label="Pareto front",
        )  # fmt: skip
        for number, (each, place) in enumerate(zip(results, x, strict=True)):
            interval = each.scored.interval or (each.score, each.score)
            bars = [[each.score - interval[0]], [interval[1] - each.score]]
            tint, marker = color(number), "o" if number in best else "x"
            axes.errorbar(
                place, each.score, yerr=bars, fmt=marker, ms=7, capsize=3, color=tint,
                label=each.name,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}" if max(x) < 8 * min(x) else "")
        axes.set(xlabel=title)
        axes.grid(alpha=0.3, which="both")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=4, fontsize=8)
    figure.axes[0].set_ylabel(first.score_name.replace("_", " "))
    save(figure, path)


def front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the places of those that nothing cheaper scores as high as, from cheap to dear."""
    found: list[int] = []
    told = [place for place, score in enumerate(scores) if not isnan(score)]
    for place in sorted(told, key=lambda i: (costs[i], -scores[i])):
        if not found or scores[place] > scores[found[-1]]:
            found.append(place)
    return found
