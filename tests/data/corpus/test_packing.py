"""Packed rows hold every token once, and next to no padding."""

from collections import Counter

import numpy as np
import pytest

from lit_foundry.data.corpus.packing import Pieces, Stream, pack
from lit_foundry.data.corpus.row_batches import BatchWarmup, RowBatches

RNG = np.random.default_rng(0)
SETS = {
    "as IMDb": (np.exp(RNG.normal(5.4, 0.6, 5000)).astype(np.int64) + 1, 256),
    "just over half a row": (np.full(997, 260), 512),
    "just under a row": (np.full(997, 110), 128),
    "short": (RNG.integers(1, 20, 20_000), 128),
    "long": (RNG.integers(10, 50_000, 100), 512),
    "one document": (np.array([1_000_000]), 256),
}


def held(rows: Pieces) -> np.ndarray:
    """Return the tokens of each row, two special ones of each piece included."""
    row = np.repeat(np.arange(len(rows)), np.diff(rows.edges))
    return np.bincount(row, rows.length + 2, minlength=len(rows))


@pytest.mark.parametrize("name", SETS)
def test_rows_are_filled_to_99_percent(name: str) -> None:
    lengths, size = SETS[name]
    tokens = held(pack(lengths, size, 2, np.random.default_rng(1)))
    assert tokens.max() <= size
    assert tokens.sum() / (len(tokens) * size) >= 0.99


@pytest.mark.parametrize("name", SETS)
def test_every_token_is_in_one_piece(name: str) -> None:
    lengths, size = SETS[name]
    rows = pack(lengths, size, 2, np.random.default_rng(1))
    order = np.lexsort((rows.start, rows.document))
    document, start, length = (c[order] for c in (rows.document, rows.start, rows.length))
    assert (np.bincount(document, length, len(lengths)) == lengths).all()
    same = document[1:] == document[:-1]
    assert (start[1:][same] == (start + length)[:-1][same]).all()
    assert (start[np.r_[True, ~same]] == 0).all()


def test_documents_that_fit_are_rarely_cut() -> None:
    lengths = RNG.integers(5, 250, 4000)
    rows = pack(lengths, 256, 2, np.random.default_rng(1))
    assert len(rows.document) < 1.02 * len(lengths)


def test_no_document_gives_no_row() -> None:
    assert len(pack(np.array([], np.int64), 16, 2, np.random.default_rng(0))) == 0


@pytest.mark.parametrize("epoch", [0, 1])
def test_stream_holds_every_token_at_most_once_an_epoch(epoch: int) -> None:
    lengths = np.array([5, 3, 100, 7, 1, 40])
    stream = Stream(lengths, 16, (1, 1), seed=3)
    assert len(stream) == (lengths.sum() + 12) // 16
    parts = [part for row in range(len(stream)) for part in stream.parts(epoch, row)]
    seen = Counter((d, i) for d, first, last in parts for i in range(first, last))
    assert set(seen.values()) == {1}
    assert sum(seen.values()) == 16 * len(stream)


def test_stream_is_cut_elsewhere_in_each_epoch_and_in_order_without_seed() -> None:
    lengths = np.array([50, 30, 100])
    stream, ordered = Stream(lengths, 16, (1, 1), seed=0), Stream(lengths, 16, (1, 1), seed=None)
    assert stream.parts(0, 1) != stream.parts(1, 1)
    assert stream.parts(0, 1) == Stream(lengths, 16, (1, 1), seed=0).parts(0, 1)
    assert ordered.parts(0, 3) == ordered.parts(9, 3) == [(0, 48, 52), (1, 0, 12)]
    last = ordered.parts(0, len(ordered) - 1)
    assert sum(b - a for _, a, b in last) == (lengths.sum() + 6) % 16


def rows_of(sampler: RowBatches, epoch: int) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_row_is_seen_once_an_epoch_on_any_number_of_ranks() -> None:
    for world in (1, 2, 3):
        ranks = [
            RowBatches(101, 64, 12, micro_batch=2, rank=r, world_size=world) for r in range(world)
        ]
        for epoch in (0, 1):
            batches = [rows_of(rank, epoch) for rank in ranks]
            assert len({len(b) for b in batches}) == 1 == len({len(rank) for rank in ranks})
            assert len(batches[0]) == len(ranks[0])
            seen = [row for b in batches for rows in b for row in rows]
            assert len(set(seen)) == len(seen)
            assert set(seen) <= set(range(epoch * 101, (epoch + 1) * 101))
            assert len(seen) > 101 - ranks[0].share


def test_steps_hold_the_same_rows_however_they_are_shared() -> None:
    def steps(world: int, micro: int) -> list[set[int]]:
        ranks = [
            RowBatches(96, 64, 12, micro_batch=micro, rank=r, world_size=world, seed=5)
            for r in range(world)
        ]
        batches = [rows_of(rank, 1) for rank in ranks]
        accumulate = ranks[0].accumulate
        return [
            {row for b in batches for rows in b[i : i + accumulate] for row in rows}
            for i in range(0, len(batches[0]), accumulate)
        ]

    assert steps(1, 12) == steps(2, 3) == steps(3, 1)


def test_resume_goes_on_inside_an_epoch() -> None:
    whole = rows_of(RowBatches(50, 64, 8, micro_batch=2, epoch=2), 2)
    assert list(RowBatches(50, 64, 8, micro_batch=2, epoch=2, start=9)) == whole[9:]


def test_steps_grow_by_tokens_over_the_epochs() -> None:
    warmup = BatchWarmup(tokens=3000, start=0.25)
    sampler = RowBatches(40, 10, 16, warmup=warmup)
    sizes = [np.diff(sampler.steps(epoch)).tolist() for epoch in range(10)]
    flat = [size for epoch in sizes for size in epoch]
    assert sizes[0][:4] == [4, 4, 4, 4]
    assert [sum(epoch) for epoch in sizes] == [40] * 10
    whole = [s for epoch in sizes for s in epoch[:-1]]  # the last of an epoch takes what is left
    assert whole == sorted(whole)
    assert sizes[8] == sizes[9] == [16, 16, 8]
    done = np.cumsum([0, *flat])
    for rows, before in zip(flat[:4], done, strict=False):
        assert rows == round(16 * (0.25 + 0.75 * before * 10 / 3000))
    sampler.set_epoch(3)
    assert len(sampler) == len(sizes[3])


def test_growth_counts_what_a_limited_epoch_saw() -> None:
    warmup = BatchWarmup(tokens=3000, start=0.25)
    whole = RowBatches(40, 10, 16, warmup=warmup)
    half = RowBatches(40, 10, 16, warmup=warmup, limit=0.5)
    three = RowBatches(40, 10, 16, warmup=warmup, limit=3)
    steps = len(whole.steps(0)) - 1
    seen = int(whole.steps(0)[steps // 2])
    assert half.steps(1).tolist() == whole._cut(seen).tolist()
    assert three.steps(1).tolist() == whole._cut(int(whole.steps(0)[3])).tolist()


def test_a_step_too_small_to_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"A step of 2 rows cannot be shared by 4 micro-batches"):
        RowBatches(100, 64, 8, micro_batch=2, warmup=BatchWarmup(1000, start=0.25))
