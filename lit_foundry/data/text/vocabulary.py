"""What a language model must know of token ids beyond their number.

Shapes: V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from lit_foundry.data.text.tokenizer_training import stands_alone

SPACE = "\u2581"  # of SentencePiece
STOPS = ".", "!", "?"
CLOSING = "\"')]\u201d\u2019"  # what may follow a stop in its token


@dataclass(frozen=True)
class Vocabulary:
    """Kinds of tokens.

    Attributes:
        special: True for tokens that stand for no text, shape (V,).
        continues: True for tokens that continue a word, shape (V,).
        ends: True for tokens that end a sentence, shape (V,).
    """

    special: NDArray[np.bool_]
    continues: NDArray[np.bool_]
    ends: NDArray[np.bool_]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "Vocabulary":
        """Return the kinds of a tokenizer's tokens."""
        special = np.zeros(len(tokenizer), bool)
        special[[i for i in tokenizer.all_special_ids if i < len(special)]] = True
        unknown = tokenizer.unk_token_id
        if unknown is not None:  # it stands for text that no other token can spell
            special[unknown] = False
        ends = np.zeros_like(special)
        words = tokenizer.get_vocab().items()
        stops = [i for token, i in words if token.rstrip(CLOSING).endswith(STOPS)]
        ends[[i for i in stops if i < len(ends)]] = True
        return cls(special, continues_word(tokenizer), ends & ~special)

    def __len__(self) -> int:
        return len(self.special)


def continues_word(tokenizer: PreTrainedTokenizerFast) -> NDArray[np.bool_]:
    """Tell which tokens continue a word, shape (V,), by the marks of the tokenizer's kind.

    WordPiece marks what continues a word, SentencePiece what begins one, and so does byte-level
    BPE, of which any white space and punctuation begin a word, but no part of a character. Of any
    other kind, every token is a word; so are added tokens, special ones among them.
    """
    backend: Any = tokenizer.backend_tokenizer
    parts = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    described = b"".join(part.__getstate__() for part in parts if part is not None).decode()
    prefix = getattr(backend.model, "continuing_subword_prefix", None)

    def continues(token: str) -> bool:
        if prefix:
            return token.startswith(prefix)
        if '"ByteLevel"' in described:
            first = decoders.ByteLevel().decode([token])[:1]
            return bool(first) and not (first.isspace() or stands_alone(first))
        return SPACE in described and not token.startswith(SPACE)

    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    found = np.zeros(len(tokenizer), bool)
    for token, i in tokenizer.get_vocab().items():
        if i < len(found) and i not in added:  # ids may have gaps
            found[i] = continues(token)
    return found
