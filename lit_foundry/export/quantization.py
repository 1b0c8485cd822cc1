"""ONNX models in fewer bits, by onnxruntime.

Shapes: B batch, C outputs.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.usage import Quantization

METHODS: tuple[str, ...] = get_args(Quantization)
CALIBRATION, ROWS = 128, 8  # training samples, and how many of them at once
BLOCK = 32  # weights that share a scale, in 4 bits
LEAST = 0.9  # share of samples on which the network in fewer bits has to agree
NEAR = 0.25  # standard deviations by which values that agree may differ
MOST_BYTES = 1.5e9  # of a model in one file

Feed = dict[str, NDArray[Any]]
Logits = Callable[[Mapping[str, Tensor]], Tensor]


def quantize(path: Path, method: str, batches: Sequence[Mapping[str, Tensor]]) -> None:
    """Replace an ONNX model by one in fewer bits.

    Weights of matrices, embeddings and convolutions have 8 bits, with a scale for each output
    channel, or 4, with one for each 32. Activations stay in float32 (``int4``), are rounded by the
    range of each batch (``int8-dynamic``: best for transformers), or by that of training samples
    (``int8-static``: what convolutions need to be faster).

    Args:
        path: The model.
        method: One of ``METHODS``.
        batches: Training samples, for ``int8-static``.

    Raises:
        CheckpointError: If it has nothing to quantize, or is too large.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference, 2017. https://arxiv.org/abs/1712.05877
    """
    import onnx

    if path.with_name(f"{path.name}.data").exists() or path.stat().st_size > MOST_BYTES:
        raise CheckpointError(f"--quantize takes models up to {MOST_BYTES / 1e9} GB.")
    model = onnx.load(str(path))
    if method != "int8-static":
        _as_products(model)
    names = of_weights(model)
    if not names:
        raise CheckpointError(f"--quantize {method}: the network has no layer that is quantized.")
    with _quiet():
        {"int8-dynamic": _dynamic, "int8-static": _static, "int4": _four_bits}[method](
            path, model, names, batches
        )


def of_weights(model: Any) -> list[str]:
    """Return the names of the operations whose second, or of a lookup first, input is a weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    place = {"MatMul": 1, "Gemm": 1, "Conv": 1, "Gather": 0}
    found = [node for node in model.graph.node if node.op_type in place]
    return [node.name for node in found if node.input[place[node.op_type]] in weights]


def _as_products(model: Any) -> None:
    """Make products with a bias plain ones: with four bits, onnxruntime takes no others.

    With ranges of each batch, it would do so itself, under names that are not asked for.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel

    graph = ONNXModel(model)
    graph.replace_gemm_with_matmul()
    graph.clean_initializers()


def _dynamic(path: Path, model: Any, names: list[str], batches: Any) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Convolutions stay as they are: onnxruntime has no fast kernel that rounds by the batch.
    sizes = {tensor.name: math.prod(tensor.dims) for tensor in model.graph.initializer}
    held = {n.name: sum(sizes.get(i, 0) for i in n.input) for n in model.graph.node}
    convolutions = {node.name for node in model.graph.node if node.op_type == "Conv"}
    chosen = [name for name in names if name not in convolutions]
    if sum(held[name] for name in chosen) < sum(held[name] for name in convolutions):
        raise CheckpointError(
            "--quantize int8-dynamic leaves convolutions alone, which hold most weights here: take "
            "int8-static."
        )
    quantize_dynamic(
        model,
        path,
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_quantize=chosen,
    )


def _static(
    path: Path, model: Any, names: list[str], batches: Sequence[Mapping[str, Tensor]]
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        feeds = iter([fed(batch) for batch in batches])

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    lookups = {node.name for node in model.graph.node if node.op_type == "Gather"}
    quantize_static(
        model,
        path,
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=[name for name in names if name not in lookups],
    )


def _four_bits(path: Path, model: Any, names: list[str], batches: Any) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    how = nbits.DefaultWeightOnlyQuantConfig(
        block_size=BLOCK,
        is_symmetric=True,
        accuracy_level=4,  # activations in 8 bits within a product
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    nodes = {node.name for node in model.graph.node if node.op_type in ("MatMul", "Gather")}
    if not nodes & {*names}:
        raise CheckpointError("--quantize int4 takes matrices, and the network has none.")
    quantizer = nbits.MatMulNBitsQuantizer(
        model, nodes_to_exclude=sorted(nodes - {*names}), algo_config=how
    )
    with np.errstate(invalid="ignore"):  # embeddings of padding are 0 over 0
        quantizer.process()
    quantizer.model.save_model_to_file(str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Let onnxruntime keep to itself what it would do otherwise."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # some of its loggers have levels of their own
    try:
        yield
    finally:
        logging.disable(level)


def fed(batch: Mapping[str, Tensor]) -> Feed:
    """Return a batch as an ONNX model takes it."""
    found = {name: value.numpy() for name, value in batch.items()}
    return {k: v.astype(np.int64) if v.dtype == np.bool_ else v for k, v in found.items()}


def calibration(data: Any, inputs: Sequence[str]) -> list[dict[str, Tensor]]:
    """Return training samples, spread evenly over the split, in batches of similar lengths."""
    samples = data.load("train")
    count = len(samples.lengths)
    rows = sorted({i * count // CALIBRATION for i in range(min(CALIBRATION, count))})
    rows.sort(key=lambda row: int(samples.lengths[row]))
    batches = [samples[rows[i : i + ROWS]] for i in range(0, len(rows), ROWS)]
    return [{name: batch[name] for name in inputs} for batch in batches]


@torch.no_grad()
def agreement(
    one: Logits, other: Logits, batches: Sequence[Mapping[str, Tensor]], predicts: str | None
) -> float:
    """Return the share of samples, or of tokens, of which two networks say the same.

    That is the most probable class, which of several classes apply, or values that differ by less
    than ``NEAR`` of the first network's standard deviation.

    Args:
        one: A network.
        other: What it is compared with.
        batches: Samples.
        predicts: Kind of what both predict.
    """
    pairs = [[logits(batch).float() for logits in (one, other)] for batch in batches]
    near = NEAR * torch.cat([pair[0] for pair in pairs]).std(0) if predicts == "value" else None
    same: list[Tensor] = []
    for batch, (mine, theirs) in zip(batches, pairs, strict=True):
        if near is not None:
            same.append(((mine - theirs).abs() <= near).view(len(mine), -1).all(1))
        elif predicts == "classes" or mine.shape[-1] == 1:
            same.append(((mine > 0) == (theirs > 0)).all(-1))
        else:
            equal = mine.argmax(-1) == theirs.argmax(-1)
            same.append(equal[batch["attention_mask"].bool()] if equal.ndim > 1 else equal)
    return float(torch.cat(same).float().mean())
