"""Augmentation of whole uint8 batches on their device, a function of (seed, epoch, sample).

Shapes: B batch, C channels, H height, W width, S edge of what the network sees.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from lit_foundry import ranges
from lit_foundry.nn.image.erasing import blanked, erased_boxes
from lit_foundry.nn.image.randaugment import PolicyName, apply_policy, grey, jitter
from lit_foundry.randomness import Moment, uniforms

PadMode = Literal["zero", "reflect"]
# Streams of random numbers.
_SHIFT, _FLIP, _BOX, _CUTOUT, _ERASE, _POLICY, _JITTER, _GREY = range(16, 24)
_JITTERED = 28
_TRIES = 10  # boxes that a resized crop draws, as torchvision does


@dataclass(frozen=True)
class Augment:
    """What is done to batches of training images.

    Args:
        size: Edge S of what the network sees, at most that of the images, of which evaluation
            takes the centre; None takes them whole.
        start_size: Edge at the beginning of the run, to which what was cut out is scaled down
            and which grows to ``size`` (progressive resizing); needs a network that takes any.
        grow_until: Fraction of the run after which ``size`` is reached, in (0, 1].
        pad: Pixels that are added on each side before a random crop.
        pad_mode: What they hold.
        resized_crop: Least share of the area that a crop at random scale and aspect ratio (3/4
            to 4/3) keeps, in (0, 1]; 0.08 is usual for ImageNet. None crops without scaling.
        flip: Mirror left and right: at random, or alternating: at random in the first epoch and
            then the other way each epoch, so that two epochs show both (Jordan).
        policy: Operations drawn for each image: ``randaugment`` or ``trivialaugment``.
        num_ops: Operations that ``randaugment`` draws.
        magnitude: Their strength, of 30.
        jitter: Strength of random brightness, contrast, saturation and hue; hue at most 0.5.
        jitter_prob: Probability of that.
        grey: Probability that an image loses its colours.
        cutout: Edge of a square that is blanked in each image, in pixels; 0 for none.
        erasing: Probability that a rectangle of random size is blanked (Zhong et al.).

    Raises:
        ValueError: If a value breaks its rule; the message names both.

    Source: Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024,
        https://arxiv.org/abs/2404.00498 (alternating flip); DeVries and Taylor, Improved
        Regularization of Convolutional Neural Networks with Cutout, 2017,
        https://arxiv.org/abs/1708.04552; Zhong et al., Random Erasing Data Augmentation, 2017,
        https://arxiv.org/abs/1708.04896
    """

    size: int | None = None
    start_size: int | None = None
    grow_until: float = 0.75
    pad: int = 0
    pad_mode: PadMode = "reflect"
    resized_crop: float | None = None
    flip: Literal["none", "random", "alternating"] = "none"
    policy: PolicyName | None = None
    num_ops: int = 2
    magnitude: int = 9
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_prob: float = 1.0
    grey: float = 0.0
    cutout: int = 0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        sizes = [edge for edge in (self.size, self.start_size) if edge is not None]
        rules = {
            "size": (min(sizes, default=1) >= 1, "and start_size are edges of 1 pixel at least"),
            "start_size": (
                self.start_size is None or (self.size or 0) >= self.start_size,
                "is at most model.augment.size, which has to be set with it",
            ),
            "grow_until": (0 < self.grow_until <= 1, "is a fraction of the run in (0, 1]"),
            "pad": (self.pad >= 0, "is a number of pixels, 0 at least"),
            "pad_mode": (self.pad_mode in ("zero", "reflect"), "is zero or reflect"),
            "resized_crop": (
                self.resized_crop is None or 0 < self.resized_crop <= 1,
                "is a share of the area in (0, 1], or null",
            ),
            "flip": (self.flip in ("none", "random", "alternating"), "is random or alternating"),
            "num_ops": (self.num_ops >= 1, "is at least 1"),
            "magnitude": (0 <= self.magnitude <= 30, "lies between 0 and 30"),
            "jitter": (
                len(self.jitter) == 4 and min(self.jitter) >= 0 and self.jitter[3] <= 0.5,
                "holds brightness, contrast, saturation and hue, none negative, hue at most 0.5",
            ),
            "cutout": (self.cutout >= 0, "is the edge of a square in pixels, 0 at least"),
            **{
                name: (0 <= getattr(self, name) <= 1, "is a probability")
                for name in ("erasing", "jitter_prob", "grey")
            },
        }
        ranges.check("model.augment", vars(self), rules)
        if self.pad and self.resized_crop:
            raise ValueError(
                "model.augment.pad and model.augment.resized_crop are two ways to crop: set one."
            )

    def shape(self, images: Tensor) -> tuple[int, int]:
        """Return height and width of what is cut out of (B, C, H, W) images.

        Raises:
            ValueError: If the images are smaller.
        """
        height, width = images.shape[-2:]
        if self.size is None:
            return height, width
        if self.size > min(height, width):
            raise ValueError(
                f"model.augment.size={self.size} is larger than the images, of {height} x {width} "
                f"pixels: set data.size to {self.size} or more, or lower it."
            )
        return self.size, self.size

    def size_at(self, progress: float, last: int) -> int:
        """Return the edge when a fraction ``progress`` of the run is done.

        It grows in steps of 32 pixels, below 64 of 4.

        Args:
            progress: Fraction in [0, 1].
            last: Edge at the end.
        """
        if self.start_size is None or progress >= self.grow_until:
            return last
        grown = (last - self.start_size) * progress / self.grow_until
        step = 32 if last >= 64 else 4
        return min(last, self.start_size + int(grown) // step * step)

    def __call__(
        self,
        images: Tensor,
        index: Tensor,
        moment: Moment,
        fill: Tensor | None = None,
    ) -> Tensor:
        """Augment a batch.

        Args:
            images: Pixels, shape (B, C, H, W) uint8.
            index: Number of each sample, shape (B,).
            moment: When they are drawn.
            fill: What blanked places hold, shape (C, 1, 1), 0 to 255; black if None.

        Returns:
            Pixels, shape (B, C, S, S) uint8.
        """
        keys = moment.keys(index)
        height, width = self.shape(images)
        size = self.size_at(moment.progress, height)
        flipped = self._flipped(index, keys, moment)
        if self.resized_crop is not None:
            shape = (size, size) if self.size else (height, width)
            images = resized_crop(images, resized_boxes(images, keys, self.resized_crop), shape)
            images = images if flipped is None else mirrored(images, flipped)
        else:
            pairs = zip(images.shape[-2:], (height, width), strict=True)
            room = [edge - cut + 2 * self.pad for edge, cut in pairs]
            offsets = shifts(keys, room) - self.pad
            images = crop(images, offsets, (height, width), self.pad_mode, flipped)
            if size < height:
                images = tv.resize(images, [size, size])
        if self.policy:
            images = apply_policy(images, keys, _POLICY, self.policy, self.num_ops, self.magnitude)
        if any(self.jitter):
            changed = jitter(images, keys, _JITTER, self.jitter)
            images = chosen(changed, images, keys, _JITTERED, self.jitter_prob)
        if self.grey:
            images = chosen(grey(images).expand_as(images), images, keys, _GREY, self.grey)
        blank = torch.zeros(1, device=images.device) if fill is None else fill
        if self.cutout:
            places = shifts(keys, images.shape[-2:], _CUTOUT) - self.cutout // 2
            images = blanked(images, places, places + self.cutout, blank)
        if self.erasing:
            images = blanked(images, *erased_boxes(images, keys, _ERASE, self.erasing), blank)
        return images

    def _flipped(self, index: Tensor, keys: Tensor, moment: Moment) -> Tensor | None:
        """Return which images are mirrored, shape (B,) bool; None where none is."""
        if self.flip == "none":
            return None
        if self.flip == "random":
            return uniforms(keys, 1, _FLIP)[:, 0] < 0.5
        first = uniforms(Moment(moment.seed).keys(index), 1, _FLIP)[:, 0] < 0.5
        return first ^ bool(moment.epoch % 2)


def centre(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the middle of (B, C, H, W) images, of a height and a width.

    Where no pixel is in the middle, it lies up and left, as image processors of transformers cut.
    """
    height, width = shape
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def shifts(keys: Tensor, room: Any, stream: int = _SHIFT) -> Tensor:
    """Return whole numbers below or at ``room`` (vertically, horizontally), shape (B, 2) int64."""
    # Python's own numbers: the host would wait while a tensor of them is copied to the device.
    columns = zip(uniforms(keys, 2, stream).unbind(1), room, strict=True)
    return torch.stack([column * (int(most) + 1) for column, most in columns], 1).long()


def crop(
    images: Tensor,
    place: Tensor,
    shape: tuple[int, int],
    pad_mode: PadMode = "zero",
    flipped: Tensor | None = None,
) -> Tensor:
    """Cut a rectangle out of each image, and mirror some, in one pass.

    Args:
        images: Pixels, shape (B, C, H, W).
        place: Row and column of the upper left corner, which may lie outside, shape (B, 2).
        shape: Height and width.
        pad_mode: What lies outside.
        flipped: Which are mirrored left and right after that, shape (B,).
    """
    height, width = images.shape[-2:]
    down, across = (torch.arange(edge, device=images.device) for edge in shape)
    rows, columns = place[:, :1] + down, place[:, 1:] + across
    if flipped is not None:
        columns = torch.where(flipped[:, None], columns.flip(1), columns)
    # Rows of one table, a pixel each: three times as fast on a CPU as an index for each axis.
    pixels = images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
    first = torch.arange(len(images), device=images.device)[:, None, None] * (height * width)
    place = first + (_reflected(rows, height) * width)[:, :, None]
    place = place + _reflected(columns, width)[:, None]
    if pad_mode == "zero":
        inside = _inside(rows, height)[:, :, None] & _inside(columns, width)[:, None]
        place = torch.where(inside, place, len(pixels))
        pixels = torch.cat([pixels, pixels.new_zeros(1, images.shape[1])])
    found = pixels.index_select(0, place.flatten())
    return found.view(len(images), *shape, images.shape[1]).permute(0, 3, 1, 2)


def _inside(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Return places inside, mirrored at the first and the last one."""
    places = places.abs()
    return torch.where(places < size, places, 2 * (size - 1) - places).clamp(0, size - 1)


def chosen(changed: Tensor, images: Tensor, keys: Tensor, stream: int, prob: float) -> Tensor:
    """Return some images changed, each with that probability."""
    if prob == 1:
        return changed
    taken = uniforms(keys, 1, stream) < prob
    return torch.where(taken[:, :, None, None], changed.to(images.dtype), images)


def mirrored(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror some of the images left and right."""
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def resized_boxes(images: Tensor, keys: Tensor, least: float) -> Tensor:
    """Return what to cut out: top, left, height and width of each image, shape (B, 4) int64.

    The distribution is that of torchvision's ``RandomResizedCrop``: of ten boxes of uniform
    area and log-uniform aspect ratio in [3/4, 4/3], the first that fits, else the whole image.
    """
    height, width = images.shape[-2:]
    draws = uniforms(keys, 2 * _TRIES + 2, _BOX)
    area = height * width * (least + (1 - least) * draws[:, :_TRIES])
    low, high = math.log(3 / 4), math.log(4 / 3)
    ratio = torch.exp(low + (high - low) * draws[:, _TRIES : 2 * _TRIES])
    heights = torch.round(torch.sqrt(area / ratio)).long()
    widths = torch.round(torch.sqrt(area * ratio)).long()
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    first = fits.long().argmax(1, keepdim=True)
    any_fits = fits.any(1, keepdim=True)
    # Where none fits, what is not wider or higher than allowed: nearly square images are whole.
    high_box = torch.where(any_fits, heights.gather(1, first), min(height, round(width * 4 / 3)))
    wide_box = torch.where(any_fits, widths.gather(1, first), min(width, round(height * 4 / 3)))
    box = torch.cat([high_box, wide_box], 1)
    room = torch.cat([height - high_box, width - wide_box], 1)
    return torch.cat([(draws[:, -2:] * (room + 1)).long(), box], 1)


def resized_crop(images: Tensor, boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Cut boxes out of images and scale them to one shape, bilinear and without antialiasing.

    Args:
        images: Pixels, shape (B, C, H, W) uint8.
        boxes: Top, left, height and width, shape (B, 4).
        shape: Height and width of what is returned.
    """
    axes = []
    for axis, (size, edge) in enumerate(zip(shape, images.shape[-2:], strict=True)):
        steps = (torch.arange(size, device=images.device) + 0.5) / size
        start, length = boxes[:, axis, None], boxes[:, axis + 2, None]
        # Centres of pixels; within the box, as if nothing lay beside it.
        place = (steps * length - 0.5).clamp(min=0).minimum(length - 1.0) + start
        axes.append((2 * place + 1) / edge - 1)
    rows, columns = axes
    wide = len(images), *shape
    grid = torch.stack([columns[:, None].expand(wide), rows[:, :, None].expand(wide)], -1)
    sampled = F.grid_sample(images.float(), grid, "bilinear", "border", align_corners=False)
    pixels = sampled.round_().clamp_(0, 255).to(images.dtype)
    return pixels.contiguous(memory_format=torch.channels_last)
