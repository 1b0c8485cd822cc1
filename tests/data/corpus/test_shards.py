"""Token shards: equal to the tokenizer, whatever kills their making."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lit_foundry.data.corpus import shard_writer
from lit_foundry.data.corpus.shards import TokenShards, tokenize_documents
from lit_foundry.data.files.documents import Documents
from lit_foundry.data.files.text_tables import DataError
from lit_foundry.data.text.tokenizer_training import TrainTokenizer, train_tokenizer
from tests.conftest import full_disk

WORDS = ["plot", "actors", "scénes", "camera's", "music", "story", "hero", "[SEP]", "rain", "日本"]
KINDS: tuple[Literal["wordpiece", "bpe"], ...] = ("wordpiece", "bpe")


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 30))) + f"\n{i}." for i in range(count)]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerFast]:
    cache, texts = tmp_path_factory.mktemp("tokenizers"), sentences(200)
    return {
        kind: train_tokenizer(TrainTokenizer(kind, 400), texts, "words", cache) for kind in KINDS
    }


@pytest.fixture
def wordpiece(tokenizers: dict[str, PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    return tokenizers["wordpiece"]


class Asked(Documents):
    """Documents that note from where on they are read, and fail at one of them."""

    fails_at: int | None = None

    def __init__(self, path: Path, delimiter: str | None = "--") -> None:
        super().__init__(path, delimiter=delimiter)
        self.asked: list[tuple[int, int]] = []

    def stream(self, file: int = 0, row: int = 0) -> Iterator[tuple[int, int, str]]:
        """Yield texts."""
        self.asked.append((file, row))
        for place in super().stream(file, row):
            if place[1] == self.fails_at:
                raise RuntimeError("the network is gone")
            yield place


def corpus(path: Path, texts: list[str]) -> Asked:
    path.write_text("--".join(texts), encoding="utf-8")
    return Asked(path)


def plain(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def rows(tokens: TokenShards) -> list[list[int]]:
    return [tokens.ids(i).tolist() for i in range(len(tokens))]


def contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.suffix != ".lock"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard_bytes", [1, 1000, 2**28])
def test_each_document_has_the_ids_that_the_tokenizer_gives_it_alone(
    tokenizers: dict[str, PreTrainedTokenizerFast], tmp_path: Path, kind: str, shard_bytes: int
) -> None:
    texts, tokenizer = sentences(150), tokenizers[kind]
    documents = corpus(tmp_path / "x.txt", [*texts, " \n", *texts[:2]])
    tokens = tokenize_documents(documents, tokenizer, tmp_path, "train", shard_bytes)
    texts += texts[:2]
    expected = plain(tokenizer, texts)
    assert rows(tokens) == expected
    num_shards = len(list(tokens.folder.glob("shard-*")))
    assert {1: num_shards == 152, 1000: 1 < num_shards < 152, 2**28: num_shards == 1}[shard_bytes]
    assert tokens.lengths.tolist() == [len(ids) for ids in expected]
    assert tokens.num_bytes.tolist() == [len(text.encode()) for text in texts]
    assert (tokens.hashes[:2] == tokens.hashes[-2:]).all()
    assert len(np.unique(tokens.hashes, axis=0)) == 150
    assert tokens.ids(3, 2, 5).tolist() == expected[3][2:5]
    assert tokens.ids(3).dtype == np.uint16


def test_fingerprint_is_that_of_documents_and_tokenizer(
    tokenizers: dict[str, PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    texts, found = sentences(20), set()
    for i, (kind, size) in enumerate([("bpe", 1), ("bpe", 2**20), ("wordpiece", 1)]):
        documents = corpus(tmp_path / f"{i}.txt", texts)
        tokens = tokenize_documents(documents, tokenizers[kind], tmp_path / str(i), "", size)
        found.add((kind, tokens.fingerprint))
    documents = corpus(tmp_path / "less.txt", texts[1:])
    found.add(("", tokenize_documents(documents, tokenizers["bpe"], tmp_path, "").fingerprint))
    assert len({fingerprint for _, fingerprint in found}) == len(found) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_a_very_long_document_is_one_though_it_is_tokenized_in_pieces(
    tokenizers: dict[str, PreTrainedTokenizerFast],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    monkeypatch.setattr(shard_writer, "PIECE", 1000)  # characters, else a million
    texts = ["one", "plot  of\n\n music " * 700, "\n".join(["música"] * 900), "two", "a " * 500]
    texts += ["x" * 990 + " " * 2100 + "x"]
    tokens = tokenize_documents(
        corpus(tmp_path / "x.txt", texts), tokenizers[kind], tmp_path, "train", 400
    )
    assert rows(tokens) == plain(tokenizers[kind], texts)
    documents = corpus(tmp_path / "x.txt", ["日" * 2500])  # without any blank
    tokens = tokenize_documents(documents, tokenizers["bpe"], tmp_path, "train", 400)
    assert tokenizers["bpe"].decode(tokens.ids(0)) == "日" * 2500


def test_workers_map_the_files_anew(wordpiece: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    documents = corpus(tmp_path / "x.txt", sentences(50))
    descriptors = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    tokens = tokenize_documents(documents, wordpiece, tmp_path, "train", 1)
    data = pickle.dumps(tokens)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert rows(copy) == rows(tokens)
    assert not copy.ids(0).flags.writeable
    if descriptors:  # a thousand shards must not need a thousand of them
        assert len(os.listdir("/proc/self/fd")) < descriptors + 10


def test_a_failed_preparation_goes_on_and_reads_no_finished_shard_again(
    wordpiece: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "CALL_TEXTS", 8)
    texts = sentences(100)
    documents = corpus(tmp_path / "x.txt", texts)
    whole = tokenize_documents(documents, wordpiece, tmp_path / "whole", "train", 400)
    documents.fails_at, documents.asked = 70, []
    with pytest.raises(RuntimeError, match="network"):
        tokenize_documents(documents, wordpiece, tmp_path, "train", 400)
    (folder,) = (path for path in (tmp_path / "corpora").iterdir() if path.is_dir())
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.*")}
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) > 2
    assert names == [f"shard-{i:05d}" for i in range(len(names))]
    documents.fails_at = None
    tokens = tokenize_documents(documents, wordpiece, tmp_path, "train", 400)
    assert contents(tokens.folder) == contents(whole.folder)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    first, second = documents.asked
    done = sum(len(np.load(folder / name / "documents.npy")) for name in names)
    assert (first, second) == ((0, 0), (0, done))
    tokenize_documents(documents, wordpiece, tmp_path, "train", 400)
    assert len(documents.asked) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda shard: (shard / "ids.bin").write_bytes((shard / "ids.bin").read_bytes()[:-2]),
        lambda shard: (shard / "documents.npy").unlink(),
        lambda shard: (shard / "meta.json").write_text('{"format":', encoding="utf-8"),
        lambda shard: (shard / "meta.json").write_text("[]", encoding="utf-8"),
        shutil.rmtree,
    ],
    ids=["cut", "no documents", "half a meta", "other meta", "gone"],
)
def test_only_damaged_shards_are_made_again(
    wordpiece: PreTrainedTokenizerFast, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    documents = corpus(tmp_path / "x.txt", sentences(100))
    tokens = tokenize_documents(documents, wordpiece, tmp_path, "train", 400)
    expected, last = contents(tokens.folder), len(list(tokens.folder.glob("shard-*"))) - 1
    for number in (1, 3, last):
        damage(tokens.folder / f"shard-{number:05d}")
    kept = (tokens.folder / "shard-00002/ids.bin").stat().st_ino
    documents.asked = []
    again = tokenize_documents(documents, wordpiece, tmp_path, "train", 400)
    assert contents(again.folder) == expected
    assert (tokens.folder / "shard-00002/ids.bin").stat().st_ino == kept
    assert len(documents.asked) == 3


# Two processes for each system call that must reach the disk: one that is killed there, and one
# that goes on. No import of transformers, which may take a minute.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

package = sys.modules["lit_foundry.data"] = ModuleType("lit_foundry.data")
package.__path__ = [sys.argv[1]]
sys.modules["transformers"] = ModuleType("transformers")
sys.modules["transformers"].PreTrainedTokenizerFast = object
from tokenizers import Tokenizer
from lit_foundry.data.files.documents import Documents
from lit_foundry.data.corpus.shards import tokenize_documents

os.environ["TOKENIZERS_PARALLELISM"] = "false"
folder = Path(sys.argv[2])
documents = Documents(folder / "x.txt", delimiter="--")

def attempt(cache, kill_at=None):
    pid = os.fork()
    if not pid:
        sync, calls = os.fsync, iter(range(10**6))
        def fsync(file):
            if next(calls) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(file)
        os.fsync = fsync
        fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenize_documents(documents, SimpleNamespace(backend_tokenizer=fast), cache, "", 400)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def contents(cache):
    paths = [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(cache)): path.read_bytes() for path in paths}

assert attempt(folder / "whole") == 0
expected, killed = contents(folder / "whole"), 0
while attempt(cache := folder / "cache", killed) == signal.SIGKILL:
    killed += 1
    assert attempt(cache) == 0
    assert contents(cache) == expected, killed
    shutil.rmtree(cache)
print(killed, len(list(folder.glob("whole/corpora/*/shard-*"))))
"""


def test_killed_at_any_write_it_goes_on_to_the_same_bytes(
    wordpiece: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    corpus(tmp_path / "x.txt", sentences(30))
    wordpiece.save_pretrained(tmp_path)
    command = [sys.executable, "-c", KILLED, str(Path(shard_writer.__file__).parents[1])]
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, timeout=100, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    kills, shards = map(int, done.stdout.split())
    assert shards > 2
    assert kills == 5 * shards + 2  # three files and two folders; corpus.json and its folder


def test_a_full_disk_keeps_the_finished_shards_and_names_the_file(
    wordpiece: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    documents = corpus(tmp_path / "x.txt", [*sentences(40), "plot " * 40_000])
    with full_disk(2**16), pytest.raises(OSError, match="shard-") as error:
        tokenize_documents(documents, wordpiece, tmp_path, "train", 400)
    assert error.value.errno == errno.EFBIG
    (folder,) = (path for path in (tmp_path / "corpora").iterdir() if path.is_dir())
    assert str(error.value.filename).startswith(str(folder))
    left = sorted(path.name for path in folder.iterdir())
    assert len(left) > 2
    assert all(name.startswith("shard-") for name in left)
    assert len(tokenize_documents(documents, wordpiece, tmp_path, "train", 400)) == 41


def test_a_disk_that_is_full_at_the_very_end_leaves_nothing_half_written(
    wordpiece: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    documents = corpus(tmp_path / "x.txt", sentences(40))
    (
        tokenize_documents(documents, wordpiece, tmp_path, "train", 400).folder / "corpus.json"
    ).unlink()
    with full_disk(), pytest.raises(OSError, match=r"corpus\.json"):
        tokenize_documents(documents, wordpiece, tmp_path, "train", 400)
    left = {Path(name).parts[1] for name in contents(tmp_path / "corpora")}
    assert left
    assert all(name.startswith("shard-") for name in left)
    assert len(tokenize_documents(documents, wordpiece, tmp_path, "train", 400)) == 40


def test_bad_documents_are_named_and_leave_nothing_half_written(
    wordpiece: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": null}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: 'text' is null"):
        tokenize_documents(Documents(tmp_path / "x.jsonl"), wordpiece, tmp_path, "train")
    with pytest.raises(DataError, match=r"x\.txt: no text at all"):
        tokenize_documents(corpus(tmp_path / "x.txt", ["", " "]), wordpiece, tmp_path, "train")
    assert contents(tmp_path / "corpora") == {}
