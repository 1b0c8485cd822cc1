"""Words among the tokens of texts.

Shapes: B batch, T tokens, W words.
"""

import torch
from torch import Tensor

from lit_foundry.nn.text.masking import IGNORED

CUT = -1  # tag of a word that truncation cut off, while a later one is there


def of_words(tags: Tensor, word: Tensor, cut: int = CUT) -> Tensor:
    """Return the tags of words, in their order: those of the tokens with which they begin.

    Args:
        tags: Of tokens, shape (B, T).
        word: Number of the word that begins with a token, -1 if none, shape (B, T).
        cut: What stands for a word that has no token, where a later one has.

    Returns:
        Shape (B, W); -100 after the last word of a text.
    """
    rows, places = (word >= 0).nonzero(as_tuple=True)
    size = int(word.max()) + 1 if word.numel() else 0
    there = torch.arange(size, device=word.device) <= word.amax(1, keepdim=True)
    found = there.to(tags.dtype) * (cut - IGNORED) + IGNORED
    found[rows, word[rows, places]] = tags[rows, places]
    return found
