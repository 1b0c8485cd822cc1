"""What all labelled data share: names of the outputs, and a split that is carved for validation.

Shapes: N rows.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lit_foundry import ranges
from lit_foundry.data.base import DataModule, Split
from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.files.table import Table
from lit_foundry.data.labels import sample_rows, stratified
from lit_foundry.data.target import Encoded, Target
from lit_foundry.data.targets import Class

T = TypeVar("T", Table, ImageTable)


class LabelledData(DataModule, Generic[T]):
    """Data of tables with a target. A subclass implements :meth:`as_read`.

    Attributes:
        target: What samples are labelled with.
        val_key: Key that names the file that validates, where one can.
        unlabelled_table: Reads a file or folder of samples without labels.
    """

    unlabelled_table: Callable[[str], Any]

    target: Target = Class(("label",))
    val_key: ClassVar[str | None] = None

    def set_splits(
        self,
        val_fraction: float,
        max_train_samples: int | None,
        split_seed: int,
        transfer: str | None = None,
    ) -> None:
        """Take over how splits are drawn; see the arguments of the subclasses."""
        own = {"val_fraction": val_fraction, "max_train_samples": max_train_samples}
        least = max_train_samples is None or max_train_samples >= 1
        rules = {
            "val_fraction": (0 < val_fraction < 1, "must lie in (0, 1)"),
            "max_train_samples": (least, "must be at least 1, or null"),
        }
        ranges.check("data", own, rules)
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.max_train_samples, self.transfer = max_train_samples, transfer
        if transfer is not None and self.balanced:
            raise ValueError(
                "data.balanced draws by class, and data.transfer has none: leave out one of them."
            )
        self._labels: list[str] | None = None
        self._checked = False  # whether labels of the training split were
        self._sources: dict[str, T] = {}
        self._tables: dict[str, T] = {}
        self._rows: dict[str, tuple[Split, NDArray[np.int64]]] = {}  # of which split as read
        self._num_labelled: dict[str, int] = {}

    @abstractmethod
    def as_read(self, split: Split) -> T | None:
        """Read a split as the files hold it; None if there is no validation split."""

    def recipe(self) -> dict[str, Any]:
        """Return the recipe without the unlabelled samples, which only a fit needs."""
        recipe = super().recipe()
        recipe["init_args"].pop("transfer", None)
        return recipe

    @property
    def unlabelled(self) -> bool:  # type: ignore[override]
        """Whether some samples that are trained on have no label."""
        return self.transfer is not None

    def source(self, split: Split) -> T | None:
        """Return a split as read, unlabelled samples last; None if there is no validation split."""
        if split not in self._sources:
            table = self.as_read(split)
            if table is None:
                return None
            self._num_labelled[split] = len(table)
            if split == "train" and self.transfer is not None:
                if self.target_kind != "class":
                    raise ValueError(
                        f"data.transfer adds samples without a class, and data.target is "
                        f"{self.target_kind}: leave it out."
                    )
                table = table.joined(self.unlabelled_table(self.transfer))
            self._sources[split] = table
        return self._sources[split]

    def _source(self, split: Split) -> T:
        table = self.source(split)
        assert table is not None
        return table

    def _training(self) -> T:
        """Return the training split as read, its labels checked."""
        table = self._source("train")
        if self.transfer is not None:
            table = table.take(range(self._num_labelled["train"]))
        if not self._checked:
            self.target.check(table, "train", self._labels, self.val_key)
            self._checked = True
        return table

    def _good(self, source: Split) -> NDArray[np.int64]:
        """Return which rows of a split as read can be used."""
        return np.arange(len(self._source(source)))

    def table(self, split: Split) -> T:
        """Return a split, validation carved from training where the data have none.

        Raises:
            DataError: If labels are missing, unknown, or too few where one can learn.
        """
        if split not in self._tables:
            if split in ("train", "val"):
                self._read_training()
            else:
                self._take(split, split, self._good(split))
        if split in ("val", "test"):
            self.target.check(self._tables[split], split, self.labels, self.val_key)
        return self._tables[split]

    def _read_training(self) -> None:
        train, val = self._training(), self.source("val")
        rows = self._good("train")
        labelled = rows < self._num_labelled["train"]
        rows, others = rows[labelled], rows[~labelled]
        if val is None:
            good = train.take(rows.tolist())
            strata = self.target.strata(good)
            held_out = stratified(good, self.val_fraction, self.split_seed, strata)
            self.target.check_held_out(good, held_out, self.val_fraction, self.val_key)
            self._take("val", "train", rows[held_out])
            rows = rows[~held_out]
        else:
            self._take("val", "val", self._good("val"))
        if self.max_train_samples is not None and self.max_train_samples < len(rows):
            rest = train.take(rows.tolist())
            strata = self.target.strata(rest)
            rows = rows[sample_rows(rest, self.max_train_samples, self.split_seed, strata)]
        self._take("train", "train", np.concatenate([rows, others]))

    def _take(self, split: str, source: Split, rows: NDArray[np.int64]) -> None:
        table = self._source(source)
        self._rows[split] = source, rows
        self._tables[split] = table if len(rows) == len(table) else table.take(rows.tolist())

    @property
    def target_kind(self) -> str:  # type: ignore[override]
        """What samples are labelled with, ``none`` if with nothing."""
        return self.target.kind or "none"

    @property
    def labels(self) -> list[str]:
        """Names of classes, tags or values, in the order of the network's outputs, if any."""
        if self._labels is None:
            fixed = self.target.fixed_names
            found = self.target.names(self._training().labels or ()) if fixed is None else fixed
            self._labels = list(found)
        return self._labels

    def ids(self, split: Split) -> Sequence[str] | None:
        """Return what identifies the samples of a split."""
        return self.table(split).ids

    def target_facts(self) -> dict[str, int]:
        """Return how many outputs a network needs for the labels, if any."""
        return {self.target.fact: len(self.labels)} if self.target.fact else {}

    def encoded(self, split: Split) -> Encoded | None:
        """Return the labels of a split as numbers, None where there are none to predict."""
        labels = self.table(split).labels
        if split == "predict" or labels is None:
            return None
        return self.target.encode(labels, self.labels)

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of each split that was read."""
        return {split: table.fingerprint for split, table in self._tables.items()}

    def prepare_data(self) -> None:
        """Tokenize or decode before any network is on a device."""
        fn: Any = getattr(self.trainer, "state", None)
        if fn is not None and fn.fn == "fit":
            self.load("train")
            self.load("val")
