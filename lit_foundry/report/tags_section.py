"""What a page shows of tags of tokens."""

import numpy as np
from numpy.typing import NDArray

from lit_foundry.report.analysis import count_pairs, scores_of
from lit_foundry.report.blocks import NONE, Block, Column, Section, Table, View
from lit_foundry.report.parts import sample_table, scores_table
from lit_foundry.runs.past import Run
from lit_foundry.runs.predictions import NO_TAG, Predictions

COLUMNS: tuple[Column, ...] = (
    *(("wrong", "number"), ("tags", "number")),
    ("predicted for true", "text"),
)
SHOWN = 12  # wrong tags of a sample, at most


def blocks(view: View) -> list[Block]:
    """Show scores of each tag, and the samples with most wrong tags."""
    found = view.found.items()
    return [
        Block(
            "Tags",
            [tag_table(*pair) for pair in found],
            "Counted by token, and not by the whole of what several tokens name.",
            grid=True,
        ),
        Block("Most wrong tags", [mistakes(*pair) for pair in found]),
    ]


def flat(found: Predictions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the true and the predicted tags of all samples, those that are not there left out."""
    known = found.target != NO_TAG
    return found.target[known], found.predicted[known]


def accuracy(found: Predictions) -> float:
    """Return the share of tags that are right."""
    target, predicted = flat(found)
    return float((target == predicted).sum() / max(len(target), 1))


def tag_table(run: Run, found: Predictions) -> Table:
    """Tell the scores of each tag, counted by token."""
    target, predicted = flat(found)
    size = len(found.labels)
    # Where nothing is predicted, as in what was cut off, stands a tag of its own.
    matrix = count_pairs(target, np.where(predicted == NO_TAG, size, predicted), size + 1)
    each = scores_of(matrix.diagonal()[:size], matrix.sum(0)[:size], matrix.sum(1)[:size])
    caption = f"accuracy {accuracy(found):.4f} on {len(target):,} tags of {len(found):,} samples"
    return scores_table("tag", run, found.labels, each, caption)


def mistakes(run: Run, found: Predictions) -> Table:
    """Tell of the samples with most wrong tags."""
    true, said = found.named(found.target), found.named(found.predicted)

    def cells(row: int) -> list[str]:
        pairs = list(zip(said[row], true[row], strict=True))
        wrong = [i for i, (one, other) in enumerate(pairs) if one != other]
        words = words_of(found, row, len(pairs))
        told = [f"{words[i]}: {pairs[i][0] or NONE} for {pairs[i][1]}" for i in wrong[:SHOWN]]
        more = [f"{len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        return [str(len(wrong)), str(len(pairs)), ", ".join([*told, *more])]

    worst = found.worst().tolist()
    caption = f"{len(worst)} of {np.count_nonzero(found.wrongness):,}"
    return sample_table(run, worst, found, COLUMNS, cells, caption)


def words_of(found: Predictions, row: int, count: int) -> list[str]:
    """Return the words that tags belong to, or their numbers where the text has not as many."""
    text = found.samples["text"][row] if "text" in found.samples else None
    words = (text or "").split()
    return words if len(words) == count else [f"{i + 1}." for i in range(count)]


def score(found: Predictions) -> str:
    """Tell the share of tags that are right."""
    return f"{accuracy(found):.4f} accuracy of tags"


SECTION = Section("tags", Predictions.worst, blocks, score)
