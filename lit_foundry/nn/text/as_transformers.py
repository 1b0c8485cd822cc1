"""A text encoder and its head as the model that ``transformers`` has for the same family."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_foundry.nn.heads import FAMILY_LAYERS, DenseHead, folded
from lit_foundry.nn.text.encoder import TextEncoder
from lit_foundry.nn.transformers_config import described

# The output layer in AutoModelForSequenceClassification, where it is not "classifier".
OUTPUT_LAYERS = dict.fromkeys(
    ("roberta", "xlm-roberta", "camembert", "electra"), "classifier.out_proj"
)


def sequence_classifier(
    backbone: nn.Module,
    head: nn.Module,
    labels: Sequence[str],
    problem: str = "single_label_classification",
) -> Any:
    """Build the ``AutoModelForSequenceClassification`` that computes the same logits.

    Args:
        backbone: Encoder, whose weights are copied.
        head: The family's own head on it.
        labels: Names of the outputs, in their order.
        problem: What ``transformers`` calls their kind.

    Raises:
        ValueError: If ``transformers`` has no such model.
    """
    if not isinstance(backbone, TextEncoder):
        raise ValueError(f"transformers has no classifier on a {type(backbone).__name__}.")
    config, head = _labelled(backbone, labels), folded(head)
    if not isinstance(head, DenseHead):
        known = config.model_type in FAMILY_LAYERS
        why = (
            f"with model.backbone.pooling {backbone.pooling!r}"
            if known
            else f"of model_type {config.model_type!r} whose head is ours"
        )
        raise ValueError(
            f"transformers has no sequence classifier {why}. Fit with "
            f"{'model.backbone.pooling: default' if known else 'bert, roberta or modernbert'}, "
            "or export with --format onnx, torch or safetensors."
        )
    from transformers import AutoModelForSequenceClassification

    config.problem_type = problem
    model = described(AutoModelForSequenceClassification, config, backbone.encoder)
    layers = {**FAMILY_LAYERS[config.model_type]}
    layers["out"] = OUTPUT_LAYERS.get(config.model_type, "classifier")
    model.load_state_dict(_state(model, backbone, head, layers))
    return model.eval()


def token_classifier(backbone: nn.Module, head: nn.Module, labels: Sequence[str]) -> Any:
    """Build the ``AutoModelForTokenClassification`` that computes the same logits.

    Args:
        backbone: Encoder, whose weights are copied.
        head: The family's own head on its tokens.
        labels: Names of the tags, in the order of the outputs.

    Raises:
        ValueError: If ``transformers`` has no such model.
    """
    from transformers import AutoModelForTokenClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES as FAMILIES,
    )

    if not isinstance(backbone, TextEncoder):
        raise ValueError(f"transformers has no token classifier on a {type(backbone).__name__}.")
    config, plain = _labelled(backbone, labels), head.get_submodule("head")
    if config.model_type in FAMILIES:
        model = described(AutoModelForTokenClassification, config, backbone.encoder)
        layers = FAMILY_LAYERS[config.model_type] if isinstance(plain, DenseHead) else {}
        state = _state(model, backbone, plain, {**layers, "out": "classifier"})
        if state.keys() == model.state_dict().keys():
            model.load_state_dict(state)
            return model.eval()
    raise ValueError(
        f"transformers has no token classifier of model_type {config.model_type!r} with this head: "
        "export with --format onnx, torch or safetensors."
    )


def _labelled(backbone: TextEncoder, labels: Sequence[str]) -> Any:
    """Return a copy of the config with the names of the outputs."""
    config: Any = copy.deepcopy(backbone.encoder.config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: i for i, name in enumerate(labels)}
    return config


def _state(
    model: Any, backbone: TextEncoder, head: nn.Module, layers: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return the weights by the names that they have in a model of ``transformers``.

    Args:
        model: The model.
        backbone: Its encoder.
        head: Its head.
        layers: Name in the model of each layer of the head.
    """
    state = {f"{model.base_model_prefix}.{k}": v for k, v in backbone.encoder.state_dict().items()}
    for part, name in layers.items():
        weights = head.get_submodule(part).state_dict()
        state |= {f"{name}.{key}": value for key, value in weights.items()}
    return state
