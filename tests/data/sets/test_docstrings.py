"""The documentation corpus: what its texts may hold, and that it is the same every time."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from inspect import cleandoc
from pathlib import Path

import pytest

from lit_foundry.data.sets import docstring_corpus
from lit_foundry.data.sets.docstring_corpus import (
    PACKAGES,
    SPLITS,
    Corpus,
    cached,
    collect,
    sentences,
    versions,
)
from lit_foundry.data.sets.docstrings import read_split

DOCSTRING = """Return the :func:`~numpy.linalg.norm` of ``x`` as a *single* number.

    It is computed in pandas by a routine that [1]_ describes. It is described in [1]_. The
    routine is fast, e.g. for large arrays.
    For example, it may look like this::

        y = norm(x)  # this line is code and not a sentence

    .. versionadded:: 3.1 and this markup is no sentence either

    .. note:: The result is never a negative number.

    It is defined by

    .. math:: every part of a formula is dropped

    Parameters
    ----------
    x : array of numbers, which is a type
        Numbers to be measured by the routine.

    Examples
    --------
    >>> norm(x)
    these lines are what the code prints
    """


@pytest.fixture(
    scope="module", params=[60, pytest.param(1500, marks=pytest.mark.slow)], ids=["small", "whole"]
)
def corpus(request: pytest.FixtureRequest) -> Corpus:
    return collect(limit=request.param)


def test_sentences_are_plain_english() -> None:
    assert list(sentences(cleandoc(DOCSTRING))) == [
        "Return the norm of x as a single number.",
        "The routine is fast, e.g. for large arrays.",
        "The result is never a negative number.",
        "Numbers to be measured by the routine.",
    ]


def test_google_sections_lose_headings_names_and_code() -> None:
    doc = """Scale a picture.

    Args:
        size (int, *optional*, defaults to 3): Width of the scaled picture.
        mode: how pixels are merged

    Returns:
        The picture in its new size.

    Example:
        These words explain what follows.
    """
    assert list(sentences(cleandoc(doc))) == [
        "Scale a picture.",
        "Width of the scaled picture.",
        "How pixels are merged.",
        "The picture in its new size.",
    ]


def test_no_sentence_lies_in_two_texts(corpus: Corpus) -> None:
    pieces = [
        re.sub(r"\W+", " ", sentence.lower())
        for docs in corpus.values()
        for doc in docs
        for sentence in set(re.split(r"(?<=[.!?])\s+(?=[A-Z])", doc.text))
    ]
    assert not [piece for piece, count in Counter(pieces).items() if count > 1]


def test_no_text_or_file_lies_in_two_splits(corpus: Corpus) -> None:
    for what in (lambda doc: " ".join(doc.text.lower().split()), lambda doc: doc.id.split(":")[0]):
        train, val, test = ({what(doc) for doc in corpus[split]} for split in SPLITS)
        assert not train & val
        assert not train & test
        assert not val & test


def test_ids_are_unique(corpus: Corpus) -> None:
    ids = [doc.id for docs in corpus.values() for doc in docs]
    assert len(ids) == len(set(ids))


def test_no_text_names_a_package_or_its_alias(corpus: Corpus) -> None:
    aliases = {"mpl", "plt", "nx", "pd", "hf", "pytorch", "libtorch", "cpython"}
    for docs in corpus.values():
        for doc in docs:
            text = doc.text.lower()
            assert not [package for package in PACKAGES if package in text], doc
            assert not aliases & set(re.findall(r"[a-z0-9]+", text)), doc


def test_texts_have_no_markup_and_8_to_200_words(corpus: Corpus) -> None:
    for docs in corpus.values():
        for doc in docs:
            assert 8 <= len(doc.text.split()) <= 200, doc
            assert not re.search(
                r">>>|`|::$|\.\. \w+::|:\w+:`|://|licen[cs]e|copyright", doc.text
            ), doc


def test_every_package_is_in_every_split_in_its_share(
    corpus: Corpus, request: pytest.FixtureRequest
) -> None:
    limit = 60 if "small" in request.node.name else 1500
    for package in PACKAGES:
        count = {split: sum(doc.label == package for doc in corpus[split]) for split in SPLITS}
        assert count["val"] == count["test"] == limit // 10
        assert 0.6 * limit < sum(count.values()) <= limit


def test_second_read_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached(tmp_path / "new", limit=20)
    monkeypatch.setattr(docstring_corpus, "collect", None)
    assert cached(tmp_path / "new", limit=20) == first
    assert len(list((tmp_path / "new").iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "binary"])
def test_damaged_cache_is_rebuilt(damage: str, tmp_path: Path) -> None:
    first = cached(tmp_path, limit=20)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(
        {
            "truncated": whole[:-100],
            "changed": whole.replace(b"python/", b"pythom/", 1),
            "empty": b"",
            "binary": b"\xff\xfe" + whole,
        }[damage]
    )
    assert cached(tmp_path, limit=20) == first
    assert file.read_bytes() == whole


def test_cache_of_other_versions_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path, limit=20)
    monkeypatch.setattr(docstring_corpus, "FORMAT", docstring_corpus.FORMAT + 1)
    cached(tmp_path, limit=20)
    assert len(list(tmp_path.iterdir())) == 2


def test_missing_package_is_named_with_its_remedy(tmp_path: Path) -> None:
    message = r"^no_such_package: .*; pip install no_such_package\.$"
    for read in (versions, collect, lambda packages: cached(tmp_path, packages)):
        with pytest.raises(ModuleNotFoundError, match=message):
            read(("python", "no_such_package"))


def test_reading_imports_none_of_the_packages_that_it_reads() -> None:
    assert _collect(20, hash_seed="0")[1] == "[]"


def test_same_texts_whatever_the_hash_seed() -> None:
    assert _collect(60, hash_seed="1") == _collect(60, hash_seed="2")


@pytest.mark.slow
def test_whole_corpus_is_read_quickly_and_always_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing = 0.0
    parse = ast.parse

    def timed(source: bytes) -> ast.Module:
        nonlocal parsing
        start = time.process_time()
        tree = parse(source)
        parsing += time.process_time() - start
        return tree

    monkeypatch.setattr(docstring_corpus.ast, "parse", timed)
    start = time.process_time()
    table = read_split("train", tmp_path)
    # On an idle core 10 s, 4 of which parse; a busy one slows down both.
    assert time.process_time() - start < 4 * parsing
    assert len(table) == len(table.labels or ()) == len(table.ids or ())
    assert _collect(1500, hash_seed="1")[0] == _fingerprint(cached(tmp_path))


def _fingerprint(corpus: Corpus) -> str:
    return hashlib.sha256(json.dumps(corpus).encode()).hexdigest()


def _collect(limit: int, hash_seed: str) -> list[str]:
    """Fingerprint, and what is imported after collecting, from another process."""
    code = (
        "import hashlib, json, runpy, sys;"
        "corpus = runpy.run_path(sys.argv[1])['collect'](limit=int(sys.argv[2]));"
        "print(hashlib.sha256(json.dumps(corpus).encode()).hexdigest());"
        "print(sorted({*sys.argv[3:]} & set(sys.modules)))"
    )
    args = [sys.executable, "-c", code, docstring_corpus.__file__, str(limit), *PACKAGES]
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    run = subprocess.run(
        args, env=env, check=True, capture_output=True, text=True, encoding="utf-8"
    )
    return run.stdout.splitlines()
