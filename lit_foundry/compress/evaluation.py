"""Score checkpoints and exported folders on the samples of a split, and compare them there.

Shapes: N samples, B batch, T tokens, C classes, K values, W words.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MulticlassF1Score, MultilabelF1Score
from tqdm.auto import tqdm

from lit_foundry.callbacks.evaluation_record import SampleOutputs, columns_of
from lit_foundry.compress.artifact import open_artifact
from lit_foundry.compress.command import machine, parsed, show, write
from lit_foundry.compress.confidence import Interval, paired_difference, wilson
from lit_foundry.nn.text.masking import IGNORED
from lit_foundry.nn.text.words import of_words
from lit_foundry.runs.predictions import NO_TAG, Predictions
from lit_foundry.training.metrics import EntityF1, MeanAveragePrecision, ValueScores
from lit_foundry.usage import OWN_HELP, Parser, UsageError

Split = Literal["test", "val"]
# Of each kind, the share of samples that has an interval.
SHARES = {"class": "accuracy", "classes": "exact_match"}


@dataclass(frozen=True)
class Evaluation:
    """What an artifact scores on a split.

    Attributes:
        path: The artifact.
        format: Format of the export, or ``checkpoint``.
        split: ``test`` or ``val``.
        kind: What it predicts: ``class``, ``classes``, ``value`` or ``tags``.
        samples: Number of samples N.
        scores: Score by name.
        interval: Of 95 %, of the accuracy, or of the exact match of several classes.
        predictions: What it predicts of each sample, and what is true.
        data: Hash of the samples, where the data tell it.
    """

    path: str
    format: str
    split: str
    kind: str
    samples: int
    scores: dict[str, float]
    interval: Interval | None
    predictions: Predictions = field(repr=False)
    data: str | None = None

    def told(self) -> dict[str, Any]:
        """Return it as plain data, without the samples."""
        return {k: v for k, v in vars(self).items() if k != "predictions"}


@dataclass(frozen=True)
class Comparison:
    """What an artifact predicts beside another, on the same samples.

    Attributes:
        agreement: Share of samples, or words, of which both predict the same; None of values.
        difference: By how much the share that is right exceeds the other's; None of tags, values.
        interval: Of 95 %, of the difference.
    """

    agreement: float | None
    difference: float | None
    interval: Interval | None


def main(args: list[str]) -> None:
    """Run the command."""
    parser = Parser("evaluate", OWN_HELP["evaluate"])
    parser.add_argument("--split", choices=("test", "val"), default="test")
    given, changes = parsed(parser, args)
    found = [evaluate(path, given.split, changes) for path in given.paths]
    compared = [compare(each, found[0]) for each in found[1:]]
    pairs = [*zip(found, [None, *compared], strict=True)]
    notes = [
        f"Split {given.split}. Intervals of 95 %: Wilson's of the share, Newcombe's of the paired "
        "difference to the first."
    ]
    for each, beside in pairs[1:]:
        if beside is None:
            notes.append(f"{each.path} was scored on other samples than the first: not compared.")
    show([row_of(*pair) for pair in pairs], [*notes, machine()])
    artifacts = [e.told() | {"versus_first": beside and asdict(beside)} for e, beside in pairs]
    write(given.output, {"split": given.split, "artifacts": artifacts})


@torch.inference_mode()
def evaluate(
    path: Path, split: Split = "test", changes: Mapping[str, Any] | None = None
) -> Evaluation:
    """Run all samples of a split through an artifact, in the batches that ``test`` takes.

    Args:
        path: Checkpoint, or folder that ``export`` wrote.
        split: ``test`` or ``val``.
        changes: Arguments of the data that are set otherwise, such as ``root``.

    Raises:
        UsageError: If its predictions, or the samples, cannot be scored.
        CheckpointError: If there is no such artifact.
    """
    artifact = open_artifact(path)
    if artifact.predicts is None:
        raise UsageError(
            f"{path} holds {artifact.holds}, which predicts nothing that labels could be compared "
            "with: score its features by --by knn linear, and a language model by the command test."
        )
    data = artifact.data(changes or {})
    loader, outputs = getattr(data, f"{split}_dataloader")(), SampleOutputs()
    for batch in tqdm(loader, desc=f"{path}", unit="batch", disable=None):
        if "label" not in batch:
            raise UsageError(f"{path}: the split {split} of its data has no labels to score by.")
        outputs.add(_kept(artifact.predicts, artifact.logits(batch).float().cpu(), batch))
    columns = columns_of(outputs.taken())
    if not columns:
        raise UsageError(f"{path}: the split {split} of its data is empty.")
    predictions = Predictions(data.labels, columns, predicts=artifact.predicts)
    right = _right(predictions) if artifact.predicts in SHARES else None
    return Evaluation(
        path=str(path),
        format=artifact.format,
        split=split,
        kind=artifact.predicts,
        samples=len(predictions),
        scores=_scores(predictions),
        interval=None if right is None else wilson(int(right.sum()), len(right)),
        predictions=predictions,
        data=data.fingerprint().get(split),
    )


def compare(one: Evaluation, first: Evaluation) -> Comparison | None:
    """Compare what is predicted of each sample; None if these are not the same samples."""
    mine, theirs = one.predictions, first.predictions
    alike = (one.kind, one.split, one.data) == (first.kind, first.split, first.data)
    if not (alike and mine.labels == theirs.labels and np.array_equal(mine.target, theirs.target)):
        return None
    if one.kind == "value":
        return Comparison(None, None, None)
    same = mine.predicted == theirs.predicted
    if one.kind == "tags":
        return Comparison(float(same[mine.target != NO_TAG].mean()), None, None)
    agreement = float(same.reshape(len(mine), -1).all(1).mean())
    return Comparison(agreement, *paired_difference(_right(mine), _right(theirs)))


def _kept(kind: str, logits: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is kept of the samples of a batch, as the tasks of each kind do."""
    index, label = batch["index"], batch["label"]
    if kind == "class":
        loss = F.cross_entropy(logits, label, reduction="none")
        return {"index": index, "prob": logits.softmax(-1), "target": label, "log_loss": loss}
    if kind == "classes":
        loss = F.binary_cross_entropy_with_logits(logits, label.float(), reduction="none").mean(1)
        kept = {"prob": logits.sigmoid(), "target": label.long(), "log_loss": loss}
        return {"index": index, **kept}
    if kind == "value":
        return {"index": index, "value": logits, "target": label.float().view_as(logits)}
    tag, target = (of_words(t, batch["word"], IGNORED) for t in (logits.argmax(-1), label))
    return {"index": index, "tag": tag, "target": target}


def _right(predictions: Predictions) -> NDArray[np.bool_]:
    """Tell of each sample whether its class is right, or all of its classes are, shape (N,)."""
    right = predictions.predicted == predictions.target
    found: NDArray[np.bool_] = right.reshape(len(right), -1).all(1)
    return found


def _scores(predictions: Predictions) -> dict[str, float]:
    """Return the scores of a kind, by the metrics of its task."""
    kind, count = predictions.kind, len(predictions.labels)
    target = torch.from_numpy(predictions.target)
    if kind == "value":
        value = ValueScores()
        value.update(torch.from_numpy(predictions.predicted), target)
        return {name: float(score) for name, score in value.compute().items()}
    if kind == "tags":
        said, known = torch.from_numpy(predictions.predicted), target != NO_TAG
        f1_macro = MulticlassF1Score(count, validate_args=False)
        scores = {"accuracy": float((said == target)[known].double().mean())}
        scores["f1_macro"] = float(f1_macro(said[known], target[known]))
        if EntityF1.reads(predictions.labels):
            scores["entity_f1"] = float(EntityF1(predictions.labels)(said, target))
        return scores
    loss = float(predictions.columns["log_loss"].mean(dtype=float))
    scores = {SHARES[kind or ""]: float(_right(predictions).mean())}
    if kind == "classes":
        probs = torch.from_numpy(predictions.probs)
        for average in ("micro", "macro"):
            f1 = MultilabelF1Score(count, average=average, validate_args=False)
            scores[f"f1_{average}"] = float(f1(probs, target))
        scores["map"] = float(MeanAveragePrecision()(probs, target))
    return scores | {"log_loss": loss}


def row_of(each: Evaluation, beside: Comparison | None) -> dict[str, str]:
    """Return the row of a table: what an artifact scores, alone and beside the first."""
    row = {"artifact": each.path, "format": each.format, "samples": f"{each.samples:,}"}
    for name, score in each.scores.items():
        row[name.replace("_", " ")] = f"{score:.4f}"
        if each.interval and name == SHARES[each.kind]:
            row["interval"] = "{:.4f} to {:.4f}".format(*each.interval)
    if beside and beside.agreement is not None:
        row["agreement"] = f"{beside.agreement:.4f}"
    if beside and beside.difference is not None and beside.interval:
        row["difference"] = f"{beside.difference:+.4f}"
        row["its interval"] = "{:+.4f} to {:+.4f}".format(*beside.interval)
    return row
