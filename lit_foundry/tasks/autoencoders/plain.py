"""Autoencoders: images through a bottleneck, plain or denoising.

Shapes: B batch, C channels, S edge of an image, L latent width.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn import ImageBackbone
from lit_foundry.nn.decoders import Decoder
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.image.corruption import Corruption
from lit_foundry.tasks.autoencoders.reconstruction import (
    Reconstruction,
    scaled,
    squared_error,
    unscaled,
)
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.image_metrics import PeakSignalToNoise
from lit_foundry.training.optim import OptimConfig


class Autoencoder(Reconstruction):
    """Rebuilds images from latents of a few numbers; with ``corruption``, from corrupted ones.

    It logs the peak signal-to-noise ratio in decibels (``psnr``). What it predicts of an image is
    its ``error``, the mean squared error in units of the whole range.

    Args:
        backbone: Image encoder, which a classification can begin with (``init_from``).
        latent: Width L of the latents.
        decoder: What turns them into images; None takes ConvDecoder.
        loss: Mean squared (``mse``) or absolute error (``l1``) of images in [-1, 1].
        corruption: What is to be undone; None nothing.
        image_size: Edge S of the images; None takes it from the data.
        augment: What is done to training images before they are corrupted; None nothing.
        compile: Compile the backbone in training.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.

    Source: Vincent et al., Extracting and Composing Robust Features with Denoising Autoencoders,
        2008. https://doi.org/10.1145/1390156.1390294
    """

    def __init__(
        self,
        backbone: ImageBackbone,
        latent: int = 128,
        decoder: Decoder | None = None,
        loss: Literal["mse", "l1"] = "mse",
        corruption: Corruption | None = None,
        image_size: int | None = None,
        augment: Augment | None = None,
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        rules = {
            "latent": (latent >= 1, "is a width, 1 at least"),
            "loss": (loss in ("mse", "l1"), "is mse or l1"),
        }
        ranges.check("model", {"latent": latent, "loss": loss}, rules)
        metrics = {"psnr": PeakSignalToNoise()}
        super().__init__(
            backbone, image_size, metrics, augment, compile, finetune, optim, init_from
        )
        self.loss, self.corruption = loss, corruption
        self.bottleneck = nn.Sequential(nn.Flatten(), nn.Linear(prod(self.grid), latent))
        self.decoder = self.built_decoder(decoder, latent, None)

    def forward(self, images: Tensor) -> Tensor:
        """Rebuild pixels from 0 to 255, (B, C, S, S); what is returned lies in [-1, 1], nearly."""
        rebuilt: Tensor = self.decoder(self.bottleneck(self.encode(images)))
        return rebuilt

    def forward_once(self, pixel_values: Tensor) -> None:
        """Run backbone and decoder."""
        self(pixel_values)

    def corrupted(self, images: Tensor, keys: Tensor) -> Tensor:
        """Return pixels as the backbone sees them."""
        if self.corruption is None:
            return images
        return self.corruption(images, keys, 255 * self.backbone.mean)

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Rebuild a batch."""
        images = self.images(batch, stage)
        rebuilt = self(self.corrupted(images, self.keys(batch, stage))).float()
        distance = rebuilt - scaled(images)
        each = (distance.abs() if self.loss == "l1" else distance.square()).flatten(1).mean(1)
        if stage == "train":
            return Step(each.mean(), len(each))
        error = squared_error(rebuilt, images)
        kept = {"index": batch["index"], "error": error}
        return Step(each.mean(), len(each), error, error, kept)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each image's ``index`` and ``error``, (B,): how unlike it is what is rebuilt."""
        images = self.images(batch, "val")
        # A copy: Lightning keeps it, and what a loader's worker sent holds a file open.
        return {
            "index": batch["index"].clone(),
            "error": squared_error(self(images).float(), images),
        }

    def rebuilt(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Return images, what the backbone sees of them, and what is rebuilt."""
        images = self.images(batch, "val")
        seen = self.corrupted(images, self.keys(batch, "val"))
        there = {"image": images, "corrupted": seen, "rebuilt": unscaled(self(seen))}
        return there if self.corruption else {k: v for k, v in there.items() if k != "corrupted"}
