"""What a denoising autoencoder of texts has to undo: gaps, deleted tokens, sentences out of order.

Pure functions on the device of the batch, without a sync: all shapes are known beforehand.

Shapes: B batch, T tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_foundry import ranges
from lit_foundry.randomness import hashes, uniforms

_NEVER = torch.iinfo(torch.int64).max
_SENTENCE, _LENGTH, _ROUND, _PLACE, _DELETE = range(5)


@dataclass(frozen=True)
class Noising:
    """How texts are corrupted.

    Args:
        infill: Share of the words that gaps swallow, at least 0 and less than gap / (gap + 1), as
            a word lies between two gaps; a gap is seen as one mask token.
        gap: Mean length of a gap in words, of a Poisson distribution, 1 at least. A gap of no word
            is a mask token too many.
        delete: Share of the other tokens that are deleted, in [0, 1).
        permute: Put the sentences of a text into a random order.

    Raises:
        ValueError: If a value lies outside its range, or nothing is corrupted.

    Source: Lewis et al., BART: Denoising Sequence-to-Sequence Pre-training for Natural Language
        Generation, Translation, and Comprehension, 2019. https://arxiv.org/abs/1910.13461
    """

    infill: float = 0.3
    gap: float = 3.0
    delete: float = 0.0
    permute: bool = True

    def __post_init__(self) -> None:
        rules = {
            "infill": (
                0 <= self.infill < self.gap / (self.gap + 1),
                "is at least 0 and less than gap / (gap + 1)",
            ),
            "gap": (1 <= self.gap <= 100, "lies between 1 and 100 words"),
            "delete": (0 <= self.delete < 1, "lies in [0, 1)"),
        }
        ranges.check("model.noising", vars(self), rules)
        if not (self.infill or self.delete or self.permute):
            raise ValueError(
                "model.noising corrupts nothing: set infill or delete above 0, or permute to true."
            )


class Noised(NamedTuple):
    """What is seen of a batch of texts, padded on the right."""

    input_ids: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T) bool


class Kinds(NamedTuple):
    """Kinds of token ids, each of shape (V,) bool."""

    special: Tensor  # stands for no text
    continues: Tensor  # continues a word
    ends: Tensor  # ends a sentence


def add_noise(
    input_ids: Tensor,
    attention_mask: Tensor,
    kinds: Kinds,
    keys: Tensor,
    noising: Noising,
    mask_id: int,
    pad_id: int,
) -> Noised:
    """Corrupt texts: first the order of sentences, then gaps, then deletion.

    Special tokens stay, and sentences between those on either side of them.

    Args:
        input_ids: Token ids, padded on the right, shape (B, T).
        attention_mask: True at real tokens, shape (B, T).
        kinds: Of all token ids.
        keys: Of each sample, from :func:`lit_foundry.randomness.sample_keys`, shape (B,).
        noising: What is done.
        mask_id: Id of the mask token.
        pad_id: Id of padding.
    """
    size = input_ids.shape[1]
    text = attention_mask & ~kinds.special[input_ids]
    after_text = F.pad(text, (1, 0))[:, :-1]
    starts = text & (~kinds.continues[input_ids] | ~after_text)
    if noising.permute:
        order = sentence_order(input_ids, text, kinds, keys)
        # The first word of a text begins wherever it goes, though its token may not say so.
        input_ids, starts = input_ids.gather(1, order), starts.gather(1, order)
    word = (starts.long().cumsum(1) - 1).clamp(min=0)
    begins, swallowed = gaps(starts.sum(1), size, keys, noising)
    removed = text & swallowed.gather(1, word)
    # A gap that goes on behind special tokens is seen there too.
    masked = starts & (begins.gather(1, word) | (removed & ~after_text))
    removed |= text & (uniforms(keys, size, _DELETE) < noising.delete)
    kept = attention_mask & ~removed
    # Where special tokens cut gaps in two, gaps of no word may be too many for the row.
    longer = (kept.long() + masked).sum(1) > attention_mask.sum(1)
    masked &= removed | ~longer[:, None]
    upto = (kept.long() + masked).cumsum(1)
    seen = torch.full_like(F.pad(input_ids, (0, 1)), pad_id)  # the last is for what is not there
    place = torch.where(kept, upto - 1, size).clamp(max=size)
    seen.scatter_(1, place, input_ids)
    place = torch.where(masked, upto - 1 - kept.long(), size).clamp(max=size)
    seen.scatter_(1, place, torch.full_like(input_ids, mask_id))
    there = torch.arange(size, device=keys.device) < upto[:, -1:]
    return Noised(seen[:, :-1], there)


def sentence_order(input_ids: Tensor, text: Tensor, kinds: Kinds, keys: Tensor) -> Tensor:
    """Return which token goes to each place when sentences are permuted, shape (B, T).

    A sentence ends where a token that ends one is followed by a word that does not.
    """
    after_text = F.pad(text, (1, 0))[:, :-1]
    ends = kinds.ends[input_ids]
    after_end = F.pad(ends, (1, 0))[:, :-1] & ~ends & ~kinds.continues[input_ids]
    sentence = (text & (~after_text | after_end)).long().cumsum(1)
    stretch = (~text | ~after_text).long().cumsum(1)  # of text between special tokens
    rank = hashes(keys, input_ids.shape[1] + 1, _SENTENCE).gather(1, sentence) >> 39
    # Stretch, then rank, then sentence, of which no two have the same number; 24 and 20 bits.
    return ((stretch << 44) + (rank * text << 20) + sentence).argsort(dim=1, stable=True)


def gaps(words: Tensor, size: int, keys: Tensor, noising: Noising) -> tuple[Tensor, Tensor]:
    """Return where gaps begin, and which words they swallow; both (B, T) bool, by word.

    Gaps lie apart by a word at least, all such placements being equally probable.

    Args:
        words: Number of words of each text, shape (B,).
        size: T, the number of words at most.
        keys: Of each sample, shape (B,).
        noising: Share and mean length.
    """
    budget = (noising.infill * words + uniforms(keys, 1, _ROUND)[:, 0]).long().minimum(words)
    lengths = poisson(uniforms(keys, size, _LENGTH), noising.gap)
    room = (budget[:, None] - (lengths.cumsum(1) - lengths)).clamp(min=0)
    lengths = lengths.minimum(room)  # the last one is cut
    swallowed = lengths.sum(1, keepdim=True)
    # Not more mask tokens than words swallowed, so that no text gets longer.
    empty = (room > 0) & (lengths == 0)
    there = lengths > 0
    there |= empty & (empty.cumsum(1) <= swallowed - there.sum(1, keepdim=True))
    # A slot lies before each word that is left, and one behind the last.
    left = words[:, None] - swallowed
    slots = torch.arange(size + 1, device=keys.device) <= left
    order = torch.where(slots, hashes(keys, size + 1, _PLACE), _NEVER).argsort(1)
    rank = (there.cumsum(1) - 1).clamp(min=0)
    there &= rank <= left
    slot = order.gather(1, rank)
    at = torch.zeros_like(order).scatter_add(1, slot, lengths * there)
    chosen = torch.zeros_like(order).scatter_add(1, slot, there.long()) > 0
    first = torch.arange(size + 1, device=keys.device) + at.cumsum(1) - at
    outside = size + 1
    first = torch.where(chosen, first, outside)
    begins = F.pad(torch.zeros_like(slots), (0, 1)).scatter(1, first, True)
    edges = torch.zeros_like(begins, dtype=torch.long)
    edges.scatter_add_(1, first, chosen.long())
    edges.scatter_add_(1, (first + at).clamp(max=outside), -chosen.long())
    begins &= torch.arange(size + 2, device=keys.device) < words[:, None]  # not behind the last
    return begins[:, :size], edges.cumsum(1)[:, :size] > 0


def poisson(draws: Tensor, mean: float) -> Tensor:
    """Turn uniform numbers into those of a Poisson distribution, by its inverse."""
    count = torch.arange(int(8 * mean) + 20, dtype=torch.float64)
    log = count * torch.tensor(mean, dtype=torch.float64).log() - mean - torch.lgamma(count + 1)
    return torch.searchsorted(log.exp().cumsum(0).float().to(draws.device), draws, right=True)
