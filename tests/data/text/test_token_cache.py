"""The token cache: written once, whole or not at all, and equal to the tokenizer."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lit_foundry.data.text import token_cache as cache
from lit_foundry.data.text.token_cache import CHUNK, tokenize
from lit_foundry.sources import cache_root

WORDS = ["a", "be", "sea", "tree"]
TEXTS = ["a be sea", "", "tree", "be be be be", ""]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocab = {"[UNK]": 0} | {word: i for i, word in enumerate(WORDS, 1)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


class Counting:
    """A tokenizer that counts its calls and fails at one of them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, fails_at: int = 0) -> None:
        self.tokenizer, self.calls, self.fails_at = tokenizer, 0, fails_at

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tokenize."""
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("out of words")
        return self.tokenizer(*args, **kwargs)


def plain(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_each_text_has_the_ids_that_the_tokenizer_gives_it_alone(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 6, 2 * CHUNK + 300)
    texts = [" ".join(rng.choice([*WORDS, "unknown"], size)) for size in sizes]
    tokens = tokenize(texts, tokenizer, tmp_path / "a", "texts")
    assert [tokens[i].tolist() for i in range(len(texts))] == plain(tokenizer, texts)
    assert tokens.lengths.tolist() == sizes.tolist()
    assert isinstance(tokens.ids.base, np.memmap)
    assert len(tokens.ids) == sizes.sum()


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""]], ids=["none", "empty", "all empty"])
def test_no_tokens_at_all_are_cached_too(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, texts: list[str]
) -> None:
    for _ in range(2):
        tokens = tokenize(texts, tokenizer, tmp_path / "a", "texts")
        assert tokens.lengths.tolist() == [0] * len(texts)
        assert len(tokens.ids) == 0


def test_second_call_reads_what_the_first_wrote(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    counting: Any = Counting(tokenizer)
    first = tokenize(TEXTS, counting, tmp_path / "a", "texts")
    assert counting.calls == 1
    second = tokenize(TEXTS, counting, tmp_path / "a", "texts")
    assert counting.calls == 1
    assert second.ids.tolist() == first.ids.tolist()
    assert second.offsets.tolist() == first.offsets.tolist()
    tokenize(TEXTS[:2], counting, tmp_path / "b", "texts")
    assert counting.calls == 2


def cut_ids(folder: Path) -> None:
    path = folder / "ids.bin"
    path.write_bytes(path.read_bytes()[:-4])


def cut_meta(folder: Path) -> None:
    path = folder / "meta.json"
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")


def other_format(folder: Path) -> None:
    path = folder / "meta.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"format": -1}), encoding="utf-8"
    )


@pytest.mark.parametrize(
    "damage",
    [
        cut_ids,
        cut_meta,
        other_format,
        lambda folder: (folder / "ids.bin").unlink(),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "offsets.npy").write_bytes(b""),
        lambda folder: (folder / "meta.json").write_text('{"sizes": {}}', encoding="utf-8"),
        lambda folder: (folder / "meta.json").write_text(
            '{"sizes": {}, "format": 1}', encoding="utf-8"
        ),
        lambda folder: (folder / "meta.json").write_text("[]", encoding="utf-8"),
    ],
)
def test_a_damaged_cache_is_written_again(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    counting: Any = Counting(tokenizer)
    for calls in (1, 2):
        tokens = tokenize(TEXTS, counting, tmp_path / "a", "texts")
        assert counting.calls == calls
        assert [tokens[i].tolist() for i in range(5)] == plain(tokenizer, TEXTS)
        del tokens
        damage(tmp_path / "a")


def test_nothing_is_left_where_the_tokenizer_fails_midway(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    texts = ["a be"] * (CHUNK + 1)
    failing: Any = Counting(tokenizer, fails_at=2)
    with pytest.raises(RuntimeError, match="out of words"):
        tokenize(texts, failing, tmp_path / "a", "texts")
    assert {path.name for path in tmp_path.iterdir()} <= {"a.lock"}
    assert tokenize(texts, tokenizer, tmp_path / "a", "texts").lengths.sum() == 2 * len(texts)
    assert {path.name for path in tmp_path.iterdir()} <= {"a", "a.lock"}


# Each process says that it is ready, waits for the other, and checks what it tokenized. The
# module needs transformers for a type only, and importing that may take a minute.
RACE = """
import sys, time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

source, folder, me, other = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
sys.modules["transformers"] = ModuleType("transformers")
sys.modules["transformers"].PreTrainedTokenizerFast = object
spec = spec_from_file_location("cache", source)
sys.modules["cache"] = cache = module_from_spec(spec)
spec.loader.exec_module(cache)

class Slow:
    def __call__(self, texts, **kwargs):
        with (folder / "calls").open("a") as file:
            file.write(me)
        time.sleep(0.3)
        return {"input_ids": [[len(text)] * len(text) for text in texts]}

(folder / f"ready-{me}").touch()
end = time.monotonic() + 60
while not (folder / f"ready-{other}").exists():
    assert time.monotonic() < end, "the other process did not start"
    time.sleep(0.01)
tokens = cache.tokenize(["aa", "b", ""], Slow(), folder / "cache", "texts")
assert tokens.ids.tolist() == [2, 2, 1], tokens
assert tokens.lengths.tolist() == [2, 1, 0], tokens
"""


def test_two_processes_at_once_make_one_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RACE, str(cache.__file__), str(tmp_path)]
    both = [subprocess.Popen([*command, *names]) for names in ("xy", "yx")]
    try:
        assert [process.wait(timeout=100) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert (tmp_path / "calls").read_text(encoding="utf-8") in ("x", "y")
    assert not list(tmp_path.glob(".partial-*"))


def test_cache_lies_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LIT_FOUNDRY_CACHE", raising=False)
    assert cache_root() == Path.home() / ".cache/lit_foundry"
    monkeypatch.setenv("LIT_FOUNDRY_CACHE", "~/tokens")
    assert cache_root() == Path.home() / "tokens"
    assert cache_root(tmp_path) == tmp_path
