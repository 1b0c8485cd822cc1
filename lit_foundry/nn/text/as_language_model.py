"""A backbone and its language head as the model that ``transformers`` has for the same family."""

import copy
from typing import Any

from torch import nn

from lit_foundry.nn.text.decoder import TextDecoder
from lit_foundry.nn.text.encoder import TextEncoder
from lit_foundry.nn.text.language_head import LanguageHead, parts_of
from lit_foundry.nn.transformers_config import described


def language_model(backbone: nn.Module, head: nn.Module, exactly: bool = True) -> Any:
    """Build the ``AutoModelForMaskedLM`` or ``AutoModelForCausalLM`` with the same logits.

    Args:
        backbone: Encoder or decoder, whose weights are copied.
        head: Its language head.
        exactly: Whether its config has to describe it, so that it can be saved.

    Raises:
        ValueError: If ``transformers`` has no such model.
    """
    if not isinstance(backbone, TextEncoder) or not isinstance(head, LanguageHead):
        raise ValueError(f"transformers has no language model on a {type(backbone).__name__}.")
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    config: Any = copy.deepcopy(backbone.encoder.config)
    config.use_cache = True
    causal = isinstance(backbone, TextDecoder)
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    model = described(auto, config, backbone.encoder, exactly)
    parts = parts_of(model, causal)
    state = {f"{model.base_model_prefix}.{k}": v for k, v in backbone.encoder.state_dict().items()}
    own = head.state_dict()
    for name, path in parts.items():
        prefix = "" if name == "out" else f"{name}."
        keys = [key for key in model.get_submodule(path).state_dict() if prefix + key in own]
        state |= {f"{path}.{key}": own[prefix + key] for key in keys}
    if config.tie_word_embeddings:
        state[f"{parts['out']}.weight"] = head.decoder_weight(backbone).detach()
    # Some families keep the bias of the output layer under a second name, which nothing reads.
    alias = f"{parts['out'].rpartition('.')[0]}.bias"
    missing, unexpected = model.load_state_dict(state, strict=False)
    left = [name for name in missing if name != alias]
    if left or unexpected:
        raise ValueError(f"transformers names weights otherwise: {[*left, *unexpected][:3]}.")
    return model.eval()
