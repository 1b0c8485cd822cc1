"""Token ids of a whole split in one memory-mapped file, made once."""

import io
import json
import shutil
from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts, without special tokens and without truncation.

    Attributes:
        ids: All ids, one text after the other, shape (M,).
        offsets: Text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``, shape (N + 1,).
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __getitem__(self, text: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[text] : self.offsets[text + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, shape (N,)."""
        return np.diff(self.offsets)


def tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, folder: Path, name: str
) -> Tokens:
    """Tokenize texts into ``folder``, or open what an earlier call left there.

    Args:
        texts: What to tokenize.
        tokenizer: Works on all cores by itself.
        folder: Named after everything that the result depends on.
        name: What the progress bar calls the texts.
    """
    if not _is_whole(folder):  # one that is may lie on a read-only disk
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # other processes wait instead of doing the same
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)
                _write(texts, tokenizer, folder, name)
    offsets = np.load(folder / "offsets.npy")
    empty = np.empty(0, np.int32)  # an empty file cannot be mapped
    ids = np.memmap(folder / "ids.bin", np.int32, "r") if offsets[-1] else empty
    return Tokens(np.asarray(ids), offsets)  # a plain view: those of a memmap are slow to slice


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """Tokenize a few texts in memory."""
    ids = [row for chunk in _chunks(texts) for row in _ids(chunk, tokenizer)]
    offsets = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return Tokens(np.array([i for row in ids for i in row], np.int32), offsets)


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


def _ids(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _is_whole(folder: Path) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        sizes = {file: (folder / file).stat().st_size for file in ("ids.bin", "offsets.npy")}
        return bool(meta["format"] == FORMAT and meta["sizes"] == sizes)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, folder: Path, name: str
) -> None:
    with replacing(folder) as partial:
        partial.mkdir()
        lengths = [0]
        with (
            (partial / "ids.bin").open("wb") as file,
            tqdm(total=len(texts), desc=f"Tokenizing {name}", unit=" texts", disable=None) as bar,
        ):
            for chunk in _chunks(texts):
                for ids in _ids(chunk, tokenizer):
                    file.write(np.asarray(ids, np.int32).tobytes())
                    lengths.append(len(ids))
                bar.update(len(chunk))
        offsets = io.BytesIO()  # of a file, numpy does not say why it could not be written
        np.save(offsets, np.cumsum(lengths, dtype=np.int64))
        (partial / "offsets.npy").write_bytes(offsets.getvalue())
        sizes = {file: (partial / file).stat().st_size for file in ("ids.bin", "offsets.npy")}
        meta = json.dumps({"format": FORMAT, "sizes": sizes})
        (partial / "meta.json").write_text(meta, encoding="utf-8")
