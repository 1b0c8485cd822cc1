"""Files of images, on which an export is compared with its checkpoint.

Shapes: N files, C channels, S edge.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.data.image.decoded import DecodedImages
from lit_foundry.nn.image.augment import centre
from lit_foundry.nn.image.networks.network import ImageNetwork

KINDS = {
    "turned.jpg": "RGB",
    "grey.jpg": "L",
    "ink.jpg": "CMYK",
    "few.png": "P",
    "clear.png": "RGBA",
}
LEVELS = 0.01  # of 255, by which rounding in float32 may move a pixel


def sample_files(folder: Path, size: int) -> list[Path]:
    """Write images of the kinds that are read unlike, of odd sizes, and return their paths.

    Args:
        folder: Where they are written.
        size: Edge that they will be fitted to; they are larger.
    """
    random = np.random.default_rng(0)
    for number, (name, mode) in enumerate(KINDS.items()):
        shape = size + 2 * number + 1, 2 * size + 3 * number, 3
        image = Image.fromarray(random.integers(0, 256, shape, np.uint8)).convert(mode)
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 6 if name == "turned.jpg" else 1
        image.save(folder / name, exif=exif)
    return [folder / name for name in KINDS]


def pixels_of_files(
    network: ImageNetwork, folder: Path, data: DecodedImages, format: str
) -> Tensor:
    """Return what ``predict`` makes of files, shape (N, C, S, S) uint8.

    Args:
        network: What is exported.
        folder: The export.
        data: Data module that reads the files.
        format: Format of the export; ``hf`` has to make the same of them.

    Raises:
        CheckpointError: If it does not.
    """
    with TemporaryDirectory() as samples:
        files = sample_files(Path(samples), network.size)
        pixels = torch.cat([batch["pixel_values"] for batch in data.batches(files)])
        if format == "hf" and data.form.channels == 3:
            _check_pipeline(network, folder, files, pixels)
    return pixels


def _check_pipeline(
    network: ImageNetwork, folder: Path, files: Sequence[Path], pixels: Tensor
) -> None:
    """Check that the pipeline of ``transformers`` makes the same of files."""
    from transformers import AutoImageProcessor
    from transformers.image_utils import load_image

    processor: Any = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    backbone: Any = network.parts.backbone
    images: Any = [load_image(str(file)) for file in files]
    found = processor(images=images, return_tensors="pt")["pixel_values"]
    expected = backbone.normalize(centre(pixels, network.views.augment.shape(pixels)))
    moved = ((found - expected) * backbone.std * 255).abs().amax((1, 2, 3))
    worst = int(moved.argmax())
    if not moved[worst] <= LEVELS:  # NaN is not
        raise CheckpointError(
            f"--format hf: of {files[worst].name}, this version of transformers makes pixels that "
            f"differ from predict's by {float(moved[worst]):.1f} of 255; nothing was exported. Try "
            "another format."
        )
