"""Plain operations on a built network, which its recipe holds: widths after pruning and the like.

A recipe builds the network that its arguments describe; changes make it the one whose weights
follow, before these are loaded strictly.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
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
        CheckpointError: If there is no such layer or argument.
    """
    try:
        old = network.get_submodule(module)
    except AttributeError:
        raise CheckpointError(f"changes: the network has no module {module!r}.") from None
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
    new = type(old)(**args | sizes)
    if (weight := next(old.parameters(), None)) is not None:
        new.to(weight.device, weight.dtype)
    network.set_submodule(module, new.train(old.training))


OPERATIONS: dict[str, Callable[..., None]] = {"resize": resize}


def change(network: nn.Module, changes: Sequence[Change]) -> None:
    """Apply changes to a task, but for those it has, and add them to its recipe.

    A recipe within another holds none: a backbone is changed by its task.

    Raises:
        CheckpointError: If one is not known here, or does not fit.
    """
    if not isinstance(changes, list | tuple):
        raise CheckpointError(f"changes are a list of operations, and not {changes!r:.80}.")
    for entry in changes:
        if not (isinstance(entry, Mapping) and isinstance(entry.get("module"), str)):
            raise CheckpointError(f"changes: {entry!r:.80} names no op and module.")
        if dict(entry) in network.__dict__.get("_changes", ()):
            continue
        args = {str(key): value for key, value in entry.items() if key != "network"}
        operation = OPERATIONS.get(name := str(args.pop("op", None)))
        if operation is None:
            known = ", ".join(OPERATIONS)
            raise CheckpointError(f"changes: no operation is called {name!r}. There is {known}.")
        operation(network, **args)
        network.__dict__.setdefault("_changes", []).append(dict(entry))
