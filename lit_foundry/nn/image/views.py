"""What a task makes of a batch of images before its network sees them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_foundry.nn.image.augment import Augment, centre
from lit_foundry.nn.image.backbone import ImageBackbone
from lit_foundry.nn.image.mixing import Mixing
from lit_foundry.randomness import Moment, sample_numbers

TTA = Literal["none", "flip", "translate"]
_VIEW = 56  # bits above which samples are numbered by their view


@dataclass(frozen=True)
class Views:
    """Augmented views in training, plain or averaged ones in evaluation.

    Args:
        augment: What is done to training images.
        mixing: How they are mixed.
        tta: Test-time augmentation: the mean logits of an image and its mirror image (``flip``),
            or of these and the same moved by a pixel up and left, and down and right, where the
            unmoved ones count half (``translate``; Jordan, https://arxiv.org/abs/2404.00498).
        backbone: Whose mean colour blanked places have; None makes them black.
    """

    augment: Augment = field(default_factory=Augment)
    mixing: Mixing = field(default_factory=Mixing)
    tta: TTA = "none"
    backbone: ImageBackbone | None = None

    def augmented(
        self, batch: Mapping[str, Any], moment: Moment, number: int = 0
    ) -> dict[str, Any]:
        """Return a batch with its images augmented.

        Args:
            batch: With ``pixel_values`` and ``index``.
            moment: When.
            number: Of the view; each is drawn by itself.
        """
        samples = sample_numbers(batch) + (number << _VIEW)
        mean: Any = None if self.backbone is None else self.backbone.mean
        fill = None if mean is None else mean * 255
        images = self.augment(batch["pixel_values"], samples, moment, fill)
        return {**batch, "pixel_values": images}

    def mixed(
        self, batch: Mapping[str, Any], num_classes: int, moment: Moment
    ) -> Mapping[str, Any]:
        """Return a batch mixed, if anything is; its ``target`` then holds the shares of classes.

        Args:
            batch: With ``pixel_values``, ``index`` and ``label``.
            num_classes: Number of classes.
            moment: When.
        """
        if not self.mixing.mixes(moment.progress):
            return batch
        images, target = self.mixing(
            batch["pixel_values"], batch["label"], sample_numbers(batch), num_classes, moment
        )
        return {**batch, "pixel_values": images, "target": target}

    def logits(
        self, network: Callable[[Mapping[str, Any]], Tensor], batch: Mapping[str, Any]
    ) -> Tensor:
        """Return the mean logits (B, C) of a network over the views of an evaluation."""
        views = self.evaluation(batch)
        return torch.stack([weight * network(view).float() for weight, view in views]).sum(0)

    def evaluation(self, batch: Mapping[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """Return views of a batch with their weights, which add up to 1."""
        images = batch["pixel_values"]
        images = centre(images, self.augment.shape(images))
        moved = [(1.0, images)]
        if self.tta == "translate":
            height, width = images.shape[-2:]
            wide = F.pad(images.float(), [1] * 4, mode="reflect").to(images.dtype)
            corners = wide[..., :height, :width], wide[..., 2:, 2:]
            moved = [(0.5, images), *((0.25, corner) for corner in corners)]
        if self.tta != "none":
            moved = [(w / 2, view) for w, image in moved for view in (image, image.flip(-1))]
        return [(weight, {**batch, "pixel_values": view}) for weight, view in moved]
