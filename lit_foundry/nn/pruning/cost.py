"""What a network costs: multiply-adds, parameters, and seconds that are measured."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

Cost = Literal["macs", "parameters", "latency"]
MEASURES: tuple[Cost, ...] = get_args(Cost)
_RUNS, _WARMUP = 21, 3


def cost(backbone: Any, batch: Mapping[str, Tensor], of: Cost) -> float:
    """Return what a backbone in eval mode costs for a batch."""
    return {"macs": macs, "parameters": _parameters, "latency": latency}[of](backbone, batch)


def _parameters(backbone: nn.Module, batch: Mapping[str, Tensor]) -> float:
    return float(sum(p.numel() for p in backbone.parameters()))


@torch.no_grad()
def macs(backbone: Any, batch: Mapping[str, Tensor]) -> float:
    """Count the multiply-adds of matrix products and convolutions."""
    # The fused kernel of a CPU is not counted.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        backbone.encode(batch)
    return float(counter.get_total_flops()) / 2


@torch.no_grad()
def latency(backbone: Any, batch: Mapping[str, Tensor]) -> float:
    """Return the median of the seconds that some runs take."""
    device = next(backbone.parameters()).device
    seconds = []
    for _ in range(_WARMUP + _RUNS):
        start = time.perf_counter()
        backbone.encode(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[_WARMUP:])
