"""Attention that stays within each document of a packed row.

Shapes: B batch, T tokens.
"""

from typing import Any

import torch
from torch import Tensor

# Families for which a test shows that packed documents are encoded as if they were alone.
_ROBERTAS = {"roberta", "xlm-roberta", "camembert"}
ENCODERS = {"albert", "bert", "distilbert", "electra", "modernbert", *_ROBERTAS}
DECODERS = {"gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"}
# Those that take a mask for each kind of layer, and those with windows.
_BY_LAYER = {"modernbert", "qwen2", "qwen3"}
_WINDOWED = {"mistral", *_BY_LAYER}


def check_isolation(config: Any) -> None:
    """Raise ValueError if a family's attention cannot be kept within documents."""
    kind = config.model_type
    if kind not in ENCODERS | DECODERS:
        raise ValueError(
            f"model.backbone.config.model_type {kind} is none whose documents can be isolated in a "
            f"row ({', '.join(sorted(ENCODERS | DECODERS))}): set data.packing to concatenated."
        )


def isolated(
    config: Any, document: Tensor, dtype: torch.dtype, offsets: Tensor | None = None
) -> Any:
    """Return the attention mask that a model of ``transformers`` takes as it is.

    Padding attends to padding, which is left out of everything: so no row of the mask is empty.

    Args:
        config: Config of the model, with its attention implementation.
        document: Number of each token's document in its row, 0 at padding, shape (B, T).
        dtype: Of the attention scores.
        offsets: Where documents and padding begin in the rows joined, and the end, if the model is
            to attend by these (:mod:`lit_foundry.nn.text.varlen`); shape (N + 1,) int32.

    Returns:
        Shape (B, 1, T, T): True where a token attends to another, or what is added to the scores;
        or the offsets, shape (1, 1, 1, N + 1). For ModernBERT and Qwen a dictionary of two, by kind
        of layer.
    """
    if offsets is not None:  # layers know their windows, and masks of four dimensions pass as given
        mask = offsets[None, None, None]
        kinds = ("full_attention", "sliding_attention")
        return dict.fromkeys(kinds, mask) if config.model_type in _BY_LAYER else mask
    same = document[:, None, :, None] == document[:, None, None, :]
    # Documents are contiguous: the distance within one is that in the row.
    place = torch.arange(document.shape[1], device=document.device)
    behind = place[:, None] - place
    if _is_causal(config):
        same = same & (behind >= 0)

    def scored(allowed: Tensor) -> Tensor:
        if config._attn_implementation != "eager":
            return allowed
        least = torch.finfo(dtype).min
        return torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, least)

    reach = _reach(config)
    near = same if reach is None else same & (behind.abs() <= reach)
    if config.model_type in _BY_LAYER:
        return {"full_attention": scored(same), "sliding_attention": scored(near)}
    return scored(near)


def attended(config: Any, size: int) -> list[int]:
    """Return how many tokens one of a row of ``size`` attends to in each layer, if to all it may.

    Those after it are counted in a causal layer too, as is usual, but for one with a window.
    """
    reach = _reach(config)
    near = size if reach is None else min(size, reach + 1 + (not _is_causal(config)) * reach)
    by_layer = config.model_type in _BY_LAYER
    kinds = config.layer_types if by_layer else ["sliding_attention"] * config.num_hidden_layers
    return [near if kind == "sliding_attention" else size for kind in kinds]


def _is_causal(config: Any) -> bool:
    return config.model_type in DECODERS or getattr(config, "is_decoder", False)


def _reach(config: Any) -> int | None:
    """Return how far a token of a layer with a window attends, to one side; None without one."""
    window: int | None = config.sliding_window if config.model_type in _WINDOWED else None
    # transformers counts a causal window with the token itself, ModernBERT's to either side.
    return window if window is None else window - _is_causal(config)
