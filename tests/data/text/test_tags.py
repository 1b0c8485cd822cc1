"""Tags of words: which token bears which, whatever the tokenizer, the file and the truncation."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lit_foundry.data import DataError, TextFiles, TrainTokenizer
from lit_foundry.data.text.token_cache import encode
from lit_foundry.data.text.words import word_starts

SENTENCES = [
    (["Anna-Maria", "lives", "in", "New", "York", "."], ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]),
    (["It", "rains", "in", "Reykjavík"], ["O", "O", "O", "B-LOC"]),
    (["Nobody", "laughs"], ["O", "O"]),
    (["Unbelievable", "\N{GRINNING FACE}", "Otto", "wins"], ["O", "O", "B-PER", "O"]),
]


def write(path: Path, sentences: list[Any], number: int = 1) -> str:
    rows = [
        {"tokens": [*words[:-1], f"{words[-1]}{i}"], "tags": tags}
        for i, (words, tags) in enumerate(sentences * number)
    ]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        mark = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [mark.join(map(" ".join, row.values())) for row in rows]
        path.write_text("\n".join([f"tokens{mark}tags", *lines]), encoding="utf-8")
    return str(path)


def bpe(folder: Path, prefix: bool) -> str:
    """Write a tokenizer like RoBERTa's, which may take the first word for one after a blank."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    trainer: Any = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(words) for words, _ in SENTENCES], trainer)
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def tagged(train: str, folder: Path, tokenizer: Any = None, **options: Any) -> TextFiles:
    options = {"text": "tokens", "label": "tags", "val": train, "batch_size": 2} | options
    spec = tokenizer or TrainTokenizer(vocab_size=300)
    return TextFiles(spec, train, target="tags", cache=folder / "cache", **options)


TOKENIZERS = [
    TrainTokenizer(vocab_size=300),
    TrainTokenizer(kind="bpe", vocab_size=330),
    TrainTokenizer(kind="unigram", vocab_size=300),
]


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.jsonl", "x.parquet"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda spec: spec.kind)
def test_the_first_token_of_a_word_bears_its_tag(
    tmp_path: Path, name: str, tokenizer: TrainTokenizer
) -> None:
    data = tagged(write(tmp_path / name, SENTENCES, 8), tmp_path, tokenizer, max_length=64)
    assert (data.target_kind, data.labels) == ("tags", ["B-LOC", "B-PER", "I-LOC", "O"])
    assert data.facts["num_classes"] == 4
    rows = [1, 0, 3, 6]
    batch: Any = data.load("train")[rows]
    assert batch["label"].shape == batch["word"].shape == batch["input_ids"].shape
    for row, label, word in zip(rows, batch["label"], batch["word"], strict=True):
        tags, starts = SENTENCES[row % 4][1], label != -100
        assert [data.labels[i] for i in label[starts]] == tags
        assert word[starts].tolist() == list(range(len(tags)))
        assert (word[~starts] == -1).all()


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_tags_lie_where_transformers_lays_them(tmp_path: Path, kind: str) -> None:
    """As in its examples, which split words before the tokenizer does."""
    data = tagged(
        write(tmp_path / "x.jsonl", SENTENCES, 8),
        tmp_path,
        bpe(tmp_path / "bpe", prefix=True)
        if kind == "bpe"
        else TrainTokenizer(kind=kind, vocab_size=300),  # type: ignore[arg-type]
        max_length=64,
    )
    table, tokenizer = data.table("train"), data.tokenizer
    known = {name: i for i, name in enumerate(data.labels)}
    rows = list(range(8))
    batch: Any = data.load("train")[rows]
    words = [table.texts[row].split() for row in rows]
    expected = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
    assert batch["input_ids"].equal(expected["input_ids"])
    for row in rows:
        before, tags = None, []
        for word in expected.word_ids(row):
            first = word is not None and word != before
            tags.append(known[table.labels[row][word]] if first else -100)  # type: ignore[index]
            before = word
        assert batch["label"][row].tolist() == tags


def test_a_text_is_tokenized_as_it_is_read_and_not_word_by_word(tmp_path: Path) -> None:
    """RoBERTa never saw a word without the blank before it, other than the first."""
    train = write(tmp_path / "x.jsonl", SENTENCES, 8)
    data = tagged(train, tmp_path, bpe(tmp_path / "bpe", prefix=False), max_length=64)
    batch: Any = data.load("train")[[0]]
    text = " ".join([*SENTENCES[0][0][:-1], ".0"])
    assert batch["input_ids"].tolist() == [data.tokenizer(text)["input_ids"]]
    assert (batch["label"] != -100).sum() == 6
    [raw] = data.batches([text], 64)
    assert raw["input_ids"].equal(batch["input_ids"])
    assert raw["word"].equal(batch["word"])
    assert "label" not in raw


@pytest.mark.parametrize("truncation", ["head", "tail", "head_tail"])
def test_truncated_words_take_their_tags_along(tmp_path: Path, truncation: Any) -> None:
    words = [f"w{i}" for i in range(20)]
    tags = [f"t{i % 7}" for i in range(20)]
    train = write(tmp_path / "x.jsonl", [(words, tags)], 6)
    options: Any = {"max_length": 64}
    whole: Any = tagged(train, tmp_path, **options).load("train")[[0]]
    data = tagged(train, tmp_path, max_length=12, truncation=truncation)
    batch: Any = data.load("train")[[0]]
    inner, room = slice(1, -1), 10
    head = {"head": room, "tail": 0, "head_tail": room // 4}[truncation]
    for field in ("input_ids", "label", "word"):
        [row] = whole[field][:, inner].tolist()
        assert batch[field][:, inner].tolist() == [row[:head] + row[len(row) - (room - head) :]]
        assert batch[field].shape == (1, 12)
    assert 0 < (batch["label"] != -100).sum() < 20


def test_a_predicted_text_tells_where_its_words_begin(tmp_path: Path) -> None:
    train = write(tmp_path / "x.jsonl", SENTENCES, 8)
    lines, lists = tmp_path / "x.txt", tmp_path / "y.jsonl"
    lines.write_text("Otto lives\nIt rains in York", encoding="utf-8")
    lists.write_text(
        '{"tokens": ["Otto", "lives"]}\n{"tokens": "It rains in York"}', encoding="utf-8"
    )
    seen = []
    for source in (lines, lists):
        data = tagged(train, tmp_path, predict=str(source))
        batch: Any = data.load("predict")[[0, 1]]
        assert "label" not in batch
        assert [int(word.max()) + 1 for word in batch["word"]] == [2, 4]
        seen.append(batch["input_ids"].tolist())
    assert seen[0] == seen[1]


def test_tokens_of_words_are_cached(tmp_path: Path) -> None:
    train = write(tmp_path / "x.jsonl", SENTENCES, 8)
    first = tagged(train, tmp_path).load("train")
    files = sorted(path.name for path in next((tmp_path / "cache/tokens").glob("*/")).iterdir())
    assert files == ["ids.bin", "meta.json", "offsets.npy", "words.bin"]
    again: Any = tagged(train, tmp_path).load("train")
    for field, values in first[[3, 5]].items():
        assert again[[3, 5]][field].equal(values)
    tokens = encode(["a b", ""], tagged(train, tmp_path).tokenizer, word_starts)
    assert tokens.words is not None
    assert tokens.words_of(0).tolist() == [0, 1]
    assert tokens.words_of(1).tolist() == []


@pytest.mark.parametrize(
    ("text", "offsets", "starts"),
    [
        ("ab c", [(0, 1), (1, 2), (3, 4)], [0, -1, 1]),
        ("ab c", [(0, 2), (2, 3), (3, 4)], [0, 1, -1]),  # a blank as a token of its own
        ("ab c", [(0, 2), (2, 4)], [0, 1]),  # one that holds the blank
        ("ab c", [(0, 4)], [0]),  # c has no token
        (" ab", [(0, 1), (1, 3)], [0, -1]),
        ("ab ", [(0, 2), (2, 3)], [0, -1]),
        ("\u00e9\ta", [(0, 1), (0, 1), (2, 3)], [0, -1, 1]),  # both bytes of a letter
        ("a\u00a0b c", [(0, 1), (1, 2), (2, 3), (4, 5)], [0, -1, -1, 1]),
        ("", [], []),
    ],
)
def test_where_words_begin(text: str, offsets: Any, starts: list[int]) -> None:
    assert word_starts(text, offsets).tolist() == starts


BAD: dict[str, tuple[Any, Any, str]] = {
    "fewer tags": (
        ["a", "b", "c"],
        ["O", "X"],
        r"line 2: 3 words, and 2 tags in 'tags'\. Give each",
    ),
    "fewer words": ("a b", "O O X", r"line 2: 2 words, and 3 tags"),
    "blank inside": (
        ["New York"],
        ["X"],
        r"line 2: word 1 of 'tokens' is 'New York', and no string",
    ),
    "empty word": (["a", ""], ["O", "X"], r"word 2 of 'tokens' is '', and no string"),
    "number": (["a", 7], ["O", "X"], r"word 2 of 'tokens' is 7, and no string"),
    "null word": (["a", None], ["O", "X"], r"word 2 of 'tokens' is None"),
    "null tag": (["a", "b"], ["O", None], r"'tags' is null\. Make it a list of strings or ints"),
    "empty tag": (["a", "b"], ["O", " "], r"tag 2 of 'tags' is empty"),
    "no tags": (["a", "b"], None, r"no 'tags' \(missing in 1 of 2 rows\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_words_and_tags_that_do_not_match_are_named(tmp_path: Path, case: str) -> None:
    words, tags, message = BAD[case]
    rows = [{"tokens": ["a", "b"], "tags": ["O", "X"]}, {"tokens": words, "tags": tags}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match=rf"x\.jsonl.*{message}") as error:
        tagged(str(tmp_path / "x.jsonl"), tmp_path).table("train")
    assert "\n" not in str(error.value)


def test_tags_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "x.jsonl", SENTENCES, 8)
    test = write(tmp_path / "t.jsonl", [(["Otto"], ["B-GOD"])])
    with pytest.raises(DataError, match=r"label 'B-GOD' of row 1 in the test split is none of"):
        tagged(train, tmp_path, test=test).table("test")
    alone = write(tmp_path / "y.jsonl", [(["Otto"], ["O"])], 4)
    with pytest.raises(DataError, match=r"has only \['O'\] in 'tags'; it needs at least 2"):
        tagged(alone, tmp_path).table("train")
    with pytest.raises(
        ValueError, match=r"data\.text=\['a', 'b'\] must be one column, whose words"
    ):
        tagged(train, tmp_path, text=["a", "b"])
    with pytest.raises(DataError, match=r"label_names=\['O'\] must name each class .*'B-LOC'"):
        tagged(train, tmp_path, label_names=["O"]).table("train")


def test_numbers_of_tags_get_the_names_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["O", "B-PER", "I-PER"]
    words = datasets.Sequence(datasets.Value("string"))
    tags = datasets.Sequence(datasets.ClassLabel(names=names))
    rows = {"tokens": [["Otto", f"wins{i}"] for i in range(20)], "ner_tags": [[1, 0]] * 20}
    features = datasets.Features({"tokens": words, "ner_tags": tags})
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    for source in (
        {"hub": str(tmp_path), "train": "train"},
        {"train": f"{tmp_path}/train.parquet"},
    ):
        train = source.pop("train")
        options = source | {"label": "ner_tags", "label_names": names, "val": None}
        found = tagged(train, tmp_path, **options)
        label = found.load("train")[[0]]["label"]
        assert label[label != -100].tolist() == [1, 0]
        assert found.labels == names
