"""What a page shows of a network that predicts several classes at once."""

import numpy as np

from lit_foundry.report.analysis import ClassScores, scores_of
from lit_foundry.report.blocks import NONE, Block, Column, Section, Table, View
from lit_foundry.report.parts import cards, reliability, sample_table, scores_table
from lit_foundry.runs.past import Run
from lit_foundry.runs.predictions import Predictions

CALIBRATED = "Of labels with a probability of 0.8, a calibrated network has 80 % true."
WORDS = ("probability", "share of true labels", "labels")
COLUMNS: tuple[Column, ...] = (("wrong labels", "number"), ("true", ""), ("predicted", ""))


def blocks(view: View) -> list[Block]:
    """Show reliability, samples, scores of each class and the samples with most wrong labels."""
    found = view.found.items()
    return [
        reliability(view, CALIBRATED, WORDS),
        *cards(view, card),
        Block(
            "Classes",
            [class_table(*pair) for pair in found],
            "A class is predicted where its probability is above 0.5.",
            grid=True,
        ),
        Block("Most wrong labels", [mistakes(*pair) for pair in found]),
    ]


def class_scores(found: Predictions) -> ClassScores:
    """Compute the scores of each class."""
    target = found.target > 0
    return scores_of((found.predicted & target).sum(0), found.predicted.sum(0), target.sum(0))


def micro_f1(found: Predictions) -> float:
    """Compute the F1 of all labels together."""
    hits = (found.predicted & (found.target > 0)).sum()
    return float(2 * hits / max(found.predicted.sum() + found.target.sum(), 1))


def class_table(run: Run, found: Predictions) -> Table:
    """Tell the scores of each class, and of all."""
    each = class_scores(found)
    whole = (found.predicted == found.target).all(1).mean()
    caption = (
        f"micro F1 {micro_f1(found):.4f}, macro F1 {each.f1.mean():.4f}, "
        f"all labels right of {whole:.1%} of {len(found):,} samples"
    )
    return scores_table("class", run, found.labels, each, caption)


def mistakes(run: Run, found: Predictions) -> Table:
    """Tell of the samples with most wrong labels."""
    wrong = (found.predicted != found.target).sum(1)
    true, said = found.named(found.target), found.named(found.predicted)

    def cells(row: int) -> list[str]:
        return [str(wrong[row]), *(", ".join(names[row]) or NONE for names in (true, said))]

    worst = found.worst().tolist()
    caption = f"{len(worst)} of {np.count_nonzero(wrong):,}"
    return sample_table(run, worst, found, COLUMNS, cells, caption)


def card(found: Predictions, row: int) -> tuple[list[str], bool]:
    """Tell what was predicted of a picture, and what is true if something is wrong."""
    pair = found.predicted[row : row + 1], found.target[row : row + 1]
    said, true = (", ".join(*found.named(marks)) or NONE for marks in pair)
    return ([said], False) if said == true else ([said, f"is {true}"], True)


def score(found: Predictions) -> str:
    """Tell the F1 of all labels together."""
    return f"{micro_f1(found):.4f} micro F1"


SECTION = Section("classes", Predictions.worst, blocks, score)
