"""Plots of a run as PNG."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

FIRST = ("loss", "acc", "f1", "calibration_error", "lr", "grad_norm")  # panels, in this order


def _figure(width: float, height: float, **kwargs: Any) -> Any:
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    return Figure(figsize=(width, height), layout="constrained", dpi=120, **kwargs)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


def plot_confusion(matrix: Tensor, labels: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, shape (C, C), rows being the true classes; counts as text."""
    counts = matrix.double()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    size = 2.5 + 0.55 * len(labels)
    figure = _figure(size + 1, size)
    axes = figure.subplots()
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels, rotation=45, ha="right")
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="predicted", ylabel="true")
    if len(labels) <= 20:
        for i in ticks:
            for j in ticks:
                color = "white" if shares[i, j] > 0.5 else "black"
                text = f"{int(counts[i, j])}"
                axes.text(j, i, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    accuracy = float(counts.diagonal().sum() / counts.sum().clamp(min=1))
    axes.set_title(f"accuracy {accuracy:.4f} on {int(counts.sum())} samples", fontsize=10)
    _save(figure, path)


def plot_curves(metrics: Path, path: Path) -> None:
    """Draw the metrics of a run over its steps: train and val of a name in one panel."""
    if not metrics.exists():
        return
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    series: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and value:
                steps, values = series.setdefault(key, ([], []))
                steps.append(int(row["step"]))
                values.append(float(value))
    panels: dict[str, list[str]] = {}
    for key in series:
        stage, _, name = key.partition("/")
        panels.setdefault("lr" if stage == "lr" else name or stage, []).append(key)
    if not panels:
        return
    names = sorted(panels, key=lambda name: (FIRST.index(name) if name in FIRST else 99, name))
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = _figure(4.2 * across, 3 * down)
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, name in zip(grid, names, strict=False):
        for key in panels[name]:
            _draw(axes, *series[key], key)
        axes.set(title=name.replace("_per_s", " per second").replace("_", " "))
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    for axes in grid[len(names) :]:
        axes.remove()
    _save(figure, path)


def _draw(axes: Any, steps: list[int], values: list[float], label: str) -> None:
    """Draw a series; a long noisy one faintly, with its exponential moving average."""
    if len(steps) < 30 or label.startswith("lr/"):
        marker = "o" if len(steps) < 30 else None
        axes.plot(steps, values, marker=marker, ms=3, lw=1, label=label)
        return
    [line] = axes.plot(steps, values, lw=0.7, alpha=0.3)
    smooth = values[:1]
    for value in values[1:]:
        smooth.append(0.9 * smooth[-1] + 0.1 * value)
    axes.plot(steps, smooth, lw=1.5, color=line.get_color(), label=label)
