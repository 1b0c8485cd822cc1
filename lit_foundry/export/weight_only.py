"""Networks of torch whose weights have few bits, and whose activations are floats, by torchao."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.nn.quantization import (
    BLOCK,
    IntegerEmbedding,
    IntegerLinear,
    bits,
    layers,
    pack,
)

METHODS = ("int8-weight-only", "int4-weight-only")


def check_installed(method: str) -> None:
    """Raise ModuleNotFoundError if torchao is missing."""
    if find_spec("torchao") is None:
        raise ModuleNotFoundError(f"--quantize {method}: pip install 'lit-foundry[torchao]'.")


@torch.no_grad()
def quantize_weights(network: nn.Module, method: str) -> None:
    """Put the weights of linear layers and embeddings into 8 bits or 4, in place.

    torchao computes integers and scales: one for each row, or for each 32 columns. They are kept
    as plain tensors instead of as its subclasses, since a program with these needs torchao, and a
    pickle, to be read; of embeddings, torchao makes the whole table floats in each call.
    Fused products of floats with integers are not used: on a CPU with AVX-512, torch 2.14 takes
    ten times as long for them with one row, and about a hundred times with 128, as for floats.

    Args:
        network: What is exported.
        method: One of ``METHODS``.

    Raises:
        CheckpointError: If it has nothing to quantize, or others hold most of its weights.
    """
    try:
        found = layers(network, f"--quantize {method}")
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    made: dict[Tensor, tuple[Tensor, Tensor]] = {}
    for layer in found.values():
        weight = layer.weight
        if weight not in made:  # what is tied stays so
            made[weight] = integers(weight, bits(method, weight.shape[1]))
        new: nn.Module
        if isinstance(layer, nn.Linear):
            new = IntegerLinear(*made[weight], layer.bias)
        else:
            new = IntegerEmbedding(*made[weight])
        for name, other in list(network.named_modules(remove_duplicate=False)):
            if other is layer:
                network.set_submodule(name, new)


def integers(weight: Tensor, few: int) -> tuple[Tensor, Tensor]:
    """Return a weight as torchao rounds it: integers, and scales (N, G).

    Args:
        weight: Shape (N, K).
        few: 8 bits, whose integers are (N, K) int8, or 4, (N, K / 2) uint8, two in each.
    """
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_

    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
    of_torch: Any = torch  # whose stubs know no int4
    how = (of_torch.int4, PerGroup(BLOCK)) if few == 4 else (torch.int8, PerAxis(0))
    quantize_(layer, IntxWeightOnlyConfig(*how))
    found: Any = layer.weight
    values, scales = found.qdata, found.scale.reshape(rows, -1).float()
    return pack(values) if few == 4 else values, scales
