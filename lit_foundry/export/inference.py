"""Trained networks in use: labels, probabilities and features from a checkpoint or an export.

Shapes: N inputs, C classes, D feature width.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lit_foundry.checkpoints.exported import (
    Logits,
    exported_data,
    exported_logits,
    exported_task,
    moved,
    read_manifest,
)
from lit_foundry.checkpoints.files import CheckpointError, load_data, load_task
from lit_foundry.datamodule import Data
from lit_foundry.nn.text.words import of_words
from lit_foundry.training.probing.encoder import Encoder, Pooling, check_finite


class Predicted(NamedTuple):
    """What a network says of some inputs, in their order."""

    labels: list[Any]  # of each input, the most probable class; of several classes, those over 0.5
    probs: Tensor  # (N, C), in the order of Predictor.labels


class PredictedValues(NamedTuple):
    """Numbers of some inputs, in their order."""

    values: Tensor  # (N,), or (N, K) in the order of Predictor.labels


class PredictedTags(NamedTuple):
    """Tags of the words of some inputs, in their order."""

    tags: list[list[str | None]]  # None of a word that was cut off before others


class Predictor:
    """A network with all that it needs to label raw inputs, and to embed them.

    Args:
        data: Data module that frames inputs as the training did.
        logits: The network.
        kind: What it predicts: ``class``, ``classes``, ``value`` or ``tags``; None of nothing that
            has labels, which :meth:`embed` alone serves.
        task: Returns the task with its backbone; None of a mere function to logits.
        source: What it was loaded from, for messages.

    Attributes:
        labels: Names of the classes, values or tags, in the order of the network's outputs.
    """

    def __init__(
        self,
        data: Data,
        logits: Logits,
        kind: str | None = "class",
        task: Callable[[], Any] | None = None,
        source: str = "It",
    ) -> None:
        self.data, self.logits, self.kind = data, logits, kind
        self.labels: list[str] = data.labels
        self._task, self._source = task, source

    @torch.inference_mode()
    def predict(self, inputs: Any, batch_tokens: int = 8192) -> Any:
        """Label texts, pairs of texts, or images.

        Args:
            inputs: One text, or several, or several pairs: a list, an array, a Series, a generator;
                or a DataFrame or records with the columns that were trained on. Likewise of
                images: paths, images of PIL, bytes of a file, or arrays (H, W, C) of uint8, also
                (N, H, W, C).
            batch_tokens: Most tokens at once, padding included.

        Returns:
            :class:`Predicted`, :class:`PredictedValues` or :class:`PredictedTags`, by ``kind``.

        Raises:
            DataError: If an input is of another type.
            CheckpointError: If it labels nothing.
        """
        if self.kind is None:
            task: Any = self._task and self._task()
            raise CheckpointError(
                f"{self._source} holds a {type(task).__name__}, {_unlabelled(task.job)}."
            )
        rows = self.data.rows(inputs)
        names = self.labels
        found = [torch.zeros(len(names))] * len(rows)
        for batch in self.data.batches(rows, batch_tokens):
            outputs = self.logits(batch).float().cpu()
            if self.kind == "tags":
                outputs = of_words(outputs.argmax(-1), batch["word"])
            for row, output in zip(batch["index"].tolist(), outputs, strict=True):
                found[row] = output
        if self.kind == "tags":
            return PredictedTags([_named(row.tolist(), names) for row in found])
        whole = torch.stack(found) if found else torch.zeros(0, len(names))
        if self.kind == "value":
            return PredictedValues(whole.flatten() if len(names) == 1 else whole)
        if self.kind == "classes":
            probs = whole.sigmoid()
            over = (row.nonzero().flatten().tolist() for row in probs > 0.5)
            return Predicted([[names[i] for i in row] for row in over], probs)
        probs = whole.softmax(-1)
        return Predicted([names[i] for i in probs.argmax(-1).tolist()], probs)

    def embed(
        self,
        inputs: Any,
        pooling: Pooling = "default",
        normalize: bool = False,
        batch_tokens: int = 8192,
    ) -> NDArray[np.float32]:
        """Return the features of texts, pairs of texts, or images, in their order.

        Args:
            inputs: As of :meth:`predict`.
            pooling: As the backbone pools (``default``), the ``mean`` of its tokens or places, or
                the ``first`` token of a text.
            normalize: Divide each vector by its length.
            batch_tokens: Most tokens at once, padding included.

        Returns:
            Shape (N, D).

        Raises:
            CheckpointError: If it is an export without features.
            DataError: If an input is of another type.
            ValueError: If the task has not one backbone, the pooling means nothing to it, or
                features are not finite.
        """
        if self._task is None:
            raise CheckpointError(
                f"{self._source} is an export that computes outputs and no features: embed with "
                "its checkpoint, or with an export of --format safetensors."
            )
        task = self._task()
        encode, device = Encoder(task, pooling), next(task.parameters()).device
        rows = self.data.rows(inputs)
        found = [torch.zeros(encode.backbone.dim)] * len(rows)
        for batch in self.data.batches(rows, batch_tokens):
            vectors = encode(moved(batch, device)).cpu()
            for row, vector in zip(batch["index"].tolist(), vectors, strict=True):
                found[row] = vector
        whole = torch.stack(found) if found else torch.zeros(0, encode.backbone.dim)
        check_finite(whole, "the inputs")
        embedded: NDArray[np.float32] = (F.normalize(whole) if normalize else whole).numpy()
        return embedded


def load(path: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """Load a checkpoint, or a folder that ``export`` wrote, with its tokenizer and label names.

    Args:
        path: ``runs/NAME/1/checkpoints/best.ckpt`` or an exported folder.
        device: Where a checkpoint or a ``transformers`` folder runs.

    Raises:
        CheckpointError: If it is neither, or an export that predicts nothing that has labels.
    """
    path = Path(path)
    if not path.is_dir():
        task: Any = load_task(path).to(device)
        loaded: Any = load_data(path)
        of = {"kind": task.predicts, "task": lambda: task, "source": str(path)}
        return Predictor(loaded, lambda batch: task(moved(batch, device)), **of)
    manifest = read_manifest(path)
    kind = manifest["predicts"]
    if kind is None:
        raise CheckpointError(f"{path} holds a network {_unlabelled(manifest['job'])}.")
    data: Any = exported_data(path, manifest)
    logits = exported_logits(path, manifest["format"], manifest["inputs"], device)
    task_of = cache(lambda: exported_task(path).to(device))  # a second copy, if features are asked
    whole = manifest["format"] == "safetensors"
    return Predictor(data, logits, kind, task_of if whole else None, str(path))


def _named(tags: list[int], names: Sequence[str]) -> list[str | None]:
    while tags and tags[-1] < 0:
        tags.pop()
    return [names[i] if i >= 0 else None for i in tags]


def _unlabelled(job: str | None) -> str:
    other = f", or export --format hf and transformers.pipeline({job!r}, FOLDER)" if job else ""
    return f"which labels nothing: use the command predict{other}"
