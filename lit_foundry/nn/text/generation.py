"""Text that a causal language model goes on with, or a denoising one restores.

Shapes: B prompts, T tokens, G generated tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_foundry import ranges
from lit_foundry.nn.transformers_config import quiet


@dataclass(frozen=True)
class Generation:
    """How tokens are drawn.

    Args:
        max_tokens: Most tokens of a continuation.
        temperature: Divides the logits; 0 takes the most probable token each time.
        top_k: Draw among so many most probable tokens; 0 among all.
        top_p: Draw among the most probable tokens that together have this probability.
        seed: Seed of the draws.

    Raises:
        ValueError: If a value lies outside its range.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, 2019.
        https://arxiv.org/abs/1904.09751 (top-p)
    """

    max_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "max_tokens": (self.max_tokens >= 1, "is at least 1"),
            "temperature": (self.temperature >= 0, "is at least 0"),
            "top_k": (self.top_k >= 0, "is a number of tokens, or 0 for all"),
            "seed": (0 <= self.seed < 2**63, "is a whole number, 0 at least and below 2 ** 63"),
            "top_p": (0 < self.top_p <= 1, "lies in (0, 1]"),
        }
        ranges.check("model.generation", vars(self), rules)


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    how: Generation,
    max_length: int,
    pad_id: int,
    start_id: int | None,
    end_id: int | None,
) -> list[Tensor]:
    """Return what follows each prompt, with the keys and values of earlier tokens cached.

    Args:
        model: ``AutoModelForCausalLM`` of ``transformers``, in eval mode.
        input_ids: Prompts, padded on the right, shape (B, T).
        attention_mask: True at real tokens, shape (B, T).
        how: How tokens are drawn.
        max_length: Longest sequence that the model takes; of a longer prompt it sees the end.
        pad_id: Id of padding.
        start_id: Id that begins a text without tokens.
        end_id: Id that ends a text, if any.

    Returns:
        For each prompt the ids that follow, shape (G,), without ``end_id``.
    """
    room = max(1, max_length - how.max_tokens)
    prompts = [ids[mask][-room:] for ids, mask in zip(input_ids, attention_mask, strict=True)]
    if start_id is not None:
        prompts = [p if len(p) else p.new_tensor([start_id]) for p in prompts]
    size = max(len(prompt) for prompt in prompts)
    left = torch.full((len(prompts), size), pad_id, device=input_ids.device)
    real = torch.zeros_like(left)
    for row, prompt in enumerate(prompts):
        left[row, size - len(prompt) :] = prompt
        real[row, size - len(prompt) :] = 1
    most = min(how.max_tokens, max_length - size)
    found = _drawn(model, left, real, how, most, pad_token_id=pad_id, eos_token_id=end_id)
    return [_until(ids, end_id) for ids in found[:, size:]]


def _until(ids: Tensor, end_id: int | None) -> Tensor:
    ends = (ids == end_id).nonzero().flatten().tolist() if end_id is not None else []
    return ids[: ends[0]] if ends else ids


@torch.no_grad()
def restore(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    how: Generation,
    max_length: int,
    pad_id: int,
    start_id: int,
    end_id: int | None,
) -> list[Tensor]:
    """Return what a decoder writes of each text that its encoder sees.

    Args:
        model: ``AutoModelForSeq2SeqLM`` of ``transformers``, in eval mode.
        input_ids: Texts, padded on the right, shape (B, T).
        attention_mask: True at real tokens, shape (B, T).
        how: How tokens are drawn.
        max_length: Longest sequence that the model writes.
        pad_id: Id of padding.
        start_id: Id that the decoder begins with.
        end_id: Id that ends a text; None goes on behind ends of texts, up to ``max_length``.

    Returns:
        For each text the ids written, shape (G,), without ``end_id``.
    """
    found = _drawn(
        model,
        input_ids,
        attention_mask.long(),
        how,
        min(how.max_tokens, max_length),
        pad_token_id=pad_id,
        eos_token_id=end_id,
        decoder_start_token_id=start_id,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
    )
    return [_until(ids, end_id) for ids in found[:, 1:]]


def end_of(tokenizer: Any) -> int | None:
    """Return the id that ends a text, if any."""
    end: int | None = tokenizer.eos_token_id
    return tokenizer.sep_token_id if end is None else end


def _drawn(
    model: Any, ids: Tensor, mask: Tensor, how: Generation, most: int, **special: int | None
) -> Tensor:
    """Have a model write at most ``most`` tokens."""
    draws = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    devices = [ids.device] if ids.is_cuda else []
    # It takes a row without padding for one without a mask, and warns of that.
    with (
        quiet(),
        torch.random.fork_rng(devices),
    ):  # training draws on as if nothing had been generated
        torch.manual_seed(how.seed)
        found: Tensor = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=how.temperature > 0,
            **special,
            **(draws if how.temperature > 0 else {}),
        )
    return found
