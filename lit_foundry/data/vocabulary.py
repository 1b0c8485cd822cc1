"""What a language model must know of token ids beyond their number.

Shapes: V vocabulary.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

SPACE = "\u2581"  # of SentencePiece


@dataclass(frozen=True)
class Vocabulary:
    """Kinds of tokens.

    Attributes:
        special: True for tokens that stand for no text, shape (V,).
        continues: True for tokens that continue a word, shape (V,).
    """

    special: NDArray[np.bool_]
    continues: NDArray[np.bool_]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "Vocabulary":
        """Return the kinds of a tokenizer's tokens."""
        special = np.zeros(len(tokenizer), bool)
        special[[i for i in tokenizer.all_special_ids if i < len(special)]] = True
        unknown = tokenizer.unk_token_id
        if unknown is not None:  # it stands for text that no other token can spell
            special[unknown] = False
        return cls(special, continues_word(tokenizer))

    def __len__(self) -> int:
        return len(self.special)


def continues_word(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.bool_]:
    """Tell which tokens continue a word, shape (V,), by the marks of the tokenizer's kind.

    WordPiece marks what continues a word; byte-level BPE and SentencePiece mark what begins one.
    Of any other kind, every token is a word.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if parts["model"]["type"] == "WordPiece":
        mark = parts["model"]["continuing_subword_prefix"]
        found = [token.startswith(mark) for token in tokens]
    elif mark := _beginning(parts):
        # Punctuation and line breaks are words of their own, with or without a space before them.
        found = [not token.startswith(mark) and token[:1].isalnum() for token in tokens]
    else:
        found = [False] * len(tokens)
    special = set(tokenizer.all_special_tokens)
    return np.array([f and t not in special for f, t in zip(found, tokens, strict=True)], bool)


def _beginning(parts: dict[str, Any]) -> str | None:
    """Return what marks the beginning of a word in a tokenizer's JSON, if anything does."""
    described = json.dumps(
        [parts["pre_tokenizer"], parts["decoder"], parts["normalizer"]], ensure_ascii=False
    )
    if '"ByteLevel"' in described:
        return "\u0120"
    return SPACE if SPACE in described else None
