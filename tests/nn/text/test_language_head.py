"""Language heads on folders that transformers wrote: what they take over, and what is refused."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_foundry.nn import TextDecoder, TextEncoder, restoring
from lit_foundry.nn.text.as_language_model import language_model

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SPECIAL = {"cls_token_id": 1, "sep_token_id": 2}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "xlm-roberta": SIZES,
    "camembert": SIZES,
    "mpnet": SIZES,
    "distilbert": {**DISTIL, "vocab_size": 100},
    "electra": {**SIZES, "embedding_size": 16},
    "albert": {**SIZES, "embedding_size": 16},
    "deberta-v2": SIZES,
    "modernbert": {**SIZES, **SPECIAL},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 100, "eos_token_id": 2},
    "gpt_neox": SIZES,
    "llama": {**SIZES, "num_key_value_heads": 1},
    "mistral": {**SIZES, "num_key_value_heads": 1},
    "qwen2": {**SIZES, "num_key_value_heads": 1},
    "qwen3": {**SIZES, "num_key_value_heads": 1, "head_dim": 16},
}
CAUSAL = {"gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"}
LAYER_NORM = "cls.predictions.transform.LayerNorm.weight"


def their_auto(kind: str) -> Any:
    return (
        transformers.AutoModelForCausalLM if kind in CAUSAL else transformers.AutoModelForMaskedLM
    )


def saved(kind: str, folder: Path, **changes: Any) -> Any:
    """Save a language model of transformers whose weights, biases too, are all random."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **FAMILIES[kind], **changes)
    model = their_auto(kind).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return their_auto(kind).from_pretrained(folder).eval()


def ours(kind: str, folder: Path, **options: Any) -> Any:
    cls = TextDecoder if kind in CAUSAL else TextEncoder
    return cls(pretrained=str(folder), **options).eval()


def logits_of(backbone: Any, head: Any, ids: Tensor) -> Tensor:
    tokens = backbone(ids, torch.ones_like(ids, dtype=torch.bool)).tokens
    logits: Tensor = head(tokens, head.decoder_weight(backbone))
    return logits


@pytest.fixture
def ids() -> Tensor:
    torch.manual_seed(1)
    return torch.randint(5, 100, (2, 20))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_logits_of_a_folder_are_those_of_transformers(
    kind: str, tied: bool, tmp_path: Path, ids: Tensor
) -> None:
    theirs = saved(kind, tmp_path, tie_word_embeddings=tied)
    backbone = ours(kind, tmp_path)
    head = backbone.language_head().eval()
    expected = theirs(input_ids=ids).logits
    torch.testing.assert_close(logits_of(backbone, head, ids), expected, atol=1e-5, rtol=1e-5)
    assert (head.weight is None) == tied
    exported = language_model(backbone, head)
    assert type(exported) is type(theirs)
    exported.save_pretrained(tmp_path / "export")
    again = their_auto(kind).from_pretrained(tmp_path / "export").eval()
    torch.testing.assert_close(again(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)
    shared = again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert shared == tied


@torch.no_grad()
def test_a_head_works_on_some_places_as_on_all(tmp_path: Path, ids: Tensor) -> None:
    saved("bert", tmp_path)
    backbone = ours("bert", tmp_path)
    head, tokens = backbone.language_head(), torch.randn(2, 7, 32)
    weight = head.decoder_weight(backbone)
    some = head(tokens.flatten(0, 1)[[3, 9]], weight)
    torch.testing.assert_close(some, head(tokens, weight).flatten(0, 1)[[3, 9]])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_folder_without_head_leaves_it_as_it_was_initialized(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    config = transformers.AutoConfig.for_model(
        kind, **FAMILIES[kind], initializer_range=0.3, tie_word_embeddings=tied
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        head = ours(kind, tmp_path).language_head()
    said = [f"model.backbone.pretrained {tmp_path} has no language head: a new one begins."]
    # The embedding alone makes a head without weights of its own.
    assert [str(warning.message) for warning in told] == said * bool(head.state_dict())
    assert all(parameter.isfinite().all() for parameter in head.parameters())
    assert head.bias is None or not head.bias.any()
    if kind == "bert":
        assert head.transform[0].weight.std().item() == pytest.approx(0.3, rel=0.1)


def test_a_part_of_a_head_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved("bert", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights[LAYER_NORM]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"lacks 1 of 5 weights of the language.*{LAYER_NORM}"):
        ours("bert", tmp_path).language_head()


@pytest.mark.parametrize("kind", ["bert", "llama"])
@torch.no_grad()
def test_weights_that_a_config_takes_for_tied_are_refused(
    kind: str, tmp_path: Path, ids: Tensor
) -> None:
    theirs = saved(kind, tmp_path, tie_word_embeddings=False)
    file = tmp_path / "config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text(encoding="utf-8")), "tie_word_embeddings": True}),
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=r"config\.tie_word_embeddings to false"):
        ours(kind, tmp_path).language_head()
    backbone = ours(kind, tmp_path, config={"tie_word_embeddings": False})
    logits = logits_of(backbone, backbone.language_head().eval(), ids)
    torch.testing.assert_close(logits, theirs(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_restoring_reads_no_head() -> None:
    with restoring():
        backbone = TextEncoder("nobody/nothing", config={"model_type": "bert", **SIZES})
        assert backbone.language_head().state_dict().keys()


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("gemma2", {"num_key_value_heads": 1}, "final_logit_softcapping"),
        ("cohere", {}, "logit_scale"),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling"),
        ("modernbert-decoder", SPECIAL, "lm_head.dense.weight"),
    ],
)
def test_decoders_with_more_than_an_output_layer_are_refused(
    kind: str, changes: dict[str, Any], words: str
) -> None:
    backbone = TextDecoder(config={"model_type": kind, **SIZES, **changes})
    with pytest.raises(ValueError, match=rf"{kind} .*{words}"):
        backbone.language_head()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("ernie", {}), ("roformer", {"embedding_size": 16}), ("deberta-v2", {"legacy": False})],
)
def test_a_masked_head_of_no_known_family_trains_and_is_not_exported(
    kind: str, changes: dict[str, Any], ids: Tensor, tmp_path: Path
) -> None:
    backbone = TextEncoder(config={"model_type": kind, **SIZES, **changes})
    head = backbone.language_head()
    assert head.weight is None
    logits_of(backbone, head, ids).logsumexp(-1).sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []
    with pytest.raises(ValueError, match=f"{kind} has a masked language head that is not known"):
        language_model(backbone, head)
    backbone.encoder.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=rf"not known here \({kind}\): a new one begins"):
        TextEncoder(str(tmp_path)).language_head()


def test_what_is_no_text_encoder_has_no_language_model() -> None:
    with pytest.raises(ValueError, match="no language model on a Linear"):
        language_model(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))


@torch.no_grad()
def test_an_encoder_that_its_config_makes_causal_stays_causal_when_packed() -> None:
    backbone = TextEncoder(config={"model_type": "bert", "is_decoder": True, **SIZES}).eval()
    document = torch.tensor([[1] * 9 + [2] * 11])
    ids, mask = torch.randint(5, 100, (1, 20)), torch.ones(1, 20, dtype=torch.bool)
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    packed = backbone(ids, mask, position_ids=positions, document=document).tokens
    for kept in (slice(0, 9), slice(9, 20)):
        alone = backbone(ids[:, kept], mask[:, kept]).tokens
        torch.testing.assert_close(packed[:, kept], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "mistral"])
@torch.no_grad()
def test_isolation_compiles_without_a_break(kind: str, attention: Any) -> None:
    cls = TextDecoder if kind in CAUSAL else TextEncoder
    backbone = cls(config={"model_type": kind, **FAMILIES[kind]}, attention=attention).eval()
    document = torch.tensor([[1] * 9 + [2] * 7 + [0] * 4])
    fields = (torch.randint(5, 100, (1, 20)), document > 0, None, None, document)
    expected = backbone(*fields).tokens
    compiled = torch.compile(backbone, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*fields).tokens, expected)
