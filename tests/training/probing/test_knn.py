"""The vote of neighbours is what its definition says, on any number of ranks."""

from math import exp
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lit_foundry.training.probing.knn import WeightedKNN, nearest
from tests.processes import _CONTEXT


def samples(count: int, seed: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (count,), generator=random)
    centre = torch.eye(8)[label]
    return centre + 0.6 * torch.randn(count, 8, generator=random), label


def by_definition(query: Tensor, bank: Tensor, label: Tensor, k: int, temperature: float) -> int:
    pairs = []
    for other, its in zip(bank.double(), label.tolist(), strict=True):
        cosine = float(query.double() @ other / query.double().norm() / other.norm())
        pairs.append((cosine, its))
    votes: dict[int, float] = {}
    for cosine, its in sorted(pairs, reverse=True)[:k]:
        votes[its] = votes.get(its, 0) + exp(cosine / temperature)
    return max(votes, key=lambda its: votes[its])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (60, 0.5)])
def test_votes_are_those_of_the_definition(k: int, temperature: float) -> None:
    bank, label = samples(60, 0)
    queries, _ = samples(300, 1)
    said = nearest(queries, bank, label, k, temperature)
    expected = [by_definition(query, bank, label, k, temperature) for query in queries]
    assert said.tolist() == expected


def test_temperature_weighs_the_nearest() -> None:
    bank = torch.tensor([[1.0, 0.1], [0.4, 1], [0.3, 1]])
    label, query = torch.tensor([1, 0, 0]), torch.tensor([[1.0, 0]])
    assert nearest(query, bank, label, 3, 0.07).tolist() == [1]
    assert nearest(query, bank, label, 3, 10.0).tolist() == [0]


def test_length_of_features_does_not_matter() -> None:
    bank, label = samples(60, 0)
    queries, _ = samples(40, 1)
    scaled = bank * torch.rand(60, 1).add(0.1)
    assert torch.equal(nearest(queries, bank, label), nearest(100 * queries, scaled, label))


def test_default_k_is_limited_to_the_bank_and_a_larger_one_refused() -> None:
    bank, label = samples(60, 0)
    assert torch.equal(nearest(bank, bank, label), nearest(bank, bank, label, 60))
    with pytest.raises(ValueError, match="k=61 neighbours, and the bank holds 60 samples"):
        nearest(bank, bank, label, 61)
    large, its = samples(300, 2)
    assert torch.equal(nearest(bank, large, its), nearest(bank, large, its, 200))
    assert not torch.equal(nearest(bank, large, its, temperature=9.0), nearest(bank, large, its, 1))


@pytest.mark.parametrize(("k", "temperature"), [(0, 0.07), (5, 0.0), (5, float("nan"))])
def test_values_outside_their_range_are_refused(k: int, temperature: float) -> None:
    with pytest.raises(ValueError, match=r"^(k|temperature) "):
        WeightedKNN(k, temperature)


def test_features_that_are_not_finite_are_refused() -> None:
    bank, label = samples(60, 0)
    bank[3] = torch.nan
    with pytest.raises(ValueError, match="of the bank are not finite, the first is number 3"):
        nearest(bank, bank, label)


def seen(rank: int, ranks: int) -> WeightedKNN:
    """Show a rank its share of samples, in batches; some of them have no label."""
    metric = WeightedKNN(k=3)
    for seed, count, bank in ((0, 101, True), (1, 203, False)):
        features, label = samples(count, seed)
        features = (features > 0.5).float()  # so that some are as near as others
        label[::17] = -100
        for rows in torch.arange(count).split(10)[rank::ranks]:
            metric.update(features[rows], label[rows], rows, bank)
    return metric


def on_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(seen(rank, 2).compute(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_order_in_which_ranks_hand_in_samples_does_not_matter() -> None:
    one, *ranks = seen(0, 1), seen(0, 2), seen(1, 2)
    whole = seen(0, 1)
    for name in ("bank", "bank_label", "bank_index", "features", "label", "index"):
        setattr(whole, name, [part for rank in ranks for part in getattr(rank, name)])
        assert not torch.equal(torch.cat(getattr(whole, name)), torch.cat(getattr(one, name)))
    assert torch.equal(whole.compute(), one.compute())
    assert 0.4 < one.compute() < 0.99  # else it says little; chance is 0.2


@pytest.mark.slow
def test_two_ranks_score_what_one_does_to_the_bit(tmp_path: Path) -> None:
    processes = [_CONTEXT.Process(target=on_rank, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
    one = seen(0, 1).compute()
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)] == [one, one]
