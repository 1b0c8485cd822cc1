"""Layers whose numbers are kept in few bits, and layers that train as if theirs were.

Shapes: N rows of a weight, K columns, G blocks of a row.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK = 32  # columns that share a scale, in 4 bits
EPS = torch.finfo(torch.float32).eps  # the smallest scale that torchao takes
Layer = nn.Linear | nn.Embedding
Method = Literal["int8-dynamic", "int4", "int8-weight-only", "int4-weight-only"]


def layers(network: nn.Module, who: str) -> dict[str, Layer]:
    """Return the linear layers and embeddings of a network by name, each once.

    Args:
        network: Any network.
        who: Option or class that asks, for messages.

    Raises:
        ValueError: If it has no linear layer, or layers of other kinds hold most of its weights.
    """
    modules = dict(network.named_modules())
    # A class derived from one of them may compute something else, or be read past its forward.
    found: dict[str, Any] = {
        k: m
        for k, m in modules.items()
        if type(m) in (nn.Linear, nn.Embedding) and getattr(m, "max_norm", None) is None
    }
    if not any(isinstance(layer, nn.Linear) for layer in found.values()):
        raise ValueError(f"{who} takes linear layers and embeddings, and the network has none.")
    taken = {layer.weight for layer in found.values()}
    left: Counter[str] = Counter()  # numbers in the matrices of others
    for module in modules.values():
        own = (p for p in module.parameters(recurse=False) if p.ndim > 1 and p not in taken)
        left[type(module).__name__] += sum(p.numel() for p in own)
    if left.total() > sum(weight.numel() for weight in taken):
        [(kind, _)] = left.most_common(1)
        method = "int8-static" if kind.startswith("Conv") and kind[-1] == "d" else "int8-dynamic"
        raise ValueError(
            f"{who} leaves layers such as {kind} alone, which hold most weights here: take "
            f"--format onnx --quantize {method}."
        )
    return found


def bits(method: str, columns: int) -> int:
    """Return the bits of a number: where a row is no multiple of a block, torchao takes 8 for 4."""
    return 4 if method == "int4" or (method == "int4-weight-only" and columns % BLOCK == 0) else 8


class Integers(nn.Module):
    """A weight that has 8 bits, or 4 of which two share a byte.

    Args:
        values: Integers, (N, K) int8, or (N, K / 2) uint8 of :func:`pack`.
        scales: What they are multiples of, (N, G).
    """

    values: Tensor
    scales: Tensor

    def __init__(self, values: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:
        """The weight, (N, K), for those that read it past the layer."""
        return unpack(self.values, self.scales)


class IntegerLinear(Integers):
    """A linear layer whose weight is made anew in each call, and gone after it.

    Args:
        values: As of :class:`Integers`.
        scales: Likewise.
        bias: Shape (N,), or None.
    """

    bias: Tensor | None

    def __init__(self, values: Tensor, scales: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(values, scales)
        self.register_buffer("bias", bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the layer makes of its inputs."""
        if self.values.dtype == torch.uint8:
            return F.linear(inputs, self.weight, self.bias)
        # Scaling the outputs instead leaves one pass over the weight.
        outputs = F.linear(inputs, self.values.to(inputs.dtype)) * self.scales.flatten()
        return outputs if self.bias is None else outputs + self.bias


class IntegerEmbedding(Integers):
    """An embedding of which only the rows that are looked up become floats."""

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of ids."""
        return unpack(F.embedding(ids, self.values), F.embedding(ids, self.scales))


def pack(values: Tensor) -> Tensor:
    """Return integers of 4 bits, (N, K) in -8 to 7, two in a byte: those K / 2 apart."""
    low, high = (values + 8).to(torch.uint8).chunk(2, 1)
    return low | high << 4


def unpack(values: Tensor, scales: Tensor) -> Tensor:
    """Return the floats of integers, (..., K), by the scales of their blocks, (..., G)."""
    if values.dtype == torch.uint8:
        values = torch.cat([values & 15, values >> 4], -1).to(torch.int8) - 8
    count = scales.shape[-1]
    blocks = values.to(scales.dtype).view(*values.shape[:-1], count, values.shape[-1] // count)
    return blocks.mul_(scales.unsqueeze(-1)).flatten(-2)  # in place: no second copy in floats


class _Straight(torch.autograd.Function):
    """Takes other values, and passes the gradient by.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for
        Conditional Computation, 2013. https://arxiv.org/abs/1308.3432
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rounded: Tensor) -> Tensor:
        return rounded.to(inputs.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0], None


def _straight(inputs: Tensor, rounded: Tensor) -> Tensor:
    outputs: Tensor = _Straight.apply(inputs, rounded)
    return outputs


def fake_rows(rows: Tensor, method: str) -> Tensor:
    """Round rows of a weight to what an export has of them; their gradient passes by.

    Args:
        rows: Shape (..., K).
        method: ``int8-dynamic`` has a scale for each row, of which the largest number is 127 times;
            ``int4`` one for each block, of which the largest is -8 times, as in onnxruntime;
            ``int8-weight-only`` and ``int4-weight-only`` likewise for rows and blocks, of which
            the largest is 127.5 and 7.5 times, as in torchao.
    """
    x = rows.detach().float()
    columns = x.shape[-1]
    few = bits(method, columns)
    if few == 4:
        x = F.pad(x, (0, -columns % BLOCK))
        x = x.view(*x.shape[:-1], -1, BLOCK)
    low, high = -(2 ** (few - 1)), 2 ** (few - 1) - 1
    largest = x.abs().amax(-1, keepdim=True)
    if method == "int4":
        signed = x.gather(-1, x.abs().argmax(-1, keepdim=True))
        scale = signed / low
    elif method == "int8-dynamic":
        scale = largest / high
    else:
        scale = (largest / (high + 0.5)).clamp(min=EPS)
    scale = torch.where(scale == 0, 1.0, scale)
    # The largest number lies half-way between two integers in torchao: it takes a product.
    steps = x * (1.0 / scale) if method.endswith("weight-only") else x / scale
    rounded = steps.round().clamp(low, high) * scale
    return _straight(rows, rounded.flatten(-2)[..., :columns] if few == 4 else rounded)


def fake_tensor(inputs: Tensor, of: Tensor | None = None) -> Tensor:
    """Round to 256 steps from the least number to the largest, 0 among them; gradients pass by.

    Args:
        inputs: Activations, or rows of an embedding.
        of: What the range is that of, if not of the inputs: the embedding.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference, 2017. https://arxiv.org/abs/1712.05877
    """
    x = inputs.detach().float()
    least, most = torch.aminmax((x if of is None else of.detach()).float())
    least, most = least.clamp(max=0), most.clamp(min=0)
    scale = (most - least) / 255
    scale = torch.where(scale == 0, 1.0, scale)
    zero = (-least / scale).round().clamp(0, 255)
    return _straight(inputs, (((x / scale).round() + zero).clamp(0, 255) - zero) * scale)


class Fake:
    """The forward of a layer in training for fewer bits, which it has as an attribute.

    So its class, its parameters and their names stay what they are. A layer that does not learn is
    rounded too, as an export will round it: the others learn to make up for it.

    Args:
        layer: Linear layer or embedding.
        method: As of :func:`fake_rows`.
    """

    def __init__(self, layer: Layer, method: str) -> None:
        self.layer, self.method = layer, method

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs of the layer with rounded weights and, of 8 bits, inputs."""
        layer, method = self.layer, self.method
        dynamic = method == "int8-dynamic"
        if isinstance(layer, nn.Linear):
            inputs = fake_tensor(inputs) if dynamic else inputs
            return F.linear(inputs, fake_rows(layer.weight, method), layer.bias)
        rows = nn.Embedding.forward(layer, inputs)
        return fake_tensor(rows, layer.weight) if dynamic else fake_rows(rows, method)


def put_fakes(found: dict[str, Layer], method: str) -> None:
    """Have layers compute as if their numbers had few bits."""
    for layer in found.values():
        fake: Callable[[Tensor], Tensor] = Fake(layer, method)
        layer.__dict__["forward"] = fake


def remove_fakes(found: dict[str, Layer]) -> None:
    """Have layers compute what they did before."""
    for layer in found.values():
        layer.__dict__.pop("forward", None)
