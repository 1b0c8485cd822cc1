"""What data and network must agree on before the first step."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lit_foundry.nn import Backbone

# A network may be built larger than the data needs; any other fact must be equal.
SETTINGS = {"pad_id": "config.pad_token_id"}  # where a fact's setting has another name
UPPER_BOUNDS = {
    "vocab_size": "data.tokenizer or model.backbone.vocab_size",
    "max_length": "data.max_length",
}


def check_inputs(backbone: Backbone, data: Any) -> None:
    """Raise ValueError unless the batches of ``data`` hold what ``backbone`` reads."""
    offered = list(data.batch_type.__annotations__)
    if not set(backbone.inputs) <= set(offered):
        raise ValueError(
            f"{type(backbone).__name__} reads {list(backbone.inputs)}, "
            f"but {type(data).__name__} yields {offered}."
        )


def check_facts(module: nn.Module, key: str, facts: Mapping[str, int], data: Any) -> None:
    """Raise ValueError if ``module``, configured at ``key``, contradicts a fact of ``data``."""
    names = type(module).__name__, type(data).__name__
    for fact, value in facts.items():
        built = getattr(module, fact, None)
        if built is None or built == value:
            continue
        if fact not in UPPER_BOUNDS:
            raise ValueError(
                f"{names[0]} was built with {fact}={built}, but {names[1]} has {value}; "
                f"set {key}.{SETTINGS.get(fact, fact)}={value}, or leave it out."
            )
        if value > built:
            raise ValueError(
                f"{names[0]} takes {fact} up to {built}, but {names[1]} has {value}; "
                f"change {UPPER_BOUNDS[fact]}."
            )
