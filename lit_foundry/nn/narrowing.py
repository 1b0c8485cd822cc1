"""Layers made smaller in place: which of their tensors a size is of, and cutting these.

The layers stay what they are, of whatever class, and so do their parameters as objects, which
optimizers know.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

# What modules of attention call their number of heads, and the width of these together.
HEADS, WIDTHS = ("num_heads", "num_attention_heads", "n_heads"), ("attn_dim", "all_head_size")
_ROWS, _COLUMNS = {"weight": 0, "bias": 0}, {"weight": 1}


def axes(layer: nn.Module, size: str) -> dict[str, int] | None:
    """Return the tensors that a size of a layer is a dimension of, and which; None of other names.

    ``groups`` is that of a depthwise convolution, which is its number of channels too.
    """
    found: dict[str, dict[str, int]] = {}
    if isinstance(layer, nn.Linear):
        found = {"out_features": _ROWS, "in_features": _COLUMNS}
    elif isinstance(layer, _ConvNd) and not layer.transposed:
        if layer.groups == 1:
            found = {"out_channels": _ROWS, "in_channels": _COLUMNS}
        elif layer.groups == layer.in_channels == layer.out_channels:
            found = {"groups": _ROWS}
    elif isinstance(layer, _NormBase):
        found = {"num_features": _ROWS | {"running_mean": 0, "running_var": 0}}
    elif not list(layer.parameters(recurse=False)):
        found = {name: {} for name in (*HEADS, *WIDTHS)}
    return found.get(size) if type(getattr(layer, size, None)) is int else None


@torch.no_grad()
def cut(
    layer: nn.Module, size: str, index: Tensor, state: Mapping[Any, dict[str, Any]] | None = None
) -> None:
    """Keep some indices of a dimension of a layer, in place.

    Args:
        layer: The layer.
        size: Attribute of it, such as ``out_features``.
        index: Those that stay, in ascending order.
        state: What an optimizer remembers of parameters, which is cut like these.
    """
    for name, dim in (axes(layer, size) or {}).items():
        tensor = getattr(layer, name, None)
        if tensor is None:
            continue
        kept = tensor.index_select(dim, index.to(tensor.device))
        if not isinstance(tensor, nn.Parameter):
            setattr(layer, name, kept)
            continue
        held = (state or {}).get(tensor, {})
        for key, value in held.items():
            if isinstance(value, Tensor) and value.shape == tensor.shape:
                held[key] = value.index_select(dim, index.to(value.device))
        tensor.grad = None
        # By way of another dtype: else autograd may go on to expect gradients of the old shape.
        tensor.data = kept.to(torch.float64 if kept.dtype != torch.float64 else torch.float32)
        tensor.data = kept
    for name in ("groups", "in_channels", "out_channels") if size == "groups" else (size,):
        setattr(layer, name, len(index))
