"""Networks of timm as backbones, from scratch or with their weights."""

from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.nn.backbone import is_restoring
from lit_foundry.nn.features import Features
from lit_foundry.nn.image.backbone import ImageBackbone
from lit_foundry.nn.image.blocks import depth_blocks
from lit_foundry.nn.image.channels import of_channels
from lit_foundry.nn.image.networks.weights import in_order, read_weights
from lit_foundry.sources import from_hub

OFFLINE = (
    "Set model.backbone.pretrained to the path of the weights, or to false to train from scratch."
)


class TimmEncoder(ImageBackbone):
    """Any network of timm, without its last layer.

    ``pooled`` is what that layer saw, and ``tokens`` are the positions of the last feature map, or
    the tokens of a ViT; in networks with deeper classifiers, these are of another width.

    Args:
        name: Name in timm, with or without the tag of its weights, such as resnet18.a1_in1k.
        pretrained: Whether to load timm's weights, or a .pth or .safetensors file: its path, or
            ``package:NAME/FILE`` in an installed package. What timm cannot read because no name
            is its own is read in order, if number, kinds and shapes of all tensors agree.
        in_channels: Channels C of an image; None means 3. Pretrained weights are fitted to it.
        image_size: Edge of the images, for networks that are made for one; None takes timm's.
            The positions of pretrained weights are interpolated to it.
        mean: Mean of each channel in [0, 1]; None takes that of timm's weights.
        std: Standard deviation of each channel, likewise.
        drop_path: Probability to skip the last residual branch (stochastic depth); None keeps the
            network's own.

    Raises:
        ModuleNotFoundError: If timm, or the package of the weights, is not installed.
        ValueError: If an argument means nothing to the network, or the weights do not fit.
        FileNotFoundError: If the weights are neither here nor within reach.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        in_channels: int | None = None,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        drop_path: float | None = None,
    ) -> None:
        ranges.check_probs("model.backbone", drop_path=drop_path)
        cfg, channels = description(name), 3 if in_channels is None else in_channels
        sized = cfg["fixed_input_size"]
        super().__init__(
            channels,
            of_channels(cfg["mean"], channels) if mean is None else mean,
            of_channels(cfg["std"], channels) if std is None else std,
            (image_size or cfg["input_size"][-1]) if sized else None,
        )
        options: dict[str, Any] = {"in_chans": channels}
        if sized:
            options["img_size"] = self.image_size
        if drop_path is not None:
            options["drop_path_rate"] = drop_path
        self.network: Any = build(name, False if is_restoring() else pretrained, cfg, options)
        self.dim = self.try_size(self.image_size or image_size or 64).pooled.shape[1]

    def features(self, images: Any) -> Features:
        """Compute features of (B, C, H, W) normalized images."""
        tokens = self.network.forward_features(images)
        pooled = self.network.forward_head(tokens, pre_logits=True)
        if tokens.ndim == 4:
            last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
            tokens = tokens.flatten(1, 2) if last else tokens.flatten(2).transpose(1, 2)
        return Features(tokens, pooled)

    def blocks(self) -> list[nn.Module]:
        """Return the stem, then the residual blocks, or the layers where there are none."""
        return depth_blocks(self.network)


def description(name: str) -> dict[str, Any]:
    """Return what timm knows of a network's weights.

    Raises:
        ModuleNotFoundError: If timm is not installed.
        ValueError: If it has no such network.
    """
    if find_spec("timm") is None:
        raise ModuleNotFoundError("TimmEncoder needs timm: pip install 'lit-foundry[timm]'.")
    import timm

    base = name.partition(".")[0]
    if not timm.is_model(base) or (name != base and name not in timm.list_pretrained(f"{base}.*")):
        names = timm.list_models() if base == name else timm.list_pretrained(f"{base}.*")
        close = get_close_matches(name, names, 3)
        raise ValueError(
            f"model.backbone.name {name!r} is no network of timm."
            + (f" Did you mean {' or '.join(close)}?" if close else "")
        )
    cfg = timm.get_pretrained_cfg(name)
    return dict(cfg.to_dict())


def build(name: str, pretrained: bool | str, cfg: dict[str, Any], options: dict[str, Any]) -> Any:
    """Build a network, with weights that fill it exactly, and without its last layer."""
    import timm

    def create(**more: Any) -> Any:
        return timm.create_model(name, **options, **more)

    def filled(state: dict[str, Tensor]) -> Any:
        names = cfg["classifier"]  # several of distilled networks
        names = names if isinstance(names, (list, tuple)) else [names]
        heads = [len(state[f"{name}.weight"]) for name in names if f"{name}.weight" in state]
        classes = max(heads, default=0)
        overlay = {"state_dict": state, "num_classes": classes}
        return create(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)

    try:
        if pretrained is False:
            network = create(num_classes=0)
        elif pretrained is True:
            with from_hub(cfg.get("hf_hub_id") or name, OFFLINE):
                network = create(pretrained=True)
        else:
            state = read_weights(pretrained)
            try:
                network = filled(state)
            except RuntimeError:
                renamed = in_order(state, lambda n: timm.create_model(name, num_classes=n))
                if renamed is state:
                    raise
                network = filled(renamed)
    except TypeError as error:
        raise ValueError(
            f"model.backbone: {name} of timm takes no {str(error).split()[-1]}: leave it out "
            "(drop_path_rate is model.backbone.drop_path)."
        ) from error
    except (AssertionError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"model.backbone: {name} of timm does not fit its size of images, or the weights "
            f"{pretrained}: {why}"
        ) from error
    if getattr(network, "num_classes", 0):
        network.reset_classifier(0)
    return network
