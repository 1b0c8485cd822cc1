"""Networks of torchvision: built, cut, and filled with their weights."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import ResNet
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings
from torchvision.ops import StochasticDepth

from lit_foundry.nn.image.channels import spread
from lit_foundry.nn.image.networks.weights import load_weights, read_weights

# Made for images of one size, with the argument that says which.
SIZED = {"vit": "image_size", "maxvit": "input_size"}
INCEPTIONS = ("googlenet", "inception_v3")
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")


def check_name(name: str) -> None:
    """Raise ValueError, with the nearest names, if torchvision has no such classifier."""
    names = models.list_models(module=models)
    if name not in names:
        close = get_close_matches(name, names, 3)
        raise ValueError(
            f"model.backbone.name {name!r} is no classification network of torchvision."
            + (f" Did you mean {' or '.join(close)}?" if close else "")
        )


def statistics(name: str, pretrained: str | None) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of the pixels that a network's weights are made for."""
    if name in INCEPTIONS:  # torchvision turns ImageNet's into these inside of the network
        return [0.5], [0.5]
    weights: Any = models.get_model_weights(name)
    named = weights.__members__.get(pretrained, weights.DEFAULT)
    transforms = named.transforms()
    return transforms.mean, transforms.std


def edge(name: str, size: int | None, state: Mapping[str, Tensor] | None) -> int | None:
    """Return the size of images that a network is made for: as wanted, else of its weights."""
    if name.split("_")[0] not in SIZED:
        return None
    if size is None and state is not None and name.startswith("vit"):
        tokens, patch = state["encoder.pos_embedding"].shape[1], state["conv_proj.weight"].shape[-1]
        return int((tokens - 1) ** 0.5) * patch
    return size or 224


def build(name: str, size: int | None) -> nn.Module:
    """Build a network whose classifier has any number of classes.

    Raises:
        ValueError: If it cannot take images of this size.
    """
    options: dict[str, Any] = {}
    if name in INCEPTIONS:
        options = {"aux_logits": False, "transform_input": False, "init_weights": True}
    if size is not None:
        key = SIZED[name.split("_")[0]]
        options = {key: size if key == "image_size" else (size, size)}
    try:
        network: nn.Module = models.get_model(name, **options)
    except (AssertionError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"model.backbone.image_size {size} does not suit {name}: {why}") from error
    return network


def cut(network: nn.Module) -> tuple[str, int, float]:
    """Remove the layer that computes the logits, and the dropout before it.

    Returns:
        Prefix of the layer's weights, its width, and the dropout's probability.
    """
    name = next(n for n in ("fc", "classifier", "head", "heads") if hasattr(network, n))
    module = getattr(network, name)
    if isinstance(module, nn.Linear):
        setattr(network, name, nn.Identity())
        return f"{name}.", module.in_features, float(getattr(network, "dropout", nn.Dropout(0)).p)
    layers = list(module.named_children())
    while not isinstance(layers[-1][1], (nn.Linear, nn.Conv2d)):
        layers.pop()
    last, layer = layers.pop()
    dim = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    dropout = 0.0
    if layers and isinstance(layers[-1][1], nn.Dropout):
        dropout = layers.pop()[1].p
    setattr(network, name, nn.Sequential(OrderedDict(layers)))  # under their old names
    return f"{name}.{last}.", dim, dropout


def read(name: str, pretrained: str) -> dict[str, Tensor]:
    """Read torchvision's weights of a network, by their name, or a file with the same keys.

    Raises:
        ValueError: If torchvision has no such weights.
        FileNotFoundError: If they are neither here nor within reach.
    """
    weights: Any = models.get_model_weights(name)
    if pretrained in weights.__members__:
        weight = weights[pretrained]
        try:
            state = weight.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise FileNotFoundError(
                f"The weights {pretrained} of {name} are not in {torch.hub.get_dir()}/checkpoints, "
                f"and {weight.url} cannot be reached: copy that file there, or set "
                "model.backbone.pretrained to its path, or leave it out to train from scratch."
            ) from error
    elif "." not in pretrained and "/" not in pretrained:
        raise ValueError(
            f"model.backbone.pretrained {pretrained!r} names no weights of {name}: it has "
            f"{', '.join(weights.__members__)}; or name a .pth or .safetensors file."
        )
    else:
        state = read_weights(pretrained)
    # As torchvision renames them; in a checkpoint of today, nothing matches.
    return {OLD_DENSENET.sub(r"\1\2.", key): value for key, value in state.items()}


def fill(
    network: nn.Module, state: Mapping[str, Tensor], last: str, channels: int, source: str
) -> None:
    """Load weights, without those of the last layer, fitted to channels and size of the images."""
    state = {key: v for key, v in state.items() if not key.startswith((last, *AUXILIARY))}
    first = next(n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)) + ".weight"
    if first in state:
        state[first] = spread(state[first], channels)
    if isinstance(network, VisionTransformer) and "encoder.pos_embedding" in state:
        state = interpolate_embeddings(network.image_size, network.patch_size, state)
    load_weights(network, state, source)


def shrink_stem(network: nn.Module, name: str) -> None:
    """Give a ResNet the stem for small images: 3x3 with stride 1, and no pooling.

    Source: He et al., Deep Residual Learning for Image Recognition, 2015, section 4.2.
        https://arxiv.org/abs/1512.03385
    """
    if not isinstance(network, ResNet):
        raise ValueError(
            f"model.backbone.stem small is for ResNets, and {name} is none: leave it out, or take "
            "one such as resnet18."
        )
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


class ResidualBlock(nn.Module):
    """A BasicBlock or Bottleneck of torchvision that is skipped at random in training.

    Source: Huang et al., Deep Networks with Stochastic Depth, 2016.
        https://arxiv.org/abs/1603.09382
    """

    def __init__(self, block: nn.Module, prob: float) -> None:
        super().__init__()
        for name, module in block.named_children():  # the same keys in a checkpoint
            self.add_module(name, module)
        self.layers = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
        self.drop_path = StochasticDepth(prob, "row")

    def forward(self, images: Tensor) -> Tensor:
        """Add the branch, for those samples whose branch is not skipped."""
        parts: Any = self._modules
        identity = parts["downsample"](images) if "downsample" in parts else images
        for conv, norm in self.layers:
            images = parts[norm](parts[conv](images))
            if (conv, norm) != self.layers[-1]:
                images = parts["relu"](images)
        out: Tensor = parts["relu"](parts["drop_path"](images) + identity)
        return out


def drop_branches(network: nn.Module, prob: float, name: str) -> None:
    """Skip residual branches in training, with a probability that rises to ``prob``."""
    depths = [m for m in network.modules() if isinstance(m, StochasticDepth)]
    if depths:
        most = max(m.p for m in depths)
        for module in depths:
            module.p *= prob / most
    elif isinstance(network, ResNet):
        stages = [getattr(network, f"layer{i}") for i in range(1, 5)]
        places = [(stage, i) for stage in stages for i in range(len(stage))]
        for depth, (stage, i) in enumerate(places):
            stage[i] = ResidualBlock(stage[i], prob * depth / (len(places) - 1))
    else:
        raise ValueError(
            f"model.backbone.drop_path: {name} has no branches to skip in torchvision; leave it "
            "out, or take a ResNet, ConvNeXt, EfficientNet, Swin or MaxViT."
        )
