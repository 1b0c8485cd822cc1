"""Weights from one run to the next: the backbone of a checkpoint or of a folder, strictly."""

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lit_foundry.checkpoints.files import (
    MANIFEST,
    CheckpointError,
    load_strictly,
    load_task,
    read_checkpoint,
    recipe_of,
)
from lit_foundry.nn.changes import Change, about
from lit_foundry.nn.lora import is_adapter, merge_adapters, with_adapters
from lit_foundry.recipe import Recorded


def submodule_state(path: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors of one submodule from a checkpoint.

    Args:
        path: Checkpoint of any task, or its export as ``safetensors``.
        name: Attribute that holds the submodule, such as ``"backbone"``.

    Returns:
        The submodule's state dict, without the ``name.`` prefix, adapters merged.

    Raises:
        CheckpointError: If the checkpoint has no such submodule.
    """
    weights = path / "model.safetensors"
    state = load_file(weights) if path.is_dir() else read_checkpoint(path)["state_dict"]
    prefix = f"{name}."
    found = {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}
    if not found:
        owners = sorted({key.split(".", 1)[0] for key in state})
        raise CheckpointError(f"{path} has no submodule {name!r}; it has {owners}.")
    if any(map(is_adapter, found)):
        module = load_task(path).get_submodule(name)
        merge_adapters(module)
        return module.state_dict()
    return found


def load_submodule(module: nn.Module, path: Path, name: str = "backbone") -> None:
    """Initialize ``module`` from the submodule ``name`` of a checkpoint, strictly.

    Args:
        module: A backbone.
        path: Checkpoint, or a folder: of ``transformers``, or an export.
        name: Attribute of the checkpoint's task that holds it.

    Raises:
        CheckpointError: If the tensors differ in name or shape; the first ones are listed.
    """
    others = path.is_dir() and not holds_task(path)
    state = folder_state(module, path) if others else submodule_state(path, name)
    load_strictly(module, with_adapters(state, module), f"{path}, {name}")
    if not others:
        check_statistics(module, task_recipe(path).get("init_args", {}).get(name), path)


def task_recipe(path: Path) -> dict[str, Any]:
    """Return what the task of a checkpoint, or of its export, was built from; empty if unknown."""
    recipe: dict[str, Any]
    if path.is_dir():
        recipe = json.loads((path / "config.json").read_text(encoding="utf-8"))
    else:  # without the tensors, which were read and verified before
        checkpoint = torch.load(path, map_location="meta", weights_only=True)
        recipe = recipe_of(checkpoint, path)["model"] if checkpoint.get("lit_foundry") else {}
    return recipe


def changes_of(path: Path, name: str = "") -> list[Change]:
    """Return what was changed of a task, or of a submodule of it, after it was built."""
    if path.is_dir() and not holds_task(path):
        return []
    return about(task_recipe(path).get("changes", []), name)


def check_statistics(module: Any, theirs: Any, path: Path) -> None:
    """Raise CheckpointError if weights were trained on pixels that were normalized otherwise."""
    theirs = theirs.get("init_args", {}) if isinstance(theirs, Mapping) else {}
    mine = module.recipe()["init_args"] if isinstance(module, Recorded) else {}
    for key in ("mean", "std"):
        if key not in theirs or key not in mine:
            continue
        most = max(len(theirs[key]), len(mine[key]))  # one number stands for all channels
        old, new = ([*values] * (most // len(values)) for values in (theirs[key], mine[key]))
        if old != new:
            raise CheckpointError(
                f"model.init_from={path} was trained with model.backbone.{key}={theirs[key]}, and "
                f"yours is {mine[key]}: set it to theirs."
            )


def holds_task(folder: Path) -> bool:
    """Tell whether a folder is an export as ``safetensors``."""
    manifest = folder / MANIFEST
    return (
        manifest.is_file()
        and json.loads(manifest.read_text(encoding="utf-8"))["format"] == "safetensors"
    )


def folder_state(module: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a text or image encoder from a folder of ``transformers``.

    Raises:
        CheckpointError: If it has no config.json, or ``module`` cannot be built from it.
    """
    kind: Any = type(module)
    if not (folder / "config.json").is_file() or not hasattr(module, "pooling"):
        raise CheckpointError(
            f"model.init_from={folder} is no folder of transformers for a {kind.__name__}: name a "
            "checkpoint file, or a folder with config.json and weights."
        )
    try:
        # Pretrained images may have had another size, or other channels.
        names = ("pooling", "in_channels", "image_size")
        options = {name: getattr(module, name) for name in names if hasattr(module, name)}
        source = kind(str(folder), **options)
    except (OSError, ValueError) as error:
        reason = shorten(str(error), 200)
        raise CheckpointError(f"model.init_from={folder} cannot be read: {reason}") from error
    check_statistics(module, source.recipe(), folder)
    state: dict[str, Tensor] = source.state_dict()
    return state
