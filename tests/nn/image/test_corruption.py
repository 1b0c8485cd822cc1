"""What is done to images that are to be denoised."""

import pytest
import torch

from lit_foundry.nn.image.corruption import Corruption, Kind
from lit_foundry.randomness import Moment, normals

KEYS = Moment(1).keys(torch.arange(64))
IMAGES = torch.randint(1, 255, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0))
FILL = torch.tensor([7.0, 8.0, 9.0]).view(3, 1, 1)


def corrupted(kind: Kind, amount: float) -> torch.Tensor:
    return Corruption(kind, amount)(IMAGES.to(torch.uint8), KEYS, FILL)


@pytest.mark.parametrize("kind", ["gaussian", "mask", "salt_and_pepper", "box"])
def test_each_sample_has_its_own_corruption_wherever_it_is(kind: Kind) -> None:
    whole = corrupted(kind, 0.3)
    assert whole.dtype == torch.float32
    some = torch.tensor([9, 2, 40])
    few = Corruption(kind, 0.3)(IMAGES[some], KEYS[some], FILL)
    assert torch.equal(few, whole[some])
    assert (whole != IMAGES).flatten(1).any(1).all()
    later = Corruption(kind, 0.3)(IMAGES, Moment(1, epoch=1).keys(torch.arange(64)), FILL)
    assert (later != whole).flatten(1).any(1).all()


def test_noise_is_normal_and_has_its_deviation() -> None:
    noise = (corrupted("gaussian", 0.2) - IMAGES) / 255
    assert abs(noise.mean()) < 0.002
    assert noise.std() == pytest.approx(0.2, rel=0.01)
    assert (noise.abs() > 0.4).float().mean() == pytest.approx(0.0455, rel=0.06)
    apart = torch.corrcoef(noise.flatten(1)[:8]) - torch.eye(8)
    assert apart.abs().max() < 0.15


def test_share_of_the_pixels_is_blanked_in_all_channels() -> None:
    changed = corrupted("mask", 0.3) == FILL
    whole = changed.all(1)
    assert whole.float().mean() == pytest.approx(0.3, abs=0.02)
    extremes = corrupted("salt_and_pepper", 0.3)
    salt, pepper = ((extremes == level).all(1).float().mean() for level in (255, 0))
    assert salt == pytest.approx(0.15, abs=0.02)
    assert pepper == pytest.approx(0.15, abs=0.02)


def test_box_is_a_square_of_its_size_within_the_image() -> None:
    blank = (corrupted("box", 0.5) == FILL).all(1)
    assert (blank.sum((1, 2)) >= 64).all()
    assert (blank.any(2).sum(1).median(), blank.any(1).sum(1).median()) == (8, 8)


def test_normal_numbers_are_normal() -> None:
    found = normals(Moment().keys(torch.arange(1000)), 64, 1).flatten().double()
    assert abs(found.mean()) < 0.015
    assert found.var() == pytest.approx(1, abs=0.02)
    assert (found**4).mean() == pytest.approx(3, abs=0.15)
    assert found.isfinite().all()


@pytest.mark.parametrize("amount", [0.0, 1.5, float("nan")])
def test_amounts_out_of_range_are_refused(amount: float) -> None:
    with pytest.raises(ValueError, match=r"model\.corruption\.amount lies in \(0, 1\]"):
        Corruption("mask", amount)
