"""Token ids of a whole split in one memory-mapped file, made once."""

import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from lit_foundry.atomic import replacing

CHUNK = 1000  # texts per call: enough to keep every thread of the tokenizer busy
CHARACTERS = 5_000_000  # of a call, but for its last text: they take 0.3 GB to tokenize
FORMAT = 1
FILES = "offsets.npy", "ids.bin", "words.bin"  # the last where words bear tags
# Of a text, and of where its tokens start and end in it, to a number for each token.
WordStarts = Callable[[str, Sequence[tuple[int, int]]], NDArray[np.int32]]


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts, without special tokens and without truncation.

    Attributes:
        ids: All ids, one text after the other, shape (M,).
        offsets: Text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``, shape (N + 1,).
        words: Which word of its text begins with each token, -1 if none, shape (M,); None where
            words bear no tags.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    words: NDArray[np.int32] | None = None

    def __getitem__(self, text: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[text] : self.offsets[text + 1]]

    def words_of(self, text: int) -> NDArray[np.int32]:
        """Return which words begin with the tokens of a text, shape (T,)."""
        assert self.words is not None
        return self.words[self.offsets[text] : self.offsets[text + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, shape (N,)."""
        return np.diff(self.offsets)


def tokenize(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    name: str,
    starts: WordStarts | None = None,
) -> Tokens:
    """Tokenize texts into ``folder``, or open what an earlier call left there.

    Args:
        texts: What to tokenize.
        tokenizer: Works on all cores by itself.
        folder: Named after everything that the result depends on.
        name: What the progress bar calls the texts.
        starts: What tells which words begin with the tokens of a text, if that is asked for.
    """
    files = FILES if starts else FILES[:2]
    if not _is_whole(folder, files):  # one that is may lie on a read-only disk
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # other processes wait instead of doing the same
            if not _is_whole(folder, files):
                shutil.rmtree(folder, ignore_errors=True)
                _write(texts, tokenizer, folder, name, starts)
    offsets = np.load(folder / "offsets.npy")
    columns = [_mapped(folder / file, offsets) for file in files[1:]]
    return Tokens(columns[0], offsets, *columns[1:])


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, starts: WordStarts | None = None
) -> Tokens:
    """Tokenize a few texts in memory."""
    rows = [row for chunk in _chunks(texts) for row in _encoded(chunk, tokenizer, starts)]
    offsets = np.cumsum([0, *(len(row[0]) for row in rows)], dtype=np.int64)
    nothing = [np.empty(0, np.int32)] * (2 if starts else 1)
    columns = [np.concatenate(column) for column in zip(nothing, *rows, strict=True)]
    return Tokens(columns[0], offsets, *columns[1:])


def _mapped(path: Path, offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    if not offsets[-1]:
        return np.empty(0, np.int32)  # an empty file cannot be mapped
    return np.asarray(np.memmap(path, np.int32, "r"))  # those of a memmap are slow to slice


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if len(chunk) == CHUNK or size >= CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encoded(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, starts: WordStarts | None
) -> Iterator[tuple[NDArray[np.int32], ...]]:
    """Yield the ids of each text, and where its words begin if that is asked for."""
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **({"return_offsets_mapping": True} if starts else {}),
    )
    for row, ids in enumerate(encoded["input_ids"]):
        words = [starts(texts[row], encoded["offset_mapping"][row])] if starts else []
        yield np.asarray(ids, np.int32), *words


def _is_whole(folder: Path, files: Sequence[str]) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sizes = {file: (folder / file).stat().st_size for file in files}
        return bool(meta["format"] == FORMAT and meta["sizes"] == sizes)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    name: str,
    starts: WordStarts | None,
) -> None:
    files = FILES if starts else FILES[:2]
    with replacing(folder) as partial:
        partial.mkdir()
        lengths = [0]
        with (
            ExitStack() as stack,
            tqdm(total=len(texts), desc=f"Tokenizing {name}", unit=" texts", disable=None) as bar,
        ):
            opened = [stack.enter_context((partial / file).open("wb")) for file in files[1:]]
            for chunk in _chunks(texts):
                for row in _encoded(chunk, tokenizer, starts):
                    for file, column in zip(opened, row, strict=True):
                        file.write(column.tobytes())
                    lengths.append(len(row[0]))
                bar.update(len(chunk))
        offsets = io.BytesIO()  # of a file, numpy does not say why it could not be written
        np.save(offsets, np.cumsum(lengths, dtype=np.int64))
        (partial / "offsets.npy").write_bytes(offsets.getvalue())
        sizes = {file: (partial / file).stat().st_size for file in files}
        meta = json.dumps({"format": FORMAT, "sizes": sizes})
        (partial / "meta.json").write_text(meta, encoding="utf-8")
