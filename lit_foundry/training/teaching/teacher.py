"""A trained network from which a student learns.

Shapes: B batch, N predictions, C classes.
"""

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_foundry.checkpoints.exported import (
    Logits,
    exported_logits,
    exported_task,
    fingerprint,
    read_manifest,
)
from lit_foundry.checkpoints.files import (
    MANIFEST,
    CheckpointError,
    load_task,
    read_checkpoint,
    recipe_of,
)
from lit_foundry.datamodule import Data
from lit_foundry.nn import LanguageHead
from lit_foundry.nn.distillation import Outputs, watched
from lit_foundry.nn.features import Features
from lit_foundry.training.agreement import check_facts, check_tokenizer

KEY = "model.teacher"
Places = Callable[[Tensor], Tensor] | None  # from (B, T, ...) to the (N, ...) that are predicted
SIZES = "vocab_size", "max_length", "in_channels", "image_size"  # facts that it must agree with


class Teacher:
    """A network in eval mode, which is no part of its student and never learns.

    Args:
        path: Checkpoint; folder that ``export`` wrote; folder of ``transformers``.
        inputs: Fields of a batch that the student reads, in order.
        optional: Fields that it reads where they are there.

    Attributes:
        task: The task with its weights; None of a folder that holds a mere function to logits.
        labels: Names of its outputs; None if it does not tell.

    Raises:
        CheckpointError: If the path holds no network.
    """

    def __init__(self, path: Path, inputs: Collection[str], optional: Collection[str] = ()) -> None:
        self.path = path
        self.task: Any = None
        self.labels: list[str] | None = None
        self._logits: Logits | None = None
        self.predicts: str | None = None
        self.inputs: tuple[str, ...] = ()
        self.vocab_size: int | None = None
        state: Mapping[str, Any] = {}
        if path.is_file():
            self.task = load_task(path)
            state = recipe_of(read_checkpoint(path), path).get("data_state") or {}
        elif (path / MANIFEST).is_file():
            manifest = read_manifest(path)
            state = manifest["data_state"]
            self.predicts, self.inputs = manifest["predicts"], tuple(manifest["inputs"])
            if manifest["format"] == "safetensors":
                self.task = exported_task(path)
            else:
                self._logits = exported_logits(path, manifest["format"], manifest["inputs"])
        elif (path / "config.json").is_file():
            self._logits = exported_logits(path, "hf", [*inputs, *optional])
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            self.vocab_size = config.get("vocab_size")
            names = list((config.get("id2label") or {}).values())
            if names != [f"LABEL_{i}" for i in range(len(names))]:
                state = {"labels": names}
        else:
            if not path.exists():
                raise CheckpointError(
                    f"{KEY}={path} is not there: fit the teacher first, or name another checkpoint "
                    "or exported folder."
                )
            raise CheckpointError(
                f"{KEY}={path} is neither a checkpoint nor an exported folder: name the best.ckpt "
                "of a run, or what export wrote."
            )
        if state.get("labels"):
            self.labels = list(state["labels"])
        if self.task is not None:
            if not (hasattr(self.task, "backbone") and hasattr(self.task, "head")):
                name = type(self.task).__name__
                raise CheckpointError(f"{KEY}={path}: a {name} has no backbone and head.")
            self.task.requires_grad_(False)
            self.predicts, self.inputs = self.task.predicts, self.task.backbone.inputs

    def __deepcopy__(self, memo: object) -> "Teacher":
        """Return itself: an average of the student's weights copies that, and not its teacher."""
        return self

    def check(self, student: Any, data: Data) -> None:
        """Check that it predicts what the student learns, from what the data yield.

        Raises:
            CheckpointError: If its tokens, inputs or outputs are others.
        """
        check_tokenizer(self.path, data, KEY)
        mine = student.backbone.inputs
        if self.inputs and not {*self.inputs} <= {*mine, *student.backbone.optional_inputs}:
            raise CheckpointError(
                f"{KEY}={self.path} reads {', '.join(self.inputs)}, and the student "
                f"{', '.join(mine)}: take a teacher of the same inputs."
            )
        job = student.job if self.task is None else self.task.job
        if self.inputs and (self.predicts, job) != (student.predicts, student.job):
            kind = "network" if self.task is None else type(self.task).__name__
            raise CheckpointError(
                f"{KEY}={self.path} is a {kind} that predicts {self.predicts or job}, and the "
                f"student a {type(student).__name__}: both have to predict the same."
            )
        facts = {**data.facts, **getattr(student, "own_facts", {})}
        if self.vocab_size is not None and facts.get("vocab_size", 0) > self.vocab_size:
            raise CheckpointError(
                f"{KEY}={self.path} has {self.vocab_size} tokens, and the data have "
                f"{facts['vocab_size']}: set data.tokenizer to that of the teacher."
            )
        if self.task is not None:
            sizes = {name: facts[name] for name in SIZES if name in facts}
            check_facts(self.task.backbone, KEY, sizes, type(data).__name__)
        if self.labels and student.predicts and self.labels != (names := list(data.labels)):
            raise CheckpointError(
                f"{KEY}={self.path} predicts {self.labels}, and the data have {names}: take a "
                "teacher of the same classes, in the same order."
            )

    def place(self, strategy: Any) -> None:
        """Move it to where the student learns, in the precision of that."""
        if self.task is not None:
            self.task = strategy.precision_plugin.convert_module(self.task).to(strategy.root_device)
            self.task.eval()

    @torch.no_grad()
    def outputs(
        self, batch: Mapping[str, Any], needs: Collection[str] = (), places: Places = None
    ) -> Outputs:
        """Return what it makes of a batch.

        Args:
            batch: What the student sees.
            needs: ``hidden`` and ``attention``, if these are asked for.
            places: Which tokens are predicted, of tasks on these.
        """
        if self.task is not None:
            with watched(self.task.backbone, needs) as seen:
                features = self.task.backbone.encode(batch)
            return seen.outputs(logits_of(self.task, features, places))
        if more := sorted({*needs} - {"logits"}):
            raise CheckpointError(
                f"{KEY}={self.path} tells its logits alone, and model.losses asks for its "
                f"{' and '.join(more)}: take a checkpoint, or an export as safetensors."
            )
        assert self._logits is not None
        fields = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
        device = next(iter(fields.values())).device
        logits = self._logits({k: v.cpu() for k, v in fields.items()}).to(device)
        return Outputs((logits if places is None else places(logits)).float())

    def fingerprint(self) -> str:
        """Return a hash of its files."""
        return fingerprint(self.path)


def logits_of(task: Any, features: Features, places: Places, output: Any = None) -> Tensor:
    """Return the logits that a task makes of features, shape (N, C).

    Args:
        task: Has a head.
        features: Of its backbone.
        places: Which tokens are predicted, of tasks on these.
        output: What the head made of the features, if that is known: dropout would draw anew.
    """
    if isinstance(task.head, LanguageHead):
        tokens = features.tokens if places is None else places(features.tokens)
        logits: Tensor = task.head(tokens, task.head.decoder_weight(task.backbone))
        return logits
    logits = task.head(features) if output is None else output
    return logits if places is None else places(logits)
