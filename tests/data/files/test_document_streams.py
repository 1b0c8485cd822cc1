"""Documents: every format in one order, from any place on, and each bad file one clear line."""

import gzip
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_foundry.data.files.documents import BLOCK, Documents
from lit_foundry.data.files.text_tables import DataError, DatasetNotFoundError

TEXTS = ["one two", "naïve 😀\nline", "", "  \n", "last, one"]
KEPT = [(0, "one two"), (1, "naïve 😀\nline"), (4, "last, one")]


def write(path: Path, texts: Sequence[str] = TEXTS) -> Path:
    """Write texts in the format that the name says; .txt files part them with lines of ---."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"n": i, "text": text} for i, text in enumerate(texts)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
        return path
    content = {
        "txt": "---".join(texts),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "csv": "n,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts)),
        "tsv": "text\n" + "".join(text.replace("\n", " ") + "\n" for text in texts),
    }[path.name.removesuffix(".gz").split(".")[-1]].encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    "name", ["x.txt", "x.csv", "x.tsv", "x.jsonl", "x.parquet", "x.txt.gz", "x.jsonl.gz"]
)
def test_every_format_streams_the_same_texts_from_any_row_on(tmp_path: Path, name: str) -> None:
    documents = Documents([write(tmp_path / name)], delimiter="---")
    kept = [(row, t.replace("\n", " ") if name == "x.tsv" else t) for row, t in KEPT]
    assert list(documents) == list(documents) == [text for _, text in kept]
    for start in range(7):
        expected = [(0, row, text) for row, text in kept if row >= start]
        assert list(documents.stream(0, start)) == expected
    assert list(documents.stream(1)) == []


def test_folders_are_read_in_the_order_of_paths_and_hidden_files_are_skipped(
    tmp_path: Path,
) -> None:
    for name in ("b.txt", "a/z.jsonl", "a/b/c.parquet", "a.txt"):
        write(tmp_path / name, [name])
    for name in ("._a.txt", ".git/x.txt", "a/.x.txt"):
        write(tmp_path / name, ["hidden"])
    (tmp_path / "aa.txt").touch()
    (tmp_path / "notes.md").write_text("notes", encoding="utf-8")
    order = ["a.txt", "a/b/c.parquet", "a/z.jsonl", "b.txt"]
    with pytest.warns(UserWarning, match=r"left out 1 file \(1 \.md\): not \.txt, "):
        documents = Documents(tmp_path)
    assert list(documents) == order
    assert list(documents.stream(2)) == [(2, 0, "a/z.jsonl"), (4, 0, "b.txt")]
    assert list(Documents(f"{tmp_path}/*.txt")) == ["a.txt", "b.txt"]
    assert list(Documents([tmp_path / "b.txt", f"{tmp_path}/**/*.txt"])) == ["b.txt", "a.txt"]
    assert list(Documents([str(tmp_path / "b.txt"), tmp_path / "a"])) == [
        "b.txt",
        "a/b/c.parquet",
        "a/z.jsonl",
    ]


@pytest.mark.parametrize("delimiter", ["\n\n", "\n", "<|end|>"])
def test_delimiters_are_found_wherever_blocks_end(tmp_path: Path, delimiter: str) -> None:
    texts = ["a" * (BLOCK - 1), "é" * 5, "", "b" * (2 * BLOCK), *map(str, range(99)), "end"]
    path = tmp_path / "x.txt"
    for shift in range(3):
        whole = [("x" * shift) + texts[0], *texts[1:]]
        path.write_text(delimiter.join(whole), encoding="utf-8")
        assert list(Documents(path, delimiter=delimiter)) == [text for text in whole if text]


def test_windows_ends_of_lines_and_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree")
    assert list(Documents(path, delimiter="\n\n")) == ["one\ntwo", "three"]
    assert list(Documents(path)) == ["one\ntwo\n\nthree"]


def test_fingerprint_is_that_of_the_content_and_how_it_is_read(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a/x.csv"), write(tmp_path / "b/y.csv")
    first = Documents(one).fingerprint
    assert Documents(two).fingerprint == first
    assert Documents(two, text="n").fingerprint != first
    assert Documents(two, delimiter="\n").fingerprint != first
    assert Documents([one, two]).fingerprint != first
    two.write_text(two.read_text(encoding="utf-8").replace("one", "One"), encoding="utf-8")
    assert Documents(two).fingerprint != first
    assert Documents(two.rename(tmp_path / "y.txt")).fingerprint != first


def test_large_files_are_hashed_once(tmp_path: Path) -> None:
    path, cache = tmp_path / "x.txt", tmp_path / "cache"
    path.write_text("a" * BLOCK, encoding="utf-8")
    first, times = Documents(path, cache=cache).fingerprint, (0, path.stat().st_mtime_ns)
    path.write_text("b" * BLOCK, encoding="utf-8")
    os.utime(path, ns=times)
    assert Documents(path, cache=cache).fingerprint == first
    os.utime(path, ns=(0, times[1] + 1))
    assert Documents(path, cache=cache).fingerprint != first


def test_dataset_folders_stream_as_those_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    root = tmp_path / "set"
    for split in ("train", "test"):
        write(root / f"{split}.jsonl", [f"{split} {text}" for text in TEXTS])
    documents = Documents.of_hub(str(root), "test")
    assert len(list(documents)) == 5
    assert list(documents.stream(0, 4)) == [(0, 4, "test last, one")]
    assert documents.fingerprint == Documents.of_hub(str(root), "test").fingerprint
    assert documents.fingerprint != Documents.of_hub(str(root), "train").fingerprint
    with pytest.raises(DataError, match=r"set, split test: no column 'txt' \(did you mean 'text'"):
        list(Documents.of_hub(str(root), "test", text="txt"))
    with pytest.raises(DataError, match=r"split test, row 1: 'n' is of type int\. Make it a str"):
        list(Documents.of_hub(str(root), "test", text="n"))
    with pytest.raises(DatasetNotFoundError, match=r"set: no split 'val', only t.*Name one of"):
        Documents.of_hub(str(root), "val")
    with pytest.raises(FileNotFoundError, match=r"org/none.*cannot be reached.*Check the name"):
        Documents.of_hub("org/none:en")


PNG, ZIP = b"\x89PNG\r\n\x1a\n....", b"PK\x03\x04\x14\0\0\0"
BAD: dict[str, tuple[str, bytes, str]] = {
    "zip": ("x.txt", ZIP, r"by its first bytes zip.*Unpack, convert or rename"),
    "gzip": ("x.txt", gzip.compress(b"a"), r"by its first bytes gzip"),
    "png": ("x.csv", PNG, r"by its first bytes a PNG image"),
    "parquet": ("x.jsonl", b"PAR1" + bytes(9), r"by its first bytes parquet"),
    "no gzip": ("x.txt.gz", b"plain text", r"not valid gzip \(.*\)\. Compress it again"),
    "cut": ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-9], r"not valid gzip"),
    "nul": ("x.txt", b"a\nb\nc\0d", r"line 3: a NUL byte.*Convert it to UTF-8"),
    "utf-16": ("x.txt", "text".encode("utf-16-le"), r"line 1: a NUL byte"),
    "latin-1": ("x.txt", b"a\nb\ncaf\xe9\n", r"line 3: not UTF-8 \(byte 0xe9.*iconv"),
    "cut character": ("x.txt", "a\né".encode()[:-1], r"line 2: not UTF-8"),
    "nothing": ("x.txt", b"", r"no text at all\. Name other files"),
    "blank": ("x.txt", b" \n\t\n", r"no text at all"),
    "empty table": ("x.csv", b"", r"empty file\. Write it again"),
    "null": ("x.jsonl", b'{"text": "a"}\n{"text": null}', r"line 2: 'text' is null\. Make it"),
    "number": ("x.jsonl", b'{"text": 5}', r"line 1: 'text' is of type int.*or drop the row"),
    "no column": ("x.csv", b"Text,n\na,1\n", r"line 1: no column 'text' \(did you mean 'Text'"),
    "suffix": ("x.docx", ZIP, r"no text\. Convert it to one of \.txt, \.csv"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_one_line_that_names_it_and_the_remedy(tmp_path: Path, case: str) -> None:
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        list(Documents([tmp_path / name]))
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_named_with_what_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/x.md").touch()
    kinds = (
        r"no file that ends in \.txt, \.csv, \.tsv, \.jsonl, .*\. Correct its path in data\.\*\."
    )
    for source, rule in (
        ("none.txt", "no such file or folder"),
        ("none/*.txt", "no such file or folder"),
        ("bare", kinds),
        ("bare/*", kinds),
    ):
        with pytest.raises(DatasetNotFoundError, match=rule) as error:
            Documents(source)
        assert str(error.value).startswith(f"{tmp_path}/{source}: ")
    with pytest.raises(ValueError, match=r"data\.delimiter is empty"):
        Documents(source, delimiter="")
