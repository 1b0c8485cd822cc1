"""What a feature extractor yields, for texts and images alike.

Shapes: B batch, N positions (tokens or patches), D feature width.
"""

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """What a backbone computes."""

    tokens: Tensor  # (B, N, D)
    pooled: Tensor  # (B, D)
