"""Plain operations on a built network, which its recipe holds: widths after pruning and the like.

A recipe builds the network that its arguments describe; changes make it the one whose weights
follow, before these are loaded strictly.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lit_foundry.nn.narrowing import axes, cut
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
    old = _found(network, module)
    names = inspect.signature(type(old)).parameters
    args: dict[str, Any] = {name: getattr(old, name) for name in names if hasattr(old, name)}
    unknown = sorted(sizes.keys() - args.keys())
    kind = f"{type(old).__module__}.{type(old).__name__}"
    if not kind.startswith("torch.nn.modules.") or unknown or not sizes:
        takes = f", which has no {unknown[0]}" if unknown else ", which is not resized so"
        raise CheckpointError(f"changes: {module} is a {kind}{takes}.")
    _check_sizes(module, sizes)
    if "bias" in args:
        args["bias"] = args["bias"] is not None
    mine = dict(old.named_parameters())
    _check_unshared(network, module, old)
    new = type(old)(**args | sizes)
    if (weight := next(old.parameters(), None)) is not None:
        new.to(weight.device, weight.dtype)
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name not in mine or mine[name].requires_grad)
    _put(network, old, new)


def narrow(network: nn.Module, module: str, **sizes: int) -> None:
    """Make a layer smaller in place, or the number of an attention's heads; its weights follow.

    Args:
        network: Holds the layer.
        module: Its dotted name.
        sizes: Its attributes, such as ``out_features``, ``num_features`` or ``num_heads``; those of
            :func:`lit_foundry.nn.narrowing.axes`.

    Raises:
        CheckpointError: If there is no such layer or size, or another layer has its weight.
    """
    layer = _found(network, module)
    for size, count in sizes.items():
        if axes(layer, size) is None:
            raise CheckpointError(
                f"changes: {module} is a {type(layer).__qualname__}, whose {size} is not narrowed."
            )
        _check_sizes(module, {size: count}, getattr(layer, size))
    _check_unshared(network, module, layer)
    for size, count in sizes.items():
        cut(layer, size, torch.arange(count))


def factorize(network: nn.Module, module: str, rank: int) -> None:
    """Put two linear layers in the place of one, with ``rank`` features between; weights follow.

    Args:
        network: Holds the layer.
        module: Its dotted name.
        rank: Number of features between.

    Raises:
        CheckpointError: If there is no such layer or rank, or another layer has its weight.
    """
    old = _found(network, module)
    if type(old) is not nn.Linear:
        raise CheckpointError(f"changes: {module} is a {type(old).__qualname__}, and no Linear.")
    _check_sizes(module, {"rank": rank}, min(old.weight.shape))
    _check_unshared(network, module, old)
    place: Any = {"device": old.weight.device, "dtype": old.weight.dtype}
    new = nn.Sequential(
        nn.Linear(old.in_features, rank, bias=False, **place),
        nn.Linear(rank, old.out_features, bias=old.bias is not None, **place),
    )
    for parameter in (new[0].weight, new[1].weight):
        parameter.requires_grad_(old.weight.requires_grad)
    if old.bias is not None:
        new[1].bias = old.bias
    _put(network, old, new)


def _found(network: nn.Module, module: str) -> nn.Module:
    there = dict(network.named_modules(remove_duplicate=False))
    if module not in there:
        raise CheckpointError(f"changes: the network has no module {module!r}.")
    found: nn.Module = there[module]
    return found


def _check_sizes(module: str, sizes: Mapping[str, Any], most: int = 2**31 - 1) -> None:
    """Raise CheckpointError unless all are numbers within bounds."""
    end = "an integer from 1 on" if most == 2**31 - 1 else f"an integer from 1 to {most}"
    for name, size in sizes.items():
        if type(size) is not int or not 1 <= size <= most:
            raise CheckpointError(f"changes: {name}={size!r} of {module} is no size: {end}.")


def is_shared(network: nn.Module, layer: nn.Module) -> str | None:
    """Return the name of a layer elsewhere that has a weight of this one; None if none has."""
    inside, mine = set(layer.modules()), set(layer.parameters())
    return next(
        (
            name
            for name, other in network.named_modules()
            if other not in inside and not mine.isdisjoint(other.parameters(recurse=False))
        ),
        None,
    )


def _check_unshared(network: nn.Module, module: str, layer: nn.Module) -> None:
    if (name := is_shared(network, layer)) is not None:
        raise CheckpointError(
            f"changes: {module} shares a weight with {name}, and would lose it: leave it as it is."
        )


def _put(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put a module wherever another is."""
    new.train(old.training)
    for place, layer in list(network.named_modules(remove_duplicate=False)):
        if layer is old:
            network.set_submodule(place, new)


OPERATIONS: dict[str, Callable[..., None]] = {
    "resize": resize,
    "narrow": narrow,
    "factorize": factorize,
}


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
        try:
            operation(network, **args)
        except TypeError as error:  # of arguments that it does not take
            raise CheckpointError(f"changes: {name} of {entry['module']}: {error}.") from None
        record(network, entry)


def record(network: nn.Module, entry: Change) -> None:
    """Add a change that was made to a task's recipe, in place of wider sizes of the same layer."""
    made = network.__dict__.setdefault("_changes", [])
    if entry["op"] == "narrow":
        same = ("op", "module")
        made[:] = [
            old
            for old in made
            if any(old[key] != entry[key] for key in same) or not old.keys() <= entry.keys()
        ]
    made.append(dict(entry))


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
