"""What is known of token ids: which continue a word, by the tokenizer's own reckoning."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from lit_foundry.data.text.tokenizer_training import TrainTokenizer, trained
from lit_foundry.data.text.vocabulary import continues_word
from tests.data.text.test_tokenizer import minilm, some_texts

SENTENCE = "It's (re)tokenization — unbelievable, isn't it?\n\nÉté 12,000 ... “naïve” 日本"
TEXTS = [*some_texts(8, 100), *(" ".join([SENTENCE] * 3),) * 20]


def agreement(tokenizer: Any, texts: list[str]) -> float:
    """Return the share of tokens that are found in the word before if the tokenizer says so."""
    continues, right = continues_word(tokenizer), []
    assert continues.shape == (len(tokenizer),)
    assert not continues[tokenizer.all_special_ids].any()
    for text in texts:
        encoding = tokenizer(text, add_special_tokens=False)
        same = [a == b for a, b in pairwise(encoding.word_ids())]
        right += [a == b for a, b in zip(continues[encoding["input_ids"]][1:], same, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "characters"])
def test_words_are_those_of_the_pre_tokenizer(kind: Any) -> None:
    config = TrainTokenizer(kind, 400, lowercase=False, multiple_of=64)
    assert agreement(trained(config, TEXTS), TEXTS) == 1


def test_words_of_minilm_are_those_of_bert(tmp_path: Path) -> None:
    assert agreement(minilm(tmp_path), TEXTS) == 1


def test_words_of_bytes_are_those_of_gpt2_except_beside_signs() -> None:
    tokenizer = trained(TrainTokenizer("bpe", 400, lowercase=False), TEXTS)
    assert agreement(tokenizer, some_texts(8, 100)) > 0.98
    continues = dict(
        zip(tokenizer.convert_ids_to_tokens(range(400)), continues_word(tokenizer), strict=True)
    )
    for begins in ("Ġ", "Ċ", "ĉ", ",", "Ġ(", "Ġdi", "âĢĶ", "[CLS]"):
        assert not continues.get(begins, False), begins
    for inside in ("a", "Ã", "©", "0", "æ", "ce"):
        assert continues[inside], inside


def test_added_tokens_are_words() -> None:
    tokenizer = trained(TrainTokenizer("bpe", 400), TEXTS)
    tokenizer.add_tokens(["covid", AddedToken("<turn>", special=True)])
    assert continues_word(tokenizer)[-2:].tolist() == [False, False]
