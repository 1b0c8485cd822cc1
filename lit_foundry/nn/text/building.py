"""Networks of ``transformers`` that encode texts, with weights or without."""

from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.nn.heads import FAMILY_LAYERS
from lit_foundry.nn.text.probe import OTHERS, reason
from lit_foundry.nn.transformers_config import OFFLINE, network_classes, quiet
from lit_foundry.sources import from_hub, resolve


def build(
    config: Any, pretrained: str | None, pooling: str, options: dict[str, Any]
) -> tuple[Any, dict[str, Tensor]]:
    """Return the encoder, and the tensors of the head's hidden layer that the weights hold."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    options |= {"dtype": torch.float32}  # transformers 5 would take over the checkpoint's
    options |= {"trust_remote_code": False}
    if len(classes := network_classes(type(config))) > 1 and not config.architectures:
        config.architectures = [classes[0].__name__]  # Funnel has one that keeps all tokens
    if pretrained is None:
        try:
            encoder = AutoModel.from_config(config, **options)
        except Exception as error:  # whatever a family throws at sizes that do not go together
            raise ValueError(
                f"model.backbone.config builds no {config.model_type}: {reason(error)}."
            ) from error
        return _part_of(encoder), {}
    parts = FAMILY_LAYERS.get(config.model_type, {}) if pooling == "default" else {}
    auto = AutoModelForSequenceClassification if parts else AutoModel
    path = resolve(pretrained)
    with from_hub(path, OFFLINE), quiet():
        model, info = auto.from_pretrained(path, config=config, output_loading_info=True, **options)
    missing = set(info["missing_keys"])
    head = {
        f"{part}.{key}": value.detach().clone()
        for part, name in parts.items()
        for key, value in model.get_submodule(name).state_dict().items()
        if f"{name}.{key}" not in missing
    }
    encoder = _part_of(model.base_model)
    prefix = "".join(f"{name}." for name, m in model.named_modules() if name and m is encoder)
    lost = sorted(missing & {prefix + key for key in encoder.state_dict()})
    if lost:
        raise ValueError(
            f"model.backbone.pretrained {pretrained} lacks {len(lost)} weights of the encoder that "
            f"its config describes, such as {lost[0]}: correct model.backbone.config."
        )
    return encoder, head


def _part_of(model: Any) -> Any:
    """Return the encoder of a model, with no parameter without gradient: DDP would wait for it."""
    if (config := model.config).is_encoder_decoder:
        model = model.get_encoder()
        if not hasattr(model, "config"):
            kind = f"model.backbone.config.model_type {config.model_type}"
            raise ValueError(f"{kind} has no encoder that stands alone: {OTHERS}.")
        model.config = config  # T5 changes a copy
    if getattr(model, "pooler", None) is not None:
        model.pooler = nn.Identity()  # SqueezeBERT calls it unasked
    return model
