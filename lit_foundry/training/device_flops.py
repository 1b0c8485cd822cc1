"""How many operations a device can do, which tells how well a run uses it."""

import re
import time
from functools import cache

import torch

# Dense matrix products in 16 bits, by the datasheets of NVIDIA; the first name that is found in
# the device's own counts.
DATASHEET = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
}


@cache
def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return floating point operations per second of matrix products on one device.

    A known GPU has those of its datasheet in 16 bits; anything else is measured, which takes a
    fifth of a second.

    Args:
        device: Where the run trains.
        dtype: What its matrices are multiplied in.
    """
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        known = next(
            (rate for key, rate in DATASHEET.items() if re.search(rf"\b{key}\b", name)), None
        )
        if known:
            return known
    return measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """Return the operations per second of the fastest of ten products of square matrices."""
    size = size or (1024 if device.type == "cpu" else 8192)
    # Of ones, products are faster than any that training has: a GPU draws less power then.
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)

    def seconds() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return 2 * size**3 / min(seconds() for _ in range(11))
