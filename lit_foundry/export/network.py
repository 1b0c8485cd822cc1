"""Backbone and head as one function of tensors, which a program is traced from.

Shapes: B batch, T tokens, V vocabulary, C classes.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.nn import Backbone
from lit_foundry.nn.image.backbone import random_images
from lit_foundry.nn.image.views import Views

# Rows and size (tokens) of what is compared, as far as the data's own longest allows.
SHAPES = ((1, 8), (3, 33), (8, 64), (2, 8192))
LOGITS = 10**8  # most of them at once


class Network(nn.Module):
    """Backbone and head as a function of tensors, all of which may be integers.

    Args:
        backbone: Text or image encoder.
        head: From its features to (B, C) logits.
        data: Data module; optional inputs that its batches lack are left out.

    Attributes:
        inputs: Fields that :meth:`forward` takes, in order.
    """

    most = LOGITS  # tokens at once

    def __init__(self, backbone: Backbone, head: nn.Module, data: Any) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        optional = [name for name in backbone.optional_inputs if name in data.batch_fields]
        self.inputs = (*backbone.inputs, *optional)

    def forward(self, *values: Tensor) -> Tensor:
        """Return (B, C) logits."""
        batch = dict(zip(self.inputs, values, strict=True))
        if "attention_mask" in batch:
            batch["attention_mask"] = batch["attention_mask"].bool()
        logits: Tensor = self.head(self.backbone.encode(batch))
        return logits

    def example(self, rows: int, size: int) -> tuple[Tensor, ...]:
        """Return inputs of so many rows and, of texts, so many tokens."""
        batch = self.backbone.example(rows, size)
        return tuple(batch[name].long() for name in self.inputs)

    def cases(self, facts: Mapping[str, int]) -> Iterator[tuple[Tensor, ...]]:
        """Yield inputs of several shapes, as far as the data allow."""
        for rows, size in SHAPES:
            yield self.example(rows, min(size, facts["max_length"], self.most // rows))

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Let rows and size vary, alike in all inputs."""
        rows, size = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
        return tuple({0: rows, 1: size} for _ in self.inputs)


class ImageNetwork(Network):
    """Backbone and head as a function of images of one size, with pixels from 0 to 255 (uint8).

    Args:
        backbone: Image encoder.
        head: From its features to (B, C) logits.
        data: Data module, whose images are square.
        views: What is cut out of an image, and averaged.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, data: Any, views: Views) -> None:
        super().__init__(backbone, head, data)
        self.views = views
        if "image_size" not in data.facts:
            raise CheckpointError("Only square images are exported: set data.size and fit again.")
        self.size = data.facts["image_size"]
        self.fit = data.state().get("fit", "squash")

    def forward(self, *values: Tensor) -> Tensor:
        """Return (B, C) logits."""
        batch = dict(zip(self.inputs, values, strict=True))
        return self.views.logits(lambda view: self.head(self.backbone.encode(view)), batch)

    def example(self, rows: int, size: int) -> tuple[Tensor, ...]:
        """Return so many images of the data's size."""
        backbone: Any = self.backbone
        return (random_images(rows, backbone.in_channels, self.size),)

    def cases(self, facts: Mapping[str, int]) -> Iterator[tuple[Tensor, ...]]:
        """Yield several numbers of images."""
        return (self.example(rows, self.size) for rows in (1, 3, 8))

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Let the number of images vary."""
        return ({0: torch.export.Dim.DYNAMIC},)


class LanguageNetwork(Network):
    """Backbone and language head as a function of tensors."""

    def __init__(self, backbone: Backbone, head: nn.Module, data: Any) -> None:
        super().__init__(backbone, head, data)
        self.most = LOGITS // data.facts["vocab_size"]

    def forward(self, *values: Tensor) -> Tensor:
        """Return (B, T, V) logits."""
        batch = dict(zip(self.inputs, values, strict=True))
        tokens = self.backbone.encode(batch | {"attention_mask": batch["attention_mask"].bool()})
        head: Any = self.head
        logits: Tensor = head(tokens.tokens, head.decoder_weight(self.backbone))
        return logits
