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


def isolated(config: Any, document: Tensor, dtype: torch.dtype) -> Any:
    """Return the attention mask that a model of ``transformers`` takes as it is.

    Padding attends to padding, which is left out of everything: so no row of the mask is empty.

    Args:
        config: Config of the model, with its attention implementation.
        document: Number of each token's document in its row, 0 at padding, shape (B, T).
        dtype: Of the attention scores.

    Returns:
        Shape (B, 1, T, T): True where a token attends to another, or what is added to the scores;
        for ModernBERT and Qwen a dictionary of two, by kind of layer.
    """
    same = document[:, None, :, None] == document[:, None, None, :]
    # Documents are contiguous: the distance within one is that in the row.
    place = torch.arange(document.shape[1], device=document.device)
    behind = place[:, None] - place
    causal = config.model_type in DECODERS or getattr(config, "is_decoder", False)
    if causal:
        same = same & (behind >= 0)

    def mask(allowed: Tensor) -> Tensor:
        if config._attn_implementation != "eager":
            return allowed
        least = torch.finfo(dtype).min
        return torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, least)

    window = config.sliding_window if config.model_type in _WINDOWED else None
    # transformers counts a causal window with the token itself, ModernBERT's to either side.
    near = same if window is None else same & (behind.abs() < window + (not causal))
    if config.model_type in _BY_LAYER:
        return {"full_attention": mask(same), "sliding_attention": mask(near)}
    return mask(near)
