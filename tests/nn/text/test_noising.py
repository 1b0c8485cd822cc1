"""Noise has the proportions of the paper, and is a function of seed, epoch and sample."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_foundry.nn.text.noising import Kinds, Noised, Noising, add_noise, gaps, poisson
from lit_foundry.randomness import sample_keys

PAD, BEGIN, END, MASK, STOP, V = 0, 2, 3, 4, 5, 60
B, T = 2000, 40
KINDS = Kinds(*torch.zeros(3, V, dtype=torch.bool))
KINDS.special[[PAD, BEGIN, END, MASK]] = True
KINDS.ends[STOP] = True
KINDS.continues[50:] = True


def texts(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Make framed texts of 1 to 38 tokens, one in six of which continues a word."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(STOP, V, (B, T), generator=generator)
    ends = torch.randint(2, T, (B, 1), generator=generator)
    ends[0] = T - 1
    place = torch.arange(T)
    ids = ids.where(place < ends, END).where(place <= ends, PAD)
    ids[:, 0] = BEGIN
    return ids, place <= ends


def noised(noising: Noising, seed: int = 0, epoch: int = 0) -> tuple[Tensor, Tensor, Noised]:
    ids, mask = texts()
    keys = sample_keys(seed, epoch, torch.arange(B))
    return ids, mask, add_noise(ids, mask, KINDS, keys, noising, MASK, PAD)


def rows(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


def words(row: list[int]) -> list[tuple[int, ...]]:
    """Cut a text without special tokens into words."""
    found: list[list[int]] = []
    for token in row:
        if found and token >= 50:
            found[-1].append(token)
        else:
            found.append([token])
    return [tuple(word) for word in found]


def test_draws_are_those_of_poisson() -> None:
    lengths = poisson((torch.arange(100_000) + 0.5) / 100_000, 3.0)
    want = torch.distributions.Poisson(torch.tensor(3.0))
    for count in range(12):
        share = float((lengths == count).float().mean())
        prob = float(want.log_prob(torch.tensor(float(count))).exp())
        assert share == pytest.approx(prob, abs=1e-4)


@pytest.mark.parametrize("infill", [0.15, 0.3, 0.5])
def test_gaps_swallow_their_share_and_lie_apart(infill: float) -> None:
    count = torch.randint(0, T + 1, (B,))
    keys = sample_keys(0, 0, torch.arange(B))
    begins, swallowed = gaps(count, T, keys, Noising(infill=infill))
    assert not (swallowed | begins)[torch.arange(T) >= count[:, None]].any()
    assert float(swallowed.sum() / count.sum()) == pytest.approx(infill, abs=0.01)
    assert (swallowed.sum(1) >= (infill * count).floor() - 1e-3).all()
    assert (swallowed.sum(1) <= (infill * count).floor() + 1).all()
    assert (begins.sum(1) <= swallowed.sum(1)).all()
    # Where one gap ends another does not begin: a word is between.
    first = swallowed.clone()
    first[:, 1:] &= ~swallowed[:, :-1]
    assert torch.equal(first, begins & swallowed)


def test_lengths_and_places_of_gaps() -> None:
    keys, count = sample_keys(0, 0, torch.arange(20_000)), torch.full((20_000,), 200)
    begins, swallowed = gaps(count, 200, keys, Noising(infill=0.3))
    # Of 60 words in gaps of 3 words on average; the last one is cut.
    assert float(swallowed.sum() / begins.sum()) == pytest.approx(3.0, abs=0.1)
    empty = (begins & ~swallowed).sum() / begins.sum()
    assert float(empty) == pytest.approx(float(torch.exp(torch.tensor(-3.0))), abs=0.01)
    by_place = swallowed.float().mean(0)
    assert float((by_place[5:-5] - 0.3).abs().max()) < 0.03


def test_each_gap_is_seen_as_one_mask() -> None:
    ids, mask, seen = noised(Noising(infill=0.4, permute=False))
    share = []
    for before, after in zip(rows(ids, mask), rows(*seen), strict=True):
        assert after[0] == BEGIN
        assert after[-1] == END
        assert len(after) <= len(before)
        assert (MASK, MASK) not in list(pairwise(after))
        left, text = words([t for t in after if t not in (BEGIN, END, MASK)]), words(before[1:-1])
        share.append((len(text) - len(left), len(text)))
        position = iter(text)  # what is left is in order, and words are whole
        assert all(word in position for word in left)
    gone, total = map(sum, zip(*share, strict=True))
    assert gone / total == pytest.approx(0.4, abs=0.01)


def test_deletion_leaves_the_rest_in_order() -> None:
    ids, mask, seen = noised(Noising(infill=0, permute=False, delete=0.2))
    assert not (seen.input_ids == MASK).any()
    for before, after in zip(rows(ids, mask), rows(*seen), strict=True):
        position = iter(before)
        assert all(token in position for token in after)
    kept = (seen.attention_mask.sum() - 2 * B) / (mask.sum() - 2 * B)
    assert float(kept) == pytest.approx(0.8, abs=0.01)


def test_sentences_are_permuted_whole_and_each_order_is_as_probable() -> None:
    text = [BEGIN, 10, 11, STOP, STOP, 12, STOP, 13, 55, END, BEGIN, 14, STOP, 15, END]
    ids = torch.tensor([text]).expand(6000, -1)
    keys = sample_keys(0, 0, torch.arange(6000))
    mask = torch.ones_like(ids, dtype=torch.bool)
    seen = add_noise(ids, mask, KINDS, keys, Noising(infill=0), MASK, PAD)
    assert seen.attention_mask.all()
    found, counts = torch.unique(seen.input_ids, dim=0, return_counts=True)
    assert len(found) == 6 * 2
    assert float((counts / 6000 - 1 / 12).abs().max()) < 0.015
    sentences = [[10, 11, STOP, STOP], [12, STOP], [13, 55]]
    for row in found.tolist():
        assert row[0] == row[10] == BEGIN
        assert row[9] == row[14] == END
        assert row[11:14] in ([14, STOP, 15], [15, 14, STOP])
        first = row[1:9]
        while first:
            [whole] = [s for s in sentences if first[: len(s)] == s]
            first = first[len(whole) :]


def test_a_gap_that_reaches_into_the_next_text_is_seen_in_both() -> None:
    ids = torch.tensor([[BEGIN, 10, 11, END, BEGIN, 12, 13, END]]).expand(500, -1)
    keys = sample_keys(0, 0, torch.arange(500))
    mask = torch.ones_like(ids, dtype=torch.bool)
    seen = add_noise(ids, mask, KINDS, keys, Noising(infill=0.5, permute=False), MASK, PAD)
    both = [BEGIN, 10, MASK, END, BEGIN, MASK, 13, END]
    assert both in seen.input_ids.tolist()
    for row in rows(*seen):
        first, second = row[: row.index(END)], row[row.index(END) + 1 : -1]
        assert len(first) >= 2 or {10, 11} <= set(first)
        assert len(second) >= 2 or {12, 13} <= set(second)


def test_the_first_word_of_a_text_is_a_word_wherever_it_goes() -> None:
    """As under byte-level BPE, which marks what begins a word, but not at the start of a text."""
    ids = torch.tensor([[BEGIN, 55, STOP, 10, STOP, END]]).expand(400, -1)
    keys = sample_keys(0, 0, torch.arange(400))
    mask = torch.ones_like(ids, dtype=torch.bool)
    seen = add_noise(ids, mask, KINDS, keys, Noising(infill=0.25), MASK, PAD)
    found = {tuple(row) for row in rows(*seen)}
    assert (BEGIN, 10, STOP, MASK, STOP, END) in found  # 55 alone, and not 55 with what precedes it
    assert (BEGIN, 10, MASK, 55, STOP, END) in found


@pytest.mark.parametrize("size", [1, 6])
def test_full_rows_of_short_texts_lose_no_special_token(size: int) -> None:
    text = [BEGIN, *range(10, 10 + size), END]
    ids = torch.tensor([(text * 40)[: 40 // len(text) * len(text)]]).expand(3000, -1)
    keys = sample_keys(0, 0, torch.arange(3000))
    mask = torch.ones_like(ids, dtype=torch.bool)
    for noising in (Noising(), Noising(infill=0.49, gap=1.0)):
        seen = add_noise(ids, mask, KINDS, keys, noising, MASK, PAD)
        for special in (BEGIN, END):
            assert ((seen.input_ids == special).sum(1) == (ids == special).sum(1)).all()


@pytest.mark.parametrize("noising", [Noising(delete=0.1), Noising(infill=0.4, gap=1.0)])
def test_noise_is_a_function_of_seed_epoch_and_sample(noising: Noising) -> None:
    _, _, seen = noised(noising)
    assert torch.equal(noised(noising)[2].input_ids, seen.input_ids)
    for other in ({"seed": 1}, {"epoch": 1}):
        assert not torch.equal(noised(noising, **other)[2].input_ids, seen.input_ids)
    ids, mask = texts()
    some = torch.arange(5, 50, 3)
    size = int(mask[some].sum(1).max())
    alone = add_noise(
        ids[some, :size], mask[some, :size], KINDS, sample_keys(0, 0, some), noising, MASK, PAD
    )
    assert rows(*alone) == [row for i, row in enumerate(rows(*seen)) if i in some]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"infill": 0.75}, "infill"),
        ({"gap": 0.5}, "gap"),
        ({"delete": -0.1}, "delete"),
        ({"infill": 0, "permute": False}, "corrupts nothing"),
    ],
)
def test_wrong_noise_is_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.noising.*{words}"):
        Noising(**wrong)
