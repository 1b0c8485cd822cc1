"""Masks have the proportions of the papers, and are functions of seed, epoch and sample."""

import math

import pytest
import torch
from torch import Tensor

from lit_foundry.nn.text.masking import (
    IGNORED,
    Masked,
    Masking,
    cover_order,
    mask_tokens,
    span_lengths,
)
from lit_foundry.randomness import hashes, mix, sample_keys, sample_numbers, uniforms

MASK, SPECIAL, V = 4, 5, 1000
B, T = 3000, 96


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Make rows of two texts, each framed by special tokens, some with padding; and word starts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(SPECIAL, V, (B, T), generator=generator)
    real = torch.ones(B, T, dtype=torch.bool)
    for place in (0, 39, 40, T - 1):
        ids[:, place] = 2
        real[:, place] = False
    ids[: B // 3, 70:], real[: B // 3, 70:] = 0, False
    starts = torch.rand(B, T, generator=generator) < 0.7
    return ids, real, starts


def masked(masking: Masking, prob: float | None = None, epoch: int = 0, seed: int = 0) -> Masked:
    ids, real, starts = batch()
    keys = sample_keys(seed, epoch, torch.arange(B))
    prob = prob or masking.prob
    return mask_tokens(ids, real, starts, keys, masking, prob, masking.room(T), MASK, V)


def hidden(result: Masked) -> Tensor:
    """Return which tokens are predicted, shape (B, T)."""
    chosen = torch.zeros(B, T, dtype=torch.bool)
    return chosen.scatter(1, result.positions, result.target != IGNORED)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize("prob", [0.15, 0.3])
def test_proportions_match_the_papers(unit: str, prob: float) -> None:
    ids, real, _ = batch()
    result = masked(Masking(prob=prob, unit=unit))
    chosen = hidden(result)
    count = int(chosen.sum())
    assert count / int(real.sum()) == pytest.approx(prob, rel=0.02)
    now, before = result.input_ids[chosen], ids[chosen]
    # Spans are masked as one: there are fewer independent draws.
    bound = 4 * math.sqrt(0.25 / (count / (4 if unit == "span" else 1)))
    assert float((now == MASK).float().mean()) == pytest.approx(0.8, abs=bound)
    assert float((now == before).float().mean()) == pytest.approx(0.1 + 0.1 / V, abs=bound)
    random = now[(now != MASK) & (now != before)]
    assert len(random.unique()) > 0.9 * V * (1 - math.exp(-len(random) / V))
    assert torch.equal(result.input_ids[~chosen], ids[~chosen])


def test_targets_are_the_original_tokens() -> None:
    ids, _, _ = batch()
    result = masked(Masking())
    chosen = result.target != IGNORED
    assert torch.equal(result.target[chosen], ids.gather(1, result.positions)[chosen])


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_special_tokens_and_padding_are_never_predicted(unit: str) -> None:
    _, real, _ = batch()
    assert not (hidden(masked(Masking(prob=0.4, unit=unit))) & ~real).any()


def test_each_row_has_its_share_to_one_token() -> None:
    _, real, _ = batch()
    count, total = hidden(masked(Masking())).sum(1), real.sum(1)
    assert ((count - 0.15 * total).abs() <= 1).all()


def test_every_token_is_equally_likely() -> None:
    chosen = torch.stack([hidden(masked(Masking(), epoch=epoch)) for epoch in range(8)]).float()
    _, real, _ = batch()
    share = chosen[:, B // 3 :].mean((0, 1))[real[-1]]
    assert share.min() > 0.13
    assert share.max() < 0.17


def test_words_are_masked_whole() -> None:
    _, real, starts = batch()
    chosen = hidden(masked(Masking(unit="word")))
    inside = ~starts & real & real.roll(1, 1)
    inside[:, 0] = False
    assert torch.equal(chosen[inside], chosen.roll(1, 1)[inside])


def test_spans_have_the_lengths_of_spanbert() -> None:
    lengths = span_lengths(
        torch.rand(200_000, generator=torch.Generator().manual_seed(0)), Masking()
    )
    assert float(lengths.float().mean()) == pytest.approx(3.8, abs=0.05)
    assert (int(lengths.min()), int(lengths.max())) == (1, 10)
    inside = sum(0.2 * 0.8**k for k in range(10))
    for length in (1, 2, 5, 10):
        share = float((lengths == length).float().mean())
        assert share == pytest.approx(0.2 * 0.8 ** (length - 1) / inside, abs=0.005)


def test_spans_are_contiguous_whole_words_within_a_text() -> None:
    _, real, starts = batch()
    masking = Masking(unit="span")
    chosen = hidden(masked(masking))
    inside = ~starts & real & real.roll(1, 1)
    inside[:, 0] = False
    assert torch.equal(chosen[inside], chosen.roll(1, 1)[inside])
    runs = int((chosen & ~chosen.roll(1, 1)).sum())
    words = int((chosen & (starts | ~real.roll(1, 1))).sum())
    single = hidden(masked(Masking(unit="word")))
    assert words / runs > 2.5  # of words masked one by one it is 1.2
    assert int((single & (starts | ~real.roll(1, 1))).sum()) / int(
        (single & ~single.roll(1, 1)).sum()
    ) == pytest.approx(1.2, abs=0.1)
    # No span reaches over the special tokens at 39 and 40.
    order = cover_order(real, starts, sample_keys(0, 0, torch.arange(B)), masking)
    assert not (order[:, 38] == order[:, 41]).any()


def test_masks_are_a_function_of_seed_epoch_and_sample() -> None:
    first, again = masked(Masking()), masked(Masking())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (masked(Masking(), epoch=1), masked(Masking(), seed=1)):
        assert not torch.equal(first.input_ids, other.input_ids)
    ids, real, starts = batch()
    part = torch.tensor([5, 2000])
    keys, masking = sample_keys(0, 0, part), Masking()
    alone = mask_tokens(
        ids[part], real[part], starts[part], keys, masking, 0.15, masking.room(T), MASK, V
    )
    assert torch.equal(alone.input_ids, first.input_ids[part])


def test_share_falls_over_the_run() -> None:
    masking = Masking(prob=0.3, final_prob=0.15)
    assert [masking.prob_at(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.225, 0.15])
    _, real, _ = batch()
    share = hidden(masked(masking, prob=masking.prob_at(0.5))).sum() / real.sum()
    assert float(share) == pytest.approx(0.225, rel=0.01)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prob": 0.0}, r"model\.masking\.prob lies in \(0, 1\), got 0\.0"),
        ({"final_prob": 1.0}, r"final_prob lies in"),
        ({"mask_share": 0.95}, r"mask_share and random_share share 1, got 0\.95"),
        ({"max_span": 0}, r"max_span is at least 1 word"),
    ],
)
def test_values_outside_their_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Masking(**values)  # type: ignore[arg-type]


def test_hash_is_splitmix64() -> None:
    # The first numbers of the reference implementation with seed 0, as signed integers.
    counter = torch.arange(3) * (0x9E3779B97F4A7C15 - 2**64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [number % 2**64 for number in mix(counter).tolist()] == expected


def test_hashes_are_uniform_and_streams_independent() -> None:
    keys = sample_keys(3, 1, torch.arange(2000))
    draws = uniforms(keys, 64, 0)
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(draws.var()) == pytest.approx(1 / 12, abs=0.002)
    assert (hashes(keys, 64, 0) >= 0).all()
    other = uniforms(keys, 64, 1)
    correlation = torch.corrcoef(torch.stack([draws.flatten(), other.flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.01


def test_keys_tell_draws_of_a_row_apart_and_are_those_of_rows_otherwise() -> None:
    index = torch.tensor([7, 7, 8, 7])
    assert torch.equal(sample_numbers({"index": index}), index)
    drawn = sample_numbers({"index": index, "draw": torch.tensor([0, 1, 0, 2])})
    assert torch.equal(drawn[[0, 2]], index[[0, 2]])
    assert len(sample_keys(0, 0, drawn).unique()) == 4
