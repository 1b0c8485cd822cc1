"""Token ids of a corpus of any size in memory-mapped files, made once, and resumed if killed.

Shapes: N documents.
"""

import json
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
from filelock import FileLock
from numpy.typing import NDArray

from lit_foundry.data.corpus.shard_writer import FORMAT, ShardWriter, is_whole, shard_folder
from lit_foundry.data.files.documents import Documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TokenShards:
    """Token ids of documents, without special tokens.

    Args:
        folder: What :func:`tokenize_documents` wrote.

    Attributes:
        fingerprint: Hash of the documents in their order and of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        corpus = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        self.fingerprint: str = corpus["fingerprint"]
        paths = [shard_folder(folder, number) for number in range(corpus["shards"])]
        self._ids = [_mapped(path / "ids.bin", corpus["dtype"]) for path in paths]
        documents = [np.load(path / "documents.npy") for path in paths]
        self._documents = np.concatenate(documents)
        # Shard s holds the documents _edges[s] to _edges[s + 1].
        self._edges = np.cumsum([0, *map(len, documents)])
        ends = [
            np.append(held["start"][1:], len(ids))
            for held, ids in zip(documents, self._ids, strict=True)
        ]
        self._ends = np.concatenate(ends)

    def __len__(self) -> int:
        return len(self._documents)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}  # a loader worker maps the files anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, shape (N,)."""
        return cast(NDArray[np.int64], self._ends - self._documents["start"])

    @property
    def num_bytes(self) -> NDArray[np.int64]:
        """Bytes of each document as UTF-8, shape (N,)."""
        return cast(NDArray[np.int64], self._documents["num_bytes"])

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """Hash of the text of each document, shape (N, 2)."""
        return cast(NDArray[np.uint64], self._documents["hash"])

    def ids(self, document: int, start: int = 0, stop: int | None = None) -> NDArray[np.integer]:
        """Return the ids of a document, or of a part of it, as a view of the file."""
        shard = int(np.searchsorted(self._edges, document, "right")) - 1
        first, end = int(self._documents["start"][document]), int(self._ends[document])
        return self._ids[shard][first:end][start:stop]


def tokenize_documents(
    documents: Documents,
    tokenizer: "PreTrainedTokenizerFast",
    cache: Path,
    name: str,
    shard_bytes: int = 256 * 2**20,
) -> TokenShards:
    """Tokenize documents into ``cache``, or open what an earlier call left there.

    A call that was killed is continued by the next one, from the last shard that it finished.

    Args:
        documents: What to tokenize.
        tokenizer: Works on all cores by itself.
        cache: Files lie in ``corpora/KEY/`` there, named after everything that they depend on.
        name: What the progress bar calls the documents.
        shard_bytes: Size of ``ids.bin`` at which a shard ends, with the document that reaches it.

    Raises:
        DataError: If a document cannot be read, or there is none.
        OSError: If a file cannot be written; its name is in the error.
    """
    fast = tokenizer.backend_tokenizer
    fast.no_truncation()  # as each call of the tokenizer sets it, else the key would differ
    fast.no_padding()
    backend = fast.to_str()
    key = sha256(f"{backend}{documents.fingerprint}{FORMAT}{shard_bytes}".encode()).hexdigest()
    folder = cache / "corpora" / key[:24]
    if not is_whole(folder):  # one that is may lie on a read-only disk
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):  # other processes wait instead of doing the same
            if not is_whole(folder):
                ShardWriter(documents, fast, folder, shard_bytes).run(name)
    return TokenShards(folder)


def _mapped(path: Path, dtype: str) -> NDArray[np.integer]:
    """Map a file as a plain view; numpy would keep a descriptor of each of thousands of files."""
    with pa.memory_map(str(path)) as file:
        return np.frombuffer(file.read_buffer(), dtype)


def first_occurrences(hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tell the first of equal documents from its copies.

    Args:
        hashes: Of documents in their order, shape (N, 2).

    Returns:
        False for each copy of a document that comes before it, shape (N,).
    """
    order = np.lexsort(hashes.T)  # stable: equal ones stay in their order
    first = np.ones(len(hashes), bool)
    first[order[1:]] = (hashes[order[1:]] != hashes[order[:-1]]).any(1)
    return first


def held_out(hashes: NDArray[np.uint64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Choose a share of documents by their content; copies of a document stay together.

    Whether a document is chosen depends on no other, unless all or none would be: then the one
    nearest to the other side changes sides, so that both have one.

    Args:
        hashes: Of the documents, shape (N, 2).
        fraction: Expected share, in (0, 1).
        seed: Another one chooses others.

    Returns:
        True for those chosen, shape (N,).
    """
    if not 0 < fraction < 1:
        raise ValueError(f"The share of documents must lie in (0, 1), got {fraction}.")
    draws = _mixed(hashes[:, 0] ^ _mixed(hashes[:, 1] ^ _mixed(np.array([seed % 2**64], "u8"))))
    chosen = draws < np.uint64(int(fraction * 2**64))
    if not chosen.any():
        chosen = draws == draws.min(initial=2**64 - 1)
    if chosen.all():
        chosen = draws != draws.max(initial=0)
    return chosen


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return well-mixed bits, one result for each value.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014,
        https://doi.org/10.1145/2660193.2660195 (the finalizer of SplitMix64)
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
