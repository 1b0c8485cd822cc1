"""Weights of image networks from a file, fitted to a network and loaded strictly."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.sources import resolve


def read_weights(name: str) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or one of ``torch.save``.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    path = Path(resolve(name))
    if not path.is_file():
        raise FileNotFoundError(f"model.backbone.pretrained {name} is no file.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):  # as training scripts wrap them
        state = state.get(key, state)
    return {key.removeprefix("module."): value for key, value in state.items()}


def in_order(state: dict[str, Tensor], build: Callable[[int], nn.Module]) -> dict[str, Tensor]:
    """Give weights the names of a network's tensors, where those are the same ones in order.

    That is so if no name is one of the network's, there are as many, and each has the shape and
    the last part of the name (``running_var``) of its counterpart; else nothing is renamed.

    Args:
        state: Weights under names of another library, with a classifier as the last of them.
        build: What makes the network, for a number of classes.
    """
    if not all(isinstance(value, Tensor) for value in state.values()):
        return state
    classes = next((len(value) for value in reversed(state.values()) if value.ndim), 0)
    mine = build(classes).state_dict()

    def kinds(tensors: Mapping[str, Tensor]) -> list[tuple[str, torch.Size]]:
        return [(key.rpartition(".")[2], value.shape) for key, value in tensors.items()]

    if state.keys() & mine.keys() or kinds(state) != kinds(mine):
        return state
    return dict(zip(mine, state.values(), strict=True))


def load_weights(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict, or raise ValueError with the first tensor that differs."""
    mine = network.state_dict()
    if wrong := [key for key in mine if key in state and state[key].shape != mine[key].shape]:
        has, wants = tuple(state[wrong[0]].shape), tuple(mine[wrong[0]].shape)
        why = f"its {wrong[0]} has shape {has}, where the network has {wants}"
    elif lost := sorted(mine.keys() - state.keys()):
        why = f"it lacks {len(lost)} weights, such as {lost[0]}"
    elif more := sorted(state.keys() - mine.keys()):
        why = f"it has {len(more)} weights that the network lacks, such as {more[0]}"
    else:
        network.load_state_dict(state)
        return
    raise ValueError(
        f"model.backbone.pretrained {name} does not fit model.backbone: {why}; name the network "
        "whose weights these are."
    )
