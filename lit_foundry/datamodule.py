"""What tasks, callbacks and commands use of a data module, whatever its class."""

from collections.abc import Iterable, Mapping, Sequence
from inspect import getattr_static
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

Split = Literal["train", "val", "test", "predict"]


class Data(Protocol):
    """The surface of a data module; ``data.base.DataModule`` has all of it but ``batch_type``.

    Attributes:
        batch_type: TypedDict of the fields of a batch.
        accumulate: Micro-batches of an optimizer step on this rank, once the loader is built.
        reloads: Whether each epoch needs a loader of its own.
    """

    batch_type: ClassVar[type]
    accumulate: int
    reloads: bool

    @property
    def target_kind(self) -> str | None:
        """What samples are labelled with: ``class``, ``classes``, ``value``, ``tags`` or None."""

    @property
    def unlabelled(self) -> bool:
        """Whether some training samples have no label, -100 in its place."""

    @property
    def facts(self) -> Mapping[str, int]:
        """What a network must agree with, by argument name."""

    @property
    def labels(self) -> list[str]:
        """Names of classes, tags or values, in the order of the network's outputs."""

    @property
    def batch_fields(self) -> list[str]:
        """Fields that a batch of raw inputs holds."""

    @property
    def tokenizer(self) -> Any:
        """Of texts; None without."""

    @property
    def vocabulary(self) -> Any:
        """What a language model must know of the token ids; None without."""

    @property
    def packing(self) -> str | None:
        """How documents share a row; None where each sample has its own."""

    def load(self, split: Split) -> Any:
        """Open a split: ``lengths`` of its samples, and whole batches by lists of rows."""

    def describe(self, split: Split, rows: Sequence[int]) -> Mapping[str, Sequence[Any]]:
        """Return what a reader of predictions wants to know of samples, by column."""

    def thumbnail(self, split: Split, row: int) -> Any:
        """Return a small picture of a sample; None without."""

    def ids(self, split: Split) -> Sequence[str] | None:
        """Return what identifies the samples of a split; None for their numbers."""

    def tokens_per_byte(self, split: Split) -> float | None:
        """Return the tokens of a split that tell its text, by byte of it; None of no text."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold to read other files alike."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over such a state."""

    def recipe(self) -> dict[str, Any]:
        """Return class and arguments."""

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of the content of each split that was read."""

    def rows(self, inputs: Any) -> Sequence[Any]:
        """Return raw inputs, in whatever form they are given, one by one."""

    def batches(self, inputs: Sequence[Any], batch_tokens: int = 8192) -> Iterable[Any]:
        """Yield raw inputs in batches, framed as in training."""

    def caveat(self, format: str) -> str | None:
        """Return what a reader of an export in a format should know of its inputs."""

    def save_preprocessor(self, folder: Path, inputs: Sequence[str], goes_on: bool = False) -> Any:
        """Write what turns raw inputs into batches, for whoever loads an export."""


MEMBERS = {name for name in (*Data.__annotations__, *vars(Data)) if not name.startswith("_")}


def data_of(trainer: Any) -> Data | None:
    """Return the data module that a trainer works on; None of a plain one.

    Raises:
        ValueError: If it has what any of ours has, and only a part of the rest.
    """
    found: Any = getattr(trainer, "datamodule", None)
    # Statically first, as a property may read files.
    there = {n for n in MEMBERS if getattr_static(found, n, MEMBERS) is not MEMBERS}
    there |= {n for n in MEMBERS - there if hasattr(found, n)}
    if not {"recipe", "facts", "load"} <= there:
        return None
    if missing := sorted(MEMBERS - there):
        raise ValueError(
            f"{type(found).__name__} is no whole data module of lit_foundry: it lacks "
            f"{', '.join(missing)}. Derive it from lit_foundry.data.DataModule, and set batch_type."
        )
    return cast(Data, found)
