"""What a network says of each sample of a split, kept as one parquet file.

Shapes: N samples, C classes, K values, T tokens.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lit_foundry.atomic import replacing

Floats = NDArray[np.float64]
Kind = Literal["class", "classes", "value", "tags", "number"]
NO_TAG = -100
RULES = {
    "prob": "shape (B, C), its target (B,) whole numbers, or 0 and 1 of shape (B, C)",
    "value": "shape (B,) or (B, K), its target alike",
    "tag": "whole numbers of shape (B, T), its target alike",
}
# How a file, or a reader, has the target and what is predicted.
NAMES: Mapping[Kind, tuple[str, str]] = {
    "class": ("label", "predicted"),
    "classes": ("labels", "predicted"),
    "value": ("target", "value"),
    "tags": ("tags", "predicted"),
}
RESERVED = {"id", "label", "labels", "predicted", "record", "tags"}


def kinds(columns: Mapping[str, NDArray[Any]], predicts: str | None = None) -> dict[str, Kind]:
    """Say of what kind each column is, by names, shapes and types.

    Args:
        columns: What is kept of each sample: one of ``prob``, ``value`` and ``tag``, perhaps with
            its ``target``, and numbers by other names.
        predicts: What the task says that it predicts. If it does not, ``prob`` without a target is
            looked into: it is ``class`` if all rows sum to 1.

    Raises:
        ValueError: If a column has another shape or type than its name demands.
    """
    shapes = {name: tuple(column.shape) for name, column in columns.items()}
    if len({shape[:1] for shape in shapes.values()}) > 1:
        raise ValueError(f"Of each sample of a batch one row is kept, got shapes {shapes}.")
    said = [name for name in RULES if name in columns]
    if len(said) > 1:
        raise ValueError(f"Of {' and '.join(said)} only one can be kept of a sample.")
    found: dict[str, Kind] = {}
    for name in said:
        kind = _kind(name, columns[name], columns.get("target"), predicts)
        if kind is None:
            types = {n: f"{columns[n].dtype} {shapes[n]}" for n in (name, "target") if n in columns}
            raise ValueError(f"What is kept as {name} has {RULES[name]}; got {types}.")
        found |= {column: kind for column in (name, "target") if column in columns}
    for name in columns:
        if name not in found and (len(shapes[name]) != 1 or name in RESERVED):
            raise ValueError(
                f"What is kept as {name} must be one number a sample, by a name other than "
                f"{', '.join(sorted(RESERVED))}; got the shape {shapes[name]}."
            )
    return {name: found.get(name, "number") for name in columns}


def _kind(
    name: str, said: NDArray[Any], target: NDArray[Any] | None, predicts: str | None
) -> Kind | None:
    alike = target is None or target.shape == said.shape
    if name == "value":
        return "value" if said.ndim in (1, 2) and alike else None
    if said.ndim != 2:
        return None
    if name == "tag":
        return "tags" if alike and _whole(said) and (target is None or _whole(target)) else None
    if target is None and predicts in ("class", "classes"):
        return "class" if predicts == "class" else "classes"
    if target is None:
        return "class" if np.allclose(said.sum(1, dtype=float), 1, rtol=0, atol=1e-5) else "classes"
    if alike:
        return "classes"
    return "class" if target.shape == said.shape[:1] and _whole(target) else None


def _whole(column: NDArray[Any]) -> bool:
    return bool(np.issubdtype(column.dtype, np.integer))


@dataclass(frozen=True)
class Predictions:
    """What is predicted of a split, and what is true, in its order.

    Attributes:
        labels: Names of the classes, values or tags, in the order of the network's outputs;
            numbers where those given do not fit.
        columns: Arrays of shape (N, ...) whose names are their meaning, as in :func:`kinds`.
        samples: What the data tell of each sample, by column of length N: ``id``; for texts their
            beginning (``text``) and number of ``tokens`` before truncation; for images a small
            PNG (``image``) of those that a page shows, None for others.
        step: Optimizer steps that the network had taken.
        predicts: Kind that the task declares, if it does.
    """

    labels: Sequence[str]
    columns: Mapping[str, NDArray[Any]]
    samples: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    step: int = 0
    predicts: str | None = None

    def __post_init__(self) -> None:
        labels = list(self.labels)
        if self.kind == "tags":
            tags = (self.columns[name] for name in self.kinds.keys() & {"tag", "target"})
            size = max(int(column.max(initial=-1)) for column in tags) + 1
            labels = labels if len(labels) >= size else [str(i) for i in range(size)]
        elif self.kind:
            said = self.columns["value" if self.kind == "value" else "prob"]
            size = said.shape[1] if said.ndim == 2 else 1
            plain = ["value"] if self.kind == "value" and size == 1 else map(str, range(size))
            labels = labels if len(labels) == size else list(plain)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.columns.values()), ()))

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Kind of each column."""
        return kinds(self.columns, self.predicts)

    @property
    def kind(self) -> Kind | None:
        """Kind of what is predicted; None if only numbers are kept."""
        return next((kind for kind in self.kinds.values() if kind != "number"), None)

    @property
    def numbers(self) -> list[str]:
        """Names of the columns that hold a number of each sample."""
        return [name for name, kind in self.kinds.items() if kind == "number"]

    @property
    def probs(self) -> NDArray[np.float32]:
        """Probability of each class, shape (N, C)."""
        return self.columns["prob"]

    @property
    def target(self) -> NDArray[Any]:
        """What is true, of the shape that its kind has."""
        return self.columns["target"]

    @cached_property
    def predicted(self) -> NDArray[Any]:
        """What is predicted, of the target's shape: most probable class, classes above 0.5, ..."""
        if "prob" in self.columns:
            return self.probs.argmax(1) if self.kind == "class" else self.probs > 0.5
        return self.columns["value" if self.kind == "value" else "tag"]

    def tags(self, column: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Return of each sample the tags of a column at those places that have one in truth."""
        known = self.columns.get("target", self.columns["tag"]) != NO_TAG
        return [row[mask] for row, mask in zip(column, known, strict=True)]

    def named(self, column: NDArray[Any]) -> list[Any]:
        """Return what is predicted or true by the names of classes or tags, for each sample."""
        if self.kind == "class":
            return [self.labels[i] for i in column.tolist()]
        rows = self.tags(column) if self.kind == "tags" else map(np.flatnonzero, column)
        return [[self.labels[i] if i >= 0 else None for i in row] for row in rows]

    def told(self) -> dict[str, Any]:
        """Return truth, prediction and numbers by column, as a reader wants them."""
        found: dict[str, Any] = {}
        if self.kind:
            pair = (self.columns.get("target"), self.predicted)
            for name, column in zip(NAMES[self.kind], pair, strict=True):
                if column is None:
                    continue
                if self.kind != "value":
                    found[name] = self.named(column)
                elif len(self.labels) == 1:
                    found[name] = column.reshape(len(self))
                else:
                    found |= {f"{name}_{k}": c for k, c in zip(self.labels, column.T, strict=True)}
        return found | {name: self.columns[name] for name in self.numbers}

    @cached_property
    def errors(self) -> Floats:
        """Absolute errors of values in standard deviations of the target, shape (N, K)."""
        value, target = (c.reshape(len(self), -1) for c in (self.predicted, self.target))
        with np.errstate(invalid="ignore"):  # where something is infinite
            spread = target.std(0, dtype=float)
            off = np.abs(value.astype(float) - target) / np.where(spread > 0, spread, 1)
        errors: Floats = np.nan_to_num(off, nan=np.inf)
        return errors

    @cached_property
    def wrongness(self) -> Floats:
        """How wrong each sample is, shape (N,): above 0 if it is, and the greatest is the worst.

        Of a class it is its probability, below 0 if it is right; of several the number of wrong
        ones, and by how much; of values the mean of :attr:`errors`; of tags the number of wrong
        ones.
        """
        found: Floats = np.zeros(len(self))
        if self.kind is None or "target" not in self.columns:
            return found
        if self.kind == "value":
            found = self.errors.mean(1)
        elif self.kind == "tags":
            found = ((self.target != self.predicted) & (self.target != NO_TAG)).sum(1, dtype=float)
        elif self.kind == "class":
            sure = self.probs.max(1).astype(float)
            found = np.where(self.predicted != self.target, sure, -sure)
        else:
            wrong = (self.predicted != self.target).sum(1)
            off = np.abs(self.probs - self.target).mean(1)
            found = np.where(wrong > 0, wrong + off, off - 1)
        return found

    def worst(self, count: int = 20) -> NDArray[np.int64]:
        """Return the rows of samples that are wrong, the worst first."""
        order: NDArray[np.int64] = np.argsort(-self.wrongness, kind="stable")[:count]
        return order[self.wrongness[order] > 0]

    def write(self, path: Path) -> Path:
        """Write the file, whole or not at all: the samples, and what is told of them.

        These are ``label``, ``predicted`` and prob_NAME of a class; of several the same with lists
        of ``labels``; ``target`` and ``value`` (or target_NAME and value_NAME) of values; lists of
        ``tags`` and ``predicted``; and numbers. ``pandas.read_parquet`` reads it too.
        """
        columns = {**self.samples, **self.told()}
        if "prob" in self.columns:
            pairs = zip(self.labels, self.probs.T, strict=True)
            columns |= {f"prob_{name}": column for name, column in pairs}
        if self.kind in ("classes", "tags"):  # else empty lists would be of no type
            for name in columns.keys() & {*NAMES[self.kind]}:
                columns[name] = pa.array(columns[name], pa.list_(pa.string()))
        about = {"labels": self.labels, "step": self.step, "columns": self.kinds}
        table = pa.table(columns).replace_schema_metadata({"lit_foundry": json.dumps(about)})
        with replacing(path) as partial:
            pq.write_table(table, partial, compression="zstd")
        return path

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read what :meth:`write` wrote; what earlier versions wrote is of classes.

        Raises:
            ValueError: If it is another file.
        """
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); test writes it anew.") from error
        about = json.loads((table.schema.metadata or {}).get(b"lit_foundry", "{}"))
        if "labels" not in about:
            raise ValueError(f"{path} holds no predictions of lit_foundry; test writes them anew.")
        labels, kinds = about["labels"], about.get("columns", {"prob": "class", "target": "class"})
        there = {name: table.column(name) for name in table.column_names}
        columns = {name: _taken(there, name, kind, labels) for name, kind in kinds.items()}
        there.pop("predicted", None)
        samples = {name: column.to_pylist() for name, column in there.items()}
        declared = next((kind for kind in kinds.values() if kind != "number"), None)
        return cls(labels, columns, samples, about["step"], declared)


def _taken(there: dict[str, Any], name: str, kind: Kind, labels: Sequence[str]) -> NDArray[Any]:
    """Take a column out of those of a file."""

    def stacked(names: Iterable[str]) -> NDArray[Any]:
        return np.stack([there.pop(name).to_numpy() for name in names], axis=1)

    if name == "prob":
        return stacked(f"prob_{label}" for label in labels)
    if kind == "value" and len(labels) > 1:
        return stacked(f"{name}_{label}" for label in labels)
    if kind in ("value", "number"):
        return np.asarray(there.pop(name).to_numpy())
    rows = there.pop(NAMES[kind][name != "target"]).to_pylist()
    ids: dict[str | None, int] = {label: i for i, label in enumerate(labels)} | {None: NO_TAG}
    if kind == "class":
        return np.array([ids[label] for label in rows], np.int64)
    lists = [[ids[label] for label in row] for row in rows]
    if kind == "classes":
        marks = [[i in row for i in range(len(labels))] for row in lists]
        return np.array(marks, np.int64).reshape(len(rows), len(labels))
    width = max(map(len, lists), default=0)
    padded = [row + [NO_TAG] * (width - len(row)) for row in lists]
    return np.array(padded, np.int64).reshape(len(rows), width)
