"""What an evaluation says of each sample, and the files that it leaves in a run's folder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_foundry.datamodule import Split, data_of
from lit_foundry.report.plots import plot_confusion
from lit_foundry.report.sections import shown_rows
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.predictions import NO_TAG, Predictions, kinds


class SampleOutputs:
    """Keeps what batches yield of each sample.

    These are tensors of shape (B, ...), ``index`` among them, and lists of length B.
    """

    def __init__(self) -> None:
        self._parts: list[dict[str, Any]] = []

    def clear(self) -> None:
        """Forget all batches."""
        self._parts.clear()

    def add(self, outputs: Any) -> None:
        """Keep a batch, on the CPU; what is no mapping yields nothing of a single sample.

        Raises:
            ValueError: If the samples have no index, or a column is of no kind.
        """
        if not isinstance(outputs, Mapping) or not outputs:
            return
        part = {name: _copied(value) for name, value in outputs.items()}
        if not self._parts:  # told at the first batch, and not once all are done
            if "index" not in part:
                raise ValueError(f"What is kept of samples needs their index; got {[*part]}.")
            kinds({n: column for n, column in part.items() if isinstance(column, np.ndarray)})
        self._parts.append(part)

    def gather(self, trainer: Trainer) -> dict[str, Any]:
        """Return the samples of all ranks on rank 0, in the order of the split, and forget them.

        Every rank has to call it; other ranks get nothing.

        Returns:
            Arrays and lists by name. Tags of fewer tokens than others have are followed by -100.
        """
        parts, self._parts = self._parts, []
        if trainer.world_size > 1:
            gathered: list[Any] | None = None
            if trainer.is_global_zero:
                gathered = [None] * trainer.world_size
            torch.distributed.gather_object(parts, gathered)
            parts = [part for rank in gathered or () for part in rank]
        return in_order(parts)

    def taken(self) -> dict[str, Any]:
        """Return the samples of this process alone, in the order of the split, and forget them."""
        parts, self._parts = self._parts, []
        return in_order(parts)


def in_order(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the samples of batches in the order of the split."""
    if not parts:
        return {}
    joined = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    order = joined["index"].argsort(kind="stable")
    return {
        name: rows[order] if isinstance(rows, np.ndarray) else [rows[i] for i in order.tolist()]
        for name, rows in joined.items()
    }


def columns_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return those columns of samples that have a kind."""
    return {n: c for n, c in found.items() if n != "index" and isinstance(c, np.ndarray)}


def _copied(value: Any) -> Any:
    """Return an array of its own: what a loader's worker sent holds a file open."""
    if not isinstance(value, Tensor):
        return value
    narrow = value.is_floating_point() and value.dtype != torch.float64
    value = value.detach().to("cpu", torch.float32 if narrow else value.dtype, copy=True)
    return value.numpy()


def _joined(parts: Sequence[Any]) -> Any:
    first = parts[0]
    if not isinstance(first, np.ndarray):
        return [row for part in parts for row in part]
    if first.ndim == 2 and np.issubdtype(first.dtype, np.integer):
        width = max(part.shape[1] for part in parts)
        pads = [((0, 0), (0, width - part.shape[1])) for part in parts]
        parts = [np.pad(p, pad, constant_values=NO_TAG) for p, pad in zip(parts, pads, strict=True)]
    return np.concatenate(parts)


def with_images(predictions: Predictions, thumbnail: Callable[[int], Any]) -> Predictions:
    """Return predictions with pictures of the samples that a page shows."""
    images: list[bytes | None] = [None] * len(predictions)
    for row in shown_rows(predictions):
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
        self._keep(pl_module, outputs)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what a batch yields."""
        self._keep(pl_module, outputs)

    def _keep(self, task: LightningModule, outputs: Any) -> None:
        if hasattr(task, "predicts"):  # what another module returns is its own
            self._outputs.add(outputs)

    def record(self, trainer: Trainer, task: Any, stage: Split, step: int) -> None:
        """Write ``predictions/<stage>.parquet`` and the confusion matrix; every rank calls it."""
        found = self._outputs.gather(trainer)
        data = data_of(trainer)
        labels = [] if data is None else list(data.labels)
        if not trainer.is_global_zero:
            return
        if columns := columns_of(found):
            rows = found["index"].tolist()
            about = {"id": rows} if data is None else data.describe(stage, rows)
            kind = getattr(task, "predicts", None)
            predictions = Predictions(labels, columns, about, step, kind)
            if data is not None and data.thumbnail(stage, rows[0]) is not None:
                predictions = with_images(predictions, lambda row: data.thumbnail(stage, rows[row]))
            predictions.write(self.run.path / "predictions" / f"{stage}.parquet")
        matrix = getattr(task, "results", {}).get(f"{stage}/confusion")
        if matrix is not None:
            names = labels or [str(i) for i in range(len(matrix))]
            plot_confusion(
                matrix.cpu().numpy(), names, self.run.path / "plots" / f"{stage}_confusion.png"
            )
