"""Tokenizers trained on the data."""

import hashlib
import json
import shutil
import string
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from transformers import PreTrainedTokenizerFast

Kind = Literal["wordpiece", "bpe", "unigram", "characters"]
FORMAT = 2  # of trained tokenizers; another number trains them anew
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@dataclass(frozen=True)
class TrainTokenizer:
    """A tokenizer to train on the training split.

    Args:
        kind: WordPiece as in BERT, byte-level BPE as in RoBERTa and GPT-2, unigram as in
            SentencePiece, or one token for each of the characters, of any kind of space too.
        vocab_size: Most tokens, special ones included; small data may yield fewer.
        lowercase: Fold case and accents.
        multiple_of: Fill the vocabulary with unused tokens up to a multiple of this: matrix kernels
            like 64.

    Raises:
        ValueError: If a value cannot be.
    """

    kind: Kind = "wordpiece"
    vocab_size: int = 8192
    lowercase: bool = True
    multiple_of: int = 1

    def __post_init__(self) -> None:
        """Reject a size that cannot hold an alphabet."""
        least = 10 if self.kind == "characters" else 300
        if self.vocab_size < least:
            raise ValueError(
                f"data.tokenizer.vocab_size must be at least {least}, got {self.vocab_size}."
            )
        if self.multiple_of < 1:
            raise ValueError(
                f"data.tokenizer.multiple_of must be at least 1, got {self.multiple_of}."
            )


def train_tokenizer(
    config: TrainTokenizer, texts: Iterable[str], fingerprint: str, cache: Path
) -> PreTrainedTokenizerFast:
    """Train a tokenizer, or load the one that an earlier run trained on the same texts.

    Args:
        config: What to train.
        texts: What to train on, from the beginning each time they are iterated.
        fingerprint: Hash of the texts.
        cache: Folder of all trained tokenizers.
    """
    content = json.dumps([FORMAT, asdict(config), fingerprint])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    folder = cache / "tokenizers" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = tempfile.mkdtemp(prefix=".partial-", dir=folder.parent)
            try:
                trained(config, texts).save_pretrained(partial)
                Path(partial).rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return PreTrainedTokenizerFast.from_pretrained(folder)


def trained(config: TrainTokenizer, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer; the same texts, in any process, give the same."""
    from tokenizers import normalizers, processors

    fold = [normalizers.StripAccents(), normalizers.Lowercase()] if config.lowercase else []
    normalizer = normalizers.Sequence([normalizers.NFD(), *fold, normalizers.NFC()])
    train = {
        "wordpiece": _wordpiece,
        "bpe": _bpe,
        "unigram": _unigram,
        "characters": _characters,
    }[config.kind]
    tokenizer = train(texts, config.vocab_size, normalizer)
    tokenizer.normalizer = normalizer
    missing = -tokenizer.get_vocab_size() % config.multiple_of
    tokenizer.add_special_tokens([f"[unused{i}]" for i in range(missing)])
    cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def _wordpiece(texts: Iterable[str], size: int, normalizer: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = list(SPECIAL.values())
    alphabet = _alphabet(texts, normalizer, (size - len(special)) // 2)
    # The trainer numbers "##x" in random order, which decides ties: number them beforehand.
    inner = [f"##{char}" for char in alphabet if not _stands_alone(char)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*special, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    trained.normalizer, trained.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trained.train_from_iterator(texts, trainer)
    # Without "##x" among the special tokens.
    model = models.WordPiece(trained.get_vocab(), unk_token=SPECIAL["unk_token"])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = trained.pre_tokenizer, decoders.WordPiece()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _bpe(texts: Iterable[str], size: int, normalizer: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts: Iterable[str], size: int, normalizer: Any) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = list(SPECIAL.values())
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=_alphabet(texts, normalizer, (size - len(special)) // 2),
        unk_token=SPECIAL["unk_token"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _characters(texts: Iterable[str], size: int, normalizer: Any) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = list(SPECIAL.values())
    found = _alphabet(texts, normalizer, size - len(special), spaces=True)
    vocabulary = {token: i for i, token in enumerate([*special, *found])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?s)."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _alphabet(texts: Iterable[str], normalizer: Any, limit: int, spaces: bool = False) -> list[str]:
    """Return the characters that occur most, at most ``limit``, in order of their codes."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    seen = sorted(char for char in counts if spaces or not char.isspace())
    return sorted(sorted(seen, key=lambda char: -counts[char])[:limit])


def _stands_alone(char: str) -> bool:
    """Tell whether the pre-tokenizer of BERT makes a character a word of its own."""
    return char in string.punctuation or unicodedata.category(char)[0] == "P"
