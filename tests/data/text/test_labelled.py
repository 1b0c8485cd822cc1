"""Text data: splits, labels and tokens of tiny files, and their life in a checkpoint."""

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lit_foundry.data import DataError, TextFiles, TrainTokenizer
from lit_foundry.data.files.table import Table
from lit_foundry.data.labels import check_labels, in_order, sample_rows, stratified

TOKENIZER = TrainTokenizer(vocab_size=300)


def write(
    path: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("text", "label")
) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def some_rows(count: int, labels: Sequence[str] = ("no", "yes"), start: int = 0) -> list[list[str]]:
    return [[f"text number {i}", labels[i % len(labels)]] for i in range(start, start + count)]


@pytest.fixture
def train(tmp_path: Path) -> str:
    return write(tmp_path / "train.csv", some_rows(40))


def files(tmp_path: Path, train: str, **options: Any) -> TextFiles:
    options = {"max_length": 16, "batch_size": 4, "cache": tmp_path / "cache"} | options
    return TextFiles(TOKENIZER, train, **options)


def test_facts_state_what_a_network_must_agree_with(tmp_path: Path, train: str) -> None:
    data = files(tmp_path, train)
    assert data.facts == {
        "num_classes": 2,
        "vocab_size": len(data.tokenizer),
        "pad_id": data.tokenizer.pad_token_id,
        "mask_id": data.tokenizer.mask_token_id,
        "max_length": 16,
    }
    assert 100 > len(data.tokenizer) > 5
    assert data.labels == ["no", "yes"]


@pytest.fixture(scope="module")
def unframed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a tokenizer that frames nothing, as GPT-2's."""
    folder = tmp_path_factory.mktemp("unframed")
    backend = Tokenizer(models.WordLevel({"<|end|>": 0, "[UNK]": 1, "rain": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<|end|>", "pad_token": "<|end|>", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def test_a_text_without_a_token_is_one_that_ends_a_text(tmp_path: Path, unframed: str) -> None:
    rows = [["rain rain", "a"], ["", "a"], ["", "b"], ["rain", "b"]] * 8
    train, val = write(tmp_path / "train.csv", rows), write(tmp_path / "val.csv", rows)
    for size in ({"batch_size": 4}, {"batch_size": None, "batch_tokens": 8}):
        data = TextFiles(unframed, train, val=val, max_length=8, cache=tmp_path, **size)
        dataset = data.load("train")
        assert sorted(set(dataset.lengths.tolist())) == [1, 2]
        seen = [row for batch in data.train_dataloader() for row in batch["index"].tolist()]
        assert sorted(seen) == list(range(32))
        alone = dataset[[1, 5]]
        assert alone["input_ids"].tolist() == [[0], [0]]
        assert alone["attention_mask"].all()
    [alone], [among] = (list(data.batches(texts, 64)) for texts in ([""], ["", "rain rain"]))
    row = among["index"].tolist().index(0)
    for batch, at in ((alone, 0), (among, row)):
        mask = batch["attention_mask"][at]
        assert batch["input_ids"][at][mask].tolist() == [0]


def test_an_exported_tokenizer_pads_as_training_did(tmp_path: Path, unframed: str) -> None:
    data = TextFiles(unframed, "none", cache=tmp_path)
    data.tokenizer.padding_side = data.tokenizer.init_kwargs["padding_side"] = "left"
    sides = {}
    for goes_on in (False, True):
        data.save_preprocessor(tmp_path / str(goes_on), ["input_ids", "attention_mask"], goes_on)
        sides[goes_on] = AutoTokenizer.from_pretrained(tmp_path / str(goes_on)).padding_side
    assert sides == {False: "right", True: "left"}  # generation goes on at the right


def test_batches_hold_texts_labels_and_rows(tmp_path: Path, train: str) -> None:
    data = files(tmp_path, train)
    table = data.table("train")
    assert table.labels is not None
    seen = []
    for batch in data.train_dataloader():
        for ids, label, row in zip(batch["input_ids"], batch["label"], batch["index"], strict=True):
            assert data.tokenizer.decode(ids, skip_special_tokens=True) == table.texts[row]
            assert data.labels[label] == table.labels[row]
            seen.append(int(row))
    assert sorted(seen) == list(range(36))


def test_validation_is_carved_from_training_unless_it_has_a_file(
    tmp_path: Path, train: str
) -> None:
    carved = files(tmp_path, train, val_fraction=0.2)
    parts = [carved.table(split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [32, 8]
    assert Counter(parts[1].labels) == {"no": 4, "yes": 4}
    assert {*parts[0].texts, *parts[1].texts} == {text for text, _ in some_rows(40)}
    val = write(tmp_path / "val.csv", some_rows(6, start=100))
    given = files(tmp_path, train, val=val)
    assert [len(given.table(split)) for split in ("train", "val")] == [40, 6]
    assert list(given.table("val").texts) == [text for text, _ in some_rows(6, start=100)]
    other = files(tmp_path, train, val_fraction=0.2, split_seed=1)
    assert set(other.table("val").texts) != set(parts[1].texts)


def test_test_is_read_only_where_it_is_named(tmp_path: Path, train: str) -> None:
    with pytest.raises(DataError, match=r"data.test is not set"):
        files(tmp_path, train).table("test")
    test = write(tmp_path / "test.csv", some_rows(5, ["yes"]))
    [*batches] = files(tmp_path, train, test=test).test_dataloader()
    assert [label for batch in batches for label in batch["label"].tolist()] == [1] * 5


def test_label_names_set_the_order_of_the_classes(tmp_path: Path, train: str) -> None:
    data = files(tmp_path, train, label_names=["yes", "no"])
    assert data.labels == ["yes", "no"]
    batch: Any = data.load("train")[[0, 1]]
    labels = data.table("train").labels or ()
    assert [data.labels[i] for i in batch["label"]] == list(labels[:2])


@pytest.mark.parametrize(
    "names", [["yes"], ["no", "yes", "maybe"], ["no", "yes", "yes"], ["a", "b"]]
)
def test_label_names_other_than_those_of_training_are_refused(
    tmp_path: Path, train: str, names: list[str]
) -> None:
    with pytest.raises(DataError, match=r"data.label_names=.*train.csv once.*\['no', 'yes'\]"):
        files(tmp_path, train, label_names=names).load("train")


def test_an_unknown_label_is_named_with_its_row(tmp_path: Path, train: str) -> None:
    test = write(tmp_path / "test.csv", [*some_rows(2), ["x", "maybe"]])
    with pytest.raises(DataError, match=r"test.csv: label 'maybe' of row 3 in the test split"):
        files(tmp_path, train, test=test).load("test")
    val = write(tmp_path / "val.csv", [["x", "maybe"], *some_rows(2)])
    with pytest.raises(DataError, match=r"val.csv: label 'maybe' of row 1 in the val split"):
        files(tmp_path, train, val=val).load("val")


def test_splits_of_one_class_are_refused_where_one_learns(tmp_path: Path, train: str) -> None:
    one = write(tmp_path / "one.csv", some_rows(9, ["yes"]))
    with pytest.raises(DataError, match=r"one.csv: the train split has only the class 'yes'"):
        files(tmp_path, one).load("train")
    with pytest.raises(DataError, match=r"one.csv: the val split has only .* data.val to null"):
        files(tmp_path, train, val=one).load("val")


def test_missing_labels_are_refused() -> None:
    table = Table(["a", "b"], source="x.csv")
    with pytest.raises(DataError, match=r"x.csv: the val split has no labels; .* data.label"):
        check_labels(table, "val", ["a"])


def test_pairs_come_from_two_columns(tmp_path: Path) -> None:
    rows = [[f"first {i}", f"second {i}", str(i % 2)] for i in range(20)]
    path = write(tmp_path / "pairs.csv", rows, ("a", "b", "y"))
    data = files(tmp_path, path, text=["a", "b"], label="y")
    dataset, table = data.load("train"), data.table("train")
    batch: Any = dataset[[0, 3]]
    expected = data.tokenizer(
        [table.texts[0], table.texts[3]],
        [(table.pairs or ())[0], (table.pairs or ())[3]],
        padding=True,
        return_token_type_ids=True,
    )
    assert batch["input_ids"].tolist() == expected["input_ids"]
    assert batch["token_type_ids"].tolist() == expected["token_type_ids"]
    assert data.labels == ["0", "1"]
    swapped = files(tmp_path, path, text=["b", "a"], label="y")
    assert swapped.table("train").fingerprint != table.fingerprint


def test_a_checkpoints_state_predicts_without_the_training_file(tmp_path: Path, train: str) -> None:
    data = files(tmp_path, train, label_names=["yes", "no"])
    state, texts = data.state(), ["text number 7", "something else"]
    os.remove(train)
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    twin = files(tmp_path, train, predict=str(tmp_path / "texts.txt"), cache=tmp_path / "other")
    twin.restore(state)
    assert twin.labels == ["yes", "no"]
    assert twin.facts == data.facts
    [batch] = twin.predict_dataloader()
    assert "label" not in batch
    order = batch["index"].argsort()
    expected = data.tokenizer(texts, padding=True)["input_ids"]
    assert batch["input_ids"][order].tolist() == expected
    assert twin.state() == state


def test_predict_needs_texts(tmp_path: Path, train: str) -> None:
    with pytest.raises(ValueError, match=r"predict needs texts: set --input FILE"):
        files(tmp_path, train).load("predict")


def test_fingerprint_follows_the_content_alone(tmp_path: Path, train: str) -> None:
    def fingerprint(path: str) -> dict[str, str]:
        data = files(tmp_path, path)
        data.load("train")
        return data.fingerprint()

    first = fingerprint(train)
    assert set(first) == {"train", "val"}
    (tmp_path / "elsewhere").mkdir()
    assert fingerprint(write(tmp_path / "elsewhere/t.csv", some_rows(40))) == first
    changed = some_rows(40)
    changed[5][0] += "!"
    assert fingerprint(write(tmp_path / "c.csv", changed)) != first
    changed = some_rows(40)
    changed[5][1] = "no" if changed[5][1] == "yes" else "yes"
    assert fingerprint(write(tmp_path / "d.csv", changed)) != first


def test_tokens_are_cached_under_one_name_whatever_was_called_before(
    tmp_path: Path, train: str
) -> None:
    data = files(tmp_path, train)
    data.tokenizer.backend_tokenizer.enable_truncation(8)
    data.tokenizer.backend_tokenizer.enable_padding()  # as some tokenizers come from the hub
    data.load("train")
    data.tokenizer("another call", truncation=True, max_length=4, padding="max_length")
    data.load("train")
    assert len([p for p in (tmp_path / "cache/tokens").iterdir() if p.is_dir()]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, r"data.val_fraction must lie in \(0, 1\), got 0.0"),
        ({"val_fraction": 1.0}, r"got 1.0"),
        ({"max_length": 7}, r"data.max_length must be at least 8 tokens, got 7"),
    ],
)
def test_impossible_options_are_refused(
    tmp_path: Path, train: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        files(tmp_path, train, **options)


def labelled(count: int = 1000) -> Table:
    rng = np.random.default_rng(0)
    labels = rng.choice(["a", "b", "c"], count, p=[0.7, 0.2, 0.1])
    return Table([f"text {i}" for i in range(count)], labels=labels.tolist())


def held(table: Table, fraction: float = 0.1, seed: int = 0) -> set[str]:
    return {table.texts[i] for i in np.flatnonzero(stratified(table, fraction, seed))}


def sampled(table: Table, count: int, seed: int = 0) -> Table:
    return table.take(sample_rows(table, count, seed).tolist())


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_each_class_gives_the_same_share(fraction: float) -> None:
    table = labelled()
    chosen, labels = stratified(table, fraction, 0), np.array(table.labels)
    for name in "abc":
        rows = labels == name
        assert chosen[rows].sum() == round(fraction * rows.sum())


def test_share_depends_on_texts_and_seed_and_not_on_their_order() -> None:
    table = labelled()
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)).tolist())
    assert held(table) == held(shuffled)
    others = [held(table, seed=seed) for seed in range(4)]
    assert len(set(map(frozenset, others))) == 4
    assert len(others[0] & others[1]) < 30  # about 10 of 100 by chance
    assert held(table) <= held(table, 0.2)
    emptied = Table(table.texts, labels=["a", "b"] * 500)
    assert len(held(emptied)) == 100


def test_copies_of_a_text_fall_on_one_side_whatever_their_labels() -> None:
    rng = np.random.default_rng(2)
    texts = [f"text {i}" for i in rng.integers(0, 150, 1000)]
    labels = rng.choice(["a", "b"], 1000, p=[0.9, 0.1]).tolist()
    chosen = stratified(Table(texts, labels=labels), 0.1, 0)
    sides = {(text, side) for text, side in zip(texts, chosen.tolist(), strict=True)}
    assert len(sides) == len(set(texts))
    assert 0.02 < chosen.mean() < 0.35


def test_a_class_of_one_text_stays_in_training() -> None:
    table = Table([*labelled(50).texts, "single"], labels=["a", "b"] * 25 + ["rare"])
    chosen = stratified(table, 0.1, 0)
    assert chosen.sum() == 4
    assert not chosen[-1]


def test_sample_has_that_size_and_each_class_its_share() -> None:
    table = labelled()
    shares = Counter(table.labels)
    smaller: set[str] = set()
    for count in (3, 10, 99, 500):
        sample = sampled(table, count)
        assert len(sample) == count
        for name, of_class in Counter(sample.labels).items():
            assert abs(of_class - count * shares[name] / 1000) < 2
        assert smaller <= (smaller := set(sample.texts))
        assert sorted(sample.texts, key=table.texts.index) == sample.texts
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)).tolist())
    assert set(sampled(shuffled, 500).texts) == smaller
    assert set(sampled(table, 500, 1).texts) != smaller


def test_fewer_samples_are_trained_on_and_as_many_validate(tmp_path: Path, train: str) -> None:
    whole = files(tmp_path, train, val_fraction=0.2)
    limited = files(tmp_path, train, max_train_samples=10, val_fraction=0.2)
    assert list(limited.table("val").texts) == list(whole.table("val").texts)
    assert Counter(limited.table("train").labels) == {"no": 5, "yes": 5}
    assert set(limited.table("train").texts) < set(whole.table("train").texts)
    assert len(files(tmp_path, train, max_train_samples=99).table("train")) == 36
    with pytest.raises(ValueError, match=r"data\.max_train_samples=1 leaves out some of the 2"):
        files(tmp_path, train, max_train_samples=1).table("train")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1", "9", "0"], ["-1", "0", "9", "10"]),
        (["b", "10", "9", "a"], ["10", "9", "a", "b"]),
        (["pos", "neg"], ["neg", "pos"]),
        (["1", "--1"], ["--1", "1"]),
        (["²", "3"], ["3", "²"]),
        (["1", "01", "001"], ["001", "01", "1"]),
        ([], []),
    ],
)
def test_integers_are_ordered_by_value_and_names_by_letter(
    labels: list[str], expected: list[str]
) -> None:
    assert in_order(labels) == expected
    assert in_order(labels[::-1]) == expected


def test_draws_of_a_balanced_epoch_are_in_the_batch(tmp_path: Path, train: str) -> None:
    data = files(tmp_path, train, batch_size=8, balanced=True)
    batches = list(data.train_dataloader())
    pairs = {
        pair for b in batches for pair in zip(b["index"].tolist(), b["draw"].tolist(), strict=True)
    }
    assert len(pairs) == sum(len(batch["index"]) for batch in batches)
    assert "draw" not in next(iter(data.val_dataloader()))
