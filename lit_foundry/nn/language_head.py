"""From features to the logits of all tokens, with the head of the network's family.

Shapes: N places, D feature width, E embedding width, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of each family's AutoModelForMaskedLM: dense layer, norm, output layer, and the key of the config
# that names the activation, or the activation.
_ROBERTA = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder", "gelu")
_BERT = "cls.predictions.transform"
MASKED_HEADS = {
    "bert": (f"{_BERT}.dense", f"{_BERT}.LayerNorm", "cls.predictions.decoder", "hidden_act"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "mpnet": _ROBERTA,
    "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector", "activation"),
    "electra": (
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head",
        "gelu",
    ),
    "albert": ("predictions.dense", "predictions.LayerNorm", "predictions.decoder", "hidden_act"),
    "modernbert": ("head.dense", "head.norm", "decoder", "classifier_activation"),
}


class LanguageHead(nn.Module):
    """Logits of tokens: of masked models after a dense layer, an activation and a norm.

    The last layer shares the weight of the embedding where the config ties them. The head then has
    no weight of its own, so that a backbone's weights lie in the backbone alone.

    Args:
        transform: From features (N, D) to (N, E).
        bias: Of the last layer, shape (V,), if any.
        weight: Of the last layer, shape (V, E); None takes the embedding's.
    """

    def __init__(
        self, transform: nn.Module, bias: nn.Parameter | None, weight: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.transform = transform
        self.bias, self.weight = bias, weight

    def decoder_weight(self, backbone: Any) -> Tensor:
        """Return the weight of the last layer, shape (V, E)."""
        if self.weight is not None:
            return self.weight
        weight: Tensor = backbone.encoder.get_input_embeddings().weight
        return weight

    def forward(self, tokens: Tensor, weight: Tensor) -> Tensor:
        """Return logits (N, V) of features (N, D), given :meth:`decoder_weight`."""
        return F.linear(self.transform(tokens), weight, self.bias)


def bare_model(config: Any, causal: bool) -> Any:
    """Return the language model of a config without weights, on the meta device.

    Raises:
        ValueError: If ``transformers`` has none.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if not causal and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ValueError(
            f"model.backbone.config.model_type {config.model_type} predicts no masked tokens: take "
            f"one of {', '.join(MASKED_HEADS)}, or a CausalLM on a TextDecoder."
        )
    with torch.device("meta"):
        return (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(config)


def parts_of(model: Any) -> dict[str, str]:
    """Return the names of the head's layers in a language model of ``transformers``.

    Raises:
        ValueError: If its family has a masked head that is not known here.
    """
    modules = {module: name for name, module in model.named_modules()}
    output = model.get_output_embeddings()
    if "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__:
        return {"out": modules[output]}
    kind = model.config.model_type
    if kind not in MASKED_HEADS:
        raise ValueError(
            f"model.backbone.config.model_type {kind} has no masked language head that is known "
            f"here: take one of {', '.join(MASKED_HEADS)}."
        )
    dense, norm, out, _ = MASKED_HEADS[kind]
    return {"transform.0": dense, "transform.2": norm, "out": out}


def build_head(config: Any, causal: bool) -> LanguageHead:
    """Build the head of a family, initialized as in ``transformers``.

    Args:
        config: Config of ``transformers``.
        causal: For a decoder instead of an encoder.
    """
    from transformers.activations import ACT2FN

    model = bare_model(config, causal)
    names = parts_of(model)
    layers = {name: model.get_submodule(path) for name, path in names.items()}
    for name, path in names.items():
        if name != "out" or not config.tie_word_embeddings:
            layers[name].to_empty(device="cpu")
            for part in (path, path.rpartition(".")[0]):  # families have rules for the outer one
                model._init_weights(model.get_submodule(part))
    out = layers["out"]
    bias = None if out.bias is None else nn.Parameter(torch.zeros(out.bias.shape))
    weight = None if config.tie_word_embeddings else out.weight
    if causal:
        return LanguageHead(nn.Identity(), bias, weight)
    activation = MASKED_HEADS[config.model_type][3]
    transform = nn.Sequential(
        layers["transform.0"],
        ACT2FN[getattr(config, activation, activation)],
        layers["transform.2"],
    )
    return LanguageHead(transform, bias, weight)


def weights_of(model: Any) -> dict[str, Tensor]:
    """Return the state of a :class:`LanguageHead` from a language model of ``transformers``."""
    state = {}
    for name, path in parts_of(model).items():
        prefix = "" if name == "out" else f"{name}."
        layer = model.get_submodule(path).state_dict()
        state |= {prefix + key: value.detach().clone() for key, value in layer.items()}
    if model.config.tie_word_embeddings:
        state.pop("weight", None)
    return state
