"""Attention that stays within each document of a packed row.

Shapes: B batch, T tokens.
"""

from typing import Any

import torch
from torch import Tensor

# Families for which a test shows that packed documents are encoded as if they were alone.
ENCODERS = {"bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert"}
DECODERS = {"gpt2", "llama"}


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
        for ModernBERT a dictionary of two, by kind of layer.
    """
    same = document[:, None, :, None] == document[:, None, None, :]
    place = torch.arange(document.shape[1], device=document.device)
    if config.model_type in DECODERS:
        same = same & (place[:, None] >= place)

    def mask(allowed: Tensor) -> Tensor:
        if config._attn_implementation != "eager":
            return allowed
        least = torch.finfo(dtype).min
        return torch.zeros((), dtype=dtype, device=allowed.device).where(allowed, least)

    if config.model_type != "modernbert":
        return mask(same)
    # Documents are contiguous: the distance within one is that in the row.
    near = (place[:, None] - place).abs() <= config.sliding_window
    return {"full_attention": mask(same), "sliding_attention": mask(same & near)}
