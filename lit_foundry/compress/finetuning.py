"""Fine-tuning a checkpoint on a share of the labels, each in a fit of its own."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_foundry.checkpoints.exported import fingerprint
from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.compress.evaluation import Evaluation, Split, evaluate
from lit_foundry.compress.features import built, section
from lit_foundry.compress.pipeline import finished, parts_of
from lit_foundry.compress.process import fit
from lit_foundry.runs.folder import ROOT
from lit_foundry.runs.past import run_folder
from lit_foundry.training.probing.labels import check_classes


@dataclass(frozen=True)
class Finetuning:
    """How to fine-tune.

    Attributes:
        config: Config of the fit, whose ``model.init_from`` is set.
        shares: Of the training samples, each in (0, 1].
        changes: Arguments of its data that are set otherwise.
        split: What is scored.
    """

    config: Path
    shares: tuple[float, ...]
    changes: Mapping[str, Any]
    split: Split


def finetuned(how: Finetuning, begin: Path | None) -> Iterator[tuple[float, Evaluation, int]]:
    """Yield each share, what the best checkpoint of its fit scores, and its number of labels.

    Validation, which keeps its size, chooses that checkpoint. The fits lie in a folder that is
    named after all they depend on: the same call goes on with them.

    Args:
        how: How to fine-tune.
        begin: Checkpoint that the fits begin with; None begins with random weights.

    Raises:
        ValueError: If the data have no classes, or a fit ends without a checkpoint.
        SystemExit: If a fit fails.
    """
    data: Any = built(section(how.config), how.changes)
    check_classes(data, "--by finetune")
    count = len(data.load("train").lengths)
    texts = {str(path): text for path, text in parts_of(how.config).items()}
    parts = [begin and fingerprint(begin), texts, dict(how.changes)]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(ROOT, f"finetune-{key}")
    folder.mkdir(parents=True, exist_ok=True)
    for share in how.shares:
        labels = max(1, round(share * count))
        changes = {**how.changes, **({"max_train_samples": labels} if share < 1 else {})}
        if (size := getattr(data, "batch_size", None)) and size > labels:
            changes["batch_size"] = labels
        name = f"{100 * share:g}-percent"
        if not finished(folder / name):
            values = {f"data.{k}": v for k, v in changes.items()}
            values["model.init_from"] = None if begin is None else str(begin)
            values |= {"trainer.default_root_dir": ROOT, "experiment": f"{folder.name}/{name}"}
            words = [
                f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()
            ]
            fit(["--config", str(how.config), *words, "--resume=auto"], folder)
        best = run_folder(folder / name) / "checkpoints" / "best.ckpt"
        if not best.is_file():
            raise CheckpointError(
                f"The fit on {labels} labels left no {best}, as it reached no validation: let it "
                "train longer, or validate earlier (trainer.val_check_interval)."
            )
        yield share, evaluate(best, how.split, how.changes), labels
