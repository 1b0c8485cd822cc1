"""Which families of ``transformers`` are text encoders: what works is used so, the rest refused."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.export.command import traced
from lit_foundry.nn import LinearHead, TextDecoder, TextEncoder, restoring
from lit_foundry.nn.text.network import TextNetwork

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
DENSE: dict[str, Any] = {}
ENCODERS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "bert": DENSE,
    "bert-generation": DENSE,
    "big_bird": DENSE,
    "camembert": DENSE,
    "data2vec-text": DENSE,
    "deberta": DENSE,
    "deberta-v2": DENSE,
    "distilbert": {"hidden_dim": 48},
    "electra": {"embedding_size": 16},
    "ernie": DENSE,
    "esm": DENSE,
    "eurobert": DENSE,
    "flaubert": DENSE,
    "ibert": DENSE,
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 8},
    "megatron-bert": DENSE,
    "mobilebert": {
        "embedding_size": 16,
        "intra_bottleneck_size": 16,
        "num_feedforward_networks": 1,
    },
    "modernbert": DENSE,
    "mpnet": DENSE,
    "nomic_bert": DENSE,
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roberta": DENSE,
    "roberta-prelayernorm": DENSE,
    "roformer": {"embedding_size": 16},
    "squeezebert": {"embedding_size": 32},  # its width everywhere
    "xlm": DENSE,
    "xlm-roberta": DENSE,
    "xlnet": {"d_inner": 48, "d_head": 8},
}
DECODERS: dict[str, dict[str, Any]] = {
    "bloom": DENSE,
    "codegen": {"rotary_dim": 4},
    "falcon": DENSE,
    "gemma2": DENSE,
    "gemma3_text": DENSE,
    "gpt2": DENSE,
    "gpt_bigcode": DENSE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": DENSE,
    "gptj": {"rotary_dim": 4},
    "llama": DENSE,
    "mamba": DENSE,
    "mistral": DENSE,
    "mpt": DENSE,
    "olmo2": DENSE,
    "openai-gpt": DENSE,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": DENSE,
    "qwen2": DENSE,
    "qwen3": DENSE,
    "rwkv": DENSE,
    "stablelm": DENSE,
}
LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
LAYERS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
# Of these the encoder is taken.
PAIRS: dict[str, dict[str, Any]] = {
    "bart": LAYERS,
    "marian": LAYERS,
    "mbart": LAYERS,
    "pegasus": LAYERS,
    "t5": {"d_ff": 48, "d_kv": 8, "num_decoder_layers": 2},
}
FAMILIES = ENCODERS | DECODERS | PAIRS
OTHERS = {
    "perceiver": {"d_latents": 32, "num_latents": 4, "num_blocks": 1},
    "reformer": {"axial_pos_embds_dim": [16, 16]},
}
# By what is said of them.
REFUSED: dict[str, str] = {
    "convbert": "takes padding for text",
    "fnet": "takes padding for text",
    "nystromformer": "takes padding for text",
    "yoso": "takes padding for text",
    "mra": "has no token attend to another here",  # its kernel is for GPUs
    "funnel": "of any length",
    "perceiver": "from tokens alone",
    "reformer": "axial_pos_",
    "xmod": "language unknown",
    "canine": "is no text encoder",
    "fsmt": "has no encoder that stands alone",
}


def config_of(family: str) -> dict[str, Any]:
    cls = transformers.CONFIG_MAPPING[family]
    known = {*cls.__dataclass_fields__, *cls.attribute_map}
    sizes = {key: value for key, value in SIZES.items() if key in known}
    return {"model_type": family} | sizes | (FAMILIES | OTHERS).get(family, {})


@cache
def built(family: str) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(config=config_of(family), vocab_size=60, pad_id=0)


@pytest.fixture
def texts() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.arange(9) < torch.tensor([[9], [5], [1]])
    return torch.randint(4, 60, (3, 9)).masked_fill(~mask, 0), mask


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_pools_what_tells_texts_apart_whatever_their_padding(
    family: str, texts: tuple[Tensor, Tensor]
) -> None:
    encoder, (ids, mask) = built(family).eval(), texts
    features = encoder(ids, mask)
    assert features.pooled.shape == (3, encoder.dim)
    for row, size in ((1, 5), (2, 1)):
        alone = encoder(ids[row : row + 1, :size], mask[row : row + 1, :size]).pooled
        torch.testing.assert_close(features.pooled[row : row + 1], alone, atol=1e-4, rtol=1e-4)
    for place in (0, 8):  # of the longest text, its ends
        other = ids.clone()
        other[0, place] = 4 + (ids[0, place] - 3) % 56
        assert not torch.equal(encoder(other, mask).pooled[0], features.pooled[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_all_that_learns_in_a_family_has_a_gradient(
    family: str, texts: tuple[Tensor, Tensor]
) -> None:
    encoder = built(family).train()
    head = encoder.classifier(3)
    encoder.zero_grad()
    head(encoder(*texts)).pow(2).sum().backward()
    named = [*encoder.named_parameters(), *head.named_parameters()]
    assert [name for name, p in named if p.requires_grad and p.grad is None] == []
    blocks = encoder.blocks()
    assert len(blocks) == 3 - (family == "albert")  # which shares its layers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_takes_texts_as_long_as_it_says(family: str) -> None:
    encoder = built(family).eval()
    ids = torch.full((1, min(encoder.max_length, 50)), 5)
    assert encoder(ids, torch.ones_like(ids, dtype=torch.bool)).tokens.shape == (*ids.shape, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_rebuilt_from_its_recipe(family: str, texts: tuple[Tensor, Tensor]) -> None:
    encoder = built(family).eval()
    args = encoder.recipe()["init_args"]
    with restoring():
        again = TextEncoder(**args).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(*texts).pooled, encoder(*texts).pooled)
    assert again.recipe() == encoder.recipe()


@pytest.mark.parametrize("family", DECODERS)
def test_a_causal_family_is_classified_from_its_last_token(
    family: str, texts: tuple[Tensor, Tensor]
) -> None:
    encoder, (ids, mask) = built(family).eval(), texts
    assert encoder.is_causal
    assert isinstance(encoder.classifier(2), LinearHead)
    features = encoder(ids, mask)
    assert torch.equal(features.pooled, features.tokens[[0, 1, 2], [8, 4, 0]])


@pytest.mark.parametrize("family", ENCODERS)
def test_a_family_that_reads_both_ways_is_no_decoder(family: str) -> None:
    assert not built(family).is_causal
    with pytest.raises(ValueError, match=f"model_type {family} is no causal network: take one"):
        TextDecoder(config=config_of(family))


@pytest.mark.parametrize("padding", ["left", "right"])
def test_the_last_token_is_found_on_either_side_of_padding(padding: str) -> None:
    encoder = built("llama").eval()
    ids, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool)
    sides = (4, 0) if padding == "left" else (0, 4)
    padded = nn.functional.pad(ids, sides), nn.functional.pad(mask, sides)
    torch.testing.assert_close(encoder(*padded).pooled, encoder(ids, mask).pooled)


@pytest.mark.parametrize(
    "config", [config_of("gpt2"), config_of("llama"), config_of("bert") | {"is_decoder": True}]
)
def test_the_first_token_of_a_causal_network_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model\.backbone\.pooling is first, but in a .* last or"):
        TextEncoder(config=config, pooling="first")
    assert TextEncoder(config=config, pooling="mean").pooling == "mean"
    assert TextEncoder(config=config).pooling == "last"


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_is_no_text_encoder_is_refused_in_a_line(family: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[family]) as error:
        TextEncoder(config=config_of(family), vocab_size=60, pad_id=0)
    message = str(error.value)
    assert message.startswith(f"model.backbone.config.model_type {family} ")
    assert "take one such as bert" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_of("bert") | {"hidden_size": 30}, "config builds no bert: The hidden size"),
        (config_of("bert") | {"hidden_size": "wide"}, "config is no BertConfig: .*hidden_size"),
        (config_of("gpt2") | {"hidden_size": 30}, "config builds no gpt2: .*divisible"),
        (config_of("bert") | {"hidden_dropout_prob": 1.5}, "builds no bert: dropout probability"),
    ],
)
def test_sizes_that_do_not_go_together_are_told_in_a_line(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        TextEncoder(config=config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "xlnet", "squeezebert"])
def test_a_family_learns_what_the_last_token_says(family: str) -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(config=config_of(family))
    head = encoder.classifier(2)
    ids, label = torch.randint(4, 60, (32, 6)), torch.arange(32) % 2
    ids[:, -1] = label + 4
    mask = torch.ones_like(ids, dtype=torch.bool)
    parameters = [p for p in [*encoder.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(encoder(ids, mask)), label).backward()
        optimizer.step()
    assert torch.equal(head.eval()(encoder.eval()(ids, mask)).argmax(1), label)


@pytest.mark.parametrize("family", ["gpt2", "llama", "electra"])
def test_a_family_is_traced_for_any_number_of_texts(family: str) -> None:
    encoder = built(family).eval()
    network = TextNetwork(encoder, encoder.classifier(2).eval(), [])
    shapes = {"values": network.dynamic_shapes()}
    program = torch.export.export(network, network.example(3, 17), dynamic_shapes=shapes)
    for values in (network.example(1, 8), network.example(5, 33)):
        torch.testing.assert_close(program.module()(*values), network(*values))


def test_a_network_that_cannot_be_traced_is_named() -> None:
    encoder = built("xlnet").eval()
    with (
        pytest.raises(CheckpointError, match=r"a XLNetModel cannot be traced .* safetensors"),
        traced(SimpleNamespace(backbones={"backbone": encoder}), "torch"),
    ):
        torch.export.export(encoder, (torch.ones(1, 4), "neither"))


def test_trying_a_network_leaves_the_draws_as_they_were() -> None:
    torch.manual_seed(3)
    transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config_of("bert")))
    expected = torch.rand(1)
    torch.manual_seed(3)
    TextEncoder(config=config_of("bert"))
    assert torch.equal(torch.rand(1), expected)
