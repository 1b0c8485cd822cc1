"""Predictions as a file, in the order of the input."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from errno import EACCES
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_foundry.callbacks.evaluation_record import SampleOutputs


class PredictionWriter(Callback):
    """Writes id, label and the probability of each class, one line a sample.

    Args:
        labels: Names of the classes, in the order of the network's outputs.
        output: File to write, .jsonl or .csv, whole or not at all; standard output if None.

    Raises:
        ValueError: If ``output`` has another suffix, or can be no file.
        OSError: If its folder cannot be made or written to.
    """

    def __init__(self, labels: Sequence[str], output: Path | None = None) -> None:
        if output is not None and output.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"--output {output}: the suffix must be .jsonl or .csv.")
        if output is not None:  # fail before predicting, not after
            if output.is_dir():
                raise ValueError(f"--output {output} is a folder; name a file.")
            if any(parent.is_file() for parent in output.parents):
                raise ValueError(f"--output {output} lies below a file; name a folder.")
            output.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(output.parent, os.W_OK):
                raise PermissionError(EACCES, os.strerror(EACCES), str(output.parent))
        self.labels, self.output = labels, output
        self._outputs = SampleOutputs()

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what a batch predicts."""
        self._outputs.add(outputs)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the ranks' parts, sort and write them."""
        found = self._outputs.gather(trainer)
        if not trainer.is_global_zero:
            return
        probs = found["prob"].tolist()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ids = data.table("predict").ids
        if self.output is None:
            self._write(sys.stdout, ids, probs, as_csv=False)
            return
        partial = self.output.with_name(f".{self.output.name}.partial")
        with partial.open("w", newline="", encoding="utf-8") as file:
            self._write(file, ids, probs, as_csv=self.output.suffix == ".csv")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.output)
        print(f"{len(probs)} predictions written to {self.output}")

    def _write(
        self, file: IO[str], ids: Sequence[str] | None, probs: list[list[float]], as_csv: bool
    ) -> None:
        writer = csv.writer(file)
        if as_csv:
            writer.writerow(["id", "label", *(f"prob_{name}" for name in self.labels)])
        for i, row in enumerate(probs):
            name = ids[i] if ids is not None else str(i)
            label = self.labels[max(range(len(row)), key=row.__getitem__)]
            row = [round(p, 6) for p in row]
            if as_csv:
                writer.writerow([name, label, *row])
            else:
                prob = dict(zip(self.labels, row, strict=True))
                line = {"id": name, "label": label, "prob": prob}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
