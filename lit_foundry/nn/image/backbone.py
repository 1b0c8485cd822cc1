"""What all image backbones share: raw pixels in, normalized on the device.

Shapes: B batch, C channels, H height, W width, N positions, D feature width.
"""

from abc import abstractmethod
from collections.abc import Sequence
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_foundry import ranges
from lit_foundry.nn.backbone import Backbone
from lit_foundry.nn.features import Features

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEAST_STD = 1e-4  # a fortieth of a level of 255; less would only blow up noise


class ImageBackbone(Backbone):
    """A feature extractor of images. A subclass implements :meth:`features`.

    It takes pixels from 0 to 255, as files hold them, and normalizes them itself: training,
    prediction and export cannot disagree on it.

    Args:
        in_channels: Channels C of an image.
        mean: Mean of each channel in [0, 1], or one for all.
        std: Standard deviation of each channel, likewise, above 0.
        image_size: Edge of the images that the network is made for; None if it takes any.

    Raises:
        ValueError: If mean or std are neither one number nor one for each channel, or outside of
            what pixels in [0, 1] can have.
    """

    inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        own = {"in_channels": in_channels, "image_size": image_size}
        rules = {
            "in_channels": (in_channels >= 1, "is a number of channels, 1 at least"),
            "image_size": (image_size is None or image_size >= 1, "is an edge of 1 pixel at least"),
        }
        ranges.check("model.backbone", own, rules)
        self.in_channels, self.image_size = in_channels, image_size
        self._statistics = {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
        for name, values in self._statistics.items():
            least = LEAST_STD if name == "std" else 0.0
            inside = all(least <= value <= 1 for value in values)  # NaN is not
            if len(values) not in (1, in_channels) or not inside:
                rule = f"one number, or one for each channel ({in_channels}), in [{least:g}, 1]"
                raise ValueError(
                    f"model.backbone.{name} takes {rule}, got {values}. Divide what belongs to "
                    "pixels up to 255 by 255."
                )
            column = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
            self.register_buffer(name, column, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> "ImageBackbone":
        """Move or cast all but the statistics, which stay in float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, values in self._statistics.items():
            buffer = getattr(self, name)
            if buffer.dtype != torch.float32:
                exact = torch.tensor(values, dtype=torch.float32, device=buffer.device)
                setattr(self, name, exact.view(-1, 1, 1))
        return self

    @abstractmethod
    def features(self, images: Tensor) -> Features:
        """Compute features of (B, C, H, W) normalized images."""

    def forward(self, pixel_values: Tensor) -> Features:
        """Compute features of (B, C, H, W) pixels from 0 to 255, uint8 or float."""
        return self.features(self.normalize(pixel_values))

    @staticmethod
    def grid(features: Features) -> Tensor:
        """Return the map of a square image's features, (B, D, E, E), without tokens before it."""
        rows, count, dim = features.tokens.shape
        edge = isqrt(count)
        places = features.tokens[:, count - edge**2 :]
        return places.transpose(1, 2).reshape(rows, dim, edge, edge)

    @torch.no_grad()
    def try_size(self, size: int) -> Features:
        """Return the features of one black image.

        Raises:
            ValueError: If the network cannot take images of this size.
        """
        was = self.training
        try:
            black = torch.zeros(1, self.in_channels, size, size, device=self.mean.device)
            return self.eval().features(black)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"model.backbone cannot take images of {size} pixels ({str(error).splitlines()[0]})"
                ": set data.image_size to a larger one, or take another network."
            ) from error
        finally:
            self.train(was)

    def normalize(self, pixel_values: Tensor) -> Tensor:
        """Scale pixels to [0, 1], subtract the mean and divide by the standard deviation.

        Returns:
            Images in the dtype of the weights, computed in float32.
        """
        # In this order, as torchvision does it, to the bit; compiled, it is one pass.
        images = (pixel_values.float() * (1 / 255)).sub_(self.mean).div_(self.std)
        weight = next((p for p in self.parameters() if p.is_floating_point()), images)
        return images if weight.dtype == images.dtype else images.to(weight.dtype)

    def example(self, rows: int, size: int) -> dict[str, Tensor]:
        """Return ``rows`` images of random pixels, the same each time.

        Args:
            rows: Batch size B.
            size: Pixels of an edge; ignored where the network is made for one size.
        """
        return {"pixel_values": random_images(rows, self.in_channels, self.image_size or size)}

    def recipe(self) -> dict[str, Any]:
        """Return the recipe with what the data or pretrained weights decided on."""
        recipe = super().recipe()
        decided = {"in_channels": self.in_channels, **self._statistics}
        if self.image_size is not None:
            decided["image_size"] = self.image_size
        # A network may fix some of these, and not take them as arguments.
        recipe["init_args"] |= {k: v for k, v in decided.items() if k in recipe["init_args"]}
        return recipe


def random_images(rows: int, channels: int, size: int) -> Tensor:
    """Return random pixels, shape (B, C, size, size) uint8, the same each time."""
    random = torch.Generator().manual_seed(rows * 10_000 + size)
    return torch.randint(256, (rows, channels, size, size), generator=random, dtype=torch.uint8)
