"""What tasks share that learn to rebuild images from what a backbone makes of them.

Images lie in [-1, 1] here, whatever mean and deviation the backbone has: so pictures of what is
rebuilt are what it says, and one decoder's error can be held against another's.

Shapes: B batch, C channels, S edge of an image, D feature width, L latent width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lit_foundry import ranges
from lit_foundry.datamodule import Data
from lit_foundry.nn.decoders import ConvDecoder, Decoder
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.image.backbone import ImageBackbone
from lit_foundry.nn.image.views import Views
from lit_foundry.randomness import Moment, sample_numbers
from lit_foundry.tasks.pictures import Images, Shown, shown
from lit_foundry.tasks.step import Stage
from lit_foundry.tasks.visual import Visual
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.optim import OptimConfig

SHOWN = 8  # images of a picture


class Reconstruction(Visual):
    """An image backbone, latents made of its features, and a decoder of these.

    A subclass implements :meth:`step`, sets ``decoder`` by :meth:`built_decoder`, and says what it
    rebuilds by :meth:`rebuilt`.

    Args:
        backbone: Image encoder, which a classification can begin with (``init_from``).
        image_size: Edge S of the images; None takes it from the data.
        metrics: Evaluation metrics.
        augment: What is done to training images; None nothing.
        compile: Compile the backbone in training.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.

    Attributes:
        channels: Channels C of an image.
        grid: Shape (D, E, E) of a map of features.

    Raises:
        ValueError: If the backbone takes no images, or their size is unknown.
    """

    takes_unlabelled = True
    backbone: ImageBackbone
    grid: tuple[int, ...]
    monitor: ClassVar[str] = "val/loss"

    def __init__(
        self,
        backbone: ImageBackbone,
        image_size: int | None,
        metrics: Mapping[str, Metric],
        augment: Augment | None = None,
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        name = type(self).__name__
        if not isinstance(backbone, ImageBackbone):
            raise ValueError(
                f"{name} rebuilds images, and a {type(backbone).__name__} reads "
                f"{', '.join(backbone.inputs)}: take an image backbone, or MaskedLM for texts."
            )
        if image_size is None:
            raise ValueError(
                f"{name} rebuilds square images, whose edge model.image_size is: set data.size; in "
                "Python pass data.facts['image_size']."
            )
        size = augment.size if augment else None
        rules = {
            "size": (size in (None, image_size), f"is model.image_size ({image_size}), or null"),
            "start_size": (
                not (augment and augment.start_size),
                "grows nothing here: leave it out",
            ),
        }
        ranges.check("model.augment", vars(augment or Augment()), rules)
        super().__init__(optim, finetune, init_from, metrics)
        self.backbone = finetune.adapted(backbone)
        self.views = Views(augment or Augment(), backbone=backbone)
        self.image_size, self.channels = image_size, backbone.in_channels
        self.grid = self.backbone.grid(self.backbone.try_size(image_size)).shape[1:]
        self._leave_idle()
        self.compiled = compile

    @torch.enable_grad()
    def _leave_idle(self) -> None:
        """Let what the map of features does not depend on, such as a last norm, not learn.

        DDP would wait for its gradients.
        """
        parameters = [p for p in self.backbone.parameters() if p.requires_grad]
        was = self.backbone.training
        shape = (1, self.channels, self.image_size, self.image_size)
        features = self.backbone.eval().features(
            torch.zeros(shape, device=self.backbone.mean.device)
        )
        self.backbone.train(was)
        total = self.backbone.grid(features).sum()
        found = torch.autograd.grad(total, parameters, allow_unused=True) if parameters else ()
        for p, gradient in zip(parameters, found, strict=True):
            p.requires_grad_(gradient is not None)

    def built_decoder(
        self, decoder: Decoder | None, latent: int, edge: int | None, outputs: int = 1
    ) -> nn.Module:
        """Build the decoder of latents of that shape, with so many outputs for each channel."""
        made = decoder or ConvDecoder()
        return made.build(latent, edge, outputs * self.channels, self.image_size)

    def images(self, batch: Mapping[str, Any], stage: Stage) -> Tensor:
        """Return what is seen of images, augmented in training, (B, C, S, S) from 0 to 255."""
        assert self.views is not None
        seen = self.view(batch, stage) if stage == "train" else self.views.evaluation(batch)[0][1]
        pixels: Tensor = seen["pixel_values"]
        return pixels

    def keys(self, batch: Mapping[str, Any], stage: Stage) -> Tensor:
        """Return a key of random numbers for each sample: in evaluation always the same."""
        moment = self.moment if stage == "train" else Moment()
        return moment.keys(sample_numbers(batch))

    def encode(self, images: Tensor) -> Tensor:
        """Return the map of features of images from 0 to 255, (B, D, E, E)."""
        return self.backbone.grid(self.backbone.encode({"pixel_values": images}))

    def rebuilt(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Return images of an evaluation by what they are, pixels from 0 to 255, in rows."""
        raise NotImplementedError

    @torch.no_grad()
    def pictures(self, batch: Mapping[str, Any]) -> dict[str, Shown]:
        """Return what is shown at a validation, by name."""
        few = {name: field[:SHOWN] for name, field in batch.items()}
        rows = {name: shown(images) for name, images in self.rebuilt(few).items()}
        return {"reconstructions": Images(rows)}

    def check_data(self, data: Data) -> None:
        """Check also the size of what is rebuilt.

        Raises:
            ValueError: If the images are not square, or a fact of the data is another.
        """
        super().check_data(data)
        if "image_size" not in data.facts:
            raise ValueError(f"{type(self).__name__} rebuilds square images: set data.size.")


def scaled(pixels: Tensor) -> Tensor:
    """Return pixels from 0 to 255 in [-1, 1]."""
    return pixels.float() * (2 / 255) - 1


def unscaled(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as pixels from 0 to 255."""
    return (images.float() + 1) * (255 / 2)


def squared_error(rebuilt: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean squared error of each image, where the whole range is 1, (B,)."""
    return ((rebuilt.clamp(-1, 1) - scaled(pixels)) / 2).square().flatten(1).mean(1)
