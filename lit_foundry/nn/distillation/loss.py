"""The contract of what a student learns from a teacher.

Shapes: those of :mod:`~lit_foundry.nn.distillation.outputs`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn.distillation.outputs import Outputs


class DistillationLoss(nn.Module, ABC):
    """A distance between student and teacher. A subclass implements :meth:`forward`.

    Args:
        weight: Its weight in the sum of all losses.

    Attributes:
        needs: What it reads of both beside the logits: ``pooled``, ``hidden``, ``attention``.
        of_classes: Whether it reads logits as those of classes.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    of_classes: ClassVar[bool] = False

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        ranges.check("model.losses", {"weight": weight}, {"weight": (weight > 0, "is above 0")})
        self.weight = weight

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        """Build what maps one to the other, by the outputs of both on an example.

        Raises:
            ValueError: If they do not go together.
        """

    @abstractmethod
    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the distance, a scalar: the mean over samples, or over predictions."""


Layers = Mapping[int, int]  # a student's layer, and the teacher's from which it learns


def mapped(
    layers: Layers | None, student: int, teacher: int, name: str, first: int = 0
) -> list[tuple[int, int]]:
    """Return which layer of a student learns from which of a teacher.

    Args:
        layers: As written; None spreads the student's evenly, so that both ends meet.
        student: Number of its last layer, the first being 0.
        teacher: Number of the teacher's last layer.
        name: What the loss is called.
        first: Number of the first layer that it compares.

    Raises:
        ValueError: If one of them has no such layer.
    """
    if layers is None:
        return [(i, i * teacher // max(student, 1)) for i in range(first, student + 1)]
    if not layers:
        raise ValueError(f"model.losses: {name}.layers is empty: leave it out, or name some.")
    for key, value in layers.items():
        if not (first <= key <= student and first <= value <= teacher):
            raise ValueError(
                f"model.losses: {name}.layers={dict(layers)} has {key}: {value}, where layers "
                f"begin with {first}, the student's end with {student} and the teacher's with "
                f"{teacher}."
            )
    return list(layers.items())
