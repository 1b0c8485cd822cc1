"""Writing token shards: each whole or not at all, so that a killed preparation goes on.

``shard-00000/`` and so on hold ``ids.bin``, ``documents.npy`` (DOCUMENT) and ``meta.json``, which
says with which row of which file the next one begins; ``corpus.json`` comes last.
"""

import io
import json
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm.auto import tqdm

from lit_foundry.atomic import replacing
from lit_foundry.data.files.documents import Documents

FORMAT = 1
# Texts, and characters in them, of one call of the tokenizer: enough to keep its threads busy.
CALL_TEXTS, CALL_SIZE = 1000, 4 * 2**20
PIECE = 2**20  # characters: a longer text is tokenized in pieces, on several cores at once
WRITTEN = 2**23  # bytes of ids that are written at once
DOCUMENT = np.dtype([("start", "<i8"), ("num_bytes", "<i8"), ("hash", "<u8", 2)])
FILES = ("ids.bin", "documents.npy")
T = TypeVar("T")
Hash = tuple[int, int]
Place = tuple[int, int]  # file and row
End = tuple[int, int, int, Hash] | None  # file, row, bytes and hash; None: more comes
Tokenized = tuple[list[int], End]


def shard_folder(folder: Path, number: int) -> Path:
    """Return where a shard lies."""
    return folder / f"shard-{number:05d}"


def is_whole(folder: Path) -> bool:
    """Tell whether a folder holds a complete corpus, none of whose shards is damaged."""
    try:
        corpus = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        return all(_meta(shard_folder(folder, number)) for number in range(corpus["shards"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass
class ShardWriter:
    """Tokenizes documents into a folder, with no other process at work there.

    Args:
        documents: What to tokenize.
        fast: Tokenizer, without truncation and padding.
        folder: Where earlier calls may have left shards.
        shard_bytes: Size of ``ids.bin`` at which a shard ends.
    """

    documents: Documents
    fast: Any
    folder: Path
    shard_bytes: int

    def __post_init__(self) -> None:
        self.dtype = "<u2" if max(self.fast.get_vocab().values()) < 2**16 else "<u4"

    def run(self, name: str) -> None:
        """Write the shards that are missing or damaged; ``name`` is for the progress bar."""
        number, place, more = 0, (0, 0), True
        with tqdm(desc=f"Tokenizing {name}", unit="B", unit_scale=True, disable=None) as bar:
            while more:
                while meta := _meta(shard_folder(self.folder, number)):
                    number, place = number + 1, (meta["next"][0], meta["next"][1])
                    bar.n = bar.initial = bar.n + meta["bytes"]
                number, more = self._write(number, place, bar)
        self._finish(number)

    def _write(self, number: int, place: Place, bar: "tqdm[None]") -> tuple[int, bool]:
        """Write shards up to one that is there already, or to the last.

        Returns:
            Number of the next shard, and whether there may be one.
        """
        with closing(self._tokenized(place)) as pieces:
            while piece := next(pieces, None):
                with replacing(shard_folder(self.folder, number)) as partial:
                    partial.mkdir()
                    self._fill(partial, chain([piece], pieces), bar)
                number += 1
                if _meta(shard_folder(self.folder, number)):
                    return number, True
        return number, False

    def _fill(self, partial: Path, pieces: Iterator[Tokenized], bar: "tqdm[None]") -> None:
        rows: list[tuple[int, int, Hash]] = []
        num_tokens, start, full = 0, 0, False
        with (partial / "ids.bin").open("wb", buffering=WRITTEN) as ids_file:
            while not full and (piece := next(pieces, None)):
                ids, end = piece
                ids_file.write(np.array(ids, self.dtype).tobytes())
                num_tokens += len(ids)
                if end:
                    file, row, num_bytes, content = end
                    rows.append((start, num_bytes, content))
                    start = num_tokens
                    full = num_tokens * np.dtype(self.dtype).itemsize >= self.shard_bytes
                    bar.update(num_bytes)
        table = io.BytesIO()  # of a file, numpy does not say why it could not be written
        np.save(table, np.array(rows, DOCUMENT))
        (partial / "documents.npy").write_bytes(table.getvalue())
        meta = {
            "format": FORMAT,
            "bytes": sum(num_bytes for _, num_bytes, _ in rows),
            "next": [file, row + 1],
            "sizes": {name: (partial / name).stat().st_size for name in FILES},
        }
        (partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        bar.set_postfix_str(f"file {file + 1} of {self.documents.num_files}")

    def _tokenized(self, place: Place) -> Generator[Tokenized, None, None]:
        """Yield ids in order; threads read and tokenize what comes next meanwhile."""
        read = _ahead(_batches(_pieces(self.documents, place)))
        with closing(read), closing(_ahead(map(self._encode, read))) as encoded:
            for batch in encoded:
                yield from ((encoding.ids, end) for encoding, end in batch)

    def _encode(self, batch: list[tuple[str, End]]) -> list[tuple[Any, End]]:
        texts = [text for text, _ in batch]
        encodings = self.fast.encode_batch_fast(texts, add_special_tokens=False)
        return list(zip(encodings, (end for _, end in batch), strict=True))

    def _finish(self, num_shards: int) -> None:
        """Write ``corpus.json``, without which a corpus is not complete."""
        content = blake2b(self.fast.to_str().encode(), digest_size=16)
        num_documents = num_tokens = 0
        for shard in (shard_folder(self.folder, number) for number in range(num_shards)):
            documents = np.load(shard / "documents.npy")
            content.update(documents["hash"].tobytes())
            num_documents += len(documents)
            num_tokens += (shard / "ids.bin").stat().st_size // np.dtype(self.dtype).itemsize
        corpus = {
            "shards": num_shards,
            "documents": num_documents,
            "tokens": num_tokens,
            "dtype": self.dtype,
            "fingerprint": content.hexdigest(),
        }
        with replacing(self.folder / "corpus.json") as partial:
            partial.write_text(json.dumps(corpus), encoding="utf-8")


def _pieces(documents: Documents, place: Place) -> Iterator[tuple[str, End]]:
    """Yield documents, long ones in pieces of which the last one has an end."""
    for file, row, text in documents.stream(*place):
        data = text.encode()
        content = np.frombuffer(blake2b(data, digest_size=16).digest(), "<u8")
        first = 0
        while len(text) - first > PIECE:
            cut = _cut(text, first, first + PIECE)
            yield text[first:cut], None
            first = cut
        yield text[first:], (file, row, len(data), (int(content[0]), int(content[1])))


def _cut(text: str, first: int, last: int) -> int:
    """Find where a text can be cut without parting words: before blanks, if it has any."""
    for blank in (" ", "\n"):
        cut = text.rfind(blank, first + 1, last)
        while cut > first and text[cut - 1].isspace():
            cut -= 1
        if cut > first:
            return cut
    return last


def _batches(pieces: Iterable[tuple[str, End]]) -> Iterator[list[tuple[str, End]]]:
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece[0])
        if len(batch) == CALL_TEXTS or size >= CALL_SIZE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield items of which a thread makes the next two meanwhile."""
    thread = ThreadPoolExecutor(1)
    try:
        made = deque(thread.submit(next, items, None) for _ in range(2))
        while (item := made.popleft().result()) is not None:
            made.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def _meta(shard: Path) -> dict[str, Any] | None:
    """Return what is known of a shard, or None if it is missing or damaged."""
    try:
        meta = json.loads((shard / "meta.json").read_text(encoding="utf-8"))
        sizes = {name: (shard / name).stat().st_size for name in FILES}
        return meta if meta["format"] == FORMAT and meta["sizes"] == sizes else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
