"""A trained network as one function of tensors, which a program is traced from.

Shapes: B batch, T tokens, C outputs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

# Rows and size (tokens) of what is compared, as far as the data's own longest allows.
SHAPES = ((1, 8), (3, 33), (8, 64), (2, 8192))
OUTPUTS = 10**8  # most of them at once


class Network(nn.Module):
    """What an export holds: all its inputs may be integers.

    Args:
        module: From a batch to its outputs, (B, C) or (B, T, C) logits, or (B,) values.
        inputs: Fields of a batch that it takes, in order; what ends in ``mask`` it takes as bool.
        example: From rows and size (tokens) to a batch of them, the same each time.

    Attributes:
        formats: What it can be exported as.
    """

    formats: ClassVar[tuple[str, ...]] = ("hf", "onnx", "torch", "safetensors")
    most = OUTPUTS  # tokens at once

    def __init__(
        self,
        module: nn.Module,
        inputs: Sequence[str],
        example: Callable[[int, int], Mapping[str, Tensor]],
    ) -> None:
        super().__init__()
        self.module, self.inputs, self._example = module, tuple(inputs), example

    def forward(self, *values: Tensor) -> Tensor:
        """Return the outputs of a batch, given its ``inputs`` in order."""
        fields = dict(zip(self.inputs, values, strict=True))
        batch = {name: v.bool() if name.endswith("mask") else v for name, v in fields.items()}
        outputs: Tensor = self.module(batch)
        return outputs

    def example(self, rows: int, size: int) -> tuple[Tensor, ...]:
        """Return inputs of so many rows and, of texts, so many tokens."""
        batch = self._example(rows, size)
        return tuple(batch[name].long() for name in self.inputs)

    def cases(self, facts: Mapping[str, int]) -> Iterator[tuple[Tensor, ...]]:
        """Yield inputs of several shapes, as far as the data allow."""
        for rows, size in SHAPES:
            yield self.example(rows, min(size, facts.get("max_length", size), self.most // rows))

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """Let rows and, of texts, size vary, alike in all inputs."""
        rows, size = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
        return tuple({0: rows, 1: size} for _ in self.inputs)

    def save_transformers(self, folder: Path, labels: Sequence[str]) -> None:
        """Write what the Auto class of ``transformers`` loads for the job.

        Raises:
            ValueError: If it has no such model.
        """
        raise ValueError(
            "transformers has no model like this network: export with --format onnx, torch or "
            "safetensors."
        )

    def complete(self, folder: Path, tokenizer: Any) -> None:
        """Add to a written folder what depends on the tokenizer beside it."""


class Headed(nn.Module):
    """A backbone with a head on its features."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what the head makes of a batch."""
        backbone: Any = self.backbone
        outputs: Tensor = self.head(backbone.encode(batch))
        return outputs
