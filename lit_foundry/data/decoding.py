"""Images of any kind as pixels of one form.

Shapes: H height, W width, C channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

Fit = Literal["crop", "squash"]
Mode = Literal["RGB", "L"]


# Beginnings of files. PIL tries one format after the other, a third of its time for a small image.
STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n": "PNG", b"RIFF": "WEBP"}


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
            if self.size is not None:
                # Large photos at a half, a quarter, an eighth; PIL advises to leave a factor of 3.
                file.draft(None, (3 * self.size, 3 * self.size))
            fitted = self._fitted(_upright(file))
            return np.asarray(fitted).reshape(fitted.height, fitted.width, self.channels)

    def _fitted(self, image: Image.Image) -> Image.Image:
        image, size = _converted(image, self.mode), self.size
        if size is None or image.size == (size, size):
            return image
        edges = [size] if self.fit == "crop" else [size, size]
        # The shorter edge becomes size, as in the evaluation of most published networks.
        resized = F.resize(image, edges, interpolation=InterpolationMode.BICUBIC)
        cropped: Image.Image = F.center_crop(resized, [size, size])
        return cropped


@contextmanager
def _told() -> Iterator[None]:
    """Turn whatever a decoder raises into the reason why an image is bad."""
    try:
        yield
    except (BadImageError, FileNotFoundError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(_TOO_LARGE.format(Image.MAX_IMAGE_PIXELS)) from None
    # Nearly always an OSError (of 3,000 files damaged at random, each), but PIL promises nothing.
    except Exception as error:
        raise BadImageError(f"truncated or damaged ({error})") from error


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
        return _small(Image.open(BytesIO(image), formats=likely or None))
    if not Path(image).stat().st_size:
        raise BadImageError("empty, 0 bytes")
    return _small(Image.open(image))


def _small(image: Image.Image) -> Image.Image:
    """Refuse from PIL's limit on, where it would only warn up to the double."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        image.close()
        raise BadImageError(_TOO_LARGE.format(limit))
    return image


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
