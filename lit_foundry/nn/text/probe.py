"""What a network of ``transformers`` makes of texts, tried on a few tokens before it gets any.

Whether a family is a text encoder, and of which kind, no list needs to say: its network does.

Shapes: B batch, T tokens, D feature width.
"""

from collections.abc import Callable
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lit_foundry.nn.transformers_config import is_decoder

TOKENS = 6  # of the texts that are tried
# Of the largest feature. Of a decoder's tokens, those after them change no more: where experts
# take tokens in groups, these are rounded otherwise. Padding changes less than any token.
ROUNDING, OF_PADDING = 1e-5, 1e-4
OTHERS = "take one such as bert, roberta or modernbert, or gpt2 or llama"


class Probed(NamedTuple):
    """What was found out about a network."""

    vocab_size: int  # rows of the embedding
    dim: int  # D
    causal: bool  # no token sees those after it; by its config if none sees another yet
    idle: list[nn.Parameter]  # parameters that features of texts do not depend on


@torch.enable_grad()  # which parameters there are gradients of
def probe(encoder: Any, tokens: Callable[[Tensor, Tensor], Tensor], max_length: int) -> Probed:
    """Try a network on texts with and without padding.

    Args:
        encoder: The network; it is in training mode afterwards.
        tokens: Calls it: from ids and mask (B, T) to features (B, T, D).
        max_length: Longest sequence that it takes.

    Raises:
        ValueError: If it is none that takes tokens alone and gives each text features of its own,
            whatever padding comes after it.
    """
    if encoder.device.type == "meta":  # without weights there is nothing to try
        vocab_size = len(encoder.get_input_embeddings().weight)
        return Probed(vocab_size, encoder.config.hidden_size, is_decoder(encoder.config), [])
    pad = getattr(encoder.config, "pad_token_id", None) or 0
    size = max(1, min(TOKENS, max_length // 2))
    encoder.eval()
    try:
        vocab_size = len(encoder.get_input_embeddings().weight)
        base = (pad + 1 + torch.arange(2 * size)) % vocab_size
        text, last, first = base[:size].repeat(3, 1, 1)
        last[0, -1] = first[0, 0] = base[size]  # another token there
        padded, mask = base.repeat(2, 1), torch.ones(2, 2 * size, dtype=torch.long)
        padded[0, size:], mask[0, size:] = pad, 0
        with torch.random.fork_rng(devices=[]):
            output = tokens(text, mask[1:, :size])
            with torch.no_grad():
                other_last, other_first = (tokens(t, mask[1:, :size])[0] for t in (last, first))
                beside_longer = tokens(padded, mask)[0, :size]
                encoder.train()  # in which Reformer takes one length alone
                tokens(text[:, :1], mask[1:, :1])
        values, learnt = output.detach()[0], _reached(output)
    except Exception as error:  # whatever it throws for want of boxes, images or a language
        rule = f"cannot read texts of any length from tokens alone ({reason(error)})"
        raise refusal(encoder, rule) from error

    def differ(one: Tensor, other: Tensor, share: float) -> bool:
        return bool((one - other).abs().max() > share * values.abs().max())

    if differ(values, beside_longer, OF_PADDING):
        rule = "takes padding for text, so that a text would get another answer beside longer ones"
        raise refusal(encoder, rule)
    ahead = differ(values[0], other_last[0], ROUNDING if is_decoder(encoder.config) else 0)
    back = differ(values[-1], other_first[-1], 0)
    idle = [p for p in encoder.parameters() if p.requires_grad and id(p) not in learnt]
    if idle and not (ahead or back):
        raise refusal(encoder, "has no token attend to another here")
    causal = not ahead if ahead or back else is_decoder(encoder.config)
    return Probed(vocab_size, values.shape[1], causal, idle)


def refusal(encoder: Any, rule: str) -> ValueError:
    """Return the error of a network that breaks a rule."""
    return ValueError(
        f"model.backbone.config.model_type {encoder.config.model_type} {rule}: {OTHERS}."
    )


def reason(error: Exception) -> str:
    """Return in a few words what a library threw."""
    return shorten(str(error), 160).rstrip(".") or type(error).__name__


def _reached(output: Tensor) -> set[int]:
    """Return the ids of what an output has a gradient for."""
    nodes: list[Any] = [output.grad_fn]
    seen: set[Any] = {None}
    found: set[int] = set()
    while nodes:
        if (node := nodes.pop()) not in seen:
            seen.add(node)
            found.add(id(getattr(node, "variable", None)))
            nodes += [following for following, _ in node.next_functions]
    return found
