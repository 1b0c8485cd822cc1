"""What an evaluation says of each sample, and the files that it leaves in a run's folder."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_foundry.report.analysis import confident_mistakes, examples
from lit_foundry.report.plots import plot_confusion
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.predictions import Predictions


class SampleOutputs:
    """Keeps what batches yield of each sample.

    These are tensors of shape (B, ...), ``index`` among them, and lists of length B.
    """

    def __init__(self) -> None:
        self._parts: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Forget all batches."""
        self._parts.clear()

    def add(self, outputs: Mapping[str, Any] | None) -> None:
        """Keep a batch, on the CPU; None yields nothing of a single sample."""
        if outputs:  # as copies: what a loader's worker sent holds a file open
            self._parts.append({name: _copied(value) for name, value in outputs.items()})

    def gather(self, trainer: Trainer) -> dict[str, Any]:
        """Return the samples of all ranks on rank 0, in the order of the split, and forget them.

        Every rank has to call it; other ranks get nothing.
        """
        parts, self._parts = self._parts, []
        if trainer.world_size > 1:
            gathered: list[Any] | None = None
            if trainer.is_global_zero:
                gathered = [None] * trainer.world_size
            torch.distributed.gather_object(parts, gathered)
            parts = [part for rank in gathered or () for part in rank]
        if not parts:
            return {}
        order = torch.cat([part["index"] for part in parts]).argsort()
        found: dict[str, Any] = {}
        for name, first in parts[0].items():
            if isinstance(first, Tensor):
                found[name] = torch.cat([part[name] for part in parts])[order]
            else:
                rows = [row for part in parts for row in part[name]]
                found[name] = [rows[i] for i in order.tolist()]
        return found


def _copied(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value


def with_images(predictions: Predictions, thumbnail: Callable[[int], Any]) -> Predictions:
    """Return predictions with pictures of the samples that a page shows."""
    images: list[bytes | None] = [None] * len(predictions.target)
    for row in {*confident_mistakes(predictions).tolist(), *examples(predictions).tolist()}:
        file = BytesIO()
        thumbnail(row).save(file, "PNG")
        images[row] = file.getvalue()
    return replace(predictions, samples={**predictions.samples, "image": images})


class EvaluationRecord(Callback):
    """Writes the predictions of an evaluation and its confusion matrix.

    Args:
        run: Folder of the run.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._outputs = SampleOutputs()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a validation."""
        self._outputs.clear()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a test."""
        self._outputs.clear()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what a batch yields."""
        self._outputs.add(outputs)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what a batch yields."""
        self._outputs.add(outputs)

    def record(self, trainer: Trainer, task: Any, stage: str, step: int) -> None:
        """Write ``predictions/<stage>.parquet`` and the confusion matrix; every rank calls it."""
        found = self._outputs.gather(trainer)
        data: Any = getattr(trainer, "datamodule", None)
        labels = list(getattr(data, "labels", ()))
        if not trainer.is_global_zero:
            return
        if labels and found:
            rows = found["index"].tolist()
            probs, target = found["prob"].float().numpy(), found["target"].numpy()
            predictions = Predictions(labels, probs, target, data.describe(stage, rows), step)
            if rows and hasattr(data, "thumbnail") and data.thumbnail(stage, rows[0]) is not None:
                predictions = with_images(predictions, lambda row: data.thumbnail(stage, rows[row]))
            predictions.write(self.run.path / "predictions" / f"{stage}.parquet")
        matrix = getattr(task, "results", {}).get(f"{stage}/confusion")
        if matrix is not None:
            names = labels or [str(i) for i in range(len(matrix))]
            plot_confusion(
                matrix.cpu().numpy(), names, self.run.path / "plots" / f"{stage}_confusion.png"
            )
