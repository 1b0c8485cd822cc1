"""Predictions as a file, in the order of the input."""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from errno import EACCES
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_foundry.atomic import replacing
from lit_foundry.callbacks.evaluation_record import SampleOutputs
from lit_foundry.sources import check_output

FORMULA = {*"=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"}  # the last four are wide forms of the first four


class PredictionWriter(Callback):
    """Writes one line a sample: id, label and the probability of each class.

    A task that yields a ``record`` of each sample instead has that written, as JSONL only.

    Args:
        labels: Names of the classes, in the order of the network's outputs.
        output: File to write, .jsonl or .csv, whole or not at all; standard output if None.
        inputs: What must not be written over: files, folders, or recipes that name some.

    Raises:
        ValueError: If ``output`` has another suffix, can be no file, or is an input.
        OSError: If its folder cannot be made or written to.
    """

    def __init__(self, labels: Sequence[str], output: Path | None = None, inputs: Any = ()) -> None:
        suffixes = (".jsonl", ".csv") if labels else (".jsonl",)
        if output is not None and output.suffix not in suffixes:
            raise ValueError(f"--output {output}: the suffix must be {' or '.join(suffixes)}.")
        if output is not None:  # fail before predicting, not after
            if output.is_dir():
                raise ValueError(f"--output {output} is a folder; name a file.")
            if any(parent.is_file() for parent in output.parents):
                raise ValueError(f"--output {output} lies below a file; name a folder.")
            check_output(output, inputs, inside=True)
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
        ids = self._ids(trainer)
        if "record" in found:
            rows = [{"id": ids(i), **record} for i, record in enumerate(found["record"])]
        else:
            rows = [self._row(ids(i), prob) for i, prob in enumerate(found["prob"].tolist())]
        if self.output is None:
            self._write(sys.stdout, rows, as_csv=False)
            return
        # Names of files may hold what is no Unicode: escaped, as JSON would have it too.
        with (
            replacing(self.output) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            self._write(file, rows, as_csv=self.output.suffix == ".csv")
        print(f"{len(rows)} predictions written to {self.output}")

    @staticmethod
    def _ids(trainer: Trainer) -> Callable[[int], str]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        ids: Sequence[str] | None = data.table("predict").ids
        return str if ids is None else ids.__getitem__

    def _row(self, name: str, probs: Sequence[float]) -> dict[str, Any]:
        label = self.labels[max(range(len(probs)), key=probs.__getitem__)]
        rounded = [round(p, 6) for p in probs]
        return {"id": name, "label": label, "prob": dict(zip(self.labels, rounded, strict=True))}

    def _write(self, file: IO[str], rows: Sequence[dict[str, Any]], as_csv: bool) -> None:
        if not as_csv:
            file.writelines(as_json(row) + "\n" for row in rows)
            return
        writer = csv.writer(file)
        writer.writerow(["id", "label", *(f"prob_{name}" for name in self.labels)])
        writer.writerows(
            [as_text(row["id"]), as_text(row["label"]), *row["prob"].values()] for row in rows
        )


def as_text(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; numbers stay what they are.

    Source: OWASP, CSV Injection. https://owasp.org/www-community/attacks/CSV_Injection
    """
    if cell[:1] in FORMULA and not re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", cell):
        return f"'{cell}"
    return cell


def as_json(row: Mapping[str, Any]) -> str:
    """Return a line of JSON, with the control characters escaped that JSON would let through."""
    line = json.dumps(row, ensure_ascii=False)
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", line)
