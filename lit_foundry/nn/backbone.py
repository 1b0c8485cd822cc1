"""The contract shared by every feature extractor.

Shapes: B batch, N positions (tokens or patches), D feature width, C classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

from torch import Tensor, nn

from lit_foundry.nn.features import Features
from lit_foundry.nn.heads import EveryToken, LinearHead
from lit_foundry.recipe import Recorded

_RESTORING = ContextVar("restoring", default=False)


@contextmanager
def restoring() -> Iterator[None]:
    """Build networks without reading pretrained weights: a checkpoint will supply them all."""
    token = _RESTORING.set(True)
    try:
        yield
    finally:
        _RESTORING.reset(token)


def is_restoring() -> bool:
    """Tell whether a checkpoint is about to supply the weights."""
    return _RESTORING.get()


class Backbone(Recorded, nn.Module, ABC):
    """A feature extractor that any task can train, freeze, distil or export.

    Attributes:
        inputs: Batch fields that :meth:`forward` takes, in order.
        optional_inputs: Fields that follow where the batch holds them.
        dim: Feature width D.
        fitted_rows: Training samples that :meth:`fit_to` needs; 0 if the network needs no such.
    """

    inputs: ClassVar[tuple[str, ...]]
    optional_inputs: ClassVar[tuple[str, ...]] = ()
    fitted_rows: ClassVar[int] = 0
    dim: int

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Features:
        """Compute features of the ``inputs`` fields of a batch."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """Return the parts in depth order, the stem or embeddings first.

        Freezing, layer-wise learning rates and pruning count in these.
        """

    def encode(self, batch: Mapping[str, Any]) -> Features:
        """Compute features of a batch, reading the fields named by ``inputs``."""
        fields = [batch[name] for name in self.inputs]
        extra = {name: batch[name] for name in self.optional_inputs if name in batch}
        features: Features = self(*fields, **extra)
        return features

    def fit_to(self, batch: Mapping[str, Any]) -> None:
        """Initialize what depends on the data, from training samples, before anything is loaded."""

    def example(self, rows: int, size: int) -> dict[str, Tensor]:
        """Return a batch of ``inputs`` and ``optional_inputs``, with which an export is traced.

        Args:
            rows: Batch size B.
            size: Tokens of the longest text, or pixels of an image's edge.

        Raises:
            ValueError: If the backbone cannot be exported.
        """
        raise ValueError(f"{type(self).__name__} cannot be exported: it has no method example.")

    def classifier(self, num_classes: int, dropout: float | None = None) -> nn.Module:
        """Build the head that this family of networks classifies with.

        Args:
            num_classes: Number of classes C.
            dropout: Probability before the last layer; None takes the family's own.

        Returns:
            A module from :class:`Features` to (B, C) logits.
        """
        return LinearHead(self.dim, num_classes, dropout or 0.0)

    def tagger(self, num_classes: int, dropout: float | None = None) -> nn.Module:
        """Build the head that this family of networks tags tokens with.

        Args:
            num_classes: Number of tags C.
            dropout: Probability before the last layer; None takes the family's own.

        Returns:
            A module from :class:`Features` to (B, T, C) logits.
        """
        return EveryToken(LinearHead(self.dim, num_classes, dropout or 0.0))
