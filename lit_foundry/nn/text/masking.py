"""Which tokens a masked language model has to predict, and what it sees in their place.

Pure functions on the device of the batch, without a sync: all shapes are known beforehand.

Shapes: B batch, T tokens, K predictions at most.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lit_foundry import ranges
from lit_foundry.randomness import as_uniform, hashes, mix, uniforms

IGNORED = -100  # target of a place that predicts nothing, as in torch's cross-entropy
_NEVER = torch.iinfo(torch.int64).max
# Words may have more tokens than are left of a row's budget; what exceeds this is not predicted.
_SLACK = 16
_SELECT, _LENGTH, _ROUND, _REPLACE, _RANDOM = range(5)


@dataclass(frozen=True)
class Masking:
    """What is masked.

    Args:
        prob: Share of the tokens to predict, in (0, 1), at the beginning of the run. BERT has
            0.15; encoders trained longer have 0.3 (ModernBERT).
        final_prob: Share at the end of the run, reached linearly; None keeps ``prob``.
        unit: What is masked as one: ``token``, whole ``word``, or ``span`` of words (SpanBERT).
        mask_share: Share of the predicted tokens that the network sees as the mask token.
        random_share: Share that it sees as a random token; the rest it sees as they are.
        span_prob: Parameter of the geometric distribution of a span's words.
        max_span: Most words of a span.

    Raises:
        ValueError: If a value lies outside its range.

    Source: Devlin et al., BERT, 2018, https://arxiv.org/abs/1810.04805 (0.15; 80/10/10);
        Joshi et al., SpanBERT, 2019, https://arxiv.org/abs/1907.10529 (spans of 3.8 words);
        Wettig et al., Should You Mask 15% in Masked Language Modeling?, 2022,
        https://arxiv.org/abs/2202.08005 (higher shares); Yang et al., Learning Better Masking for
        Better Language Model Pre-training, 2022, https://arxiv.org/abs/2208.10806 (falling shares)
    """

    prob: float = 0.15
    final_prob: float | None = None
    unit: Literal["token", "word", "span"] = "token"
    mask_share: float = 0.8
    random_share: float = 0.1
    span_prob: float = 0.2
    max_span: int = 10

    def __post_init__(self) -> None:
        shares = self.mask_share, self.random_share
        rules = {
            "prob": (0 < self.prob < 1, "lies in (0, 1)"),
            "final_prob": (self.final_prob is None or 0 < self.final_prob < 1, "lies in (0, 1)"),
            "mask_share": (min(shares) >= 0 and sum(shares) <= 1, "and random_share share 1"),
            "span_prob": (0 < self.span_prob < 1, "lies in (0, 1)"),
            "max_span": (self.max_span >= 1, "is at least 1 word"),
        }
        ranges.check("model.masking", vars(self), rules)

    def prob_at(self, progress: float) -> float:
        """Return the share to predict when a fraction ``progress`` of the run is done."""
        final = self.prob if self.final_prob is None else self.final_prob
        return self.prob + (final - self.prob) * progress

    def room(self, size: int) -> int:
        """Return K for rows of ``size`` tokens, at any time of the run."""
        most = max(self.prob, self.final_prob or 0.0)
        return min(size, math.ceil(most * size) + (0 if self.unit == "token" else _SLACK))


class Masked(NamedTuple):
    """A batch with its masks."""

    input_ids: Tensor  # (B, T), what the network sees
    positions: Tensor  # (B, K), where it predicts
    target: Tensor  # (B, K), the tokens there, IGNORED beyond those of a row


def mask_tokens(
    input_ids: Tensor,
    maskable: Tensor,
    starts: Tensor,
    keys: Tensor,
    masking: Masking,
    prob: float,
    room: int,
    mask_id: int,
    vocab_size: int,
) -> Masked:
    """Choose the tokens to predict, and corrupt them.

    Args:
        input_ids: Token ids, shape (B, T).
        maskable: True where a token may be predicted: no padding, no special token; (B, T).
        starts: True where a word begins, shape (B, T).
        keys: Of each sample, from :func:`lit_foundry.randomness.sample_keys`, shape (B,).
        masking: What is masked.
        prob: Share of the maskable tokens to predict; exact in expectation, and to one token in
            each row where tokens are masked one by one.
        room: Most predictions K of a row.
        mask_id: Id of the mask token.
        vocab_size: Number of ids V that random tokens are drawn from.
    """
    size = input_ids.shape[1]
    order = cover_order(maskable, starts, keys, masking)
    total = maskable.sum(1)
    rounding = uniforms(keys, 2, _ROUND)
    budget = torch.floor(prob * total + rounding[:, 0]).long().clamp(min=1)
    budget = torch.minimum(budget, total)
    ranked, positions = order.topk(room, dim=1, largest=False, sorted=True)
    # Units are chosen in order until the budget is spent. The one that would exceed it is taken
    # with the probability that makes the expected number of tokens equal to the budget.
    last = ranked.gather(1, budget.clamp(max=room - 1)[:, None])
    before, upto = (ranked < last).sum(1), (ranked <= last).sum(1)
    excess = (budget - before) / (upto - before).clamp(min=1)
    included = (rounding[:, 1] < excess)[:, None]
    chosen = ((ranked < last) | ((ranked == last) & included)) & (ranked != _NEVER)
    original = input_ids.gather(1, positions)
    # A span is masked, replaced or kept as one (SpanBERT); of a word, each token for itself.
    as_one = mix(ranked) & (2**63 - 1)
    own = hashes(keys, size, _REPLACE).gather(1, positions)
    draw = as_uniform(as_one if masking.unit == "span" else own)
    random = hashes(keys, size, _RANDOM).gather(1, positions) % vocab_size
    seen = torch.where(draw < masking.mask_share, mask_id, original)
    is_random = (draw >= masking.mask_share) & (draw < masking.mask_share + masking.random_share)
    seen = torch.where(chosen & is_random, random, torch.where(chosen, seen, original))
    target = torch.where(chosen, original, IGNORED)
    return Masked(input_ids.scatter(1, positions, seen), positions, target)


def cover_order(maskable: Tensor, starts: Tensor, keys: Tensor, masking: Masking) -> Tensor:
    """Return when each token is chosen, smallest first; equal numbers are chosen as one.

    Every unit (token or word) has a random rank, and a span begins at each. A token is chosen
    with the first span that covers it, which no special token or padding interrupts.

    Returns:
        Random ranks, shape (B, T) int64; the largest int64 where a token is not maskable.
    """
    size = maskable.shape[1]
    ranks = hashes(keys, size, _SELECT)
    if masking.unit == "token":
        return torch.where(maskable, ranks, _NEVER)
    # A token that is not maskable is a unit of its own, and so is what follows it.
    starts = starts | ~maskable | ~maskable.roll(1, 1)
    units = (starts.long().cumsum(1) - 1).clamp(min=0)
    if masking.unit == "span":
        ranks = _covered(ranks, units, maskable, keys, masking)
    return torch.where(maskable, ranks.gather(1, units), _NEVER)


def _covered(
    ranks: Tensor, units: Tensor, maskable: Tensor, keys: Tensor, masking: Masking
) -> Tensor:
    """Return the smallest rank of the spans that cover each unit, shape (B, T)."""
    lengths = span_lengths(uniforms(keys, ranks.shape[1], _LENGTH), masking)
    # Spans stay within a block: units between two tokens that are not maskable.
    blocks = torch.zeros_like(units).scatter(1, units, (~maskable).long().cumsum(1))
    covered = ranks
    for distance in range(1, min(masking.max_span, ranks.shape[1])):
        reaches = (lengths > distance) & (blocks == blocks.roll(-distance, 1))
        shifted = torch.where(reaches, ranks, _NEVER).roll(distance, 1)
        shifted[:, :distance] = _NEVER
        covered = torch.minimum(covered, shifted)
    return covered


def span_lengths(draws: Tensor, masking: Masking) -> Tensor:
    """Turn uniform numbers into lengths of spans: geometric, truncated at ``max_span``."""
    stay = 1 - masking.span_prob
    inside = 1 - stay**masking.max_span  # so that 1 to max_span have probability 1
    return (torch.log1p(-draws * inside) / math.log(stay)).floor().long() + 1
