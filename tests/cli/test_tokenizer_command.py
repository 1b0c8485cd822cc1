"""The tokenizer command: what it writes, what it says, and what it leaves when it fails."""

import gzip
import json
from pathlib import Path
from typing import get_args

import pytest
from transformers import AutoTokenizer

from lit_foundry.cli.tokenizer_command import KINDS, main
from lit_foundry.data.files.text_tables import DataError, DatasetNotFoundError
from lit_foundry.data.text.tokenizer_training import Kind
from lit_foundry.usage import UsageError
from tests.conftest import full_disk, reviews

EACH = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Write a folder of files of several kinds."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = [text for text, _ in reviews(60, seed=0)]
    (folder / "a.txt").write_text("\n\n".join(texts[:20]), encoding="utf-8")
    (folder / "b.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in texts[20:40]), encoding="utf-8"
    )
    with gzip.open(folder / "c.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(texts[40:]))
    return folder


def run(corpus: Path, output: Path, *words: str) -> None:
    main(["--input", str(corpus), "--output", str(output), *words])


def beside(output: Path) -> set[str]:
    return {path.name for path in output.parent.iterdir()}


def test_the_command_offers_all_kinds() -> None:
    assert get_args(Kind) == KINDS


@EACH
def test_a_folder_is_written_that_transformers_loads(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    output = tmp_path / "made" / "tokenizer"
    run(corpus, output, "--kind", kind, "--vocab_size", "400")
    assert beside(output) == {"tokenizer"}
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert 0 < len(tokenizer) <= 448
    assert len(tokenizer) % 64 == 0
    ids = tokenizer("the camera")["input_ids"]
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.eos_token_id)
    wrote, figures, begins, use = capsys.readouterr().out.splitlines()
    assert wrote == f"Wrote {output}: {kind}, {len(tokenizer)} tokens."
    assert "bytes a token" in figures
    assert "0.00% of the tokens unknown" in figures
    assert begins.startswith("They begin: ")
    assert use == f"To use it: --data.tokenizer {output}"


@EACH
def test_the_same_texts_give_the_same_files(corpus: Path, tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        run(corpus, tmp_path / name, "--kind", kind, "--vocab_size", "350")
    first, second = (
        (tmp_path / name / "tokenizer.json").read_text(encoding="utf-8") for name in ("a", "b")
    )
    assert first == second


def test_figures_are_those_of_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("zwei Häuser\n", encoding="utf-8")
    run(tmp_path / "a.txt", tmp_path / "out", "--kind", "characters", "--multiple_of", "1")
    out = capsys.readouterr().out
    assert "characters, 16 tokens." in out  # five special ones, "zwei Häusr" and the line's end
    assert "first 13 bytes of text: 1.08 bytes a token, 6.00 tokens a word, 0.00% of" in out
    assert "They begin: z|w|e|i| |H|ä|u|s|e|r\n" in out


def test_case_is_folded_for_wordpiece_alone_unless_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some Words, some Words. " * 9, encoding="utf-8")
    for kind, words, folds in (
        ("wordpiece", (), True),
        ("wordpiece", ("--lowercase", "false"), False),
        ("bpe", (), False),
        ("characters", (), False),
        ("characters", ("--lowercase", "true"), True),
    ):
        output = tmp_path / "out"
        run(tmp_path / "a.txt", output, "--kind", kind, *words)
        tokenizer = AutoTokenizer.from_pretrained(output)
        assert (tokenizer.tokenize("Words") == tokenizer.tokenize("words")) == folds


def test_delimiter_column_and_number_of_documents_choose_the_texts(tmp_path: Path) -> None:
    characters = ("--kind", "characters", "--multiple_of", "1")
    (tmp_path / "a.txt").write_text("ab\n\ncd\n\nef", encoding="utf-8")
    parted = ("--delimiter", r"\n\n", "--max_documents", "2")
    run(tmp_path / "a.txt", tmp_path / "out", *characters, *parted)
    vocab = AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
    assert set(vocab) == {*"abcd", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    (tmp_path / "b.jsonl").write_text('{"text": "x", "body": "yz"}\n', encoding="utf-8")
    run(tmp_path / "b.jsonl", tmp_path / "out", *characters, "--text", "body")
    assert "x" not in AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()


def test_an_older_tokenizer_is_replaced_and_another_folder_is_not(
    corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    run(corpus, output, "--kind", "bpe", "--vocab_size", "350")
    run(corpus, output, "--kind", "characters")
    assert AutoTokenizer.from_pretrained(output).tokenize("ab") == ["a", "b"]
    (output / "model.safetensors").write_text("weights", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    for place in (output, corpus, corpus / "a.txt"):
        with pytest.raises(UsageError, match=r"exists and is no tokenizer: name another folder"):
            run(corpus, place)
    with pytest.raises(UsageError, match=r"a\.txt cannot be written to\. Name another folder"):
        run(corpus, corpus / "a.txt" / "out")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert beside(output) == {"corpus", "out"}


@EACH
def test_malformed_input_ends_the_training_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "some words"}\n{"text": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.jsonl, line 2"):
        run(tmp_path / "a.jsonl", tmp_path / "made" / "out", "--kind", kind)
    assert beside(tmp_path / "a.jsonl") == {"a.jsonl"}


def test_a_failed_write_keeps_the_older_tokenizer(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(corpus, output, "--kind", "characters")
    before = (output / "tokenizer.json").read_bytes()
    with full_disk(), pytest.raises(OSError, match="out"):
        run(corpus, output, "--kind", "bpe", "--vocab_size", "350")
    assert (output / "tokenizer.json").read_bytes() == before
    assert beside(output) == {"corpus", "out"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--vocab_size", "299"), r"^--vocab_size must be at least 300, got 299\.$"),
        (("--multiple_of", "0"), r"^--multiple_of must be at least 1, got 0\.$"),
        (("--max_documents", "0"), r"^--max_documents must be at least 1, got 0\.$"),
        (("--kind", "sentencepiece"), r"invalid choice: 'sentencepiece'"),
        (("--lowercase", "yes"), r"--lowercase: invalid choice: 'yes'"),
        (("--vocabsize", "400"), r"takes no --vocabsize. Did you mean --vocab_size\?"),
    ],
)
def test_a_wrong_argument_is_told_in_a_line(
    corpus: Path, tmp_path: Path, words: tuple[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        run(corpus, tmp_path / "out", *words)
    assert "\n" not in str(error.value)
    assert beside(corpus) == {"corpus"}


def test_missing_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"required: --input"):
        main(["--output", str(tmp_path / "out")])
    with pytest.raises(DatasetNotFoundError, match=r"none: no such file or folder"):
        run(tmp_path / "none", tmp_path / "out")
    (tmp_path / "a.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no text at all"):
        run(tmp_path / "a.txt", tmp_path / "out")
    assert beside(tmp_path / "a.txt") == {"a.txt"}
