"""Utilization divides what a network needs by what the device does."""

import pytest
import torch

from lit_foundry.nn import TextDecoder, TextEncoder
from lit_foundry.nn.text.packed_attention import attended, isolated
from lit_foundry.tasks import CausalLM, MaskedLM
from lit_foundry.training.device_flops import measured_flops, peak_flops

BERT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 256,
}
GPT = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 2, "n_positions": 64}


def test_peak_is_measured_once_and_plausible() -> None:
    cpu = torch.device("cpu")
    rate = measured_flops(cpu, torch.float32)
    assert 1e9 < rate < 1e14
    assert peak_flops(cpu, torch.float32) == peak_flops(cpu, torch.float32)


@pytest.mark.parametrize("causal", [False, True])
def test_operations_are_those_of_all_matrices(causal: bool) -> None:
    rows, size, width, layers, vocab = 3, 32, 64, 3, 500
    task: MaskedLM | CausalLM
    if causal:
        task = CausalLM(TextDecoder(config=GPT, vocab_size=vocab))
        head, places = vocab * width, size
    else:
        task = MaskedLM(TextEncoder(config=BERT, vocab_size=vocab))
        head, places = vocab * width + width * width, round(0.15 * size)
    matrices = layers * 12 * width * width
    attention = layers * 2 * width * size
    want = 6 * rows * (size * (matrices + attention) + places * head)
    batch = {"input_ids": torch.zeros(rows, size, dtype=torch.long)}
    assert task.flops(batch) == pytest.approx(want)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
    ],
)
def test_a_known_gpu_has_the_rate_of_its_datasheet(
    name: str, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops.__wrapped__(torch.device("cuda"), torch.bfloat16) == rate


@pytest.mark.parametrize(
    ("kind", "options", "want"),
    [
        ("modernbert", {"global_attn_every_n_layers": 3, "local_attention": 8}, [32, 9, 9]),
        ("mistral", {"sliding_window": 8, "num_key_value_heads": 1}, [8, 8, 8]),
        ("bert", {}, [32, 32, 32]),
    ],
)
def test_layers_with_windows_attend_to_these_alone(
    kind: str, options: dict[str, int], want: list[int]
) -> None:
    network = TextDecoder if kind == "mistral" else TextEncoder
    sizes = {key: BERT[key] for key in BERT if key != "model_type"}
    task = network(config={"model_type": kind, **sizes, **options}, vocab_size=9, pad_id=0)
    config = task.encoder.config
    assert attended(config, 32) == want
    assert attended(config, 4) == [4, 4, 4]
    masks = isolated(config, torch.ones(1, 32, dtype=torch.long), torch.float32)
    mask = masks["sliding_attention"] if isinstance(masks, dict) else masks
    assert int(mask[0, 0].sum(-1).max()) == want[-1]


def test_albert_applies_its_one_layer_many_times() -> None:
    config = {**BERT, "model_type": "albert", "embedding_size": 16}
    batch = {"input_ids": torch.zeros(1, 32, dtype=torch.long)}
    one, three = (
        MaskedLM(TextEncoder(config=config | {"num_hidden_layers": n}, vocab_size=500)).flops(batch)
        for n in (1, 3)
    )
    assert three - one == 6 * 32 * 2 * (12 * 64 * 64 + 2 * 64 * 32)
