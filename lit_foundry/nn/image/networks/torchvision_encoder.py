"""Classification networks of torchvision as backbones, from scratch or with their weights."""

from collections import OrderedDict
from collections.abc import Sequence
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
from lit_foundry.nn.image.channels import of_channels, replace_first_convolution

# Where the feature map ends, and what pools and classifies it begins.
TAIL = {"permute", "avgpool", "classifier", "fc", "head"}


class TorchvisionEncoder(ImageBackbone):
    """Any classification network of torchvision, without its last layer.

    ``pooled`` is what that layer saw, and ``tokens`` are the positions of the last feature map, or
    the tokens of a ViT. In AlexNet, VGG and MobileNetV3, whose classifiers are deeper, tokens are
    of another width.

    Args:
        name: Name in ``torchvision.models``, such as resnet18, convnext_tiny or vit_b_16.
        pretrained: Name of torchvision's weights, such as DEFAULT or IMAGENET1K_V2, or path of a
            .pth or .safetensors file with the keys of torchvision's own network.
        stem: ``small`` gives a ResNet a stem for small images: 3x3, stride 1, no pooling.
        in_channels: Channels C of an image; None means 3. Pretrained weights are fitted to it.
        image_size: Edge of the images; only ViT and MaxViT are made for one. The positions of
            pretrained weights are interpolated to it.
        mean: Mean of each channel in [0, 1]; None takes that of torchvision's weights.
        std: Standard deviation of each channel, likewise.
        drop_path: Probability to skip the last residual branch, rising linearly from the first
            (stochastic depth); None keeps the network's own.

    Raises:
        ValueError: If an argument means nothing to the network, or the weights do not fit.
        FileNotFoundError: If the weights are neither here nor within reach.
    """

    def __init__(
        self,
        name: str,
        pretrained: str | None = None,
        stem: Literal["imagenet", "small"] = "imagenet",
        in_channels: int | None = None,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        drop_path: float | None = None,
    ) -> None:
        from lit_foundry.nn.image.networks import torchvision_networks as networks

        networks.check_name(name)
        ranges.check_probs("model.backbone", drop_path=drop_path)
        channels = 3 if in_channels is None else in_channels
        state = None
        if pretrained is not None and not is_restoring():
            state = networks.read(name, pretrained)
        own = networks.statistics(name, pretrained)
        super().__init__(
            channels,
            of_channels(own[0], channels) if mean is None else mean,
            of_channels(own[1], channels) if std is None else std,
            networks.edge(name, image_size, state),
        )
        network = networks.build(name, self.image_size)
        if stem == "small":
            networks.shrink_stem(network, name)
        if drop_path is not None:
            networks.drop_branches(network, drop_path, name)
        replace_first_convolution(network, channels)
        last, self.dim, self._dropout = networks.cut(network)
        self._tokens, self._densenet = name.startswith("vit"), name.startswith("densenet")
        if not self._tokens:  # run part by part; MNASNet's own type refuses other checkpoints
            network = nn.Sequential(OrderedDict(network.named_children()))
        if state is not None:
            networks.fill(network, state, last, channels, str(pretrained))
        self.network: Any = network
        if image_size is not None:
            self.try_size(image_size)

    def features(self, images: Tensor) -> Features:
        """Compute features of (B, C, H, W) normalized images."""
        if self._tokens:
            patches = self.network._process_input(images)
            first = self.network.class_token.expand(len(images), -1, -1)
            tokens = self.network.encoder(torch.cat((first, patches), 1))
            return Features(tokens, tokens[:, 0])
        parts = dict(self.network.named_children())
        for name in parts:
            if name in TAIL:
                break
            for part in parts[name] if isinstance(parts[name], nn.ModuleList) else [parts[name]]:
                images = part(images)
        return self._pooled(parts, images)

    def _pooled(self, parts: dict[str, nn.Module], images: Tensor) -> Features:
        if "permute" in parts:  # Swin computes (B, H, W, C)
            images = parts["permute"](images)
        elif self._densenet:
            images = F.relu(images)
        pooled = parts["avgpool"](images) if "avgpool" in parts else images.mean((2, 3), True)
        neck: Any = parts.get("classifier", nn.Identity())
        if not any(isinstance(layer, nn.Flatten) for layer in neck.children()):
            pooled = pooled.flatten(1)
        return Features(images.flatten(2).transpose(1, 2), neck(pooled))

    def blocks(self) -> list[nn.Module]:
        """Return the stem, then the residual blocks, or the layers where there are none."""
        return depth_blocks(self.network)

    def classifier(self, num_classes: int, dropout: float | None = None) -> nn.Module:
        """Build a linear head, after the dropout that the network of torchvision has there."""
        return LinearHead(self.dim, num_classes, self._dropout if dropout is None else dropout)
