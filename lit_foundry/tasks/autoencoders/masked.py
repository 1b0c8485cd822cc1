"""Masked autoencoders: images from a few of their patches.

Shapes: B batch, C channels, S edge of an image, N patches, K visible ones, P numbers of a patch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn import ImageBackbone
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.image.patches import (
    check_patches,
    images_of,
    patches_of,
    sine_cosine,
    visible_tokens,
)
from lit_foundry.randomness import uniforms
from lit_foundry.tasks.autoencoders.reconstruction import Reconstruction
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.optim import OptimConfig

_MASK = 44  # stream of random numbers


@dataclass(frozen=True)
class PatchDecoder:
    """A small transformer over visible patches and those that are to be predicted.

    Args:
        width: Width of its tokens, a multiple of 4 and of ``heads``.
        layers: Number of layers.
        heads: Attention heads of each.

    Raises:
        ValueError: If a value breaks its rule.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        even = self.width > 0 and self.width % 4 == self.width % max(self.heads, 1) == 0
        rules = {
            "width": (even, "is a multiple of 4 and of model.decoder.heads"),
            "layers": (self.layers >= 1, "is a number of layers, 1 at least"),
            "heads": (self.heads >= 1, "is a number of heads, 1 at least"),
        }
        ranges.check("model.decoder", vars(self), rules)

    def build(self, dim: int, edge: int, patch: int, channels: int) -> nn.Module:
        """Build the decoder of ``transformers``, from tokens (B, 1 + K, D) and the patches' order.

        Args:
            dim: Width D of the encoder's tokens.
            edge: Patches of a row.
            patch: Pixels of a patch's edge.
            channels: Channels of an image.
        """
        from transformers import ViTMAEConfig
        from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoder

        config = ViTMAEConfig(
            hidden_size=dim,
            patch_size=patch,
            num_channels=channels,
            image_size=patch * edge,
            decoder_hidden_size=self.width,
            decoder_num_hidden_layers=self.layers,
            decoder_num_attention_heads=self.heads,
            decoder_intermediate_size=4 * self.width,
        )
        config._attn_implementation = "sdpa"
        decoder = cast(nn.Module, ViTMAEDecoder(config, edge**2))
        for module in decoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        return decoder


class MaskedAutoencoder(Reconstruction):
    """Predicts the patches of an image that its encoder did not see.

    The encoder sees visible patches alone, which makes it as much faster as there are fewer; the
    decoder sees places for the others too, and is left behind: what goes on is the encoder
    (``init_from``). Which patches are hidden is drawn by seed, epoch and sample, in evaluation by
    the sample alone. Positions that are learnt from scratch begin as sines and cosines. What it
    predicts of an image is its ``error``: how hard its hidden patches are to tell.

    Args:
        backbone: Vision transformer of ``transformers``.
        masked: Share of the patches that is hidden.
        decoder: What predicts them.
        normalized: Predict each patch less its mean, divided by its deviation.
        image_size: Edge S of the images; None takes it from the data.
        augment: What is done to training images; None nothing.
        compile: Compile the layers in training.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.

    Raises:
        ValueError: If the backbone cannot see some patches alone, or the share leaves none.

    Source: He et al., Masked Autoencoders Are Scalable Vision Learners, 2021.
        https://arxiv.org/abs/2111.06377
    """

    def __init__(
        self,
        backbone: ImageBackbone,
        masked: float = 0.75,
        decoder: PatchDecoder = PatchDecoder(),
        normalized: bool = True,
        image_size: int | None = None,
        augment: Augment | None = None,
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        rules = {"masked": (0 < masked < 1, "is a share of the patches, in (0, 1)")}
        ranges.check("model", {"masked": masked}, rules)
        super().__init__(backbone, image_size, {}, augment, compile, finetune, optim, init_from)
        check_patches(self.backbone, self.image_size, type(self).__name__)
        dim, edge, _ = self.grid
        self.kept, self.normalized = int(edge**2 * (1 - masked)), normalized
        if not 0 < self.kept < edge**2:
            raise ValueError(
                f"model.masked={masked} of {edge**2} patches leaves {self.kept} to see: set it so "
                "that some are seen and some are not, or make patches smaller."
            )
        if self.backbone.recipe()["init_args"].get("pretrained") is None and dim % 4 == 0:
            positions = cast(Any, self.backbone).encoder.embeddings.position_embeddings
            with torch.no_grad():
                positions[:, 0], positions[:, 1:] = 0, sine_cosine(edge, dim)
        self.decoder = decoder.build(dim, edge, self.image_size // edge, self.channels)

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """The layers of both, as nothing calls the backbone as a whole."""
        both = cast(Any, self.backbone).encoder.layers, cast(Any, self.decoder).decoder_layers
        return [layer for layers in both for layer in layers]

    def order(self, batch: Mapping[str, Any], stage: Stage) -> Tensor:
        """Return numbers of the patches of each image, (B, N), of which the first K are seen."""
        count = self.grid[1] ** 2
        return uniforms(self.keys(batch, stage), count, _MASK).argsort(1)

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        """Predict all patches of pixels from 0 to 255 from those seen, (B, N, P)."""
        tokens = visible_tokens(self.backbone, images, order[:, : self.kept])
        said: Tensor = self.decoder(tokens, order.argsort(1)).logits
        return said

    def forward_once(self, pixel_values: Tensor) -> None:
        """Run what is seen through the encoder, and the decoder."""
        order = torch.arange(self.grid[1] ** 2, device=pixel_values.device)
        self(pixel_values, order.expand(len(pixel_values), -1))

    def target(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what is to be predicted of pixels, (B, N, P).

        With it, mean and deviation of each patch, (B, N, 1), which make normalized pixels of it.
        """
        patches = patches_of(self.backbone.normalize(images).float(), self.grid[1])
        if not self.normalized:
            return patches, torch.zeros(()), torch.ones(())
        var, mean = torch.var_mean(patches, -1, keepdim=True)
        deviation = (var + 1e-6).sqrt()
        return (patches - mean) / deviation, mean, deviation

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Predict the hidden patches of a batch."""
        images, order = self.images(batch, stage), self.order(batch, stage)
        said = self(images, order).float()
        errors = (said - self.target(images)[0]).square().mean(-1)
        each = errors.gather(1, order[:, self.kept :]).mean(1)
        kept = {} if stage == "train" else {"index": batch["index"], "error": each}
        return Step(each.mean(), len(each), samples=kept)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each image's ``index`` and ``error``, (B,)."""
        found = self.step(batch, "val").samples
        return {name: column.clone() for name, column in found.items()}

    def rebuilt(self, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
        """Return images, what is seen of them, and that with the patches that are predicted.

        These are made pixels with the mean and deviation of the true patches.
        """
        images, order = self.images(batch, "val"), self.order(batch, "val")
        _, mean, deviation = self.target(images)
        said = self(images, order).float() * deviation + mean
        there = patches_of(self.backbone.normalize(images).float(), self.grid[1])
        hidden = torch.zeros_like(order, dtype=torch.bool)
        hidden = hidden.scatter(1, order[:, self.kept :], True)[:, :, None]

        def pixels(patches: Tensor) -> Tensor:
            normalized = images_of(patches, self.channels)
            return 255 * (normalized * self.backbone.std + self.backbone.mean)

        seen, predicted = there.masked_fill(hidden, 0.0), torch.where(hidden, said, there)
        return {"image": images, "seen": pixels(seen), "rebuilt": pixels(predicted)}
