"""Losses on attention.

Shapes: B batch, H heads, T tokens, d width of a head.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_foundry.nn.distillation.hidden_states import over_tokens
from lit_foundry.nn.distillation.loss import DistillationLoss, Layers, mapped
from lit_foundry.nn.distillation.outputs import Attention, Outputs

Relation = Literal["qk", "qq", "kk", "vv"]
NAMES = {"q": "query", "k": "key", "v": "value"}


class _OfLayers(DistillationLoss):
    """A loss on some layers of attention, numbered from 1 like the blocks that they lie in."""

    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    layers: Layers | None
    pairs: list[tuple[int, int]]

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        """Pair layers."""
        for name, outputs in {"student": student, "teacher": teacher}.items():
            if not outputs.attention:
                raise ValueError(
                    f"model.losses: {type(self).__name__} finds no attention of torch in the "
                    f"{name}: take a network with attention: sdpa, or another loss."
                )
        count = len(student.attention), len(teacher.attention)
        self.pairs = mapped(self.chosen(*count), *count, type(self).__name__, first=1)

    def chosen(self, student: int, teacher: int) -> Layers | None:
        """Return the layers that are compared."""
        return self.layers


class Attentions(_OfLayers):
    """Distance of the attention scores of layers, before the softmax.

        mean over layers, heads and pairs of real tokens of (a_s - a_t)^2, a = q k / sqrt(d)

    Args:
        weight: Its weight in the sum.
        layers: Which layer of the student learns from which of the teacher, the first being 1; by
            default all, and the teacher's evenly.

    Source: Jiao et al., TinyBERT: Distilling BERT for Natural Language Understanding, 2019.
        https://arxiv.org/abs/1909.10351
    """

    def __init__(self, weight: float = 1.0, layers: dict[int, int] | None = None) -> None:
        super().__init__(weight)
        self.layers, self.pairs = layers, []

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        """Pair layers, whose heads must be as many."""
        super().prepare(student, teacher)
        heads = student.attention[0].query.shape[1], teacher.attention[0].query.shape[1]
        if heads[0] != heads[1]:
            raise ValueError(
                f"model.losses: Attentions compares head by head, and the student has {heads[0]}, "
                f"the teacher {heads[1]}: take AttentionRelations, or as many heads."
            )

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean over samples."""
        total = student.logits.new_zeros(())
        for mine, theirs in self.pairs:
            one, other = (
                _scores(student.attention[mine - 1]),
                _scores(teacher.attention[theirs - 1]),
            )
            far = (one - other).square().mean(1)
            columns = torch.stack([over_tokens(row, student.mask) for row in far.unbind(1)], 1)
            total = total + over_tokens(columns, student.mask).mean()
        return total / len(self.pairs)


class AttentionRelations(_OfLayers):
    """Divergence of how tokens relate by their queries, keys and values.

        mean over relations, heads and real tokens of KL(R_t || R_s), R = softmax(a b / sqrt(d))

    with a and b the queries, keys or values of two tokens.

    The vectors of all heads of a token are joined and cut into ``heads`` parts, so that student and
    teacher may have other widths and other heads. MiniLM takes ``[qk, vv]``, MiniLMv2 the default.

    Args:
        weight: Its weight in the sum.
        relations: Which are compared: of queries, keys and values, two letters each.
        heads: Number of relation heads; None takes the student's heads.
        layers: Which layer of the student learns from which of the teacher, the first being 1; by
            default the last from the last.

    Source: Wang et al., MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of
        Pre-Trained Transformers, 2020. https://arxiv.org/abs/2002.10957

        Wang et al., MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing
        Pretrained Transformers, 2020. https://arxiv.org/abs/2012.15828
    """

    def __init__(
        self,
        weight: float = 1.0,
        relations: tuple[Relation, ...] = ("qq", "kk", "vv"),
        heads: int | None = None,
        layers: dict[int, int] | None = None,
    ) -> None:
        super().__init__(weight)
        if not relations:
            raise ValueError("model.losses: AttentionRelations.relations names one at least.")
        self.relations, self.heads = tuple(relations), heads
        self.layers, self.pairs = layers, []

    def chosen(self, student: int, teacher: int) -> Layers:
        """Return the layers that are compared."""
        return {student: teacher} if self.layers is None else self.layers

    def prepare(self, student: Outputs, teacher: Outputs) -> None:
        """Pair layers, whose widths must be divided by the heads."""
        super().prepare(student, teacher)
        self.heads = self.heads or student.attention[0].query.shape[1]
        for outputs in (student, teacher):
            widths = [tensor.shape[1] * tensor.shape[3] for tensor in outputs.attention[0]]
            if "qk" in self.relations and widths[0] != widths[1]:
                raise ValueError(
                    "model.losses: AttentionRelations.relations has qk, and queries and keys have "
                    f"the widths {widths[0]} and {widths[1]}: take qq, kk and vv."
                )
            for width in widths:
                if width % self.heads:
                    raise ValueError(
                        f"model.losses: AttentionRelations.heads={self.heads} does not divide a "
                        f"width of {width}: set it to a divisor."
                    )

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        """Return the mean over samples."""
        total = student.logits.new_zeros(())
        for mine, theirs in self.pairs:
            for relation in self.relations:
                log_s, log_t = (
                    self._related(outputs.attention[layer - 1], relation, student.mask)
                    for outputs, layer in ((student, mine), (teacher, theirs))
                )
                terms = F.kl_div(log_s, log_t, reduction="none", log_target=True)
                if student.mask is not None:  # a token that is none relates with probability 0
                    terms = terms.masked_fill(~student.mask[:, None, None], 0)
                total = total + over_tokens(terms.sum(-1).mean(1), student.mask).mean()
        return total / (len(self.pairs) * len(self.relations))

    def _related(self, layer: Attention, relation: str, mask: Tensor | None) -> Tensor:
        """Return the logarithm of how tokens relate, shape (B, heads, T, T)."""
        one, other = (
            getattr(layer, NAMES[letter]).float().transpose(1, 2).flatten(2) for letter in relation
        )
        one, other = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (one, other))
        scores = one @ other.mT / one.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        return F.log_softmax(scores, -1)


def _scores(layer: Attention) -> Tensor:
    """Return the attention scores (B, H, T, T), keys repeated where several heads share them."""
    query, key = layer.query.float(), layer.key.float()
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores: Tensor = query @ key.mT / query.shape[-1] ** 0.5
    return scores
