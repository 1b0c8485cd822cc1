"""Heads from features to class logits, values or tags, in plain torch.

Shapes: B batch, T tokens, D feature width, C classes, K values.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.nn.features import Features

# The hidden layer of each family's head, by its name in AutoModelForSequenceClassification.
FAMILY_LAYERS = {
    "bert": {"dense": "bert.pooler.dense"},
    "roberta": {"dense": "classifier.dense"},
    "xlm-roberta": {"dense": "classifier.dense"},
    "camembert": {"dense": "classifier.dense"},
    "distilbert": {"dense": "pre_classifier"},
    "electra": {"dense": "classifier.dense"},
    "deberta-v2": {"dense": "pooler.dense"},
    "modernbert": {"dense": "head.dense", "norm": "head.norm"},
}


class LinearHead(nn.Module):
    """Dropout and one linear layer on the pooled features.

    Args:
        dim: Feature width D.
        num_classes: Number of classes C.
        dropout: Probability before the layer.
        init_std: Standard deviation of the initial weights; biases start at zero.
        bias: Whether the layer has biases.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        dropout: float = 0.0,
        init_std: float = 0.02,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.out = _linear(dim, num_classes, init_std, bias=bias)

    def forward(self, features: Features) -> Tensor:
        """Return (B, C) logits."""
        logits: Tensor = self.out(self.dropout(features.pooled))
        return logits


class DenseHead(nn.Module):
    """Dropout, dense layer, activation, norm, dropout and output layer on the pooled features.

    With the right options it is the sequence classification head of BERT, RoBERTa, DistilBERT,
    ELECTRA, DeBERTa-v2 or ModernBERT in ``transformers``, initialized as there.

    Args:
        dim: Feature width D.
        num_classes: Number of classes C.
        activation: Applied to the dense layer's output.
        dropout: Probability before the output layer.
        dropout_before: Probability before the dense layer.
        bias: Whether the dense layer has a bias.
        norm: Applied after the activation.
        init_std: Standard deviations of the initial weights: dense layer, output layer.
        init_cutoff: Truncates the initial weights at so many standard deviations.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        activation: nn.Module,
        dropout: float = 0.1,
        dropout_before: float = 0.0,
        bias: bool = True,
        norm: nn.Module | None = None,
        init_std: tuple[float, float] = (0.02, 0.02),
        init_cutoff: float | None = None,
    ) -> None:
        super().__init__()
        self.dropout_before = nn.Dropout(dropout_before)
        self.dense = _linear(dim, dim, init_std[0], init_cutoff, bias)
        self.activation = activation
        self.norm = norm or nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.out = _linear(dim, num_classes, init_std[1], init_cutoff)

    def forward(self, features: Features) -> Tensor:
        """Return (B, C) logits."""
        hidden = self.activation(self.dense(self.dropout_before(features.pooled)))
        logits: Tensor = self.out(self.dropout(self.norm(hidden)))
        return logits


class Standardized(nn.Module):
    """A head that computes deviations of its targets from their mean, in units of the usual one.

    So it begins at the mean, and learns at the same rate whatever the unit of the targets is.

    Args:
        head: From features to (B, K) outputs.
        num_values: Number of outputs K.

    Attributes:
        mean: Mean of each target, shape (K,); 0 until it is set.
        deviation: Standard deviation of each, shape (K,); 1 until it is set.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, head: nn.Module, num_values: int) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("mean", torch.zeros(num_values))
        self.register_buffer("deviation", torch.ones(num_values))

    def learn(self, targets: Tensor) -> None:
        """Take over mean and deviation of (N,) or (N, K) targets."""
        rows = targets.reshape(-1, len(self.mean)).double()
        spread = rows.std(0, correction=0)
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(spread.where(spread > 0, 1.0))

    def forward(self, features: Features) -> Tensor:
        """Return (B, K) values, in the unit of the targets."""
        outputs: Tensor = self.head(features).float() * self.deviation + self.mean
        return outputs


@torch.no_grad()
def folded(head: nn.Module) -> nn.Module:
    """Return a head that computes the same, with mean and deviation in its output layer."""
    if not isinstance(head, Standardized):
        return head
    plain = copy.deepcopy(head.head)
    out: Any = plain.out
    bias = 0 if out.bias is None else out.bias * head.deviation
    out.weight *= head.deviation[:, None]
    out.bias = nn.Parameter(bias + head.mean)
    return plain


class EveryToken(nn.Module):
    """A head on each token in place of the pooled features.

    Args:
        head: From pooled features to outputs.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Features) -> Tensor:
        """Return (B, T, C) logits."""
        logits: Tensor = self.head(Features(features.tokens, features.tokens))
        return logits


def family_options(config: Any, dropout: float | None = None) -> dict[str, Any]:
    """Return the arguments that make DenseHead the head of a family in ``FAMILY_LAYERS``.

    Args:
        config: Config of ``transformers``.
        dropout: Probability before the output layer; None takes the config's.
    """
    from transformers.activations import ACT2FN

    def either(*keys: str) -> float:
        values = (dropout, *(getattr(config, key, None) for key in keys))
        return next(float(value) for value in values if value is not None)

    std = config.initializer_range
    options: dict[str, Any] = {"activation": nn.Tanh(), "init_std": (std, std)}
    match config.model_type:
        case "distilbert":
            return options | {"activation": nn.ReLU(), "dropout": either("seq_classif_dropout")}
        case "deberta-v2":
            options["activation"] = ACT2FN[config.pooler_hidden_act]
            options["dropout_before"] = config.pooler_dropout
            return options | {"dropout": either("cls_dropout", "hidden_dropout_prob")}
        case "modernbert":
            return {
                "activation": ACT2FN[config.classifier_activation],
                "dropout": either("classifier_dropout"),
                "bias": config.classifier_bias,
                "norm": nn.LayerNorm(config.hidden_size, config.norm_eps, bias=config.norm_bias),
                "init_std": (std / (2 * config.num_hidden_layers) ** 0.5, config.hidden_size**-0.5),
                "init_cutoff": config.initializer_cutoff_factor,
            }
    options["dropout"] = either("classifier_dropout", "hidden_dropout_prob")
    if config.model_type != "bert":
        options["dropout_before"] = options["dropout"]
    return options | ({"activation": nn.GELU()} if config.model_type == "electra" else {})


def _linear(
    dim: int, out: int, std: float, cutoff: float | None = None, bias: bool = True
) -> nn.Linear:
    layer = nn.Linear(dim, out, bias)
    if cutoff is None:
        nn.init.normal_(layer.weight, std=std)
    else:
        nn.init.trunc_normal_(layer.weight, std=std, a=-cutoff * std, b=cutoff * std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
