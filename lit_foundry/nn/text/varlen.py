"""Attention within the documents of packed rows by a kernel for sequences of any lengths.

It computes nothing between documents, and needs no mask.

Shapes: B batch, T tokens, H heads, D width of a head.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NAME = "varlen"  # of the implementation, for transformers


def is_offered(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernel takes queries of this kind."""
    half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and half and torch.cuda.get_device_capability(device) >= (8, 0)


def prepared(batch: Mapping[str, Any], dtype: torch.dtype, wanted: bool) -> Mapping[str, Any]:
    """Return a batch as the kernel takes it; without its offsets, if that cannot or shall not."""
    offsets = batch["offsets"]
    if not (wanted and is_offered(offsets.device, dtype)):
        return {name: field for name, field in batch.items() if name != "offsets"}
    torch._dynamo.maybe_mark_dynamic(offsets, 0)  # one graph for any number of documents
    return batch


def use(encoder: Any) -> bool:
    """Let a network of ``transformers`` attend by the kernel where a mask is of int32: offsets.

    With any other mask, and without one, it attends as with sdpa.

    Returns:
        Whether it can: with no dropout of attention, and heads of a width that is a multiple of 8
        and at most 256.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = encoder.config
    names = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    dropout = any(getattr(config, name, 0.0) for name in names)
    known = config._attn_implementation in ("sdpa", NAME)
    if not known or dropout or width % 8 or width > 256:
        return False
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    encoder.set_attn_implementation(NAME)
    return True


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend, as ``transformers`` asks for it: queries (B, H, T, D), to (B, T, H, D)."""
    if attention_mask is None or attention_mask.dtype != torch.int32:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return result
    from torch.nn.attention.varlen import varlen_attn  # which loads the compiler

    rows, heads, size, _ = query.shape
    groups = heads // key.shape[1]
    # Rotation leaves queries in float32 under autocast.
    query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 2) for x in (key, value))
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    begins = attention_mask.flatten()
    # transformers counts a window with the token itself.
    reach = -1 if sliding_window is None else sliding_window - 1
    window = (reach, 0 if module.is_causal else reach)
    found: Any = varlen_attn(
        query, key, value, begins, begins, size, size, scale=scaling, window_size=window
    )
    return found.unflatten(0, (rows, size)), None
