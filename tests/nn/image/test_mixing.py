"""Mixup and cutmix are what their papers say."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Beta

from lit_foundry.nn.image.mixing import Mixing, beta_quantile, cutmix, mixup
from lit_foundry.randomness import Moment

ROWS = 399  # a multiple of the classes: neighbours have different ones
INDEX = torch.arange(ROWS)
LABEL = INDEX % 7


@pytest.fixture
def images() -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (ROWS, 3, 16, 20), generator=random, dtype=torch.uint8)


def test_mixup_is_its_formula(images: Tensor) -> None:
    mixed, target = Mixing(mixup=0.4)(images, LABEL, INDEX, 7, Moment(0, 1))
    own, other = LABEL, LABEL.roll(1)
    share = target[INDEX, own]  # of neighbours, no two have the same class
    assert torch.allclose(target[INDEX, other], 1 - share, atol=1e-6)
    assert torch.allclose(target.sum(1), torch.ones(ROWS))
    weight = share[:, None, None, None]
    assert torch.allclose(mixed, weight * images + (1 - weight) * images.roll(1, 0), atol=1e-3)


def test_cutmix_replaces_a_rectangle_and_counts_its_area(images: Tensor) -> None:
    mixed, target = Mixing(cutmix=1.0)(images, LABEL, INDEX, 7, Moment(0, 1))
    share = target[INDEX, LABEL]
    replaced = (mixed == images.roll(1, 0)).all(1) & (mixed != images).any(1)
    found = 1 - replaced.float().mean((1, 2))
    assert torch.allclose(share, found, atol=0.02)  # pixels may be equal by chance
    assert ((mixed == images) | (mixed == images.roll(1, 0))).all()
    assert 0.3 < share.mean() < 0.8


def test_rectangle_has_the_papers_size_and_place() -> None:
    images = torch.zeros(2, 1, 20, 40)
    share, place = torch.tensor([0.75, 0.75]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
    cut, stayed = cutmix(images, images + 1, share, place)
    expected = torch.zeros(20, 40)
    expected[5:15, 10:30] = 1  # half of each edge, about the middle
    assert torch.equal(cut[0, 0], expected)
    assert stayed.tolist() == [0.75, 1 - 5 * 10 / 800]


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_shares_have_a_beta_distribution(alpha: float) -> None:
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    found = beta_quantile(uniform, alpha)
    assert (found.diff() >= 0).all()
    wanted = Beta(alpha, alpha)
    assert abs(float(found.mean()) - 0.5) < 2e-3
    assert abs(float(found.var()) - float(wanted.variance)) < 5e-3
    torch.manual_seed(0)
    drawn = wanted.sample((100_000,)).sort().values
    assert (found - drawn).abs().max() < 0.03


def test_mixing_is_a_function_of_seed_epoch_and_sample(images: Tensor) -> None:
    mixing = Mixing(mixup=0.2, cutmix=1.0)
    first, target = mixing(images, LABEL, INDEX, 7, Moment(0, 1))
    again, same = mixing(images, LABEL, INDEX, 7, Moment(0, 1))
    assert torch.equal(first, again)
    assert torch.equal(target, same)
    assert not torch.equal(mixing(images, LABEL, INDEX, 7, Moment(0, 2))[1], target)


def test_an_unmixed_share_stays(images: Tensor) -> None:
    mixed, target = Mixing(mixup=1.0, prob=0.3)(images, LABEL, INDEX, 7, Moment(0, 0))
    whole = target.max(1).values == 1
    assert 0.6 < whole.float().mean() < 0.8
    assert torch.equal(mixed[whole], images[whole].float())


def test_mixing_ends_when_it_is_told() -> None:
    mixing = Mixing(mixup=0.2, until=0.8)
    assert mixing.mixes(0.79)
    assert not mixing.mixes(0.8)
    assert not Mixing().mixes(0.0)


@pytest.mark.parametrize("key", ["mixup", "cutmix", "prob", "until"])
def test_bad_value_is_named_with_its_rule(key: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.mixing\.{key} .*got -1"):
        Mixing(**{key: -1.0})


def test_mixup_of_nothing_is_the_image() -> None:
    images = torch.rand(3, 1, 2, 2)
    assert torch.equal(mixup(images, images + 1, torch.ones(3)), images)
