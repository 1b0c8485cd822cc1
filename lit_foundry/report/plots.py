"""Plots of runs as PNG."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_foundry.atomic import replacing
from lit_foundry.report.analysis import ByLength, Calibration
from lit_foundry.runs.past import color, read_metrics

FIRST = (
    "loss",
    "acc",
    "f1",
    "f1_macro",
    "calibration_error",
    "lr",
    "grad_norm",
)  # panels, in this order
STYLES = ("-", "--", ":", "-.")
PERFECT = "perfect calibration"
Words = tuple[str, str, str]  # what confidence, accuracy and samples are called
WORDS: Words = ("confidence", "accuracy", "samples")


def new_figure(width: float, height: float, **kwargs: Any) -> Any:
    """Return a figure of a size in inches."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    return Figure(figsize=(width, height), layout="constrained", dpi=120, **kwargs)


def save(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def plot_confusion(matrix: NDArray[Any], labels: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix, shape (C, C), rows being the true classes; counts as text."""
    counts = matrix.astype(float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 2.5 + min(0.55 * len(labels), 12)
    figure = new_figure(size + 1, size)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks, font = range(len(labels)), min(10, 800 / len(labels))
    names = [shorten(label, 24) for label in labels]
    axes.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=font)
    axes.set_yticks(ticks, names, fontsize=font)
    axes.set(xlabel="predicted", ylabel="true")
    if len(labels) <= 20:
        for i in ticks:
            for j in ticks:
                ink = "white" if shares[i, j] > 0.5 else "black"
                text = f"{int(counts[i, j])}"
                axes.text(j, i, text, ha="center", va="center", color=ink, fontsize=8)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    accuracy = float(counts.diagonal().sum() / max(counts.sum(), 1))
    axes.set_title(f"accuracy {accuracy:.4f} on {int(counts.sum())} samples", fontsize=10)
    save(figure, path)


def shorten(text: str, width: int) -> str:
    """Cut a text to a width, and mark the cut; a $ stays one instead of beginning a formula."""
    return (text if len(text) <= width else f"{text[: width - 1]}…").replace("$", r"\$")


def plot_curves(runs: Mapping[str, Path], path: Path) -> bool:
    """Draw the metrics of runs over their steps: train and val of a name in one panel.

    Args:
        runs: ``metrics.csv`` of each run, by name. Several have a colour each, and train and val
            their line styles.
        path: The image.

    Returns:
        Whether there was anything to draw.
    """
    found = [read_metrics(metrics) for metrics in runs.values()]
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for series in found for key in series):
        stage, _, name = key.partition("/")
        panels.setdefault("lr" if stage == "lr" else name or stage, []).append(key)
    if not panels:
        return False
    names = sorted(panels, key=lambda name: (FIRST.index(name) if name in FIRST else 99, name))
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = new_figure(4.2 * across, 3 * down + 0.3 * (len(runs) > 1))
    grid = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, name in zip(grid, names, strict=False):
        val = f"val/{name}"  # looks the same in every panel
        others = [key for key in panels[name] if key != val]
        for place, key in enumerate([*(others[:1] or [""]), val, *others[1:]]):
            for number, series in enumerate(found):
                if key in series and len(runs) == 1:
                    _draw(axes, *series[key], key, color(place), "-")
                elif key in series:
                    _draw(axes, *series[key], key, color(number), STYLES[place % len(STYLES)])
        axes.set(title=name.replace("_per_s", " per second").replace("_", " "))
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
        _legend(axes, len(runs) > 1)
    for axes in grid[len(names) :]:
        axes.remove()
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=color(number), lw=3) for number in range(len(runs))]
        figure.legend(lines, [shorten(n, 50) for n in runs], loc="outside upper left", ncols=across)
    save(figure, path)
    return True


def _legend(axes: Any, several: bool) -> None:
    """Name the series of a panel once; of several runs in black, as colours tell the runs."""
    lines = {line.get_label(): line for line in reversed(axes.get_lines())}
    legend = axes.legend(
        [line for key, line in reversed(lines.items()) if not key.startswith("_")],
        [key for key in reversed(lines) if not key.startswith("_")],
        fontsize=7,
    )
    for line in legend.get_lines() if several else ():
        line.set_color("black")


def _draw(
    axes: Any, steps: list[int], values: list[float], label: str, tint: str, style: str
) -> None:
    """Draw a series; a long noisy one faintly, with what it is without the noise."""
    if len(steps) < 30 or label.startswith("lr/"):
        marker = "o" if len(steps) < 30 else None
        axes.plot(steps, values, style, marker=marker, ms=3, lw=1, color=tint, label=label)
        return
    axes.plot(steps, values, lw=0.7, alpha=0.3, color=tint, label=label)
    axes.plot(steps, smoothed(values), style, lw=1.5, color=tint, label=f"{label}, smoothed")


def smoothed(values: Sequence[float], decay: float = 0.9) -> NDArray[np.float64]:
    """Fit a line around each value, its neighbours weighing less by ``decay`` a place.

    A moving average lags where values fall; without one, training loss stands where it is beside
    that of the validation. A line leaves the range of its values where these turn, which the
    result does not. Source: Fan and Gijbels, Local Polynomial Modelling, 1996, section 2.3
    """
    y = np.asarray(values, float)
    known, reach = np.isfinite(y), np.arange(-50, 51)
    y = np.where(known, y, 0)
    kernel = decay ** np.abs(reach)

    def total(power: int, of: NDArray[Any]) -> NDArray[np.float64]:
        return np.convolve(of, kernel * reach**power)[50 : 50 + len(y)]

    (s0, s1, s2), (t0, t1) = ((total(p, known) for p in range(3)), (total(p, y) for p in range(2)))
    low, high = (y.min(where=known, initial=np.inf), y.max(where=known, initial=-np.inf))
    with np.errstate(invalid="ignore", divide="ignore"):  # where hardly a value is finite
        lines: NDArray[np.float64] = (s2 * t0 - s1 * t1) / (s0 * s2 - s1**2)
    return np.clip(lines, low, high) if known.any() else lines


def plot_reliability(found: Calibration, path: Path, words: Words = WORDS) -> None:
    """Draw accuracy in bins of confidence as bars, their gap to the confidence, and the counts."""
    figure = new_figure(4.8, 5)
    axes, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    width, filled = found.edges[1], found.count > 0
    x = (found.edges[:-1] + width / 2)[filled]
    accuracy, confidence = found.accuracy[filled], found.confidence[filled]
    bar = {"width": 0.94 * width, "zorder": 2}
    axes.bar(x, accuracy, color=color(0), label=words[1], **bar)
    low, gap = np.minimum(accuracy, confidence), np.abs(accuracy - confidence)
    edge = {"color": "#fbe3d6", "edgecolor": color(1), "hatch": "////", "lw": 0.8}
    axes.bar(x, gap, bottom=low, label=f"gap to {words[0]}", **bar | edge)
    axes.hlines(accuracy, x - 0.47 * width, x + 0.47 * width, color="black", lw=2, zorder=3)
    axes.plot([0, 1], [0, 1], "--", color="#333333", lw=1, zorder=3, label=PERFECT)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel=words[1])
    axes.set_title(f"expected calibration error {found.error:.4f}", fontsize=10)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    below.bar(found.edges[:-1] + width / 2, found.count, color="#777777", **bar)
    below.set(xlabel=words[0], ylabel=words[2])
    below.grid(alpha=0.3, axis="y")
    save(figure, path)


def plot_reliabilities(
    runs: Mapping[str, tuple[int, Calibration]], path: Path, words: Words = WORDS
) -> None:
    """Draw accuracy against confidence of several runs as lines; the areas of dots tell the counts.

    Args:
        runs: Number, which gives the colour, and calibration of each run, by name.
        path: The image.
        words: What confidence and accuracy are called.
    """
    figure = new_figure(4.8, 5)
    axes = figure.subplots()
    for name, (number, found) in runs.items():
        filled, tint = found.count > 0, color(number)
        x, y = found.confidence[filled], found.accuracy[filled]
        axes.plot(x, y, color=tint, label=f"{shorten(name, 40)}: error {found.error:.4f}")
        area = 200 * found.count[filled] / found.count.sum()
        axes.scatter(x, y, s=area + 6, color=tint, alpha=0.6, lw=0, zorder=3)
    axes.plot([0, 1], [0, 1], "--", color="#333333", lw=1, label=PERFECT)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=words[0], ylabel=words[1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, path)


def plot_lengths(
    runs: Mapping[str, tuple[int, ByLength]], edges: Iterable[int], path: Path
) -> None:
    """Draw accuracy in bins of length with 95 % intervals, and the counts.

    Args:
        runs: Number, which gives the colour, and accuracy of each run, by name.
        edges: Lengths between which the bins lie, shape (K + 1,).
        path: The image.
    """
    figure = new_figure(7.2, 4.4)
    axes = figure.subplots()
    for place, (name, (number, found)) in enumerate(runs.items()):
        x = np.arange(len(found.count)) + 0.12 * (place - (len(runs) - 1) / 2)
        filled = found.count > 0
        gaps = np.stack([found.accuracy - found.low, found.high - found.accuracy])
        axes.errorbar(
            x[filled], found.accuracy[filled], gaps.clip(0)[:, filled],
            fmt="o-", ms=5, lw=1, elinewidth=1.5, capsize=3, color=color(number),
            label=shorten(name, 50),
        )  # fmt: skip
    counts = zip(*(found.count.tolist() for _, found in runs.values()), strict=True)
    ticks = [
        (f"{low}" if high - low == 1 else f"{low} to {high - 1}")
        + "\n"
        + " | ".join(f"{n:,}" for n in dict.fromkeys(every))
        for (low, high), every in zip(pairwise(edges), counts, strict=True)
    ]
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set(xlabel="tokens, and samples with so many", ylabel="accuracy")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=8, title="with 95 % intervals", title_fontsize=8)
    save(figure, path)


def plot_images(
    rows: Sequence[Sequence[NDArray[np.uint8]]], titles: Sequence[str], path: Path
) -> None:
    """Draw rows of images below each other.

    Args:
        rows: Images of shape (H, W, C), equally many in each row.
        titles: What stands above each column.
        path: PNG to write.
    """
    columns = len(rows[0])
    figure = new_figure(0.9 * columns + 0.2, 1.0 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (images, places) in enumerate(zip(rows, axes, strict=True)):
        for image, place, title in zip(images, places, titles, strict=True):
            grey = image.shape[-1] == 1
            place.imshow(image[..., 0] if grey else image, cmap="gray", vmin=0, vmax=255)
            place.set_axis_off()
            if line == 0:
                place.set_title(shorten(title, 14), fontsize=7)
    save(figure, path)


def plot_rows(rows: Mapping[str, Sequence[NDArray[np.uint8]]], path: Path) -> None:
    """Draw rows of images, (H, W, C), with what each row is beside it.

    They are one picture of the plot, as it is drawn at each validation: a plot of each would take
    seconds.
    """
    height, width = next(iter(rows.values()))[0].shape[:2]
    columns = max(map(len, rows.values()))
    gap = max(1, width // 16)
    sheet = np.full((len(rows) * (height + gap), columns * (width + gap), 3), 255, np.uint8)
    for i, images in enumerate(rows.values()):
        for j, image in enumerate(images):
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + height, left : left + width] = image
    figure = new_figure(0.8 * columns + 1, 0.8 * len(rows) + 0.1)
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_yticks([i * (height + gap) + height / 2 for i in range(len(rows))], [*rows])
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    save(figure, path)


def plot_bars(values: NDArray[np.float64], unit: str, things: str, path: Path) -> None:
    """Draw numbers in their order, shape (N,)."""
    figure = new_figure(7.2, 3)
    axes = figure.subplots()
    axes.bar(range(len(values)), values, width=1.0, color=color(0))
    axes.set(xlabel=things, ylabel=unit, xlim=(-0.5, len(values) - 0.5))
    axes.grid(alpha=0.3, axis="y")
    save(figure, path)


def plot_points(
    places: NDArray[np.float64], classes: NDArray[np.int64], names: Sequence[str], path: Path
) -> None:
    """Draw points (N, 2), coloured by class (N,); a legend names the classes if there are few."""
    from matplotlib import colormaps

    few = len(names) <= 20
    figure = new_figure(6.4 if few else 5, 5)
    axes = figure.subplots()
    colors = colormaps["tab10" if len(names) <= 10 else "tab20" if few else "hsv"]
    area = min(30, max(4, 5000 / max(1, len(places))))
    for number, name in enumerate(names):
        mine = places[classes == number]
        shade = colors(number) if few else colors(number / len(names))
        axes.scatter(*mine.T, s=area, color=shade, alpha=0.7, lw=0, label=shorten(name, 24))
    axes.set(xticks=[], yticks=[])
    if few:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    save(figure, path)


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture, (H, W, 3)."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
