"""Base class of all data modules."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lit_foundry import ranges
from lit_foundry.data.samplers import LengthGroupedBatches
from lit_foundry.datamodule import Split as Split
from lit_foundry.randomness import run_seed
from lit_foundry.recipe import Recorded, differences
from lit_foundry.signals import leave_signals_to_main


class BatchDataset(Protocol):
    """One split, from which whole batches are taken at once."""

    lengths: NDArray[np.int64]  # (N,), what a sample costs: its tokens, or 1

    def __getitem__(self, rows: Sequence[int]) -> Mapping[str, Any]:
        """Return the batch of these rows."""


class ResumableLoader(DataLoader[Any]):
    """A loader that resumes without state of its own: its sampler reads the trainer's counters."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing; that it can be asked tells Lightning that this loader resumes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing over."""


class DataModule(Recorded, LightningDataModule, ABC):
    """Turns the files of one dataset into loaders of one kind of batch.

    A subclass states facts about the dataset and implements :meth:`load`.

    Args:
        batch_size: Samples of one optimizer step, over all devices; 32 if nothing is set.
        batch_tokens: Tokens of one optimizer step, padding included, over all devices; in
            place of ``batch_size``.
        micro_batch: Most samples (or tokens) that one device takes at once; a larger step is
            accumulated. None takes a device's whole share at once.
        num_workers: Loader processes per device; 0 suffices where samples are in memory.
        balanced: Train on as many samples as there are, drawn with replacement in each epoch
            such that every class comes equally often.

    Attributes:
        batch_type: The batch's fields and shapes.
    """

    batch_type: ClassVar[type]
    # What only some data have; see ``lit_foundry.datamodule.Data``.
    accumulate: int = 1
    reloads: bool = False
    target_kind: str | None = None
    packing: str | None = None
    unlabelled: bool = False
    tokenizer: Any = None
    vocabulary: Any = None

    def __init__(
        self,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        micro_batch: int | None = None,
        num_workers: int = 0,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        if balanced and batch_tokens:
            raise ValueError(
                f"data.balanced draws other samples in each epoch, so data.batch_tokens="
                f"{batch_tokens} would give each another number of steps: set data.batch_size in "
                "its place."
            )
        if batch_size and batch_tokens:
            raise ValueError(
                f"data.batch_size={batch_size} and data.batch_tokens={batch_tokens} both set the "
                "size of a step; keep one and set the other to null."
            )
        sizes = {"batch_size": batch_size, "batch_tokens": batch_tokens, "micro_batch": micro_batch}
        rules = {
            name: (size is None or size >= 1, "must be at least 1") for name, size in sizes.items()
        }
        rules["num_workers"] = num_workers >= 0, "is a number of processes, 0 at least"
        ranges.check("data", sizes | {"num_workers": num_workers}, rules)
        self.batch_size = batch_size or (None if batch_tokens else 32)
        self.batch_tokens = batch_tokens
        self.micro_batch = micro_batch
        self.num_workers, self.balanced = num_workers, balanced
        self._cuts: dict[str, Any] = {}  # how the epoch is cut into micro-batches
        self._interrupted: dict[str, Any] = {}  # the same of the run that is resumed

    @property
    @abstractmethod
    def facts(self) -> Mapping[str, int]:
        """What a network must agree with, by argument name; known without training."""

    @property
    def labels(self) -> list[str]:
        """Names of classes, tags or values, in the order of the network's outputs, if any."""
        return []

    @abstractmethod
    def load(self, split: Split) -> BatchDataset:
        """Open a split."""

    def describe(self, split: Split, rows: Sequence[int]) -> Mapping[str, Sequence[Any]]:
        """Return what a reader of predictions wants to know of samples, by column."""
        return {"id": list(rows)}

    @property
    def batch_fields(self) -> list[str]:
        """Fields that a batch of raw inputs holds."""
        return list(self.batch_type.__annotations__)

    def rows(self, inputs: Any) -> Sequence[Any]:
        """Return raw inputs one by one."""
        return inputs if isinstance(inputs, Sequence) else [inputs]

    def batches(self, inputs: Sequence[Any], batch_tokens: int = 8192) -> Iterable[Any]:
        """Yield raw inputs in batches, framed as in training.

        Raises:
            ValueError: If that is not known.
        """
        raise ValueError(f"{type(self).__name__} has no method batches: predict on its files.")

    def save_preprocessor(self, folder: Path, inputs: Sequence[str], goes_on: bool = False) -> Any:
        """Write what turns raw inputs into batches, for whoever loads an export; none here."""

    def caveat(self, format: str) -> str | None:
        """Return what a reader of an export in a format should know of its inputs."""
        return None

    def ids(self, split: Split) -> Sequence[str] | None:
        """Return what identifies the samples of a split; None for their numbers."""
        return None

    def thumbnail(self, split: Split, row: int) -> Any:
        """Return a small picture of a sample; None without."""
        return None

    def tokens_per_byte(self, split: Split) -> float | None:
        """Return the tokens of a split that tell its text, by byte of it; None of no text."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold to read other files alike, as plain data."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` returned when a checkpoint was written."""

    def state_dict(self) -> dict[str, Any]:
        """Return how the epoch is cut, for Lightning's checkpoint."""
        return self._cuts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember how the interrupted epoch was cut."""
        self._interrupted = state_dict

    def cuts(self) -> dict[str, Any]:
        """Return what else decides which samples a micro-batch holds, by key, as plain data."""
        return {}

    def fingerprint(self) -> dict[str, str]:
        """Return a hash of the content of each split that was read."""
        return {}

    def loader(self, split: Split) -> DataLoader[Any]:
        """Build the loader of a split; only training shuffles and accumulates.

        Raises:
            ValueError: If the split is smaller than a step.
        """
        train, trainer = split == "train", self.trainer
        if part := getattr(trainer, "overfit_batches", 0):
            raise ValueError(
                f"trainer.overfit_batches={part} replaces the sampler; set "
                "trainer.limit_train_batches and trainer.limit_val_batches instead."
            )
        dataset: Any = self.load(split)
        labelled = getattr(dataset, "labels", None) is not None
        if train and self.balanced and not (labelled and self.target_kind in ("class", None)):
            which = f"which {type(self).__name__} has none of"
            if self.target_kind not in (None, "none"):
                which = f"one for each sample, and data.target is {self.target_kind}"
            raise ValueError(f"data.balanced=true needs classes, {which}: leave it out.")
        count = len(dataset.lengths)
        if train and self.batch_size and count < self.batch_size:
            raise ValueError(
                f"data.batch_size={self.batch_size} exceeds the {count} training samples of "
                f"{type(self).__name__}; lower it."
            )
        epoch = start = 0
        if train and trainer:
            epoch, start = position(trainer)
        sampler = self.sampler(
            dataset,
            train,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            seed=run_seed(),
            epoch=epoch,
            start=start,
        )
        if train and trainer:
            self._check_resume(sampler, count, start)
            self.accumulate = sampler.accumulate
            self._check_followed(trainer)
        every = getattr(trainer, "reload_dataloaders_every_n_epochs", 0)
        reloads = self.reloads or bool(every)
        return ResumableLoader(
            dataset,
            batch_size=None,  # the sampler yields whole batches
            sampler=sampler,
            num_workers=self.num_workers,
            # Pinned memory and workers that outlive their loader do not go together.
            persistent_workers=self.num_workers > 0 and not reloads,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_is,
            worker_init_fn=leave_signals_to_main,
            generator=torch.Generator().manual_seed(0),  # else it draws from the global one
        )

    def _check_followed(self, trainer: Any) -> None:
        """Refuse micro-batches that a module, which is no task, would take for whole steps."""
        if getattr(trainer.fit_loop, "follows_data", False):
            return
        if self.reloads and not trainer.reload_dataloaders_every_n_epochs:
            raise ValueError(
                f"{type(self).__name__} needs a loader for each epoch here: call "
                "lit_foundry.training.loop.steer(self.trainer) in the setup of a module that is no "
                "Task, or set trainer.reload_dataloaders_every_n_epochs=1."
            )
        if trainer.accumulate_grad_batches != self.accumulate:
            raise ValueError(
                f"data.micro_batch={self.micro_batch} makes {self.accumulate} micro-batches a "
                "step: call lit_foundry.training.loop.steer(self.trainer) in the setup of a "
                f"module that is no Task, or set trainer.accumulate_grad_batches={self.accumulate}."
            )

    def sampler(self, dataset: BatchDataset, train: bool, **place: int) -> Any:
        """Return what yields the rows of each micro-batch; only in training, in random order.

        Args:
            dataset: A split.
            train: Whether it is trained on.
            place: Which part of which epoch: arguments of :class:`LengthGroupedBatches`.
        """
        world = place["world_size"]
        return LengthGroupedBatches(
            dataset.lengths,
            batch_size=self.batch_size if train else self._micro(self.batch_size, world),
            batch_tokens=self.batch_tokens if train else self._micro(self.batch_tokens, world),
            micro_batch=self.micro_batch if train else None,
            shuffle=train,
            labels=getattr(dataset, "labels", None) if train and self.balanced else None,
            **place,
        )

    def _check_resume(self, sampler: Any, count: int, start: int) -> None:
        """Refuse to continue inside an epoch that was cut otherwise: samples would be lost."""
        self._cuts = {
            "data.batch_size": self.batch_size,
            "data.batch_tokens": self.batch_tokens,
            "data.balanced": self.balanced,
            "micro-batches per step (data.micro_batch)": sampler.accumulate,
            "number of devices": sampler.world_size,
            "seed_everything": sampler.seed,
            "number of samples": count,
            "content of the training split": self.fingerprint().get("train"),
            **self.cuts(),
        }
        known = {key: self._cuts.get(key) for key in self._interrupted}  # there once were fewer
        changed = differences(self._interrupted, known)
        if start and changed:
            raise ValueError(
                f"The checkpoint lies inside an epoch, and {'; '.join(changed)}: samples would be "
                "skipped or repeated. Restore these, or resume from the end of an epoch."
            )

    def _micro(self, batch: int | None, world: int) -> int | None:
        """Return what all devices evaluate at once of a step's ``batch``."""
        return batch and min(batch, world * (self.micro_batch or batch))

    def train_dataloader(self) -> DataLoader[Any]:
        """Load the training split."""
        return self.loader("train")

    def val_dataloader(self) -> DataLoader[Any]:
        """Load the validation split."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Load the test split."""
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Load what is to be predicted."""
        return self.loader("predict")


def _as_is(batch: Any) -> Any:
    return batch


def position(trainer: Any) -> tuple[int, int]:
    """Return the epoch that ``trainer`` is in and its micro-batches done, after a resume too.

    Lightning restores its counters before it asks for the loaders. An epoch that a limit cut short
    is over too, once its end was reached: what was left of it is not made up for.
    """
    loop = trainer.fit_loop
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    over = batches.is_last_batch or epochs.ready == epochs.processed
    return epochs.processed, 0 if over else batches.current.processed
