"""What a page shows of a classifier."""

from itertools import combinations

from lit_foundry.report import analysis, plots
from lit_foundry.report.blocks import Block, Column, Picture, Section, Table, View
from lit_foundry.report.parts import cards, reliability, sample_table, scores_table
from lit_foundry.runs.past import Run
from lit_foundry.runs.predictions import Predictions

COUNTS = ("both right", "only first", "only second", "both wrong")
CALIBRATED = "Of samples with a confidence of 0.8, a calibrated network gets 80 % right."
MISTAKES: tuple[Column, ...] = (
    *(("true", ""), ("its prob.", "number")),
    *(("predicted", ""), ("its prob.", "number")),
)


def blocks(view: View) -> list[Block]:
    """Show agreement of runs, confusion, reliability, accuracy by length, scores and mistakes."""
    found = view.found.items()
    return [
        *agreement(view),
        Block("Confusion matrix", [confusion(view, *pair) for pair in found], grid=True),
        reliability(view, CALIBRATED),
        *(cards(view, card) or lengths(view)),
        Block("Classes", [scores(*pair) for pair in found], grid=True),
        Block("Most confident mistakes", [mistakes(*pair) for pair in found]),
    ]


def agreement(view: View) -> list[Block]:
    """Compare the runs two by two."""
    columns: list[Column] = [("first", "run"), ("second", "run"), *((c, "number") for c in COUNTS)]
    rows: list[list[Run | str]] = []
    for one, two in combinations(view.found, 2):
        same = analysis.agreement(view.found[one], view.found[two])
        cells = [same.both, same.only_first, same.only_second, same.neither] if same else []
        rows.append([one, two, *([f"{n:,}" for n in cells] or ["not the same samples"])])
    return [Block("Agreement", [Table(columns, rows)])] if rows else []


def confusion(view: View, run: Run, found: Predictions) -> Picture:
    """Draw the confusion matrix of a run."""
    args = "confusion", "Confusion matrix", run, plots.plot_confusion
    return view.picture(*args, analysis.confusion(found), found.labels)


def lengths(view: View) -> list[Block]:
    """Draw accuracy in bins of length, of those runs whose samples have one."""
    measured = {run: found for run, found in view.found.items() if "tokens" in found.samples}
    if not measured:
        return []
    edges = analysis.length_edges(list(measured.values()))
    bins = view.numbered({r: analysis.by_length(found, edges) for r, found in measured.items()})
    args = "length", "Accuracy in bins of length", "", plots.plot_lengths
    picture = view.picture(*args, bins, edges.tolist(), wide=True)
    note = (
        "Bins of about equally many samples, with 95 % intervals (Wilson). "
        "Tokens are counted before truncation."
    )
    return [Block("Accuracy against length", [picture], note)]


def scores(run: Run, found: Predictions) -> Table:
    """Tell the scores of each class."""
    caption = f"accuracy {accuracy(found):.4f} on {len(found):,} samples"
    each = analysis.class_scores(analysis.confusion(found))
    return scores_table("class", run, found.labels, each, caption)


def accuracy(found: Predictions) -> float:
    """Return the share of samples that are right."""
    return float((found.predicted == found.target).mean())


def mistakes(run: Run, found: Predictions) -> Table:
    """Tell of the most confident mistakes."""

    def cells(row: int) -> list[str]:
        pair = int(found.target[row]), int(found.predicted[row])
        told = [(found.labels[i], f"{found.probs[row, i]:.4f}") for i in pair]
        return [*told[0], *told[1]]

    worst = found.worst().tolist()
    wrong = int((found.predicted != found.target).sum())
    return sample_table(run, worst, found, MISTAKES, cells, f"{len(worst)} of {wrong:,}")


def card(found: Predictions, row: int) -> tuple[list[str], bool]:
    """Tell what a picture was taken for, and what it is if that is wrong."""
    target, predicted = int(found.target[row]), int(found.predicted[row])
    said = f"{found.labels[predicted]} {found.probs[row, predicted]:.2f}"
    if target == predicted:
        return [said], False
    return [said, f"is {found.labels[target]}"], True


def score(found: Predictions) -> str:
    """Tell the accuracy."""
    return f"{accuracy(found):.4f} accuracy"


SECTION = Section("class", Predictions.worst, blocks, score)
