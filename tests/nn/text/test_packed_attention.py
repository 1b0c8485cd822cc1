"""Packed documents are encoded as if they were alone, and heads are those of transformers."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_foundry.nn import TextDecoder, TextEncoder
from lit_foundry.nn.text import varlen
from lit_foundry.nn.text.as_language_model import language_model
from lit_foundry.nn.text.packed_attention import DECODERS, ENCODERS
from tests.nn.text.test_language_head import logits_of

BASE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "vocab_size": 100,
}
MODERN = {"num_hidden_layers": 3, "local_attention": 8, "global_attn_every_n_layers": 2}
IDS = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1}
QWEN = {
    "num_key_value_heads": 1,
    "use_sliding_window": True,
    "sliding_window": 6,
    "max_window_layers": 1,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": BASE,
    "roberta": {**BASE, "pad_token_id": 1},
    "xlm-roberta": {**BASE, "pad_token_id": 1},
    "camembert": {**BASE, "pad_token_id": 1},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 48,
        "max_position_embeddings": 64,
        "vocab_size": 100,
    },
    "electra": {**BASE, "embedding_size": 16},
    "modernbert": {**BASE, **MODERN, **IDS, "eos_token_id": 2},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "vocab_size": 100,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "llama": {**BASE, "num_key_value_heads": 1},
    "gpt_neox": BASE,
    "mistral": {**BASE, "num_key_value_heads": 1, "sliding_window": 6},
    "qwen2": {**BASE, **QWEN},
    "qwen3": {**BASE, **QWEN, "head_dim": 16},
    "deberta-v2": BASE,
    "albert": {**BASE, "embedding_size": 16},
    "mpnet": BASE,
}
LENGTHS = (20, 17, 11, 9)  # ModernBERT's window reaches 4 to either side
ISOLATED = sorted(ENCODERS | DECODERS)


def build(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = {"model_type": kind, **CONFIGS[kind], **options.pop("config", {})}
    cls = TextDecoder if kind in DECODERS else TextEncoder
    return cls(config=config, **options).eval()


def packed(pad_id: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return a row of documents with padding at its end, and the documents."""
    torch.manual_seed(1)
    documents = [torch.randint(5, 100, (length,)) for length in LENGTHS]
    filler = torch.full((64 - sum(LENGTHS),), pad_id)
    owner = torch.repeat_interleave(torch.tensor([1, 2, 3, 4, 0]), torch.tensor([*LENGTHS, 7]))
    positions = torch.cat([torch.arange(n) for n in (*LENGTHS, 7)])
    batch = {
        "input_ids": torch.cat([*documents, filler])[None],
        "attention_mask": owner[None] > 0,
        "document": owner[None],
        "offsets": torch.tensor([0, *itertools.accumulate(LENGTHS), 64], dtype=torch.int32),
        "position_ids": positions[None] * (owner[None] > 0),
    }
    return batch, documents


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ISOLATED)
@torch.no_grad()
def test_packed_equals_separate(kind: str, attention: str) -> None:
    backbone = build(kind, attention=attention)
    batch, documents = packed(backbone.pad_id or 0)
    together = backbone.encode(batch).tokens[0]
    assert together.isfinite().all()
    for number, document in enumerate(documents, 1):
        mask = torch.ones(1, len(document), dtype=torch.bool)
        alone = backbone.encode({"input_ids": document[None], "attention_mask": mask}).tokens[0]
        assert torch.allclose(together[batch["document"][0] == number], alone, atol=1e-5)
    del batch["document"]
    assert not torch.allclose(backbone.encode(batch).tokens[0], together, atol=1e-3)


def per_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    begins: Tensor,
    *rest: Any,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """Attend as the kernel of a GPU does: queries (tokens, heads, width), document by document."""
    left, right = window_size
    found = []
    for start, end in itertools.pairwise(begins.tolist()):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        behind = torch.arange(end - start)[:, None] - torch.arange(end - start)
        mask = ((behind <= left) | (left < 0)) & ((-behind <= right) | (right < 0))
        found.append(F.scaled_dot_product_attention(q, k, v, mask, scale=scale).transpose(0, 1))
    return torch.cat(found)


def two_rows(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a row and another like it, whose last two documents are one."""
    rows = {name: torch.cat([field, field]) for name, field in batch.items()}
    rows["document"][1, 37:57] = 3
    rows["offsets"] = torch.cat([batch["offsets"], torch.tensor([84, 101, 121, 128])]).int()
    return rows


@pytest.mark.parametrize("kind", ISOLATED)
@torch.no_grad()
def test_packed_equals_separate_by_offsets(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build(kind, dropout=0.0)
    batch, _ = packed(backbone.pad_id or 0)
    rows = two_rows(batch)
    want = backbone.encode(rows).tokens
    monkeypatch.setattr(varlen, "is_offered", lambda *_: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", per_document)
    assert torch.equal(backbone.encode(rows).tokens, want)  # not asked for yet
    backbone.pack()
    backbone.pack()  # as each stage does
    real = rows["document"] > 0
    assert torch.allclose(backbone.encode(rows).tokens[real], want[real], atol=1e-5)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", None)
    with pytest.raises(TypeError):
        backbone.encode(rows)
    del rows["document"], rows["offsets"]
    backbone.encode(rows)  # one text to a row needs no offsets


@pytest.mark.parametrize("options", [{"attention": "sdpa"}, {"dropout": 0.1}])
def test_offsets_are_not_used_unless_they_serve(options: dict[str, Any]) -> None:
    backbone = build("bert", **options)
    backbone.pack()
    assert backbone.encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kind", ["bert", "modernbert", "gpt2", "llama"])
@torch.no_grad()
def test_what_attends_by_offsets_is_exported_as_before(kind: str, tmp_path: Path) -> None:
    backbone = build(kind, dropout=0.0)
    head = backbone.language_head()
    ids, mask = torch.randint(5, 100, (2, 20)), torch.ones(2, 20, dtype=torch.long)
    mask[1, :5] = 0
    found: list[Any] = []
    for folder in (tmp_path / "before", tmp_path / "after"):
        model = language_model(backbone, head)
        model.save_pretrained(folder)
        logits = model(input_ids=ids, attention_mask=mask).logits[mask > 0]
        found.append((logits, (folder / "config.json").read_text(encoding="utf-8")))
        backbone.pack()
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert found[0][1] == found[1][1]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ISOLATED)
def test_the_kernel_of_a_gpu_is_as_near_as_a_mask(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in bfloat16, the values and the gradients, held against a mask in float32."""
    backbone = build(kind, dropout=0.0).cuda()
    one = packed(backbone.pad_id or 0)[0]
    batch = {name: field.cuda() for name, field in two_rows(one).items()}
    real = batch["document"] > 0
    weight = backbone.encoder.get_input_embeddings().weight

    def found(half: bool) -> tuple[Tensor, Tensor]:
        weight.grad = None
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            tokens = backbone.encode(batch).tokens[real].float()
        (tokens * torch.linspace(-1, 1, tokens.shape[-1], device="cuda")).sum().backward()
        return tokens.detach(), weight.grad

    from torch.nn.attention.varlen import varlen_attn

    asked: list[Tensor] = []

    def watched(*args: Any, **options: Any) -> Any:
        asked.append(args[3])
        return varlen_attn(*args, **options)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", watched)
    exact, masked = found(False), found(True)
    assert not asked
    backbone.pack()
    assert backbone.encoder.config._attn_implementation == varlen.NAME
    by_offsets = found(True)
    for want, mask, offset in zip(exact, masked, by_offsets, strict=True):
        assert (offset - want).norm() < 1.5 * (mask - want).norm() < 0.1 * want.norm()
    assert len(asked) == backbone.encoder.config.num_hidden_layers


@pytest.mark.parametrize("kind", ISOLATED)
def test_no_gradient_flows_between_documents(kind: str) -> None:
    backbone = build(kind)
    batch, _ = packed(backbone.pad_id or 0)
    inputs: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> None:
        output.retain_grad()
        inputs.append(output)

    backbone.encoder.get_input_embeddings().register_forward_hook(keep)
    backbone.encode(batch).tokens[0, :, 0][batch["document"][0] == 2].sum().backward()
    [embedded] = inputs
    assert embedded.grad is not None
    reached = embedded.grad[0].abs().sum(-1) > 0
    assert not reached[batch["document"][0] != 2].any()
    assert reached[batch["document"][0] == 2].any()


def test_decoders_see_nothing_ahead_in_packed_rows() -> None:
    for kind in DECODERS:
        backbone = build(kind)
        batch, _ = packed(backbone.pad_id or 0)
        before = backbone.encode(batch).tokens[0, :10]
        batch["input_ids"] = batch["input_ids"].clone()
        batch["input_ids"][0, 10] = 7
        assert torch.equal(backbone.encode(batch).tokens[0, :10], before)


@pytest.mark.parametrize("kind", ["deberta-v2", "mpnet"])
def test_families_that_were_not_tested_are_refused(kind: str) -> None:
    backbone = build(kind)
    with pytest.raises(ValueError, match=rf"{kind} is none whose documents.*packing to concat"):
        backbone.encode(packed(0)[0])


def test_encoders_are_no_decoders_and_the_reverse() -> None:
    with pytest.raises(ValueError, match="bert is no causal network"):
        TextDecoder(config={"model_type": "bert", **BASE})
    backbone = TextEncoder(config={"model_type": "gpt2", **CONFIGS["gpt2"]})
    with pytest.raises(ValueError, match="gpt2 predicts no masked tokens"):
        backbone.language_head()


def test_a_decoder_classifies_by_the_last_token() -> None:
    backbone = build("gpt2")
    ids = torch.randint(5, 100, (2, 12))
    mask = torch.arange(12) < torch.tensor([[12], [7]])
    features = backbone.encode({"input_ids": ids, "attention_mask": mask})
    assert torch.equal(features.pooled, features.tokens[[0, 1], [11, 6]])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_heads_equal_those_of_transformers(kind: str, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    backbone = build(kind, config={"tie_word_embeddings": tied})
    head = backbone.language_head().eval()
    assert (head.weight is None) == tied
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.randint(5, 100, (2, 20))
    ours = logits_of(backbone, head, ids)
    language_model(backbone, head).save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if kind in DECODERS else AutoModelForMaskedLM
    loaded = auto.from_pretrained(tmp_path).eval()
    assert torch.allclose(loaded(input_ids=ids).logits, ours, atol=1e-5)
    again = type(backbone)(pretrained=str(tmp_path)).eval()
    assert torch.allclose(logits_of(again, again.language_head().eval(), ids), ours, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "llama"])
def test_heads_are_initialized_as_in_transformers(kind: str) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    wide = {"hidden_size": 256, "vocab_size": 512, "tie_word_embeddings": False}
    backbone = build(kind, config=wide)
    head = backbone.language_head()
    auto = AutoModelForCausalLM if kind in DECODERS else AutoModelForMaskedLM
    theirs = auto.from_config(backbone.encoder.config)
    out = theirs.get_output_embeddings()
    assert head.weight.std().item() == pytest.approx(out.weight.std().item(), rel=0.05)
    if kind != "llama":
        dense = (
            theirs.head.dense if kind == "modernbert" else theirs.cls.predictions.transform.dense
        )
        assert head.transform[0].weight.std().item() == pytest.approx(
            dense.weight.std().item(), rel=0.05
        )
        assert head.bias is not None
        assert not head.bias.any()
