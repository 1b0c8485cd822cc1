"""Augmentations equal their references, and are functions of (seed, epoch, sample)."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from lit_foundry.nn.image import randaugment as policy
from lit_foundry.nn.image.augment import (
    Augment,
    crop,
    resized_boxes,
    resized_crop,
    shifts,
)
from lit_foundry.nn.image.erasing import blanked, erased_boxes
from lit_foundry.nn.image.mixing import Mixing
from lit_foundry.randomness import Moment, sample_keys

ROWS = 64


@pytest.fixture
def images() -> Tensor:
    """Return random pixels as batches hold them, channels last in memory."""
    random = torch.Generator().manual_seed(0)
    shape = ROWS, 24, 32, 3
    pixels = torch.randint(256, shape, generator=random, dtype=torch.uint8)
    return pixels.permute(0, 3, 1, 2)


@pytest.fixture
def squares(images: Tensor) -> Tensor:
    """Return the same, square."""
    return images[..., :24]


INDEX = torch.arange(ROWS)
KEYS = sample_keys(0, 0, INDEX)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
def test_crop_with_padding_is_torchvisions_to_the_bit(squares: Tensor, mode: str) -> None:
    name = {"zero": "constant"}.get(mode, mode)
    place = shifts(KEYS, (8, 8)) - 4
    padded = tv.pad(squares, [4] * 4, padding_mode=name)
    expected = [
        tv.crop(image, int(top) + 4, int(left) + 4, 24, 24)
        for image, (top, left) in zip(padded, place, strict=True)
    ]
    assert torch.equal(crop(squares, place, (24, 24), mode), torch.stack(expected))  # type: ignore[arg-type]
    assert len(place.unique(dim=0)) > 20


def test_flip_and_crop_of_a_larger_image_are_torchvisions_to_the_bit(images: Tensor) -> None:
    place, flipped = shifts(KEYS, (8, 20)), INDEX % 3 == 0
    found = crop(images, place, (16, 12), "zero", flipped)
    for image, was, (top, left), flip in zip(found, images, place, flipped, strict=True):
        expected = tv.crop(was, int(top), int(left), 16, 12)
        assert torch.equal(image, tv.horizontal_flip(expected) if flip else expected)


def test_crop_keeps_the_channels_together(squares: Tensor) -> None:
    found = crop(squares, shifts(KEYS, (0, 0)), (24, 24))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, squares)


def test_random_places_are_uniform() -> None:
    places = shifts(sample_keys(1, 2, torch.arange(90_000)), (8, 2))
    _, counts = places.unique(dim=0, return_counts=True)
    assert len(counts) == 27
    assert (counts / 90_000 * 27 - 1).abs().max() < 0.06


def test_alternating_flip_shows_both_sides_in_every_two_epochs(squares: Tensor) -> None:
    augment = Augment(flip="alternating")
    epochs = [augment(squares, INDEX, Moment(0, epoch)) for epoch in range(4)]
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    assert torch.equal(epochs[0].flip(-1), epochs[1])
    share = (epochs[0] == squares).flatten(1).all(1).float().mean()
    assert 0.3 < share < 0.7


def test_random_flip_flips_half_and_others_each_epoch(squares: Tensor) -> None:
    augment = Augment(flip="random")
    kept = [(augment(squares, INDEX, Moment(0, e)) == squares).flatten(1).all(1) for e in range(2)]
    assert 0.3 < kept[0].float().mean() < 0.7
    assert 10 < (kept[0] != kept[1]).sum() < ROWS - 10


@pytest.mark.parametrize(
    "augment",
    [
        Augment(pad=4, flip="random", cutout=8),
        Augment(resized_crop=0.3, size=16, erasing=0.5),
        Augment(policy="randaugment"),
        Augment(policy="trivialaugment"),
        Augment(jitter=(0.4, 0.4, 0.4, 0.1)),
    ],
    ids=["crop", "resized", "randaugment", "trivialaugment", "jitter"],
)
def test_a_sample_is_augmented_alike_in_any_batch(squares: Tensor, augment: Augment) -> None:
    whole = augment(squares, INDEX, Moment(3, 5))
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))[:10]
    assert torch.equal(augment(squares[order], INDEX[order], Moment(3, 5)), whole[order])
    assert not torch.equal(augment(squares, INDEX, Moment(3, 6)), whole)
    assert not torch.equal(augment(squares, INDEX, Moment(4, 5)), whole)
    assert whole.dtype == torch.uint8


def test_resized_crop_is_torchvisions_within_rounding(images: Tensor) -> None:
    boxes = resized_boxes(images, KEYS, 0.3)
    found = resized_crop(images, boxes, (20, 14))
    for image, was, box in zip(found, images, boxes, strict=True):
        place = [int(number) for number in box]
        expected = tv.resized_crop(was.float(), *place, [20, 14], antialias=False)
        assert (image - expected).abs().max() <= 0.51


def test_boxes_have_the_distribution_of_torchvision(images: Tensor) -> None:
    count = 4000
    keys = sample_keys(0, 0, torch.arange(count))
    found = resized_boxes(images, keys, 0.08).float()
    draw = RandomResizedCrop(8, scale=(0.08, 1.0))
    torch.manual_seed(0)
    drawn = [draw.make_params([images[0]]) for _ in range(count)]
    expected = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).float()
    assert (found.mean(0) - expected.mean(0)).abs().max() < 0.4
    assert (found.std(0) - expected.std(0)).abs().max() < 0.4
    assert (found[:, 0] + found[:, 2]).max() <= 24
    assert (found[:, 1] + found[:, 3]).max() <= 32


def affine(image: Tensor, move: tuple[int, int], shear: tuple[float, float]) -> Tensor:
    angles = [math.degrees(math.atan(part)) for part in shear]
    options = {"interpolation": InterpolationMode.NEAREST, "center": [0.0, 0.0]}
    return tv.affine(image, 0.0, list(move), 1.0, angles, **options)  # type: ignore[arg-type]


FACTORS, AMOUNTS, PIXELS = [0.1, 0.4, 1.0, 1.7], [-0.3, 0.11, 0.9, 0.0], [-3.7, 2.0, 9.9, 0.0]
Change = Callable[[Tensor, Any], Tensor]
# Ours, torchvision's, strengths, and the share of pixels that rounding may set off by one.
CHANGES: dict[str, tuple[Change, Change, list[float], float]] = {
    "brightness": (policy.brightened, tv.adjust_brightness, FACTORS, 0),
    "contrast": (policy.contrasted, tv.adjust_contrast, FACTORS, 0),
    "saturation": (policy.saturated, tv.adjust_saturation, FACTORS, 0.01),
    "sharpness": (policy.sharpened, tv.adjust_sharpness, FACTORS, 0.05),
    "hue": (policy.hued, tv.adjust_hue, [-0.5, -0.1, 0.0, 0.3], 0.15),
    "posterize": (policy.posterized, lambda x, s: tv.posterize(x, int(s)), [2, 4, 7, 8], 0),
    "solarize": (policy.solarized, tv.solarize, [0.0, 99.0, 255.0, 130.5], 0),
    "shear x": (
        lambda x, s: policy.sheared(x, s, 0),
        lambda x, s: affine(x, (0, 0), (s, 0)),
        AMOUNTS,
        0,
    ),
    "shear y": (
        lambda x, s: policy.sheared(x, s, 1),
        lambda x, s: affine(x, (0, 0), (0, s)),
        AMOUNTS,
        0,
    ),
    "translate x": (
        lambda x, s: policy.shifted(x, s, 0),
        lambda x, s: affine(x, (int(s), 0), (0, 0)),
        PIXELS,
        0,
    ),
    "translate y": (
        lambda x, s: policy.shifted(x, s, 1),
        lambda x, s: affine(x, (0, int(s)), (0, 0)),
        PIXELS,
        0,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_operation_is_torchvisions(images: Tensor, name: str) -> None:
    ours, theirs, strengths, share = CHANGES[name]
    strength = torch.tensor(strengths).repeat(ROWS // len(strengths))
    expected = [theirs(x, s) for x, s in zip(images, strength.tolist(), strict=True)]
    difference = (ours(images, strength).int() - torch.stack(expected).int()).abs()
    assert difference.max() <= (share > 0)
    assert (difference > 0).float().mean() <= share


def test_rotation_is_torchvisions_but_where_two_pixels_are_equally_near(images: Tensor) -> None:
    degrees = torch.tensor([-30.0, 5.0, 17.0, 135.0]).repeat(ROWS // 4)
    expected = [tv.rotate(x, d) for x, d in zip(images, degrees.tolist(), strict=True)]
    assert (policy.rotated(images, degrees) != torch.stack(expected)).float().mean() < 0.01


def test_policies_draw_every_operation(squares: Tensor) -> None:
    for name in ("randaugment", "trivialaugment"):
        found = policy.apply_policy(squares, KEYS, 0, name, 1, 15)  # type: ignore[arg-type]
        assert found.shape == squares.shape
        changed = (found != squares).flatten(1).any(1).float().mean()
        assert 0.7 < changed < 1


def test_shades_of_grey_go_through_every_augmentation(squares: Tensor) -> None:
    shades = squares[:, :1]
    for augment in (Augment(policy="randaugment"), Augment(jitter=(0.4, 0.4, 0.4, 0.1))):
        assert augment(shades, INDEX, Moment(0, 0)).shape == shades.shape


def test_cutout_blanks_one_square(squares: Tensor) -> None:
    fill = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    start = torch.tensor([[2, 3]]).expand(ROWS, 2)
    found = blanked(squares, start, start + 5, fill)
    assert (found[:, :, 2:7, 3:8] == fill).all()
    assert torch.equal(found[:, :, 7:], squares[:, :, 7:])
    outside = blanked(squares, start - 10, start - 6, fill)
    assert torch.equal(outside, squares)


def test_erasing_blanks_its_share_of_images_and_area(squares: Tensor) -> None:
    keys = sample_keys(0, 0, torch.arange(4000))
    many = squares[:1].expand(4000, 3, 24, 24)
    start, end = erased_boxes(many, keys, 0, 0.4)
    area = (end - start).prod(1) / 24**2
    assert 0.37 < (area > 0).float().mean() < 0.43
    assert 0.14 < area[area > 0].mean() < 0.19  # 0.175, less what does not fit in
    assert (end <= 24).all()


def test_size_grows_in_steps_until_it_is_reached() -> None:
    augment = Augment(size=224, start_size=128, grow_until=0.5)
    sizes = [augment.size_at(progress / 10, 224) for progress in range(11)]
    assert sizes == [128, 128, 160, 160, 192, *[224] * 6]


def test_growing_images_show_all_that_was_cut_out(squares: Tensor) -> None:
    smooth = torch.linspace(0, 255, 24).round().byte().expand(ROWS, 3, 24, 24)
    found = Augment(size=24, start_size=12)(smooth, INDEX, Moment())
    assert found.shape == (ROWS, 3, 12, 12)
    expected = smooth.float().unfold(3, 2, 2).mean(-1)[:, :, ::2]
    assert (found[..., 1:-1] - expected[..., 1:-1]).abs().max() < 4


def test_images_that_are_not_square_stay_whole_if_no_size_is_set(images: Tensor) -> None:
    assert torch.equal(Augment()(images, INDEX, Moment(0, 0)), images)
    for augment in (Augment(pad=2, flip="random"), Augment(resized_crop=0.5)):
        assert augment(images, INDEX, Moment(0, 0)).shape == images.shape


def test_a_size_beyond_the_images_is_refused_with_the_remedy(images: Tensor) -> None:
    for augment in (Augment(size=25), Augment(size=25, resized_crop=0.5)):
        with pytest.raises(ValueError, match=r"size=25 is larger than the images, of 24 x 32 .*"):
            augment(images, INDEX, Moment(0, 0))


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"pad": -1}, "pad"),
        ({"resized_crop": 0.0}, "resized_crop"),
        ({"flip": "sometimes"}, "flip"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "jitter"),
        ({"erasing": 1.5}, "erasing"),
        ({"start_size": 64}, "start_size"),
        ({"magnitude": 31}, "magnitude"),
        ({"pad": 4, "resized_crop": 0.5}, "pad"),
    ],
)
def test_bad_value_is_named_with_its_rule(values: dict[str, object], key: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.augment\.{key} "):
        Augment(**values)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("augment", "levels"),
    [
        (Augment(pad=4, flip="random", cutout=8), 0),
        (Augment(pad=4, pad_mode="zero", flip="alternating", erasing=0.5), 0),
        (Augment(resized_crop=0.3, size=16), 1),
        (Augment(jitter=(0.4, 0.4, 0.4, 0.1)), 1),
        (Augment(policy="trivialaugment"), 1),
    ],
)
def test_a_gpu_augments_as_a_cpu(squares: Tensor, augment: Augment, levels: int) -> None:
    cpu, gpu = (augment(squares.to(d), INDEX.to(d), Moment(3, 5)).cpu() for d in ("cpu", "cuda"))
    away = (cpu.int() - gpu.int()).abs() > levels
    assert away.float().mean() <= (0.01 if augment.policy else 0)  # places that are rounded


@pytest.mark.gpu
def test_a_gpu_mixes_as_a_cpu(squares: Tensor) -> None:
    mixing, label = Mixing(mixup=0.2, cutmix=1.0), INDEX % 7
    cpu, gpu = (mixing(squares.to(d), label.to(d), INDEX.to(d), 7, 3, 5) for d in ("cpu", "cuda"))
    for left, right in zip(cpu, gpu, strict=True):
        assert torch.allclose(left, right.cpu(), atol=1e-3)
