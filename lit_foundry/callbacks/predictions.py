"""Predictions as a file, in the order of the input."""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from errno import EACCES
from pathlib import Path
from typing import IO, Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from lit_foundry.atomic import replacing
from lit_foundry.callbacks.evaluation_record import SampleOutputs, columns_of
from lit_foundry.datamodule import data_of
from lit_foundry.runs.predictions import NAMES, Predictions
from lit_foundry.sources import check_output

FORMULA = {*"=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"}  # the last four are wide forms of the first four


class PredictionWriter(Callback):
    """Writes one line a sample: its id and what is predicted, by the kind of that.

    These are ``label``, or ``labels`` of several, and ``prob`` of each class; ``value``; ``tags``;
    and numbers by their names. A task that yields a ``record`` of each sample instead has that
    written. Tags and records are no table: JSONL only.

    Args:
        labels: Names of the classes, values or tags, in the order of the network's outputs.
        output: File to write, .jsonl or .csv, whole or not at all; standard output if None.
        inputs: What must not be written over: files, folders, or recipes that name some.

    Raises:
        ValueError: If ``output`` has another suffix, can be no file, or is an input.
        OSError: If its folder cannot be made or written to.
    """

    def __init__(self, labels: Sequence[str], output: Path | None = None, inputs: Any = ()) -> None:
        if output is not None and output.suffix not in (".jsonl", ".csv"):
            raise ValueError(f"--output {output}: the suffix must be .jsonl or .csv.")
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
        self._as_csv = output is not None and output.suffix == ".csv"
        self._outputs = SampleOutputs()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a table of what is none; a task that writes samples yields records."""
        self._check_table(hasattr(pl_module, "samples"))

    def _check_table(self, is_none: bool) -> None:
        if is_none and self._as_csv:
            raise ValueError(
                f"--output {self.output}: the suffix must be .jsonl, as what this task predicts is "
                "no table."
            )

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what a batch predicts.

        Raises:
            ValueError: If it predicts nothing of samples, or nothing that the file can hold.
        """
        if not isinstance(outputs, Mapping) or not outputs:
            raise ValueError(
                f"{type(pl_module).__name__}.predict_step yields nothing of samples to write: it "
                "returns a mapping with their index."
            )
        self._check_table(not outputs.keys().isdisjoint({"record", "tag"}))
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
            kind = getattr(pl_module, "predicts", None)
            said = rows_of(Predictions(self.labels, columns_of(found), predicts=kind))
            rows = [{"id": ids(i), **row} for i, row in enumerate(said)]
        if self.output is None:
            self._write(sys.stdout, rows)
            return
        # Names of files may hold what is no Unicode: escaped, as JSON would have it too.
        with (
            replacing(self.output) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            self._write(file, rows)
        print(f"{len(rows)} predictions written to {self.output}")

    @staticmethod
    def _ids(trainer: Trainer) -> Callable[[int], str]:
        data = data_of(trainer)
        ids = None if data is None else data.ids("predict")
        return str if ids is None else ids.__getitem__

    def _write(self, file: IO[str], rows: Sequence[dict[str, Any]]) -> None:
        if not self._as_csv:
            file.writelines(as_json(row) + "\n" for row in rows)
            return
        writer = csv.writer(file)
        lines = [as_cells(row) for row in rows]
        writer.writerow(lines[0])
        writer.writerows(line.values() for line in lines)


def rows_of(said: Predictions) -> Iterator[dict[str, Any]]:
    """Yield what is predicted of each sample, by name."""
    columns: dict[str, list[Any]] = {}
    if said.kind == "value":
        names, rows = said.labels, map(short, said.predicted.reshape(len(said), -1))
        several = len(names) > 1
        columns["value"] = [dict(zip(names, r, strict=True)) if several else r[0] for r in rows]
    elif said.kind:
        columns[NAMES[said.kind][0]] = said.named(said.predicted)
    if "prob" in said.columns:
        probs = [[round(p, 6) for p in row] for row in said.probs.tolist()]
        columns["prob"] = [dict(zip(said.labels, row, strict=True)) for row in probs]
    columns |= {name: short(said.columns[name]) for name in said.numbers}
    for cells in zip(*columns.values(), strict=True):
        yield dict(zip(columns, cells, strict=True))


def short(numbers: NDArray[Any]) -> list[Any]:
    """Return numbers with the digits that they have: 0.1 of 32 bits is no 0.10000000149011612."""
    is_single = numbers.dtype == np.float32
    return [float(str(x)) for x in numbers] if is_single else numbers.tolist()


def as_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a table: a mapping as a column for each key, a list as one text."""
    cells: dict[str, Any] = {}
    for name, cell in row.items():
        if isinstance(cell, Mapping):
            cells |= {f"{name}_{key}": value for key, value in cell.items()}
        else:
            text = "; ".join(cell) if isinstance(cell, list) else cell
            cells[name] = as_text(text) if isinstance(text, str) else text
    return cells


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
