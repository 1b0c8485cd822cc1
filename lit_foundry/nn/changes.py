"""Plain operations on a built network, which its recipe holds: widths after pruning and the like.

A recipe builds the network that its arguments describe; changes make it the one whose weights
follow, before these are loaded strictly.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lit_foundry.recipe import CheckpointError

Change = Mapping[str, Any]  # {"op": name of an operation, "module": where, and its arguments}


def resize(network: nn.Module, module: str, **sizes: int) -> None:
    """Put a layer of torch, with other sizes and new weights, in the place of another.

    Args:
        network: Holds the layer.
        module: Its dotted name.
        sizes: Arguments of its constructor, such as ``out_features``.

    Raises:
        CheckpointError: If there is no such layer or argument, or another one has its weight.
    """
    there = dict(network.named_modules(remove_duplicate=False))
    if module not in there:
        raise CheckpointError(f"changes: the network has no module {module!r}.")
    old = there[module]
    names = inspect.signature(type(old)).parameters
    args: dict[str, Any] = {name: getattr(old, name) for name in names if hasattr(old, name)}
    unknown = sorted(sizes.keys() - args.keys())
    kind = f"{type(old).__module__}.{type(old).__name__}"
    if not kind.startswith("torch.nn.modules.") or unknown or not sizes:
        takes = f", which has no {unknown[0]}" if unknown else ", which is not resized so"
        raise CheckpointError(f"changes: {module} is a {kind}{takes}.")
    wrong = [f"{k}={v!r}" for k, v in sizes.items() if type(v) is not int or not 1 <= v < 2**31]
    if wrong:
        raise CheckpointError(f"changes: {wrong[0]} of {module} is no size: an integer from 1 on.")
    if "bias" in args:
        args["bias"] = args["bias"] is not None
    places = [name for name, layer in there.items() if layer is old]
    inside, mine = set(old.modules()), dict(old.named_parameters())
    for name, layer in there.items():
        shared = not {*mine.values()}.isdisjoint(layer.parameters(recurse=False))
        if shared and layer not in inside:
            raise CheckpointError(
                f"changes: {module} shares a weight with {name}, and would lose it: leave it as it "
                "is."
            )
    new = type(old)(**args | sizes)
    if (weight := next(old.parameters(), None)) is not None:
        new.to(weight.device, weight.dtype)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name not in mine or mine[name].requires_grad)
    new.train(old.training)
    for place in places:
        network.set_submodule(place, new)


OPERATIONS: dict[str, Callable[..., None]] = {"resize": resize}


def change(network: nn.Module, changes: Any) -> None:
    """Apply changes to a task, and add them to its recipe.

    A recipe within another holds none: a backbone is changed by its task.

    Raises:
        CheckpointError: If one is not known here, or does not fit.
    """
    for entry in checked(changes):
        args = {str(key): value for key, value in entry.items() if key != "network"}
        operation = OPERATIONS.get(name := str(args.pop("op", None)))
        if operation is None:
            known = ", ".join(OPERATIONS)
            raise CheckpointError(f"changes: no operation is called {name!r}. There is {known}.")
        operation(network, **args)
        network.__dict__.setdefault("_changes", []).append(dict(entry))


def inherit(network: nn.Module, changes: list[Change], within: str = "") -> None:
    """Apply the changes of another network, unless they are among those that were made here.

    Args:
        network: A task.
        changes: Those of the other one.
        within: Part of the network that they are about; empty for all of it.

    Raises:
        CheckpointError: If one is not known here, or does not fit.
    """
    made, count = about(network.__dict__.get("_changes", []), within), len(changes)
    if all(made[at : at + count] != changes for at in range(len(made) + 1)):
        change(network, changes)


def about(changes: Any, within: str) -> list[Change]:
    """Return those changes that are about a part of a network; all, if it has no name."""
    start = f"{within}." if within else ""
    return [entry for entry in checked(changes) if f"{entry['module']}.".startswith(start)]


def checked(changes: Any) -> list[Change]:
    """Return changes, or raise CheckpointError if they are something else."""
    if not isinstance(changes, list | tuple):
        raise CheckpointError(f"changes are a list of operations, and not {changes!r:.80}.")
    for entry in changes:
        if not (isinstance(entry, Mapping) and isinstance(entry.get("module"), str)):
            raise CheckpointError(f"changes: {entry!r:.80} names no op and module.")
    return [*changes]
