"""From features to the logits of all tokens, with the head of the network's family.

Shapes: N places, D feature width, E embedding width, V vocabulary.
"""

from collections.abc import Collection
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
    "deberta-v2": (f"{_BERT}.dense", f"{_BERT}.LayerNorm", "cls.predictions.decoder", "hidden_act"),
    "modernbert": ("head.dense", "head.norm", "decoder", "classifier_activation"),
}
# Keys of configs whose causal model does something to the logits besides the output layer.
SCALES = (
    "final_logit_softcapping",
    "lm_head_multiplier",
    "logit_scale",
    "logits_mup_width_multiplier",
    "logits_scaling",
    "logits_soft_cap",
    "output_logit_soft_cap",
)


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
        return (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(
            config, trust_remote_code=False
        )


def is_known(config: Any) -> bool:
    """Tell whether the head of a masked model is one that is built here as in ``transformers``."""
    # The newer head of DeBERTa-v2 has no output layer of its own.
    return config.model_type in MASKED_HEADS and getattr(config, "legacy", True)


def parts_of(model: Any, causal: bool) -> dict[str, str]:
    """Return the names of the head's layers in a language model of ``transformers``.

    Raises:
        ValueError: If its logits are computed otherwise than by :class:`LanguageHead`.
    """
    config = model.config
    kind = f"model.backbone.config.model_type {config.model_type}"
    if not causal:
        if not is_known(config):
            raise ValueError(
                f"{kind} has a masked language head that is not known here: take one of "
                f"{', '.join(MASKED_HEADS)} to export it; fine-tuning from its checkpoint works."
            )
        dense, norm, out, _ = MASKED_HEADS[config.model_type]
        return {"transform.0": dense, "transform.2": norm, "out": out}
    scales = [key for key in SCALES if getattr(config, key, None) not in (None, 1.0)]
    if scales:
        raise ValueError(
            f"{kind} changes its logits by {scales[0]}, which is not known here: take one such as "
            "gpt2 or llama."
        )
    names = {module: name for name, module in model.named_modules()}
    last = names.get(model.get_output_embeddings(), "")
    known = (f"{model.base_model_prefix}.", f"{last}.")
    more = [name for name, _ in model.named_parameters() if not name.startswith(known)]
    if more or not last:
        raise ValueError(
            f"{kind} has a causal language head that is not known here, with "
            f"{more[0] if more else 'no output layer'}: take one such as gpt2 or llama."
        )
    return {"out": last}


def build_head(config: Any, causal: bool) -> LanguageHead:
    """Build the head of a family, initialized as in ``transformers``.

    A masked model whose head is not known here gets one like BERT's, with the weight of the
    embedding.

    Args:
        config: Config of ``transformers``.
        causal: For a decoder instead of an encoder.
    """
    from transformers.activations import ACT2FN

    model = bare_model(config, causal)
    if not causal and not is_known(config):
        return _unknown_head(config, *model.get_input_embeddings().weight.shape)
    names = parts_of(model, causal)
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


def _unknown_head(config: Any, size: int, width: int) -> LanguageHead:
    dense = nn.Linear(config.hidden_size, width)
    nn.init.normal_(dense.weight, std=getattr(config, "initializer_range", 0.02))
    nn.init.zeros_(dense.bias)
    norm = nn.LayerNorm(width, getattr(config, "layer_norm_eps", 1e-5))
    bias = nn.Parameter(torch.zeros(size))
    return LanguageHead(nn.Sequential(dense, nn.GELU(), norm), bias, None)


def weights_of(
    model: Any, causal: bool, missing: Collection[str], source: str
) -> dict[str, Tensor]:
    """Return the state of a :class:`LanguageHead` from a language model of ``transformers``.

    Args:
        model: Language model with weights.
        causal: For a decoder instead of an encoder.
        missing: Names of its weights that ``source`` lacks.
        source: Where they are from.

    Returns:
        Nothing if ``source`` has no language head, as that of a sentence encoder.

    Raises:
        ValueError: If it has a part of one, or output weights that the config takes for tied.
    """
    tied = model.config.tie_word_embeddings
    if tied and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise ValueError(
            f"model.backbone.pretrained {source} has output weights other than its embeddings: "
            "set model.backbone.config.tie_word_embeddings to false."
        )
    state: dict[str, Tensor] = {}
    lacks: list[str] = []
    for name, path in parts_of(model, causal).items():
        prefix = "" if name == "out" else f"{name}."
        for key, value in model.get_submodule(path).state_dict().items():
            if not (tied and prefix + key == "weight"):
                state[prefix + key] = value.detach().clone()
                lacks += [f"{path}.{key}"] * (f"{path}.{key}" in missing)
    if len(lacks) == len(state):
        return {}
    if lacks:
        raise ValueError(
            f"model.backbone.pretrained {source} lacks {len(lacks)} of {len(state)} weights of the "
            f"language head, such as {lacks[0]}: correct its file of weights."
        )
    return state
