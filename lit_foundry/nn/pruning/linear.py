"""Heads of attention and neurons between linear layers, found by what depends on what."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.nn.narrowing import HEADS, WIDTHS, axes
from lit_foundry.nn.pruning.groups import Group, part

_HEAD_SIZES = "head_dim", "attention_head_size"  # of modules of attention


@dataclass(frozen=True)
class Call:
    """The first call of a linear layer: what it read and computed, with the graph between calls."""

    layer: nn.Linear
    read: Tensor
    computed: Tensor


def calls(backbone: Any, batch: Mapping[str, Tensor]) -> dict[str, Call]:
    """Return the linear layers in the order in which a batch passes them, by name."""
    order: dict[str, Call] = {}

    def noting(name: str) -> Any:
        def note(layer: Any, args: Any, output: Tensor) -> None:
            if args:
                order.setdefault(name, Call(layer, args[0], output))

        return note

    layers = [(n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Linear)]
    hooks = [layer.register_forward_hook(noting(name)) for name, layer in layers]
    with torch.enable_grad():
        backbone.encode(batch)
    for hook in hooks:
        hook.remove()
    return order


def heads(backbone: nn.Module, order: Mapping[str, Call]) -> Iterator[Group]:
    """Yield the heads of attention.

    Queries, keys and values are linear layers inside of its module, each for itself or all in one;
    what reads the heads is the last layer there, or the next one after it.
    """
    names = list(order)
    for name, module in backbone.named_modules():
        size = next((s for k in _HEAD_SIZES if type(s := getattr(module, k, 0)) is int and s), 0)
        inside = [n for n in names if n.startswith(f"{name}.")]
        if size and inside:
            after = names[names.index(inside[-1]) + 1 :][:1]
            guesses = [(inside[:-1], inside[-1]), *((inside, n) for n in after)]
            found = (_heads(module, name, size, order, *guess) for guess in guesses)
            yield from [group for group in found if group and is_separate(group, order)][:1]


def _heads(
    module: nn.Module,
    name: str,
    size: int,
    order: Mapping[str, Call],
    computing: list[str],
    reading: str,
) -> Group | None:
    width = order[reading].layer.in_features
    count, left = divmod(width, size)
    times = {n: order[n].layer.out_features / width for n in computing}
    if left or count < 2 or not times or not {*times.values()} <= {1.0, 3.0}:
        return None
    parts = [part(n, "out_features", count, size, int(t)) for n, t in times.items()]
    parts.append(part(reading, "in_features", count, size))
    for key, each in (*((key, 1) for key in HEADS), *((key, size) for key in WIDTHS)):
        if axes(module, key) is not None and getattr(module, key) == count * each:
            parts.append(part(name, key, count, each))
    return Group(name, "heads", tuple(parts))


def neurons(order: Mapping[str, Call]) -> Iterator[Group]:
    """Yield the neurons between linear layers.

    They are what the layer called before computes, or the product with what the one before that
    does, which may also be halves of one layer.
    """
    names = list(order)
    for at, reading in enumerate(names):
        count = order[reading].layer.in_features
        found = []
        for guess in (names[at - before : at] for before in (2, 1) if at >= before):
            times = {n: order[n].layer.out_features / count for n in guess}
            if count > 1 and ({*times.values()} == {1.0} or [*times.values()] == [2.0]):
                parts = [part(n, "out_features", count, 1, int(t)) for n, t in times.items()]
                parts.append(part(reading, "in_features", count))
                found.append(Group(guess[-1], "neurons", tuple(parts)))
        yield from [group for group in found if is_separate(group, order)][:1]


def is_separate(group: Group, order: Mapping[str, Call]) -> bool:
    """Tell whether what is read of a unit depends on what is computed of that unit alone."""
    computing = [each for each in group.parts if each.size == "out_features"]
    [reading] = [each for each in group.parts if each.reads]
    unit = group.count // 2
    read = order[reading.module].read[..., reading.units == unit].sum()
    outputs = [order[each.module].computed for each in computing]
    if not read.requires_grad or not all(each.requires_grad for each in outputs):
        return False
    found = torch.autograd.grad(read, outputs, retain_graph=True, allow_unused=True)
    return all(
        gradient is not None and not gradient[..., each.units != unit].any()
        for gradient, each in zip(found, computing, strict=True)
    )
