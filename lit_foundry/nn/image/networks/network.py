"""Image networks as functions of tensors.

Shapes: B batch, C outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.nn.image.backbone import ImageBackbone, random_images
from lit_foundry.nn.image.networks.as_transformers import image_classifier, image_processor
from lit_foundry.nn.image.views import Views
from lit_foundry.nn.network import Headed, Network


class ImageNetwork(Network):
    """Backbone and head as a function of images of one size, with pixels from 0 to 255 (uint8).

    Args:
        backbone: Image encoder.
        head: From its features to (B, C) outputs.
        views: What is cut out of an image, and averaged.
        size: Edge of the images, which are square.
        fit: How files are fitted to it: ``crop``, ``squash``.
        problem: What ``transformers`` calls the kind of outputs.
    """

    def __init__(
        self,
        backbone: ImageBackbone,
        head: nn.Module,
        views: Views,
        size: int,
        fit: str,
        problem: str = "single_label_classification",
    ) -> None:
        super().__init__(OnViews(backbone, head, views), backbone.inputs, backbone.example)
        self.views, self.size, self.fit, self.problem = views, size, fit, problem

    @property
    def parts(self) -> "OnViews":
        """Backbone, head and views."""
        assert isinstance(self.module, OnViews)
        return self.module

    def show_one_view(self) -> None:
        """Average no views: what others load sees an image as it is."""
        self.views = replace(self.views, tta="none")
        self.parts.views = self.views

    def example(self, rows: int, size: int) -> tuple[Tensor, ...]:
        """Return so many images of the data's size."""
        return (random_images(rows, self.parts.backbone.in_channels, self.size),)

    def cases(self, facts: Mapping[str, int]) -> Iterator[tuple[Tensor, ...]]:
        """Yield several numbers of images."""
        return (self.example(rows, self.size) for rows in (1, 3, 8))

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Let the number of images vary."""
        return ({0: torch.export.Dim.DYNAMIC},)

    def save_transformers(self, folder: Path, labels: Sequence[str]) -> None:
        """Write the model of ``AutoModelForImageClassification``, and its image processor."""
        model = image_classifier(self.parts.backbone, self.parts.head, labels, self.problem)
        crop = self.views.augment.size or self.size
        image_processor(self.parts.backbone, self.size, self.fit, crop).save_pretrained(folder)
        model.save_pretrained(folder)


class OnViews(Headed):
    """A backbone with a head, averaged over views of images."""

    backbone: ImageBackbone

    def __init__(self, backbone: ImageBackbone, head: nn.Module, views: Views) -> None:
        super().__init__(backbone, head)
        self.views = views

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean outputs (B, C)."""
        return self.views.logits(super().forward, batch)
