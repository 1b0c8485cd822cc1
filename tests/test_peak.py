"""Utilization divides what a network needs by what the device does."""

import pytest
import torch

from lit_foundry.nn import TextDecoder, TextEncoder
from lit_foundry.peak import measured_flops, peak_flops
from lit_foundry.tasks import CausalLM, MaskedLM

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
