"""What a task shows of itself, for whoever draws it.

Shapes: H height, W width, C channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Rows of images, (H, W, C) uint8, equally many in each, by what they are."""

    rows: Mapping[str, Sequence[NDArray[np.uint8]]]


@dataclass(frozen=True)
class Bars:
    """Numbers, the largest first.

    Attributes:
        values: Shape (N,).
        unit: What they count.
        things: What each is of.
    """

    values: NDArray[np.float64]
    unit: str
    things: str

    @classmethod
    def of(cls, values: Tensor, unit: str, things: str) -> "Bars":
        """Sort the numbers of a tensor."""
        ordered = values.detach().double().cpu().sort(descending=True).values
        return cls(ordered.numpy(), unit, things)


@dataclass(frozen=True)
class Points:
    """Points in the plane, coloured by class.

    Attributes:
        places: Shape (N, 2).
        classes: Of each, shape (N,).
        names: Of the classes.
    """

    places: NDArray[np.float64]
    classes: NDArray[np.int64]
    names: Sequence[str]


Shown = Images | Bars | Points


def shown(images: Tensor) -> list[NDArray[np.uint8]]:
    """Return (B, C, H, W) pixels from 0 to 255 as pictures; those beyond are cut off."""
    pixels = images.detach().float().round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return list(pixels.cpu().numpy())
