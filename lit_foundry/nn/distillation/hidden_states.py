"""Losses on hidden states.

Shapes: B batch, T tokens, D feature width, h height, w width.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lit_foundry.nn.distillation.loss import DistillationLoss, Layers, mapped
from lit_foundry.nn.distillation.outputs import Outputs

NEARLY = 1e-5  # of the length of pooled features


class HiddenStates(DistillationLoss):
    """Distance of the hidden states of layers, the embeddings being layer 0.

        mean over layers and real tokens of |h_s W - h_t|^2 / D

    with a linear map W of each layer that is learnt along, where widths differ.

    Args:
        weight: Its weight in the sum.
        layers: Which layer of the student learns from which of the teacher; by default all, and
            the teacher's evenly.
        distance: ``mse`` as in TinyBERT; ``cosine`` is 1 - cos(h_s W, h_t), as in DistilBERT.

    Source: Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, 2019.
        https://arxiv.org/abs/1909.10351

        Sanh et al., DistilBERT, a distilled version of BERT, 2019.
        https://arxiv.org/abs/1910.01108
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})

    def __init__(
        self,
        weight: float = 1.0,
        layers: dict[int, int] | None = None,
        distance: Literal["mse", "cosine"] = "mse",
    ) -> None:
        super().__init__(weight)
        self.layers: Layers | None = layers
        self.distance = distance
        self.maps = nn.ModuleList()
        self.pairs: list[tuple[int, int]] = []

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        """Pair layers, and map widths."""
        count = len(student.hidden) - 1, len(teacher.hidden) - 1
        self.pairs = mapped(self.layers, *count, type(self).__name__)
        self.maps = nn.ModuleList()
        for mine, theirs in self.pairs:
            one, other = student.hidden[mine], teacher.hidden[theirs]
            if one.ndim != 3 or other.ndim != 3:
                raise ValueError(
                    f"model.losses: HiddenStates compares tokens, and layer {mine} of the student "
                    f"yields {tuple(one.shape)}, layer {theirs} of the teacher "
                    f"{tuple(other.shape)}: of feature maps take FitNets or AttentionTransfer."
                )
            widths = one.shape[-1], other.shape[-1]
            same = widths[0] == widths[1]
            self.maps.append(nn.Identity() if same else nn.Linear(*widths, bias=False))

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean over samples, of each over its tokens and layers."""
        total = student.logits.new_zeros(())
        for (mine, theirs), to_theirs in zip(self.pairs, self.maps, strict=True):
            one, other = to_theirs(student.hidden[mine]).float(), teacher.hidden[theirs].float()
            if self.distance == "mse":
                far = (one - other).square().mean(-1)
            else:
                far = 1 - F.cosine_similarity(one, other, dim=-1)
            total = total + over_tokens(far, student.mask).mean()
        return total / len(self.pairs)


def over_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean (B,) of each row of (B, T) where the mask is True."""
    if mask is None:
        return values.mean(1)
    return values.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)


class RKD(DistillationLoss):
    """Distances and angles between the pooled features of a micro-batch.

        distance mean_ij huber(|z_i - z_j| / mu) + angle mean_ijk huber(cos(z_i - z_j, z_k - z_j))

    where huber compares student and teacher, and mu is the mean distance in each. No map is
    needed between widths. Angles take memory with the third power of the micro-batch.

    Args:
        weight: Its weight in the sum.
        distance: Weight of distances.
        angle: Weight of angles.

    Source: Park et al., Relational Knowledge Distillation, 2019. https://arxiv.org/abs/1904.05068
    """

    needs: ClassVar[frozenset[str]] = frozenset({"pooled"})

    def __init__(self, weight: float = 1.0, distance: float = 1.0, angle: float = 2.0) -> None:
        super().__init__(weight)
        if min(distance, angle) < 0 or not distance + angle:
            raise ValueError("model.losses: RKD.distance and RKD.angle are at least 0, not both 0.")
        self.distance, self.angle = distance, angle

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return a scalar; 0 of a single sample."""
        assert student.pooled is not None
        assert teacher.pooled is not None
        one, other = student.pooled.float(), teacher.pooled.float()
        total = one.sum() * 0
        if len(one) > 1 and self.distance:
            total = total + self.distance * F.smooth_l1_loss(_distances(one), _distances(other))
        if len(one) > 1 and self.angle:
            total = total + self.angle * F.smooth_l1_loss(_angles(one), _angles(other))
        return total


def _distances(rows: Tensor) -> Tensor:
    squares = (rows[:, None] - rows[None]).square().sum(-1)
    apart = squares > 0  # the root has no gradient at 0
    found = squares.where(apart, 1.0).sqrt() * apart
    return found / (found.sum() / (len(rows) * (len(rows) - 1))).clamp(min=1e-12)


def _angles(rows: Tensor) -> Tensor:
    apart = rows[None] - rows[:, None]
    # Of two samples that are nearly equal, rounding decides the direction.
    far = apart.detach().norm(dim=-1, keepdim=True) > NEARLY * rows.detach().norm(dim=-1).mean()
    unit: Tensor = F.normalize(apart.where(far, 1.0), dim=-1) * far
    return unit @ unit.mT
