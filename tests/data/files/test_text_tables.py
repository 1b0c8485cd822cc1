"""Readers: every layout gives the same table, and every bad file one clear line."""

import csv
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_foundry.data.files.table import Table
from lit_foundry.data.files.text_tables import (
    DataError,
    DatasetNotFoundError,
    read_folder,
    read_hub,
    read_lines,
    read_table,
)
from lit_foundry.data.sets.imdb import read_imdb
from lit_foundry.data.sets.text_files import TextFiles
from tests.conftest import REAL

TEXTS = ["plain", 'says "no", twice', "two\nlines\r\nthree", "naïve 😀 日本", "\u2028 x\x85y", ""]
LABELS = ["a", "b", "a", "b", "a", "b"]
HOW: tuple[Any, ...] = ("auto", "minimal", "none")
GLUE = REAL / "glue"
IMDB = REAL / "imdb"


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = zip(LABELS, TEXTS, strict=True)
        csv.writer(file).writerows([("label", "text"), *rows])


def write_jsonl(path: Path) -> None:
    rows = [{"text": t, "label": y} for t, y in zip(TEXTS, LABELS, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns or {"label": LABELS, "text": TEXTS, "n": [0] * 6}), path)


def fingerprint(table: Table) -> str:
    """Hash of the content up to order."""
    assert table.labels is not None
    order = sorted(range(len(table)), key=lambda i: (table.texts[i], table.labels[i]))  # type: ignore[index]
    return table.take(order).fingerprint


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize(
    ("suffix", "write"), [("csv", write_csv), ("jsonl", write_jsonl), ("parquet", write_parquet)]
)
def test_formats_keep_unicode_newlines_and_quotes(
    tmp_path: Path, suffix: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / f"train.{suffix}"
    write(path)
    table = read_table(path, "text", "label")
    assert table.fingerprint == Table(TEXTS, labels=LABELS).fingerprint
    assert (table.pairs, table.ids, table.source) == (None, None, str(path))
    assert read_table(path, "text", None, "label").ids == LABELS


def test_tsv_takes_quotes_literally_and_pairs_and_ids(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(
        b'\xef\xbb\xbfindex\ts1\ts2\ty\r\n0\t"open\t\xc3\xa9"\t1\r\n7\ta\x0bb\t\t0\r\n\r\n'
    )
    table = read_table(path, ("s1", "s2"), "y", "index")
    assert table == Table(['"open', "a\x0bb"], ['é"', ""], ["1", "0"], ["0", "7"], str(path))


def as_tsv(path: Path, quoting: Any, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, "excel-tab", quoting=quoting).writerows([("text", "label"), *rows])
    return path


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_that_quotes_texts_is_read_as_it_was_written(tmp_path: Path, quoting: Any) -> None:
    texts = ["plain", 'says "no", twice', "tab\there", "two\nlines", '"all of it"', '"', ""]
    rows = [(text, "a") for text in texts]
    table = read_table(as_tsv(tmp_path / "x.tsv", quoting, rows), "text", "label")
    assert table.texts == texts
    assert read_lines(tmp_path / "x.tsv").texts == texts


@pytest.mark.parametrize(
    "lines",
    [
        ['a "quoted" word\t1', '"all of it"\t1'],  # what quotes would have quoted the first
        ['"He left," she said.\t1', '"Yes."\t1'],
        ['"never closed\t1', "b\t1"],
        ['"all of it"\t1', 'five " wide\t1'],
        ['"one\t1', 'two"\t1'],  # as one field, it would have one too few
    ],
)
def test_quotation_marks_of_a_tsv_that_quotes_nothing_are_text(
    tmp_path: Path, lines: list[str]
) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("\n".join(["text\tlabel", *lines]), encoding="utf-8")
    assert read_table(path, "text", "label").texts == [line.split("\t")[0] for line in lines]


def test_how_marks_are_read_can_be_set(tmp_path: Path) -> None:
    for name, mark in (("x.tsv", "\t"), ("x.csv", ",")):
        path = tmp_path / name
        path.write_text(f'text{mark}label\n"a"{mark}1\n', encoding="utf-8")
        read = {how: read_table(path, "text", "label", None, how).texts[0] for how in HOW}
        assert read == {"auto": "a", "minimal": "a", "none": '"a"'}
    assert TextFiles("t", quoting="none", predict=str(path))._predict_table().texts == ['"a"']


@pytest.mark.skipif(not GLUE.is_dir(), reason="needs GLUE")
@pytest.mark.parametrize("task", ["RTE", "SST-2", "STS-B"])
def test_files_of_glue_quote_nothing(task: str) -> None:
    for path in (GLUE / task).glob("*.tsv"):
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
        column = lines[0].split("\t")[1]
        expected = [line.rstrip("\r").split("\t")[1] for line in lines[1:]]
        assert read_table(path, column, None).texts == expected


def test_a_text_that_may_take_all_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("files.rows", "files.text_tables"):
        monkeypatch.setattr(f"lit_foundry.data.{module}.MOST", 100)
    long = "word " * 30
    cases = {
        "x.csv": f"text,label\nshort,1\n{long},1\n",
        "x.tsv": f"text\tlabel\nshort\t1\n{long}\t1\n",
        "x.jsonl": json.dumps({"text": "", "label": 1}) + "\n\n" + json.dumps({"text": long}),
        "x.txt": f"a\nb\n{long}\n",
    }
    for name, content in cases.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=r"line 3: a text of 150 .*most 100.* Cut it") as error:
            read_lines(tmp_path / name)
        assert one_line(error).startswith(str(tmp_path / name))
        (tmp_path / name).write_text(content.replace(long, long * 9), encoding="utf-8")
        with pytest.raises(DataError, match=r"line 3: 800 bytes and no end\. Cut it"):
            read_lines(tmp_path / name)
    with pytest.raises(DataError, match="Input 1: a text of 150 characters"):
        list(TextFiles("t").batches(["a", long], 64))
    write_parquet(tmp_path / "x.parquet", text=["a", long], label=[1, 1])
    with pytest.raises(DataError, match="row 2: a text of 150 characters"):
        read_table(tmp_path / "x.parquet", "text", "label")


def test_blanks_around_labels_are_no_part_of_them(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("text,label\na, pos\nb, neg \n", encoding="utf-8")
    assert read_table(path, "text", "label").labels == ["pos", "neg"]
    path.write_text("text,label\na, pos\nb,pos\nc,neg\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"labels are read without the blanks .*: ' pos'\."):
        assert read_table(path, "text", "label").labels == ["pos", "pos", "neg"]


def test_blank_line_is_a_text_only_in_one_column_tsv(tmp_path: Path) -> None:
    for suffix, texts in (("tsv", ["a", "", "b"]), ("csv", ["a", "b"])):
        path = tmp_path / f"x.{suffix}"
        path.write_text("text\na\n\nb\n", encoding="utf-8")
        assert read_table(path, "text", None).texts == texts


def test_texts_above_the_csv_default_limit_are_read(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("text\n" + "a" * 200_000, encoding="utf-8")
    assert len(read_table(path, "text", None).texts[0]) == 200_000


def test_labels_become_strings(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"text": "a", "y": 1}\n{"text": "b", "y": true}\n{"text": "c", "y": "é"}\n',
        encoding="utf-8",
    )
    assert read_table(path, "text", "y").labels == ["1", "True", "é"]


def class_labels(numbers: list[int]) -> pa.Table:
    feature = {"names": ["neg", "pos"], "_type": "ClassLabel"}
    info = {"info": {"features": {"label": feature, "text": {"dtype": "string", "_type": "Value"}}}}
    table = pa.table({"text": ["t"] * len(numbers), "label": numbers})
    return table.replace_schema_metadata({"huggingface": json.dumps(info)})


def test_class_numbers_in_parquet_become_names(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(class_labels([1, 0, 1]), path)
    assert read_table(path, "text", "label").labels == ["pos", "neg", "pos"]
    pq.write_table(class_labels([1, -1, -1]), path)
    with pytest.raises(DataError, match=r"x.parquet, row 2: no 'label' \(missing in 2 of 3 rows\)"):
        read_table(path, "text", "label")


def test_rows_of_later_row_groups_are_numbered_on(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": [*"ab" * 70_000, None]}), path, row_group_size=1000)
    with pytest.raises(DataError, match="row 140001: 'text' is null"):
        read_table(path, "text", None)


BAD_TEXT_FILES: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.csv", b"", r"empty file\. Write it again"),
    "empty jsonl": ("x.jsonl", b"\n\n", r"no rows.* Write it again"),
    "header only": ("x.csv", b"text,label\n", r"no rows, at most a header\. Write it again"),
    "header only tsv": ("x.tsv", b"text\tlabel\n", r"no rows, at most a header"),
    "missing column": (
        "x.csv",
        b"Texts,label\na,b\n",
        r"line 1: no column 'text' \(did you mean 'Texts'\?\)\. Set data\.text.*: Texts, label\.",
    ),
    "column twice": ("x.tsv", b"text\ttext\tlabel\n", r"line 1: 2 columns named 'text'"),
    "missing key": (
        "x.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "a"}',
        r"line 2: no column 'l",
    ),
    "too few": ("x.csv", b'text,label\n"a\nb",1\nc\n', r"line 4: 1 fields, where the header has 2"),
    "too many": ("x.csv", b"text,label\na,b,c\n", r"line 2: 3 fields.* Quote commas"),
    "tabs": ("x.tsv", b"text\tlabel\na\tb\tc\n", r"line 2: 3 fields.* Replace tabs"),
    "not utf-8": (
        "x.csv",
        b"text,label\na,1\ncaf\xe9,1\n",
        r"line 3: not UTF-8 \(byte 0xe9 at.*iconv",
    ),
    "utf-16": ("x.tsv", "text\tlabel\n".encode("utf-16"), r"line 1: not UTF-8 \(byte 0xff"),
    "open quote": (
        "x.csv",
        b'text,label\na,1\n"b,2\nc,3\n',
        r"line 3: a quotation mark opens a text here that none closes\. .*double each",
    ),
    "lone quote": ("x.csv", b'text,label\n"a"b,1\n', r"line 2: .* Quote texts"),
    "a key twice": ("x.jsonl", b'{"text": "a", "text": "b"}', r"line 1: .*'text' stands twice"),
    "nul": ("x.csv", b"text,label\na,1\nb\0,1\n", r"line 3: a NUL byte, as in no text"),
    "utf-16 without a mark": ("x.csv", "text,label\n".encode("utf-16-le"), r"line 1: a NUL byte"),
    "blank label": ("x.csv", b"text,label\na,1\nb,  \n", r"line 3: no 'label' \(missing in 1 of 2"),
    "broken json": ("x.jsonl", b'\n{"text": 1,}\n', r"line 2: not JSON \(.*column \d+.*one object"),
    "half emoji": (
        "x.jsonl",
        b'{"text": "\\uD83d", "label": 1}\n',
        r"line 1: not JSON .*surrogates",
    ),
    "json list": ("x.jsonl", b'["text", "label"]\n', r"line 1: a JSON list, not an object"),
    "null text": ("x.jsonl", b'{"text": null, "label": 1}\n', r"line 1: 'text' is null\. Make it"),
    "number": ("x.jsonl", b'{"text": 5, "label": 1}\n', r"line 1: 'text' is of type int\. Make it"),
    "float label": ("x.jsonl", b'{"text": "", "label": 1.0}', r"line 1: 'label' is of type float"),
    "no label": (
        "x.csv",
        b"text,label\na,\nb,1\nc,\n",
        r"line 2: no 'label' \(missing in 2 of 3 rows\)\. Fill it in",
    ),
    "null label": (
        "x.jsonl",
        b'{"text": "a", "label": null}',
        r"line 1: no 'label' \(missing in 1 of",
    ),
    "suffix": ("x.xlsx", b"PK", r"not a table.* \.csv, \.tsv, \.jsonl, \.parquet\."),
    "not parquet": (
        "x.parquet",
        b"text,label\na,1\n",
        r"not valid parquet \(.*\)\. Write it again",
    ),
    "empty parquet": ("x.parquet", b"", r"empty file"),
}


@pytest.mark.parametrize("case", BAD_TEXT_FILES)
def test_bad_file_is_one_line_that_names_file_and_row(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_TEXT_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        read_table(tmp_path / name, "text", "label")
    assert one_line(error).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": ["a"], "lable": ["x"]},
            r"no column 'label' \(did you mean 'lable'\?\).*: text, ",
        ),
        ({"text": [b"a"], "label": [1]}, r"row 1: 'text' is of type bytes\. Make it a string"),
        ({"text": [1], "label": [1]}, r"row 1: 'text' is of type int"),
        ({"text": ["a", None], "label": [1, 1]}, r"row 2: 'text' is null\. Make it a string"),
        ({"text": ["a", "b"], "label": [1, None]}, r"row 2: no 'label' \(missing in 1 of 2 rows\)"),
        ({"text": ["a"], "label": [1.0]}, r"row 1: 'label' is of type float"),
        ({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}, r"no rows"),
    ],
)
def test_bad_parquet_names_file_and_row(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, **columns)
    with pytest.raises(DataError, match=message) as error:
        read_table(path, "text", "label")
    assert one_line(error).startswith(str(path))


def test_damaged_parquet_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write_parquet(path, text=[f"{i} some words" for i in range(1000)])
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:4] + bytes(2000) + whole[2004:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"not valid parquet \(.*\)\. Write it again") as error:
            read_table(path, "text", None)
        assert one_line(error).startswith(str(path))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_bytes_in_parquet_that_are_not_utf8_name_the_row(tmp_path: Path, kind: pa.DataType) -> None:
    binary = pa.binary() if kind == pa.string() else pa.large_binary()
    array = pa.array([b"a", None, b"caf\xe9"], binary)
    column = pa.Array.from_buffers(kind, 3, array.buffers(), null_count=1)
    write_parquet(tmp_path / "x.parquet", text=column)
    with pytest.raises(DataError, match=r"x.parquet, row 3: not UTF-8 \(byte 0xe9 at position 3\)"):
        read_table(tmp_path / "x.parquet", "text", None)


def test_missing_file_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("nope.csv"), Path("nope.parquet"), tmp_path / "nope.jsonl"):
        with pytest.raises(DatasetNotFoundError) as error:
            read_table(path, "text", "label")
        assert one_line(error).startswith(f"{tmp_path / path}: no such file. Correct its path")


def test_three_text_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.text=.*one column, or two"):
        read_table(tmp_path / "x.csv", ["a", "b", "c"], None)


def test_folder_names_what_is_missing_and_what_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "neg").mkdir()
    (tmp_path / "neg/0_1.txt").write_text("bad", encoding="utf-8")
    (tmp_path / "neg/._0_1.txt").write_bytes(b"\x00\xff")
    with pytest.raises(DatasetNotFoundError, match=r"pos: no \.txt files.*Unpack") as missing:
        read_folder(tmp_path, ["neg", "pos"])
    assert one_line(missing).startswith(str(tmp_path / "pos"))
    (tmp_path / "pos").mkdir()
    (tmp_path / "pos/3_8.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"3_8\.txt: not UTF-8 \(byte 0xe9 at position 3\)"):
        read_folder(tmp_path, ["neg", "pos"])


def test_lines_of_text_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\ntwo \xc3\xa9\x0b\n")
    assert read_lines(path) == Table(
        ["one", "", "two é\x0b"], ids=["0", "1", "2"], source=str(path)
    )
    with pytest.raises(DataError, match=r"x\.txt: one text a line, where pairs are needed"):
        read_lines(path, ("s1", "s2"))


def test_lines_of_table_files_need_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,text,label\nq,a,1\nr,b,0\n", encoding="utf-8")
    assert read_lines(path) == Table(["a", "b"], ids=["0", "1"], source=str(path))
    labelled = read_lines(path, "text", "label", "id")
    assert labelled == Table(["a", "b"], None, ["1", "0"], ["q", "r"], str(path))


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"{brace\n{}\n", ["{brace", "{}"]),
        (b'"text"\n5', ['"text"', "5"]),
        (b'{"text": "a\\nb"}\n{"text": "c", "more": 1}', ["a\nb", "c"]),
    ],
)
def test_standard_input_is_text_or_json_lines(
    monkeypatch: pytest.MonkeyPatch, content: bytes, texts: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    assert read_lines("-") == Table(texts, ids=["0", "1"], source="standard input")
    assert not sys.stdin.closed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"empty\. Give one text a line"),
        (b"\n \n", r"empty\. Give one text a line"),
        (b'{"text": "a"}\nb\n', r"line 2: not JSON"),
        (b"a\n\xe9\n", r"line 2: not UTF-8"),
    ],
)
def test_bad_standard_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
    with pytest.raises(DataError, match=f"^standard input[:,] ?{message}") as error:
        read_lines("-")
    one_line(error)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` writes inside the test, and the network out of it."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # The environment variable is read at import, which may be over.
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def test_hub_reads_what_datasets_reads_with_class_names(tmp_path: Path, hub: None) -> None:
    folder = tmp_path / "org/set"
    folder.mkdir(parents=True)
    pq.write_table(class_labels([1, 0]), folder / "train-00000-of-00001.parquet")
    table = read_hub(str(folder), "train", "text", "label", id="label")
    assert table == Table(
        ["t", "t"], None, ["pos", "neg"], ["pos", "neg"], f"{folder}, split train"
    )
    with pytest.raises(DataError, match=r"set, split train: no column 'txt' \(did you mean 'text'"):
        read_hub(str(folder), "train", "txt", None)


def test_hub_takes_a_config_after_a_colon(tmp_path: Path, hub: None) -> None:
    for config in ("en", "de"):
        (tmp_path / f"{config}.csv").write_text(f"text,label\nin {config},1\n", encoding="utf-8")
    files = "".join(f"- config_name: {c}\n  data_files: {c}.csv\n" for c in ("en", "de"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{files}---\n", encoding="utf-8")
    assert read_hub(f"{tmp_path}:de", "train", "text", "label").texts == ["in de"]


def test_unreachable_hub_is_one_line_and_fast(hub: None) -> None:
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"'org/none' is no folder here") as error:
        read_hub("org/none:en", "train", "text", "label", remedy="Set data.train to a file.")
    line = one_line(error)
    assert "org/none:en, split train" in line
    assert line.endswith("Set data.train to a file.")
    with pytest.raises(FileNotFoundError, match=r"stanfordnlp/none.* Set data\.root to the unpack"):
        read_imdb("stanfordnlp/none", "test")
    assert time.monotonic() - start < 5


REVIEWS = {"neg": ["Dull.<br />Bad.", "Naïve 😀"], "pos": ["Fine.", 'A "must", truly', ""]}


def published(root: Path) -> None:
    for split in ("train", "test"):
        for name, texts in REVIEWS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, text in enumerate(texts):
                (folder / f"{i}_{len(text)}.txt").write_text(f"{text}{split}", encoding="utf-8")


def parquet(root: Path, pattern: str = "{}.parquet", shards: int = 1) -> None:
    root.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [(f"{t}{split}", int(k == "pos")) for k, texts in REVIEWS.items() for t in texts]
        for i in range(shards):
            texts, labels = zip(*rows[i::shards], strict=True)
            path = root / pattern.format(split, i)
            write_parquet(path, text=list(texts), label=list(labels))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "published": published,
    "published, one above": lambda root: published(root / "aclImdb"),
    "parquet": parquet,
    "shards": lambda root: parquet(root, "{}-0000{}-of-00002.parquet", 2),
    "plain_text": lambda root: parquet(root / "plain_text", "{}-0000{}-of-00001.parquet"),
}


def expected(split: str) -> str:
    rows = [(f"{text}{split}", name) for name, texts in REVIEWS.items() for text in texts]
    texts, labels = zip(*rows, strict=True)
    return fingerprint(Table(texts, labels=labels))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_imdb_layouts_give_equal_tables(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path / "imdb")
    for split in ("train", "test"):
        table = read_imdb(str(tmp_path / "imdb"), split)  # type: ignore[arg-type]
        assert fingerprint(table) == expected(split)
        assert table.ids is not None
        assert len(set(table.ids)) == 5
        assert table.ids[0] == ("neg/0_15.txt" if "published" in layout else f"{split}/0")


def test_imdb_from_the_hub_equals_the_folder(
    tmp_path: Path, hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet(tmp_path / "some/imdb", "{}-0000{}-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    table = read_imdb("some/imdb:default", "test")  # with its config it is no folder, but a name
    assert fingerprint(table) == expected("test")
    assert table.ids == [f"test/{row}" for row in range(5)]


@pytest.mark.parametrize("inside", ["", "elsewhere", "train"])
def test_imdb_folder_without_files_names_three_ways(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    for root in (str(tmp_path), f"{tmp_path}/none", "./none", "~/none-of-this"):
        with pytest.raises(DatasetNotFoundError, match="no train split of IMDb here") as error:
            read_imdb(root, "train")
        line = one_line(error)
        for way in ("data.root", "train/neg and train/pos", "train.parquet", "stanfordnlp/imdb"):
            assert way in line


def test_imdb_refuses_other_labels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", text=["a", "b"], label=[1, -1])
    with pytest.raises(DataError, match=r"test\.parquet, row 2: label '-1', where IMDb has neg"):
        read_imdb(str(tmp_path), "test")


@pytest.mark.skipif(not IMDB.is_dir(), reason="no IMDb in ../shared/data/imdb")
def test_real_imdb_is_half_and_half_and_read_in_two_seconds() -> None:
    start = time.monotonic()
    table = read_imdb(str(IMDB), "test")
    assert time.monotonic() - start < 2
    assert Counter(table.labels) == {"neg": 12_500, "pos": 12_500}
    assert table.ids is not None
    assert table.ids[-1] == "test/24999"
