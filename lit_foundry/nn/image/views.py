"""What a task makes of a batch of images before its network sees them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_foundry.nn.image.augment import Augment, centre
from lit_foundry.nn.image.mixing import Mixing
from lit_foundry.randomness import sample_numbers

TTA = Literal["none", "flip", "translate"]


@dataclass(frozen=True)
class Views:
    """Augmented views in training, plain or averaged ones in evaluation.

    Args:
        augment: What is done to training images.
        mixing: How they are mixed.
        tta: Test-time augmentation: the mean logits of an image and its mirror image (``flip``),
            or of these and the same moved by a pixel up and left, and down and right, where the
            unmoved ones count half (``translate``; Jordan, https://arxiv.org/abs/2404.00498).
    """

    augment: Augment = field(default_factory=Augment)
    mixing: Mixing = field(default_factory=Mixing)
    tta: TTA = "none"

    def train(
        self, batch: Mapping[str, Any], num_classes: int, fill: Tensor, **when: Any
    ) -> dict[str, Any]:
        """Return a batch augmented and mixed; ``target`` holds the shares of classes if mixed.

        Args:
            batch: With ``pixel_values``, ``index`` and ``label``.
            num_classes: Number of classes.
            fill: What blanked places hold, shape (C, 1, 1), 0 to 255.
            when: ``seed``, ``epoch`` and ``progress`` of the run.
        """
        index, progress = sample_numbers(batch), when.pop("progress")
        images = self.augment(batch["pixel_values"], index, **when, progress=progress, fill=fill)
        views = {**batch, "pixel_values": images}
        if self.mixing.mixes(progress):
            views["pixel_values"], views["target"] = self.mixing(
                images, batch["label"], index, num_classes, **when
            )
        return views

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
