"""Losses on the feature maps of convolutional networks.

Shapes: B batch, D channels, h height, w width.
"""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from lit_foundry.nn.distillation.loss import DistillationLoss, Layers, mapped
from lit_foundry.nn.distillation.outputs import Outputs


class _OfMaps(DistillationLoss):
    """A loss on the feature maps of some blocks, the stem being 0."""

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})

    def __init__(self, weight: float = 1.0, layers: dict[int, int] | None = None) -> None:
        super().__init__(weight)
        self.layers: Layers | None = layers
        self.pairs: list[tuple[int, int]] = []

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        """Pair blocks; without ``layers``, those that yield feature maps."""
        count = len(student.hidden) - 1, len(teacher.hidden) - 1
        pairs = mapped(self.layers, *count, type(self).__name__)
        are_maps = [student.hidden[i].ndim == teacher.hidden[j].ndim == 4 for i, j in pairs]
        if not any(are_maps) or (self.layers and not all(are_maps)):
            raise ValueError(
                f"model.losses: {type(self).__name__} compares feature maps, and a layer of "
                "student or teacher yields none: of tokens take HiddenStates."
            )
        self.pairs = [pair for pair, maps in zip(pairs, are_maps, strict=True) if maps]

    def both(self, student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
        """Return pairs of maps, the larger one averaged to the size of the other."""
        found = []
        for mine, theirs in self.pairs:
            maps = [student.hidden[mine].float(), teacher.hidden[theirs].float()]
            size = tuple(min(edges) for edges in zip(*(m.shape[2:] for m in maps), strict=True))
            one, other = (
                m if m.shape[2:] == size else F.adaptive_avg_pool2d(m, size) for m in maps
            )
            found.append((one, other))
        return found


class FitNets(_OfMaps):
    """Distance of feature maps, through a 1x1 convolution of each that is learnt along.

        mean over blocks, positions and channels of (r(f_s) - f_t)^2

    Args:
        weight: Its weight in the sum.
        layers: Which block of the student learns from which of the teacher, the stem being 0; by
            default all, and the teacher's evenly.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, 2014. https://arxiv.org/abs/1412.6550
    """

    def __init__(self, weight: float = 1.0, layers: dict[int, int] | None = None) -> None:
        super().__init__(weight, layers)
        self.maps = nn.ModuleList()

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        """Pair blocks, and map channels."""
        super().prepare(student, teacher)
        self.maps = nn.ModuleList()
        for mine, theirs in self.pairs:
            channels = student.hidden[mine].shape[1], teacher.hidden[theirs].shape[1]
            self.maps.append(nn.Conv2d(*channels, 1))

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean over samples."""
        pairs = zip(self.both(student, teacher), self.maps, strict=True)
        found = [F.mse_loss(regressor(one), other) for (one, other), regressor in pairs]
        return sum(found[1:], found[0]) / len(found)


class AttentionTransfer(_OfMaps):
    """Distance of where feature maps are strong.

        mean over blocks of the sum over positions of (Q_s / |Q_s| - Q_t / |Q_t|)^2

    with Q the sum of squares over channels.

    Args:
        weight: Its weight in the sum.
        layers: Which block of the student learns from which of the teacher, the stem being 0; by
            default all, and the teacher's evenly.

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, 2016.
        https://arxiv.org/abs/1612.03928
    """

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean over samples."""
        found = []
        for maps in self.both(student, teacher):
            one, other = (F.normalize(m.square().sum(1).flatten(1), dim=1) for m in maps)
            found.append((one - other).square().sum(1).mean())
        return sum(found[1:], found[0]) / len(found)
