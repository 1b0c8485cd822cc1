"""Balanced sampling: equal shares of the classes, as repeatable as any other order."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from lit_foundry.data import DataModule, TextBatch
from lit_foundry.data.base import BatchDataset, Split
from lit_foundry.data.samplers import LengthGroupedBatches, draw_balanced
from lit_foundry.randomness import philox
from tests.data.test_samplers import Numbers, ranks, some_lengths

LABELS = np.repeat([0, 1, 5], [300, 90, 10])[np.random.default_rng(0).permutation(400)]


def flat(found: list[list[list[int]]]) -> list[int]:
    return [row for mine in found for batch in mine for row in batch]


def test_each_class_has_an_equal_share_of_every_epoch() -> None:
    ones_more = set()
    for epoch in range(6):
        rows = draw_balanced(LABELS, philox(3, epoch))
        counts = np.bincount(LABELS[rows])
        assert sorted(counts[[0, 1, 5]]) == [133, 133, 134]
        ones_more.add(int(counts.argmax()))
    assert len(ones_more) > 1, "no class is always favoured"


def test_samples_of_a_class_are_drawn_alike_with_replacement() -> None:
    rows = np.concatenate([draw_balanced(LABELS, philox(0, epoch)) for epoch in range(200)])
    for name, size in ((0, 300), (1, 90), (5, 10)):
        times = np.bincount(rows, minlength=400)[name == LABELS]
        assert len(times) == size
        want = 200 * 400 / 3 / size
        assert abs(times - want).max() < 5 * want**0.5
        assert times.std() == pytest.approx(want**0.5, rel=0.35), "as independent draws vary"


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_balanced_steps_are_the_same_on_all_ranks_and_after_a_resume(
    world: int, micro_batch: int | None
) -> None:
    lengths = some_lengths(np.random.default_rng(1), 400)
    options: Any = {"batch_size": 30, "micro_batch": micro_batch, "labels": LABELS, "seed": 2}
    found, alone = ranks(lengths, world, 1, **options), ranks(lengths, 1, 1, **options)
    assert len({len(mine) for mine in found}) == 1
    assert sorted(flat(found)) == sorted(flat(alone))
    assert len(flat(found)) == 400 > len(set(flat(found)))
    assert flat(found) != flat(ranks(lengths, world, 2, **options))
    resumed = LengthGroupedBatches(lengths, world_size=world, epoch=1, start=4, **options)
    assert list(resumed) == found[0][4:]


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_draws_of_a_row_are_counted_by_seed_and_epoch_alone(
    world: int, micro_batch: int | None
) -> None:
    def drawn(world: int, micro_batch: int | None, **place: int) -> list[list[tuple[int, int]]]:
        options: Any = {"batch_size": 30, "micro_batch": micro_batch, "labels": LABELS, "seed": 2}
        sampler = LengthGroupedBatches(lengths, world_size=world, epoch=1, **options, **place)
        batches: Any = list(sampler)
        return [list(zip(rows, rows.draws, strict=True)) for rows in batches]

    lengths = some_lengths(np.random.default_rng(1), 400)
    found = [drawn(world, micro_batch, rank=rank) for rank in range(world)]
    pairs = sorted(pair for mine in found for batch in mine for pair in batch)
    assert pairs == sorted(pair for batch in drawn(1, None) for pair in batch)
    rows = Counter(row for row, _ in pairs)
    assert pairs == [(row, draw) for row in sorted(rows) for draw in range(rows[row])]
    assert drawn(world, micro_batch, start=4) == found[0][4:]


def test_where_rows_are_drawn_once_nothing_is_counted() -> None:
    batches: Any = list(LengthGroupedBatches(np.ones(8, np.int64), batch_size=4))
    assert [rows.draws for rows in batches] == [None, None]


class Labelled:
    """Forty samples, of which four are of another class."""

    lengths, labels = np.ones(40, np.int64), (np.arange(40) < 4).astype(np.int64)

    def __getitem__(self, rows: Sequence[int]) -> Mapping[str, Any]:
        return {"index": list(rows)}


class Classes(DataModule):
    """A split of two classes."""

    batch_type = TextBatch
    facts: Mapping[str, int] = {}

    def load(self, split: Split) -> BatchDataset:
        """Open a split."""
        return Labelled()


def test_only_training_is_balanced() -> None:
    data = Classes(batch_size=10, balanced=True)
    seen = [row for batch in data.train_dataloader() for row in batch["index"]]
    assert sum(row < 4 for row in seen) == 20
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert sorted(row for batch in loader for row in batch["index"]) == list(range(40))
    plain = [row for batch in Classes(batch_size=10).train_dataloader() for row in batch["index"]]
    assert sorted(plain) == list(range(40))


def test_balance_without_classes_or_under_a_token_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.balanced=true needs classes.* Numbers has none"):
        Numbers(batch_size=10, balanced=True).train_dataloader()
    with pytest.raises(
        ValueError, match=r"data.batch_tokens=99 would.*: set data.batch_size in its place"
    ):
        Numbers(batch_tokens=99, balanced=True)
