"""Random numbers without state: a hash of seed, epoch, sample and position; and seeds of dropout.

The same on every device, with any number of ranks and loader workers, and after a resume.

Shapes: B batch, T positions.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Constants of splitmix64, as signed integers, which wrap around in torch.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


@dataclass(frozen=True)
class Moment:
    """When something is drawn: with the sample, all that random numbers depend on.

    Attributes:
        seed: Seed of the run.
        epoch: Number of the epoch.
        progress: Fraction of the run that was done when the optimizer step began.
    """

    seed: int = 0
    epoch: int = 0
    progress: float = 0.0

    def keys(self, samples: Tensor) -> Tensor:
        """Return :func:`sample_keys` of samples, by their :func:`sample_numbers`; (B,)."""
        return sample_keys(self.seed, self.epoch, samples)


def run_seed() -> int:
    """Return what ``seed_everything`` set, 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


@contextmanager
def single_precision() -> Iterator[None]:
    """Make float32 the default type of new tensors, which trainer.precision bf16-true changes."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def mix(x: Tensor) -> Tensor:
    """Hash int64 numbers of any shape, one to one.

    Source: Steele et al., Fast Splittable Pseudorandom Number Generators, 2014.
        https://doi.org/10.1145/2714064.2660195 (the finalizer of splitmix64)
    """
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # ">>" copies the sign


def sample_numbers(batch: Mapping[str, Any]) -> Tensor:
    """Return what tells the samples of an epoch apart, for :func:`sample_keys`, shape (B,) int64.

    That is ``index``, plus 2**40 for each time that the epoch drew the same row before
    (``draw``, where rows are drawn with replacement).
    """
    index: Tensor = batch["index"]
    return index + (batch["draw"] << 40) if "draw" in batch else index


def sample_keys(seed: int, epoch: int, index: Tensor) -> Tensor:
    """Return a key for each sample of an epoch.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
        index: Of each sample, its row in its split, or :func:`sample_numbers`; (B,) int64.

    Returns:
        Keys, shape (B,) int64.
    """
    start = torch.full_like(index, seed)
    return mix(mix(mix(start) ^ epoch) ^ index)


def hashes(keys: Tensor, size: int, stream: int) -> Tensor:
    """Return ``size`` numbers for each key, uniform in [0, 2**63), shape (B, size) int64.

    Args:
        keys: From :func:`sample_keys`, shape (B,).
        size: Numbers per key.
        stream: Tells numbers for different purposes apart.
    """
    counter = torch.arange(size, device=keys.device) + (stream << 32)
    return mix(keys[:, None] ^ mix(counter)) & (2**63 - 1)


def as_uniform(bits: Tensor) -> Tensor:
    """Turn :func:`hashes` into float32 numbers, uniform in [0, 1)."""
    return (bits >> 39).float() * 2.0**-24


def uniforms(keys: Tensor, size: int, stream: int) -> Tensor:
    """Return ``size`` numbers for each key, uniform in [0, 1), shape (B, size) float32."""
    return as_uniform(hashes(keys, size, stream))


def normals(keys: Tensor, size: int, stream: int) -> Tensor:
    """Return ``size`` numbers for each key, of the standard normal distribution, (B, size).

    Source: Box and Muller, A Note on the Generation of Random Normal Deviates, 1958.
        https://doi.org/10.1214/aoms/1177706645
    """
    radius, angle = uniforms(keys, 2 * size, stream).chunk(2, 1)
    return torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * torch.pi * angle)


def philox(seed: int, epoch: int) -> np.random.Generator:
    """Return a generator that is a function of seed and epoch, with no state to save."""
    key = np.array([seed % 2**64, epoch], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators of CPU and device, as ``torch.manual_seed`` does.

    That one also seeds kinds of devices that are absent: it queues a call for each of them with the
    stack it came from, for ever, which takes a millisecond a step and never frees its memory.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
