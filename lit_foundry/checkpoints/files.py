"""Checkpoints: a plain recipe plus tensors, never half-written, always loaded strictly."""

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from lit_foundry import __version__
from lit_foundry.atomic import replacing
from lit_foundry.datamodule import Data
from lit_foundry.nn import restoring
from lit_foundry.nn.changes import checked, inherit
from lit_foundry.recipe import CheckpointError as CheckpointError
from lit_foundry.recipe import (
    Recorded,
    check_classes,
    differences,
    installed_modules_only,
    renewed,
)

FORMAT = 1  # of checkpoints; a higher one is of a later lit_foundry
MANIFEST = "lit_foundry.json"  # what an exported folder says of itself
# Arguments of data that the weights belong to.
FIXED = ("tokenizer", "target", "label_names", "label_delimiter", "classes", "size", "fit", "mode")


class DamagedError(CheckpointError):
    """A checkpoint is not what was written, or not there."""


class VerifiedCheckpointIO(TorchCheckpointIO):
    """Saves a checkpoint such that a crash leaves the old file or the new one, never a part.

    The file is written beside its place, flushed to disk, read back against its checksum and
    renamed; the checksum stays in a small file beside it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write, verify and move into place."""
        path = Path(path)
        sums = _sums(path)
        with replacing(path) as partial:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
            torch.load(partial, map_location="meta", weights_only=True)  # readable, and plain
            told = {"sha256": digest(partial), "bytes": partial.stat().st_size}
            sums.unlink(missing_ok=True)  # the old file's: until the new one, the archive's own
        with replacing(sums) as partial:
            partial.write_text(json.dumps(told), encoding="utf-8")

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint of plain values and tensors."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint and its checksum."""
        Path(path).unlink(missing_ok=True)
        _sums(Path(path)).unlink(missing_ok=True)


def _sums(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256.json")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path) -> None:
    """Raise DamagedError if a checkpoint is missing, or does not match its checksum.

    Without a checksum file, or with a torn one, those of the archive's members are tested.
    """
    if not path.is_file():
        beside = [*recoveries(path.parent), "what runs/<experiment>/<n>/checkpoints/ holds"]
        raise DamagedError(f"{path} is no checkpoint file: take {beside[0]}.")
    size = path.stat().st_size
    try:
        told = json.loads(_sums(path).read_text(encoding="utf-8"))
        whole = size == told["bytes"] and digest(path) == told["sha256"]
        why = f"it has {size} bytes and was saved with {told['bytes']}, or its content changed"
    except (OSError, ValueError, KeyError, TypeError):
        whole, why = _members_are_whole(path), "the checksums in the archive do not match"
    if not whole:
        raise DamagedError(f"{path} is damaged: {why}. Use another checkpoint of the run.")


def _members_are_whole(path: Path) -> bool:
    """Test the CRC of each member of an archive, which ``torch.load`` does not."""
    try:
        if not zipfile.is_zipfile(path):
            return True  # that is for torch.load to say
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except Exception:  # a flipped bit makes it encrypted, compressed otherwise, and so on
        return False


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: If it is missing, damaged, holds more than plain values and tensors, or
            was written by a later lit_foundry.
    """
    verify(path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        ours = renewed(checkpoint.get("lit_foundry") or {})
        format, version = ours.get("format", 1), ours.get("version")
        later = format > FORMAT
    except (OSError, MemoryError):
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # torch raises many kinds for a torn zip file
        reason = shorten(f"{type(error).__name__}: {error}", 160)
        raise DamagedError(
            f"{path} cannot be read ({reason}). It is truncated, or no checkpoint of lit_foundry; "
            "use another one."
        ) from error
    if later:
        raise CheckpointError(
            f"{path} has format {format} and was written by lit_foundry {version}; "
            f"this one reads up to format {FORMAT}: update lit_foundry."
        )
    if ours:
        checkpoint["lit_foundry"] = ours
    return checkpoint


def step_of(path: Path) -> int:
    """Return the optimizer steps after which ``recovery-<step>.ckpt`` was saved, 0 of others."""
    found = re.fullmatch(r"recovery-(\d+)", path.stem)
    return int(found[1]) if found else 0


def recoveries(folder: Path) -> list[Path]:
    """Return the recovery checkpoints of a folder, damaged ones too, the latest step first."""
    return sorted(folder.glob("recovery-*.ckpt"), key=step_of, reverse=True)


def newest(folder: Path) -> Path | None:
    """Return the newest undamaged recovery checkpoint; name damaged ones and pass them over."""
    for path in recoveries(folder):
        try:
            read_checkpoint(path)
        except DamagedError as error:
            warnings.warn(str(error), stacklevel=2)
        else:
            return path
    return None


def recipe_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return what the model and the data of a checkpoint were built from.

    Raises:
        CheckpointError: If lit_foundry did not write it.
    """
    recipe: Any = checkpoint.get("lit_foundry")
    if not isinstance(recipe, dict):
        raise CheckpointError(f"{path} has no recipe: it is no checkpoint of lit_foundry.")
    for part, kind in {"model": dict, "data": dict | None}.items():
        if not isinstance(recipe.get(part), kind):
            raise CheckpointError(f"{path}: what it says of its {part} is no recipe.")
    found: dict[str, Any] = recipe
    return found


def our_part(task: Recorded, data: Data | None) -> dict[str, Any]:
    """Return what rebuilds a task and its data, as a checkpoint holds it beside the weights."""
    return {
        "version": __version__,
        "format": FORMAT,
        "model": task.recipe(),
        "data": None if data is None else data.recipe(),
        "data_state": None if data is None else data.state(),
    }


def build(recipe: Mapping[str, Any], base: type) -> Any:
    """Build the object that a recipe describes, its type checked against ``base``.

    Raises:
        CheckpointError: If it describes another object, or its class, or one inside of it, lies in
            a module that is not imported.
    """
    plain, changes = unchanged(recipe, base)
    try:
        parser, config = parsed(plain, base)
    except ArgumentError as error:
        reason = shorten(str(error).partition("Errors:")[2] or str(error), 300)
        raise CheckpointError(
            f"The recipe does not describe a {base.__name__}: {reason}"
        ) from error
    built = parser.instantiate(config).object
    if changes:
        inherit(built, checked(changes))
    return built


def unchanged(recipe: Mapping[str, Any], base: type) -> tuple[dict[str, Any], Any]:
    """Return a recipe without what was changed of the network once built, and that.

    Raises:
        CheckpointError: If it describes no network, and was changed.
    """
    plain = {**recipe}
    changes = plain.pop("changes", [])
    if changes and not issubclass(base, nn.Module):
        raise CheckpointError(f"changes are made to a network, and not to a {base.__name__}.")
    return plain, changes


def parsed(
    recipe: Mapping[str, Any], base: type, named: Collection[str] = ()
) -> tuple[ArgumentParser, Namespace]:
    """Parse a recipe, and import nothing for it but what ``check_classes`` allows."""
    recipe = renewed(recipe)
    check_classes(recipe, named)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "object", required=True)
    with installed_modules_only():
        config = parser.parse_object({"object": dict(recipe)})
    check_classes(config.as_dict())  # files that it names may name others
    return parser, config


def load_task(path: str | Path) -> LightningModule:
    """Rebuild the task of a checkpoint, with its weights, in eval mode."""
    checkpoint = read_checkpoint(Path(path))
    with restoring():
        task: LightningModule = build(recipe_of(checkpoint, Path(path))["model"], LightningModule)
    task.load_state_dict(checkpoint["state_dict"])
    return task.eval()


def load_data(path: str | Path, **changes: Any) -> LightningDataModule:
    """Rebuild the data module of a checkpoint, with its labels and tokenizer.

    Args:
        path: Checkpoint.
        changes: Arguments to set otherwise, such as ``predict="texts.txt"``.
    """
    recipe = recipe_of(read_checkpoint(Path(path)), Path(path))
    if recipe.get("data") is None:
        raise CheckpointError(f"{path} does not tell its data: it was fitted on a plain module.")
    return rebuild_data(recipe["data"], recipe["data_state"], changes)


def rebuild_data(
    recipe: Mapping[str, Any], state: Mapping[str, Any], changes: Mapping[str, Any]
) -> LightningDataModule:
    """Build a data module by its recipe, with some arguments set otherwise, and restore its state.

    Raises:
        CheckpointError: If the weights belong to what would be changed.
    """
    args = recipe.get("init_args", {}) | changes
    data: Any = build({**recipe, "init_args": args}, LightningDataModule)
    if changes:
        check_same_data(recipe, data)
    data.restore(state)
    loaded: LightningDataModule = data
    return loaded


def check_same_data(recipe: Mapping[str, Any], data: Data) -> None:
    """Refuse another tokenizer, other labels or images than the weights were trained with.

    Raises:
        CheckpointError: If there are such.
    """
    old, new = recipe["init_args"], data.recipe()["init_args"]
    # What a checkpoint does not know yet, its data had no choice of.
    pairs = [(old.get(key, new.get(key)), new.get(key), f"data.{key}") for key in FIXED]
    changed = "; ".join(line for pair in pairs for line in differences(*pair))
    if changed:
        raise CheckpointError(
            "The checkpoint brings its own labels, and its tokenizer or form of images, and "
            f"you set {changed}; leave it out, or fit anew with it."
        )


def tokenizer_json(path: Path) -> str | None:
    """Return the tokenizer of a checkpoint, or of a folder of ``transformers``, if it has one."""
    if path.is_dir():
        file = path / "tokenizer.json"
        return file.read_text(encoding="utf-8") if file.is_file() else None
    recipe = read_checkpoint(path).get("lit_foundry") or {}
    state = recipe.get("data_state") or {}
    text: str | None = state.get("tokenizer", {}).get("tokenizer.json")
    return text


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict, or raise CheckpointError with a short list of what differs."""
    mine = module.state_dict()
    lines = [f"only in the checkpoint: {key}" for key in state if key not in mine]
    lines += [f"only in the model: {key}" for key in mine if key not in state]
    lines += [
        f"{key}: {tuple(state[key].shape)} in the checkpoint, {tuple(mine[key].shape)} in the model"
        for key in mine
        if key in state and state[key].shape != mine[key].shape
    ]
    if lines:
        more = [f"... and {len(lines) - 3} more"] * (len(lines) > 3)
        listing = "\n  ".join([*lines[:3], *more])
        raise CheckpointError(f"{source} does not fit the model:\n  {listing}")
    module.load_state_dict(state)
