"""Low-rank adapters inside a backbone, through ``peft``.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
https://arxiv.org/abs/2106.09685
"""

import copy
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_foundry.nn.backbone import Backbone
from lit_foundry.nn.layer_depth import module_depths

_EDGE = 224  # pixels of an image that every network takes which is not made for one size


def is_adapter(name: str) -> bool:
    """Tell whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """Return the name that a parameter has where nothing is adapted."""
    return name.replace(".base_layer.", ".")


def add_adapters(
    backbone: Backbone,
    rank: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str] | None,
    skip: int = 0,
) -> None:
    """Give layers of a backbone low-rank adapters, in place, and freeze all else of it.

    The network computes what it did before until the adapters learn.

    Args:
        backbone: Network.
        rank: Rank of the change that an adapter can make to a weight.
        alpha: Scale of that change, times ``rank``.
        dropout: Probability before an adapter.
        targets: Ends of the names of linear layers and convolutions, such as ``query``; None takes
            all linear layers above the stem or, where there are none, all convolutions.
        skip: Number of lowest blocks without adapters.

    Raises:
        ValueError: If no layer can be adapted, or one whose weights its network reads past it.
        ModuleNotFoundError: If ``peft`` is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "model.finetune.lora needs peft: pip install 'lit-foundry[lora]'."
        ) from None
    if any(is_adapter(name) for name, _ in backbone.named_parameters()):
        raise ValueError(
            f"This {type(backbone).__name__} has adapters already: build a new one for each task."
        )
    names = target_names(backbone, targets, skip)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="|".join(re.escape(name) for name in names),
    )
    with warnings.catch_warnings():
        # GPT-2's layers hold their weights transposed; peft finds out, and says so.
        warnings.filterwarnings("ignore", ".*fan_in_fan_out.*")
        inject_adapter_in_model(config, backbone)
    del backbone.peft_config


def target_names(backbone: Backbone, targets: Sequence[str] | None, skip: int) -> list[str]:
    """Return the names of the layers to adapt; arguments as in :func:`add_adapters`."""
    depths = module_depths(backbone, backbone.blocks())
    known = {
        name: module
        for name, module in backbone.named_modules()
        if kind_of(module) and depths.get(module, 0) >= skip
    }
    if targets is None:
        above = {name: m for name, m in known.items() if depths.get(m, 0)}
        linear = [name for name, m in above.items() if kind_of(m) == "linear"]
        names = linear or [n for n, m in above.items() if getattr(m, "groups", 1) == 1]
        missing = [] if names else ["null"]
    else:
        names = [name for name in known if any(_ends(name, end) for end in targets)]
        missing = [end for end in targets if not any(_ends(name, end) for name in known)]
    if missing or not names:
        ends = sorted({name.rsplit(".", 1)[-1] for name in known})
        raise ValueError(
            f"model.finetune.lora.targets={missing} names no linear layer or convolution of the "
            f"trained blocks of {type(backbone).__name__}: take some of {ends}."
        )
    _check_called(backbone, names)
    return names


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def kind_of(module: nn.Module) -> str | None:
    """Return which kind of layer a module is, None for those without adapters."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":  # that of GPT-2
        return "linear"
    return "conv" if isinstance(module, nn.Conv2d) else None


def _check_called(backbone: Backbone, names: Sequence[str]) -> None:
    """Refuse linear layers of an image network that reads their weights past them, by one image."""
    layers = {name: m for name, m in backbone.named_modules() if kind_of(m) == "linear"}
    if "pixel_values" not in backbone.inputs or layers.keys().isdisjoint(names):
        return
    network: Any = backbone
    called: set[nn.Module] = set()
    hooks = [m.register_forward_hook(lambda m, *_: called.add(m)) for m in layers.values()]
    try:
        network.try_size(network.image_size or _EDGE)
    finally:
        for hook in hooks:
            hook.remove()
    past = [name for name in names if name in layers and layers[name] not in called]
    if past:
        others = sorted({name.rsplit(".", 1)[-1] for name in names if layers.get(name) in called})
        remedy = f", such as {others}" if others else ""
        raise ValueError(
            f"model.finetune.lora cannot adapt {past[0]}, whose weights the network reads past the "
            "layer, as torch's own attention does: take ImageEncoder or TimmEncoder, or name other "
            f"layers in model.finetune.lora.targets{remedy}."
        )


def check_reached(backbone: nn.Module, name: str) -> None:
    """Raise ValueError if a backward pass left an adapter that learns without gradient."""
    for key, p in backbone.named_parameters():
        if is_adapter(key) and p.requires_grad and p.grad is None:
            raise ValueError(
                f"model.finetune.lora adapts {name}.{key.split('.lora_')[0]}, whose weights the "
                "network reads past the layer: name other layers in model.finetune.lora.targets."
            )


def merge_adapters(module: nn.Module) -> None:
    """Add adapters to the weights that they adapt, and leave the plain network, in place."""
    for name, layer in list(module.named_modules()):
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer"):
            merged: Any = layer
            merged.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, merged.get_base_layer())


def without_adapters(module: Any) -> Any:
    """Return a plain network with the same outputs: the module itself, if it has no adapters."""
    if any(map(is_adapter, module.state_dict())):
        module = copy.deepcopy(module)
        merge_adapters(module)
    return module


def with_adapters(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Name the tensors of a plain network as ``module`` does, and add its own adapters."""
    mine = module.state_dict()
    names = {plain_name(key): key for key in mine if not is_adapter(key)}
    adapters = {key: value for key, value in mine.items() if is_adapter(key)}
    return {names.get(key, key): value for key, value in state.items()} | adapters
