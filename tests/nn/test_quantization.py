"""Rounding of weights and activations, against formulas written out in numpy, and torchao."""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from lit_foundry.nn import TextDecoder
from lit_foundry.nn import quantization as q

Floats = NDArray[np.float32]


def weight(rows: int = 6, columns: int = 64) -> Floats:
    """Return a weight with a row of zeros, as that of padding is."""
    random = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    random[2] = 0
    return random


def by_number(row: Floats, method: str) -> list[float]:
    """Round the numbers of a row, or of a block of it, one by one."""
    largest = max(row, key=abs)
    if largest == 0:
        return [0.0] * len(row)
    low, high = (-8, 7) if "int4" in method else (-128, 127)
    scale = {
        "int4": largest / -8,
        "int8-dynamic": abs(largest) / 127,
        "int8-weight-only": abs(largest) / 127.5,
        "int4-weight-only": abs(largest) / 7.5,
    }[method]
    steps = row * (1 / scale) if "only" in method else row / scale
    return [float(scale * min(high, max(low, np.round(x)))) for x in steps]


@pytest.mark.parametrize("method", ["int4", "int8-dynamic", "int8-weight-only", "int4-weight-only"])
def test_rows_are_rounded_by_the_formula_of_each_method(method: str) -> None:
    rows = weight()
    size = 32 if "int4" in method else 64
    blocks = [[by_number(row[i : i + size], method) for i in range(0, 64, size)] for row in rows]
    expected = np.array(blocks).reshape(rows.shape)
    found = q.fake_rows(torch.from_numpy(rows), method)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_last_block_of_onnxruntime_may_be_short_and_torchao_takes_eight_bits() -> None:
    rows = weight(columns=40)
    found = q.fake_rows(torch.from_numpy(rows), "int4").numpy()
    expected = [by_number(r[:32], "int4") + by_number(r[32:], "int4") for r in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    found = q.fake_rows(torch.from_numpy(rows), "int4-weight-only").numpy()
    expected = [by_number(row, "int8-weight-only") for row in rows]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 3.0, -9.0])
def test_activations_have_256_steps_with_zero_among_them(shift: float) -> None:
    x = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32) + np.float32(shift)
    least, most = min(0.0, float(x.min())), max(0.0, float(x.max()))
    scale = (most - least) / 255
    zero = round(-least / scale)
    expected = (np.clip(np.round(x * (1 / scale)) + zero, 0, 255) - zero) * scale
    found = q.fake_tensor(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(np.unique(q.fake_tensor(torch.linspace(-1, 2, 5000)))) == 256
    assert q.fake_tensor(torch.zeros(3)).tolist() == [0, 0, 0]


def test_gradients_pass_the_rounding_by() -> None:
    inputs = torch.from_numpy(weight()).requires_grad_()
    gradient = torch.randn(6, 64)
    for rounded in (q.fake_rows(inputs, "int4"), q.fake_tensor(inputs)):
        inputs.grad = None
        rounded.backward(gradient)
        assert torch.equal(inputs.grad, gradient)  # type: ignore[arg-type]


def test_two_integers_share_a_byte() -> None:
    values = torch.arange(-8, 8).repeat(4).view(2, 32).to(torch.int8)
    packed = q.pack(values)
    assert packed.shape == (2, 16)
    assert packed.dtype == torch.uint8
    scales = torch.tensor([[0.5], [2.0]])
    assert torch.equal(q.unpack(packed, scales), values * scales)


@pytest.mark.parametrize("few", [4, 8])
def test_layers_of_integers_compute_what_their_floats_do(few: int) -> None:
    values = torch.randint(-8, 8, (6, 64), dtype=torch.int8)
    scales = torch.rand(6, 2 if few == 4 else 1)
    values = q.pack(values) if few == 4 else values
    bias, inputs, ids = torch.randn(6), torch.randn(3, 2, 64), torch.tensor([[5, 0, 5]])
    for each in (bias, None):
        linear = q.IntegerLinear(values, scales, each)
        expected = F.linear(inputs, linear.weight, each)
        torch.testing.assert_close(linear(inputs), expected)
    embedding = q.IntegerEmbedding(values, scales)
    assert torch.equal(embedding(ids), F.embedding(ids, embedding.weight))


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs lit-foundry[torchao]")
@pytest.mark.parametrize("columns", [64, 40])
@pytest.mark.parametrize("method", ["int8-weight-only", "int4-weight-only"])
def test_training_rounds_as_torchao_does(method: str, columns: int) -> None:
    from lit_foundry.export.weight_only import integers

    rows = nn.Parameter(torch.from_numpy(weight(columns=columns)))
    values, scales = integers(rows, q.bits(method, columns))
    assert values.element_size() == 1
    torch.testing.assert_close(q.unpack(values, scales), q.fake_rows(rows, method).detach())


def test_training_makes_up_for_four_bits() -> None:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(4096, 64, generator=random)
    chances = (inputs @ torch.randn(64, 3, generator=random)).softmax(1)
    labels = torch.multinomial(chances, 1, generator=random).flatten()

    def train(network: nn.Module) -> nn.Module:
        optimizer = torch.optim.Adam(network.parameters())
        for step in range(400):
            optimizer.param_groups[0]["lr"] = 0.003 * (1 - step / 400)
            rows = torch.randint(4096, (256,), generator=random)
            optimizer.zero_grad()
            F.cross_entropy(network(inputs[rows]), labels[rows]).backward()
            optimizer.step()
        return network

    def loss(network: nn.Module) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(network(inputs), labels))

    torch.manual_seed(1)
    sizes = (nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    plain = train(nn.Sequential(*sizes))
    aware = copy.deepcopy(plain)
    for network in (train(plain), aware):  # as many steps of both
        q.put_fakes(q.layers(network, ""), "int4")
    assert loss(train(aware)) < 0.7 * loss(plain)


def test_a_copy_of_a_rounding_layer_has_weights_of_its_own() -> None:
    layer = nn.Linear(64, 4)
    q.put_fakes({"": layer}, "int4")
    inputs = torch.randn(2, 64)
    before = layer(inputs)
    other = copy.deepcopy(layer)
    nn.init.zeros_(layer.weight)
    assert torch.equal(other(inputs), before)
    assert list(layer.state_dict()) == ["weight", "bias"]
    q.remove_fakes({"": other})
    assert torch.equal(other(inputs), F.linear(inputs, other.weight, other.bias))


def test_networks_that_linear_layers_are_little_of_are_refused() -> None:
    with pytest.raises(ValueError, match="X takes linear layers and embeddings, and the network"):
        q.layers(nn.Sequential(nn.Embedding(3, 4)), "X")
    with pytest.raises(ValueError, match=r"X leaves layers such as Conv2d alone.*int8-static"):
        q.layers(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(8, 2)), "X")
    gpt2 = TextDecoder(config={"model_type": "gpt2", "n_embd": 32, "n_head": 2, "n_layer": 2})
    network = nn.Sequential(gpt2.encoder.h, nn.Linear(32, 2))
    with pytest.raises(ValueError, match=r"X leaves layers such as Conv1D alone.*int8-dynamic"):
        q.layers(network, "X")
