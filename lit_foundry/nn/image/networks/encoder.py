"""Vision networks of ``transformers`` as backbones: from a hub, a folder or a config.

Shapes: B batch, C channels, H height, W width, N positions, D feature width.
"""

import copy
from collections.abc import Sequence
from math import isqrt
from textwrap import shorten
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn.backbone import is_restoring
from lit_foundry.nn.features import Features
from lit_foundry.nn.heads import LinearHead
from lit_foundry.nn.image.backbone import ImageBackbone
from lit_foundry.nn.image.blocks import depth_blocks
from lit_foundry.nn.image.channels import of_channels, spread
from lit_foundry.nn.transformers_config import knows, plain_config, quiet, read_config, set_dropout
from lit_foundry.sources import from_hub, resolve

OFFLINE = (
    "Set model.backbone.pretrained to a local folder, or leave it out and set "
    "model.backbone.config to build from scratch."
)
# What AutoModelForImageClassification classifies, where it is not the pooler's output.
FIRST = {"vit", "deit", "vit_msn"}
FIRST_AND_MEAN = {"dinov2", "dinov2_with_registers"}
PREFIX = ("cls_token", "distillation_token", "register_tokens")  # tokens before the patches


class ImageEncoder(ImageBackbone):
    """Any vision network of ``transformers``.

    ``tokens`` are the last hidden states: class token and patches, or the positions of a feature
    map. Of DINOv2, which classifies class token and mean of the patches together, ``pooled`` is
    twice as wide as they are.

    Args:
        pretrained: Hub name, folder, or ``package:NAME/FOLDER``.
        config: Config of ``transformers`` with its ``model_type``; without ``pretrained``, builds
            from scratch; with it, overrides entries of the pretrained config.
        in_channels: Channels C of an image, where the config does not say; None takes 3, or those
            of the pretrained weights, which are fitted to it.
        image_size: Edge of the images, where the config does not say and the family is made for
            one size. Pretrained positions are interpolated to it.
        pooling: ``first`` token, ``mean`` of the patches, or as the family classifies.
        drop_path: Probability to skip the last residual branch (stochastic depth); None keeps the
            config's.
        dropout: Probability of all the encoder's dropouts; None keeps the config's.
        mean: Mean of each channel in [0, 1]; None takes that of the pretrained weights'
            image processor, or 0.5.
        std: Standard deviation of each channel, likewise.

    Raises:
        ValueError: If an argument means nothing to the network, or the weights do not fit.
        FileNotFoundError: If the weights are neither here nor within reach.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        in_channels: int | None = None,
        image_size: int | None = None,
        pooling: Literal["default", "first", "mean"] = "default",
        drop_path: float | None = None,
        dropout: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        ranges.check_probs("model.backbone", dropout=dropout, drop_path=drop_path)
        built = read_config(pretrained, config or {}, OFFLINE)
        check(built)
        if dropout is not None:
            set_dropout(built, dropout)
        if drop_path is not None:
            set_drop_path(built, drop_path)
        original = copy.deepcopy(built)
        built.num_labels = 2  # the classes are the task's
        for key, value in (("num_channels", in_channels), ("image_size", image_size)):
            if value is not None and key not in (config or {}) and knows(type(built), key):
                setattr(built, key, value)
        said = mean is not None and std is not None
        own = statistics(None if is_restoring() or said else pretrained)
        channels = built.num_channels
        super().__init__(
            channels,
            of_channels(own[0], channels) if mean is None else mean,
            of_channels(own[1], channels) if std is None else std,
            edge(built),
        )
        self.encoder: Any = build(built, original, None if is_restoring() else pretrained)
        names = dict(self.encoder.named_parameters())
        self._prefix = sum(names[name].shape[1] for name in names if name.endswith(PREFIX))
        self.pooling, family = pooling, built.model_type
        self._how: str = pooling
        if pooling == "default":
            self._how = "first" if family in FIRST else "pooler"
            self._how = "first and mean" if family in FIRST_AND_MEAN else self._how
        pooler = getattr(self.encoder, "pooler", None)
        if self._how != "pooler" and pooler is not None and any(True for _ in pooler.parameters()):
            self.encoder.pooler = None  # DDP would wait for its gradients
        # Families name their width in many ways.
        self.dim = self.try_size(self.image_size or image_size or 64).pooled.shape[1]

    def features(self, images: Tensor) -> Features:
        """Compute features of (B, C, H, W) normalized images."""
        return self._pool(self.encoder(pixel_values=images))

    def _pool(self, output: Any) -> Features:
        tokens: Tensor = output.last_hidden_state
        if tokens.ndim == 4:
            tokens = tokens.flatten(2).transpose(1, 2)
        pooler, family = output.get("pooler_output"), self.encoder.config.model_type
        if self._how == "pooler":
            if pooler is None:
                raise ValueError(
                    f"model.backbone.config.model_type {family} pools inside of its classifier: "
                    "set model.backbone.pooling to mean."
                )
            return Features(tokens, pooler.flatten(1))
        if not self._prefix and (self._how == "first" or pooler is not None):
            raise ValueError(
                f"model.backbone.pooling {self.pooling} is for networks with a class token, and "
                f"{family} has none: leave it out."
            )
        if self._how == "first":
            return Features(tokens, tokens[:, 0])
        patches = tokens[:, self._prefix :].mean(1)
        both = self._how == "first and mean"
        return Features(tokens, torch.cat((tokens[:, 0], patches), -1) if both else patches)

    def blocks(self) -> list[nn.Module]:
        """Return the embeddings, then the layers or residual blocks."""
        return depth_blocks(self.encoder)

    def classifier(self, num_classes: int, dropout: float | None = None) -> nn.Module:
        """Build a linear head, as the families of ``transformers`` have."""
        std = getattr(self.encoder.config, "initializer_range", 0.02)
        return LinearHead(self.dim, num_classes, dropout or 0.0, std)

    def recipe(self) -> dict[str, Any]:
        """Return the recipe with the whole config, so that it needs neither hub nor folder."""
        recipe = super().recipe()
        recipe["init_args"]["config"] = plain_config(self.encoder.config)
        return recipe


def check(config: Any) -> None:
    """Refuse what is no vision network on its own."""
    from transformers import MODEL_MAPPING

    kind = MODEL_MAPPING[type(config)]
    if kind.main_input_name != "pixel_values" or config.is_encoder_decoder:
        raise ValueError(
            f"model.backbone.config.model_type {config.model_type} is no vision network on its "
            "own: take one such as vit, dinov2, convnext or resnet."
        )
    if config.model_type == "vit_mae" or not hasattr(config, "num_channels"):
        raise ValueError(
            f"model.backbone.config.model_type {config.model_type} hides patches at random, or "
            "does not say how many channels it takes: take one such as vit, dinov2 or resnet."
        )


def set_drop_path(config: Any, prob: float) -> None:
    """Set the family's stochastic depth."""
    if not knows(type(config), "drop_path_rate"):
        raise ValueError(
            f"model.backbone.drop_path: {config.model_type} has no branches to skip in "
            "transformers; leave it out, or take one such as dinov2, beit, convnext or swin."
        )
    config.drop_path_rate = prob


def statistics(pretrained: str | None) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the pixels that pretrained weights are made for.

    The image processor of ``transformers`` decides, whose family has values of its own.

    Raises:
        ValueError: If it does to pixels what these two cannot express.
    """
    if pretrained is None:
        return [0.5], [0.5]
    from transformers import AutoImageProcessor

    name, way = (
        f"model.backbone.pretrained {pretrained}",
        "set model.backbone.mean and model.backbone.std",
    )
    try:
        with quiet():
            path = resolve(pretrained)
            processor: Any = AutoImageProcessor.from_pretrained(path, trust_remote_code=False)
    except OSError:  # weights without a file that says so
        return [0.5], [0.5]
    except ValueError as error:  # a processor that transformers does not know
        raise ValueError(f"{name}: {shorten(str(error), 100)}: {way}.") from error
    wanted = {"do_rescale": True, "rescale_offset": False, "do_flip_channel_order": False}
    wrong = [key for key, value in wanted.items() if bool(getattr(processor, key, value)) != value]
    if abs((processor.rescale_factor or 0) * 255 - 1) > 1e-4:
        wrong.append("rescale_factor")
    if wrong:
        raise ValueError(
            f"{name}: its image processor has {wrong[0]} {getattr(processor, wrong[0])}, which no "
            f"mean and std of pixels in [0, 1] express: {way} to what comes nearest."
        )
    own = (processor.image_mean, processor.image_std)
    mean, std = ([v] if isinstance(v, float) else list(v or [0.5]) for v in own)
    again = std if getattr(processor, "include_top", False) else [1.0]  # EfficientNet divides twice
    if not processor.do_normalize:
        return [0.0], again
    return mean, [v * again[i % len(again)] for i, v in enumerate(std)]


def edge(config: Any) -> int | None:
    """Return the size of images that a network is made for, which networks of patches are."""
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    if size is None or patch is None or hasattr(config, "hidden_sizes"):
        return None
    size, patch = (v if isinstance(v, int) else v[0] for v in (size, patch))
    if size % patch:
        raise ValueError(
            f"model.backbone.image_size {size} is no multiple of the patches' "
            f"model.backbone.config.patch_size {patch}: change one of them."
        )
    return int(size)


def build(config: Any, original: Any, pretrained: str | None) -> Any:
    """Build the network, and fill it with weights that ``original`` describes.

    Raises:
        ValueError: If the weights are not all there.
    """
    from transformers import AutoModel, AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
    )

    # The classifier's base has the pooler that it reads, and no other.
    auto = AutoModelForImageClassification if config.model_type in CLASSIFIERS else AutoModel
    config.architectures = original.architectures = []  # of several classifiers, take the first
    encoder = _base(auto.from_config(config, dtype=torch.float32, trust_remote_code=False))
    encoder.config.architectures = None
    if pretrained is None:
        return encoder
    path = resolve(pretrained)
    options = {"dtype": torch.float32, "output_loading_info": True, "trust_remote_code": False}
    with from_hub(path, OFFLINE), quiet():
        model, info = auto.from_pretrained(path, config=original, **options)
    source = _base(model)
    prefix = "" if source is model else f"{model.base_model_prefix}."
    mine, theirs = encoder.state_dict(), source.state_dict()
    lost = sorted(info["missing_keys"] & {prefix + key for key in mine})
    if lost:
        raise ValueError(
            f"model.backbone.pretrained {pretrained} lacks {len(lost)} weights of the encoder that "
            f"its config describes, such as {lost[0]}: correct model.backbone.config."
        )
    encoder.load_state_dict({key: fitted(key, theirs[key], mine[key].shape) for key in mine})
    return encoder


def _base(model: Any) -> Any:
    """Return a model's encoder, without the token for masked patches: it gets no gradient."""
    for module in model.modules():
        if getattr(module, "mask_token", None) is not None:
            module.mask_token = None
    return model.base_model


def fitted(key: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Fit one pretrained tensor to another number of channels or size of images."""
    if value.shape == shape:
        return value
    if value.ndim == 4:
        return spread(value, shape[1])
    if key.endswith("position_embeddings"):  # tokens of the whole image precede the grid
        before = value.shape[1] - isqrt(value.shape[1]) ** 2
        grid = bicubic(value[0, before:], shape[1] - before)
        return torch.cat((value[:, :before], grid[None]), 1)
    grid = bicubic(value[:-3], shape[0] - 3)  # BEiT's relative positions, and three of its token
    return torch.cat((grid, value[-3:]))


def bicubic(grid: Tensor, count: int) -> Tensor:
    """Interpolate a square grid of (N, D) vectors to ``count`` of them, as transformers does."""
    image = grid.T.reshape(1, -1, isqrt(len(grid)), isqrt(len(grid)))
    size = (isqrt(count), isqrt(count))
    return F.interpolate(image, size, mode="bicubic", align_corners=False)[0].flatten(1).T
