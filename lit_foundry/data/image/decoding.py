"""Images of any kind as pixels of one form.

Shapes: H height, W width, C channels.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from lit_foundry.data.files.image_kinds import STARTS, kinds

Fit = Literal["crop", "squash"]
Mode = Literal["RGB", "L"]


THIN = 100  # times longer than wide: of such images no more is resized than is kept


class BadImageError(ValueError):
    """Says why an image cannot be decoded; whoever knows where it lies adds that."""


@dataclass(frozen=True)
class Form:
    """What every image becomes.

    Attributes:
        size: Edge in pixels; None keeps the size of the file.
        fit: Whether the centre of a resized image is cropped, or the whole squashed.
        mode: Colours, or shades of grey.
    """

    size: int | None = None
    fit: Fit = "crop"
    mode: Mode = "RGB"

    @property
    def channels(self) -> int:
        """Number of channels."""
        return 3 if self.mode == "RGB" else 1

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Tell whether pixels of a shape (..., H, W, C) have this form already."""
        return shape[-1] == self.channels and (self.size is None or {*shape[-3:-1]} == {self.size})

    def pixels(self, image: Any) -> NDArray[np.uint8]:
        """Decode an image and bring it into this form.

        It is turned upright if its EXIF data say so, and of an animation the first frame is taken.

        Args:
            image: Path, bytes of a file, image of PIL, or pixels (H, W) or (H, W, C) uint8.

        Returns:
            Pixels, shape (H, W, C).

        Raises:
            BadImageError: If it cannot be decoded.
        """
        with _told(), _opened(image) as file:
            return self._fitted(_converted(_upright(file), self.mode))

    def _fitted(self, image: Image.Image) -> NDArray[np.uint8]:
        size = self.size
        if size is not None and self.fit == "crop" and max(image.size) > THIN * min(image.size):
            image = _middle(image, size)
        pixels = np.array(image).reshape(image.height, image.width, self.channels)
        if size is None:
            return pixels
        # Bit for bit what the image processors of transformers do (on tensors, PIL differs by a
        # level or two): the shorter edge becomes size, and the middle is rounded up and left.
        edges = [size] if self.fit == "crop" else [size, size]
        planes = torch.from_numpy(pixels).permute(2, 0, 1)
        fitted: Tensor = F.resize(planes, edges, interpolation=InterpolationMode.BICUBIC)
        top, left = ((edge - size) // 2 for edge in fitted.shape[1:])
        return fitted[:, top : top + size, left : left + size].permute(1, 2, 0).numpy()


@contextmanager
def _told() -> Iterator[None]:
    """Turn whatever a decoder raises into the reason why an image is bad."""
    try:
        yield
    except BadImageError:
        raise
    except PermissionError:
        raise BadImageError("no permission to read it") from None
    except MemoryError:
        raise BadImageError("takes more memory than there is") from None
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(_TOO_LARGE.format(Image.MAX_IMAGE_PIXELS)) from None
    # Nearly always an OSError (of 3,000 files damaged at random, each), but PIL promises nothing.
    except Exception as error:
        raise BadImageError(f"truncated or damaged ({shorten(str(error), 200)})") from error


_TOO_LARGE = "more than {} pixels, PIL's limit (PIL.Image.MAX_IMAGE_PIXELS)"


def _opened(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.copy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise BadImageError(f"an array {image.shape} of {image.dtype}, not (H, W, C) of uint8")
        return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if isinstance(image, bytes):
        if not image:
            raise BadImageError("empty, 0 bytes")
        likely = [kind for start, kind in STARTS.items() if image.startswith(start)]
        return _small(Image.open(BytesIO(image), formats=likely or kinds()))
    if not os.path.exists(image):
        raise BadImageError("no such file, or a link that leads to none")
    if not Path(image).stat().st_size:
        raise BadImageError("empty, 0 bytes")
    return _small(Image.open(image, formats=kinds()))


def _small(image: Image.Image) -> Image.Image:
    """Refuse from PIL's limit on, where it would only warn up to the double."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise BadImageError(_TOO_LARGE.format(limit))
    return image


def _middle(image: Image.Image, size: int) -> Image.Image:
    """Return the resized middle of an image whose resized whole would take gigabytes."""
    short, long = sorted(image.size)
    whole = int(size * long / short)
    step, first = long / whole, (whole - size) // 2
    start, end = first * step, (first + size) * step
    box = (start, 0, end, short) if image.width == long else (0, start, short, end)
    return image.resize((size, size), Image.Resampling.BICUBIC, box)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def _converted(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode.startswith("I;16"):
        shades = np.asarray(image).astype(np.uint32)  # PIL clips them instead
        image = Image.fromarray(((shades * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("I", "F", "LAB"):
        raise BadImageError(f"of mode {image.mode}, which has no {mode}; convert it to 8 bit")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns of the direct way
    return image if image.mode == mode else image.convert(mode)
