"""Autoencoders with codes in place of vectors: VQ-VAE, and finite scalar quantization.

Shapes: B batch, C channels, S edge of an image, E edge of the map of codes, L latent width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_foundry.datamodule import data_of
from lit_foundry.nn import ImageBackbone
from lit_foundry.nn.codebooks import Codebook, Quantized, VectorQuantizer
from lit_foundry.nn.decoders import Decoder
from lit_foundry.nn.image.augment import Augment
from lit_foundry.randomness import hashes
from lit_foundry.tasks.autoencoders.reconstruction import (
    Reconstruction,
    scaled,
    squared_error,
    unscaled,
)
from lit_foundry.tasks.pictures import Bars, Shown
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.image_metrics import CodeUsage, PeakSignalToNoise
from lit_foundry.training.optim import OptimConfig

_SEEN = 40  # stream of random numbers


class QuantizedAutoencoder(Reconstruction):
    """Rebuilds images from a map of codes.

    The loss is the mean squared error of images in [-1, 1], and what the codebook adds, each
    averaged over its places. It logs the peak signal-to-noise ratio in decibels (``psnr``), the
    share of the codes that an evaluation uses (``usage``) and how many they would be if all were
    used alike (``perplexity``). What it predicts of an image is its ``error``, the mean squared
    error in units of the whole range.

    Args:
        backbone: Image encoder whose map of features is quantized place by place.
        codebook: What quantizes; None takes VectorQuantizer.
        decoder: What turns the map into images; None takes ConvDecoder.
        image_size: Edge S of the images; None takes it from the data.
        augment: What is done to training images; None nothing.
        compile: Compile the backbone in training.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.

    Source: van den Oord et al., Neural Discrete Representation Learning, 2017.
        https://arxiv.org/abs/1711.00937
    """

    def __init__(
        self,
        backbone: ImageBackbone,
        codebook: Codebook | None = None,
        decoder: Decoder | None = None,
        image_size: int | None = None,
        augment: Augment | None = None,
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        codebook = codebook or VectorQuantizer()
        metrics = {"psnr": PeakSignalToNoise(), "codes": CodeUsage(codebook.size)}
        super().__init__(
            backbone, image_size, metrics, augment, compile, finetune, optim, init_from
        )
        self.codebook = codebook
        self.bottleneck = nn.Conv2d(self.grid[0], codebook.dim, 1)
        self.decoder = self.built_decoder(decoder, codebook.dim, self.grid[1])

    def quantized(self, images: Tensor) -> tuple[Tensor, Tensor, Quantized]:
        """Quantize pixels from 0 to 255.

        Returns:
            Vectors before, (B * E * E, L); the map of those after, (B, L, E, E); and what became
            of the vectors.
        """
        latents = self.bottleneck(self.encode(images))
        vectors = latents.movedim(1, -1).flatten(0, 2)
        found = self.codebook(vectors)
        return vectors, found.vectors.view(latents.movedim(1, -1).shape).movedim(-1, 1), found

    def codes(self, images: Tensor) -> Tensor:
        """Return the codes of pixels from 0 to 255, shape (B, E, E) int64."""
        codes: Tensor = self.quantized(images)[2].codes
        return codes.view(len(images), *self.grid[1:])

    def decoded(self, codes: Tensor) -> Tensor:
        """Return the images of (B, E, E) codes, pixels from 0 to 255."""
        vectors = self.codebook.vectors(codes).movedim(-1, 1)
        return unscaled(self.decoder(vectors.to(self.dtype)))

    def forward_once(self, pixel_values: Tensor) -> None:
        """Run backbone and decoder."""
        self.decoder(self.quantized(pixel_values)[1])

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Begin a step with nothing seen."""
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.codebook.forget()

    def updated(self) -> None:
        """Let the codebook follow what was seen in the step, by all ranks."""
        self.codebook.follow(self.trainer.strategy)

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Rebuild a batch."""
        images = self.images(batch, stage)
        vectors, latents, found = self.quantized(images)
        rebuilt = self.decoder(latents).float()
        each = (rebuilt - scaled(images)).square().flatten(1).mean(1)
        loss = each.mean() + found.loss.mean()
        if stage == "train":
            keys = hashes(self.keys(batch, stage), self.grid[1] ** 2, _SEEN).flatten()
            self.codebook.remember(vectors.detach(), found.codes, keys)
            return Step(loss, len(each))
        error = squared_error(rebuilt, images)
        kept = {"index": batch["index"], "error": error}
        return Step(loss, len(each), found.codes, error, kept)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each image's ``index`` and ``error``, (B,): how unlike it is what is rebuilt."""
        images = self.images(batch, "val")
        error = squared_error(self.decoder(self.quantized(images)[1]).float(), images)
        return {"index": batch["index"].clone(), "error": error}

    def rebuilt(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Return images, and what is rebuilt of their codes."""
        images = self.images(batch, "val")
        return {"image": images, "rebuilt": self.decoded(self.codes(images))}

    def charts(self) -> dict[str, Shown]:
        """Return how often the validation took each code."""
        counts = self.results.get("val/code_counts")
        if counts is None:
            return {}
        used = f"codes, sorted: {int((counts > 0).sum()):,} of {len(counts):,} are in use"
        return {"codes": Bars.of(counts, "places", used)}

    def setup(self, stage: str) -> None:
        """Check before a fit that there is more to quantize than there are codes.

        Raises:
            ValueError: If there is not.
        """
        super().setup(stage)
        data = data_of(self.trainer)
        if stage != "fit" or data is None:
            return
        places = len(data.load("train").lengths) * self.grid[1] ** 2
        if places < self.codebook.size:
            raise ValueError(
                f"model.codebook has {self.codebook.size:,} codes, and the training split only "
                f"{places:,} places to quantize ({self.grid[1]} x {self.grid[1]} of each image): "
                "take fewer codes."
            )
