"""What a kind of label has to tell: the contract of ``targets.py``.

Shapes: N rows, B rows of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_foundry.data.files.rows import DataError
from lit_foundry.data.files.table import LabelReader
from lit_foundry.data.labels import Labelled

Kind = Literal["class", "classes", "value", "tags"]
# An array of all rows, or, of tags, one of the words of each.
Encoded = NDArray[Any] | Sequence[NDArray[np.int64]]
IGNORED = -100  # tag of a token that counts in no loss, as in torch and transformers


@dataclass(frozen=True)
class Target(ABC):
    """What each sample is labelled with.

    Attributes:
        columns: Columns of the files that hold it.
        kind: Its name, None if there are no labels.
        fact: Fact that counts the outputs of a network, if any.
        rare: Whether a name need not occur in training.
    """

    kind: ClassVar[Kind | None]
    fact: ClassVar[str | None] = "num_classes"
    rare: ClassVar[bool] = False
    columns: tuple[str, ...] = ()

    @property
    @abstractmethod
    def label(self) -> str | LabelReader | None:
        """What the readers of files are given."""

    @property
    def fixed_names(self) -> list[str] | None:
        """What :meth:`names` returns whatever the labels are; None if they tell."""
        return None

    def names(self, labels: Sequence[Any]) -> list[str]:
        """Return the names of the outputs in order, from the labels of the training split."""
        return list(self.fixed_names or ())

    def check_names(self, names: Sequence[str], table: Labelled) -> None:
        """Raise DataError unless ``names`` are those of a training split, each once."""
        found = self.names(table.labels or ())
        unused = set(names) - set(found) if self.rare else set()
        if sorted(names) != sorted({*found} | unused):
            raise DataError(
                f"data.label_names={list(names)} must name each class of {table.source} once, "
                f"in any order: {found}."
            )

    @abstractmethod
    def check(
        self, table: Labelled, split: str, known: Sequence[str] | None, val_key: str | None
    ) -> None:
        """Raise DataError unless a split can be learned from, or tested on.

        Args:
            table: The split.
            split: Its name.
            known: Names of the outputs, None if they are not known yet.
            val_key: Key that names the file that validates, for messages.
        """

    @abstractmethod
    def encode(self, labels: Sequence[Any], names: Sequence[str]) -> Encoded | None:
        """Return labels as numbers; ``names`` are those of the outputs."""

    def strata(self, table: Labelled) -> Sequence[str]:
        """Return the group of each row of which validation and samples take an equal share."""
        return [""] * len(table)

    def check_held_out(
        self, table: Labelled, held_out: NDArray[np.bool_], fraction: float, val_key: str | None
    ) -> None:
        """Raise DataError unless there is something left to train on, and something held out.

        Args:
            table: What validation is taken from.
            held_out: True for the rows that validate, shape (N,).
            fraction: Their share, as set.
            val_key: Key that names the file that validates, for messages.
        """
        other = f", or set {val_key} to a file that validates" if val_key else ""
        if not held_out.any():
            raise DataError(
                f"{table.source}: one sample, or copies of one, of which none can be held out for "
                f"validation: add samples{other}."
            )
        if held_out.all():
            raise DataError(
                f"{table.source}: data.val_fraction={fraction} holds out all samples, and leaves "
                f"nothing to train on: lower it{other}."
            )


def label_tensor(labels: NDArray[Any], rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
    """Return the labels of a batch, shape (B, ...); flags become 0.0 and 1.0."""
    some = labels[list(rows)]
    return torch.from_numpy(some.astype(np.float32) if some.dtype == np.bool_ else some)
