"""Decoders of families write what transformers has them write."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_foundry.nn import TextEncoder
from lit_foundry.nn.text.sequence_decoder import (
    SequenceNetwork,
    decoder_of,
    sequence_model,
    start_of,
)
from tests.nn.text.test_families import config_of


@pytest.mark.parametrize("kind", ["bart", "mbart", "pegasus", "marian", "t5", "mt5"])
def test_logits_are_those_of_transformers_and_padding_changes_nothing(kind: str) -> None:
    torch.manual_seed(0)
    config = config_of("t5" if kind == "mt5" else kind) | {"model_type": kind}
    if kind in ("t5", "mt5"):
        config["tie_word_embeddings"] = False  # tied, they are scaled
    backbone = TextEncoder(config=config, vocab_size=60, pad_id=0)
    decoder, head = decoder_of(backbone)
    assert decoder.training
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    network = SequenceNetwork(backbone, decoder, head, 60).eval()
    model: Any = sequence_model(backbone, decoder, head)
    ids, mask, written = network.example(3, 9)
    with torch.no_grad():
        logits = network(ids, mask, written)
        want = model(input_ids=ids, attention_mask=mask, decoder_input_ids=written).logits
        short = int(mask[1].sum())
        alone = network(ids[1:2, :short], mask[1:2, :short], written[1:2])
    torch.testing.assert_close(logits, want, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1:2], alone, atol=1e-5, rtol=0)
    assert len(decoder.layers) == 2
    own = {name for name, _ in decoder.named_parameters()}
    assert not any("embed_tokens" in name for name in own)
    learnt = {p for part in (backbone, decoder, head) for p in part.parameters()}
    assert sum(p.numel() for p in learnt) == sum(p.numel() for p in model.parameters()) + (
        0 if head.bias is None else 60
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (config_of("t5"), "t5 makes logits otherwise"),
        (config_of("bart") | {"model_type": "m2m_100"}, "m2m_100 makes logits otherwise"),
        (config_of("bert"), "bert has no decoder: take one such as bart"),
        (
            config_of("bart") | {"tie_word_embeddings": False},
            r"embedding for its decoder alone here.*set model\.backbone\.config\.tie_word_emb",
        ),
    ],
)
def test_what_is_decoded_otherwise_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decoder_of(TextEncoder(config=config, vocab_size=60, pad_id=0))


def test_a_decoder_begins_as_it_was_pretrained_to(tmp_path: Path) -> None:
    tokenizer = SimpleNamespace(eos_token_id=None, sep_token_id=3)
    config = config_of("pegasus") | {"decoder_start_token_id": 7}
    backbone = TextEncoder(config=config, vocab_size=60, pad_id=0)
    assert start_of(backbone, tokenizer) == 3
    sequence_model(backbone, *decoder_of(backbone)).save_pretrained(tmp_path)
    assert start_of(TextEncoder(str(tmp_path)), tokenizer) == 7


@pytest.mark.parametrize("kind", ["bart", "mbart"])
def test_the_norm_of_embeddings_is_frozen_with_them(kind: str) -> None:
    backbone = TextEncoder(config=config_of(kind), vocab_size=60, pad_id=0)
    first = {id(p) for p in backbone.blocks()[0].parameters()}
    norms = backbone.encoder.layernorm_embedding.parameters()
    assert {id(p) for p in norms} <= first
    every = [p for block in backbone.blocks() for p in block.parameters()]
    left = {n for n, p in backbone.named_parameters() if not any(p is q for q in every)}
    assert left == (
        set() if kind == "bart" else {"encoder.layer_norm.weight", "encoder.layer_norm.bias"}
    )


def test_weights_without_a_decoder_or_with_an_output_of_their_own_are_refused(
    tmp_path: Path,
) -> None:
    backbone = TextEncoder(config=config_of("bart"), vocab_size=60, pad_id=0)
    sequence_model(backbone, *decoder_of(backbone)).save_pretrained(tmp_path / "bart")
    file = tmp_path / "bart" / "model.safetensors"
    kept = {key: value for key, value in load_file(file).items() if ".decoder." not in key}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights of the decoder, such as model\.dec"):
        decoder_of(TextEncoder(str(tmp_path / "bart")))
    config = config_of("t5") | {"tie_word_embeddings": False}
    backbone = TextEncoder(config=config, vocab_size=60, pad_id=0)
    model = sequence_model(backbone, *decoder_of(backbone))
    model.save_pretrained(tmp_path / "t5")
    file = tmp_path / "t5" / "model.safetensors"
    save_file(load_file(file) | {"lm_head.weight": torch.randn(60, 32)}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="t5 has output weights other than its embeddings"):
        decoder_of(TextEncoder(str(tmp_path / "t5")))
