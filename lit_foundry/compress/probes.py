"""Score the features of checkpoints: by neighbours, a linear probe, and fine-tuning."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_foundry.compress.command import machine, parsed, show, write
from lit_foundry.compress.confidence import Interval, wilson
from lit_foundry.compress.features import (
    Samples,
    Source,
    data_for,
    raw_pixels,
    samples,
    trained,
    untrained,
)
from lit_foundry.compress.finetuning import Finetuning, finetuned
from lit_foundry.training.probing.encoder import POOLINGS, device_of
from lit_foundry.training.probing.knn import TEMPERATURE, check_votes, nearest
from lit_foundry.training.probing.labels import check_classes
from lit_foundry.training.probing.linear import linear_probe
from lit_foundry.usage import OWN_HELP, Parser, UsageError

METHODS = ("knn", "linear", "finetune")


@dataclass(frozen=True)
class Probed:
    """What features score on a split.

    Attributes:
        artifact: What they come from.
        by: How classes were told by them.
        settings: What was chosen, and how.
        labels: Number of training samples whose labels were used.
        samples: Number of samples that were scored.
        val: Accuracy on the validation split, which may have chosen settings.
        accuracy: Accuracy on the split.
        interval: Of 95 %, of that.
    """

    artifact: str
    by: str
    settings: str
    labels: int
    samples: int
    val: float | None
    accuracy: float
    interval: Interval


def main(args: list[str]) -> None:
    """Run the command."""
    parser = Parser("evaluate", OWN_HELP["evaluate"])
    parser.add_argument("--by", nargs="+", choices=METHODS, required=True)
    parser.add_argument("--ckpt_path", type=Path)
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pooling", choices=POOLINGS, default="default")
    parser.add_argument("--k", type=int)
    parser.add_argument("--temperature", type=float, default=TEMPERATURE)
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.01, 0.1, 1.0])
    given, changes = parsed(parser, args, needs_paths=False)
    given.paths += [given.ckpt_path] if given.ckpt_path else []
    if not given.paths:
        raise UsageError("evaluate: name a checkpoint. See python -m lit_foundry evaluate --help.")
    check_votes(given.k, given.temperature)
    tuning = tuning_of(given, changes)
    found = [row for path in given.paths for row in _probed(path, given, changes, tuning)]
    read = "the test split was not read" if given.split == "val" else "test is read once"
    notes = [
        f"Split {given.split}, with Wilson's interval of 95 %. The split val chooses what is "
        f"chosen, such as l2; {read}."
    ]
    show([row_of(each) for each in found], [*notes, machine()])
    write(given.output, {"split": given.split, "probes": [asdict(each) for each in found]})


def tuning_of(given: Namespace, changes: Mapping[str, Any]) -> Finetuning | None:
    """Return how to fine-tune, if that is asked for.

    Raises:
        UsageError: If it is not said how.
    """
    if "finetune" not in given.by:
        return None
    if given.config is None:
        raise UsageError("--by finetune needs --config FILE: the fit that begins with the weights.")
    if wrong := [share for share in given.fractions if not 0 < share <= 1]:
        raise UsageError(f"--fractions are shares of the labels in (0, 1], got {wrong[0]}.")
    return Finetuning(given.config, tuple(given.fractions), dict(changes), given.split)


def _probed(
    path: Path, given: Namespace, changes: Mapping[str, Any], tuning: Finetuning | None
) -> Iterator[Probed]:
    """Yield what a checkpoint scores by each method, and the baselines after it."""
    device = device_of(given.device)
    source, backbone = trained(path, given.pooling, device)
    methods = [method for method in METHODS if method in given.by]
    if {*methods} - {"finetune"}:
        data = data_for(path, backbone, given.data, changes)
        check_classes(data, f"--by {' '.join(methods)}")
        sources = [source]
        if given.baselines:
            sources.append(untrained(path, data, given.pooling, device))
            sources += [raw_pixels()] if "pixel_values" in backbone.inputs else []
        for each in sources:
            yield from _of_features(each, data, given, device)
    if tuning:
        for begin in (path, None) if given.baselines else (path,):
            for share, scored, labels in finetuned(tuning, begin):
                assert scored.interval  # as each sample has a class
                yield Probed(
                    str(begin or f"untrained {tuning.config}"),
                    f"finetune {100 * share:g} %",
                    str(tuning.config),
                    labels,
                    scored.samples,
                    None,
                    scored.scores["accuracy"],
                    scored.interval,
                )


def _of_features(source: Source, data: Any, given: Namespace, device: Any) -> Iterator[Probed]:
    train, val = (samples(source, data, split, device) for split in ("train", "val"))
    for by in (method for method in ("knn", "linear") if method in given.by):
        tell, settings = (_neighbours if by == "knn" else _linear)(train, val, given)
        # Only now, and once.
        test = val if given.split == "val" else samples(source, data, "test", device)
        right, on_val = (int((tell(features) == label).sum()) for features, label in (test, val))
        count = len(test[1])
        yield Probed(
            source.name,
            by,
            settings,
            labels=len(train[1]),
            samples=count,
            val=on_val / len(val[1]),
            accuracy=right / count,
            interval=wilson(right, count),
        )


def _neighbours(train: Samples, val: Samples, given: Namespace) -> tuple[Any, str]:
    k = given.k or min(200, len(train[1]))

    def tell(features: Tensor) -> Tensor:
        return nearest(features, *train, given.k, given.temperature)

    return tell, f"k {k}, temperature {given.temperature:g}"


def _linear(train: Samples, val: Samples, given: Namespace) -> tuple[Any, str]:
    probe = linear_probe(train, val)

    def tell(features: Tensor) -> Tensor:
        return probe.logits(features).argmax(1)

    return tell, f"l2 {probe.l2:g}"


def row_of(each: Probed) -> dict[str, str]:
    """Return the row of a table."""
    row = {"features": each.artifact, "by": each.by, "labels": f"{each.labels:,}"}
    row |= {"samples": f"{each.samples:,}"}
    if each.val is not None:
        row["val"] = f"{each.val:.4f}"
    row |= {"accuracy": f"{each.accuracy:.4f}"}
    row |= {"interval": "{:.4f} to {:.4f}".format(*each.interval)}
    return {**row, "settings": each.settings}
