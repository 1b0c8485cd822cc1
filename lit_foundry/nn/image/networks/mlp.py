"""A network of linear layers on the pixels of small images.

Shapes: B batch, C channels, H height, W width, D feature width.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn.features import Features
from lit_foundry.nn.image.backbone import ImageBackbone


class MLP(ImageBackbone):
    """Linear layers with GELU after each.

    Args:
        hidden: Their widths, of which the last is the feature width.
        image_size: Edge of the images; None takes it from the data.
        in_channels: Channels of an image.
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each channel, likewise.

    Raises:
        ValueError: If the size of images is unknown.
    """

    def __init__(
        self,
        hidden: tuple[int, ...] = (512, 256),
        image_size: int | None = None,
        in_channels: int | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        rules = {"hidden": (min(hidden, default=0) >= 1, "are widths, 1 at least")}
        ranges.check("model.backbone", {"hidden": hidden}, rules)
        if image_size is None:
            raise ValueError(
                "model.backbone.image_size is the edge of square images: in Python pass "
                "data.facts['image_size']; on the command line set data.size."
            )
        super().__init__(3 if in_channels is None else in_channels, mean, std, image_size)
        pairs = pairwise((self.in_channels * image_size**2, *hidden))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, width), nn.GELU()) for before, width in pairs
        )
        self.dim = hidden[-1]

    def features(self, images: Tensor) -> Features:
        """Compute features of (B, C, H, W) normalized images; there is one position."""
        hidden = images.flatten(1)
        for layer in self.layers:
            hidden = layer(hidden)
        return Features(hidden[:, None], hidden)

    def blocks(self) -> list[nn.Module]:
        """Return the layers."""
        return list(self.layers)
