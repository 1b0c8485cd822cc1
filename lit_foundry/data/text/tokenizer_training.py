"""Tokenizers trained on the data: the same texts give the same tokenizer, byte for byte."""

import hashlib
import json
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import decoders as dec
from transformers import PreTrainedTokenizerFast

from lit_foundry.atomic import replacing
from lit_foundry.data.text.tokenizer import save_tokenizer

Kind = Literal["wordpiece", "bpe", "unigram", "characters"]
FORMAT = 2  # of trained tokenizers; another number trains them anew
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
# What frames a text also tells a causal model where a document begins and ends.
ENDS = {"bos_token": SPECIAL["cls_token"], "eos_token": SPECIAL["sep_token"]}
GRAIN = 1e-4  # of the scores of unigram models
NEVER = -1e4  # score of a piece that no text is cut into


@dataclass(frozen=True)
class TrainTokenizer:
    """A tokenizer to train on the training split, with what a corpus holds out of it.

    Args:
        kind: WordPiece as in BERT, byte-level BPE as in RoBERTa and GPT-2, the unigram model of
            SentencePiece as in ALBERT, or a token for each character, of any kind of space too.
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
        least = len(SPECIAL) + 1 if self.kind == "characters" else 300
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
        texts: What to train on; iterated once or twice, each time from the beginning.
        fingerprint: Hash of the texts.
        cache: Folder of all trained tokenizers.
    """
    settings = asdict(config)
    if config.multiple_of == 1:  # as the keys of tokenizers were before there was this setting
        del settings["multiple_of"]
    content = json.dumps([FORMAT, settings, fingerprint])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    folder = cache / "tokenizers" / key
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # other processes wait instead of doing the same
            if not folder.exists():
                with replacing(folder) as partial:
                    save_tokenizer(trained(config, texts), partial)
    return PreTrainedTokenizerFast.from_pretrained(folder, trust_remote_code=False, **ENDS)


def trained(config: TrainTokenizer, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer; the same texts, in any process, give the same."""
    train = {
        "wordpiece": _wordpiece,
        "bpe": _bpe,
        "unigram": _unigram,
        "characters": _characters,
    }[config.kind]
    fold = [normalizers.StripAccents(), normalizers.Lowercase()] if config.lowercase else []
    normalizer: Any = normalizers.Sequence([normalizers.NFD(), *fold, normalizers.NFC()])
    tokenizer = _padded(train(texts, config, normalizer), config.multiple_of)
    cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, **ENDS)


def _wordpiece(texts: Iterable[str], config: TrainTokenizer, normalizer: Any) -> Any:
    special, unk = list(SPECIAL.values()), SPECIAL["unk_token"]
    tokenizer: Any = Tokenizer(models.WordPiece(unk_token=unk))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    alphabet = _alphabet(texts, normalizer, (config.vocab_size - len(special)) // 2)
    # The trainer numbers "##x" in random order, which decides ties: number them beforehand.
    inner = [f"##{char}" for char in alphabet if not stands_alone(char)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[*special, *inner],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Without "##x" among the special tokens:
    trained: Any = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token=unk))
    trained.normalizer, trained.pre_tokenizer = normalizer, tokenizer.pre_tokenizer
    trained.decoder = dec.WordPiece()
    trained.add_special_tokens(special)
    return trained


def _bpe(texts: Iterable[str], config: TrainTokenizer, normalizer: Any) -> Any:
    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = dec.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _unigram(texts: Iterable[str], config: TrainTokenizer, normalizer: Any) -> Any:
    special, unk = list(SPECIAL.values()), SPECIAL["unk_token"]
    limit = (config.vocab_size - len(special)) // 2
    alphabet = _alphabet(texts, normalizer, limit)
    tokenizer: Any = Tokenizer(models.Unigram())
    one_space = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    tokenizer.normalizer = normalizers.Sequence([normalizer, *one_space])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if len(alphabet) == limit:  # the trainer takes all characters that it sees, over vocab_size
        others = Regex(f"[^▁{''.join(map(re.escape, alphabet))}]")
        cut = [tokenizer.pre_tokenizer, pre_tokenizers.Split(others, "removed")]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size, special_tokens=special, unk_token=unk, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    scores = _in_order({token: score for token, score in pieces if token not in special})
    vocab = [*((token, 0.0) for token in special), *scores]
    trained: Any = Tokenizer(models.Unigram(vocab, unk_id=special.index(unk)))
    trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, pre_tokenizers.Metaspace()
    trained.decoder = dec.Metaspace()
    trained.add_special_tokens(special)
    return trained


def _in_order(scores: dict[str, float]) -> list[tuple[str, float]]:
    """Free scores of what differs between trainings on the same texts.

    The trainer adds up in random order, which shows in the last digits. Characters that it had
    given up come back last, in random order, each 1e-4 above the one before: they get one score.
    """
    least = min(scores.values(), default=0.0)
    span = GRAIN * sum(len(token) == 1 for token in scores)
    level = {
        token: round((least if len(token) == 1 and score < least + span else score) / GRAIN)
        for token, score in scores.items()
    }
    ordered = sorted(level, key=lambda token: (-level[token], token))
    return [(token, level[token] * GRAIN) for token in ordered]


def _characters(texts: Iterable[str], config: TrainTokenizer, normalizer: Any) -> Any:
    special, unk = list(SPECIAL.values()), SPECIAL["unk_token"]
    if not config.lowercase:  # even composed and decomposed accents stay as they are
        normalizer = None
    alphabet = _alphabet(texts, normalizer, config.vocab_size - len(special), whitespace=True)
    vocab = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer: Any = Tokenizer(models.WordLevel(vocab, unk_token=unk))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = dec.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer


def _padded(tokenizer: Any, multiple_of: int) -> Any:
    """Add tokens that no text is cut into, until there is a multiple of so many."""
    size = tokenizer.get_vocab_size()
    known = tokenizer.get_vocab()
    names = (name for i in count() if (name := f"[unused{i}]") not in known)
    added = list(islice(names, -size % multiple_of))
    if not added:
        return tokenizer
    state = json.loads(tokenizer.to_str())
    vocab = state["model"]["vocab"]
    if isinstance(vocab, list):
        vocab += [[name, NEVER] for name in added]
    else:
        vocab |= {name: i for i, name in enumerate(added, size)}
    return Tokenizer.from_str(json.dumps(state))


def _alphabet(
    texts: Iterable[str], normalizer: Any, limit: int, whitespace: bool = False
) -> list[str]:
    """Return the characters that occur most, at most ``limit``, in order of their codes."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text) if normalizer else text)
    seen = sorted(char for char in counts if whitespace or not char.isspace())
    return sorted(sorted(seen, key=lambda char: -counts[char])[:limit])


def stands_alone(char: str) -> bool:
    """Tell whether the pre-tokenizer of BERT makes a character a word of its own."""
    return char in string.punctuation or unicodedata.category(char)[0] == "P"
