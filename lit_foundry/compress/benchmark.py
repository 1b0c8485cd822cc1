"""Measure what checkpoints and exported folders cost: size, operations, memory, latency.

Shapes: B batch, T tokens.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from lit_foundry.compress.artifact import CHECKPOINT, Artifact, open_artifact, weights
from lit_foundry.compress.command import machine, parsed, show, write
from lit_foundry.compress.memory import growth
from lit_foundry.nn.image.backbone import random_images
from lit_foundry.usage import OWN_HELP, Parser, UsageError

BATCHES = (1, 32)
SIZE = 128  # tokens of a row, where that is not told
REPEATS = 50
WARM_UP = 3  # calls before the first round
PAUSE = 0.01  # seconds before a turn, in which the threads of another library stop waiting for work
COUNTED = (CHECKPOINT, "hf", "safetensors", "torch")  # formats whose operations torch sees


@dataclass(frozen=True)
class Latency:
    """How long a batch takes.

    Attributes:
        median_ms: Median over the rounds, in milliseconds.
        p95_ms: 95th percentile.
        ratio: To the first artifact: median of the ratios in each round.
        ratio_before: To the artifact before, likewise.
    """

    median_ms: float
    p95_ms: float
    ratio: float
    ratio_before: float


@dataclass(frozen=True)
class Measured:
    """What an artifact costs.

    Attributes:
        path: The artifact.
        format: Format of the export, or ``checkpoint``.
        parameters: Number of parameters.
        bytes: Size of the weights.
        files: Names of the files that these are; none of a checkpoint, whose tensors are counted.
        multiply_adds: Of one sample; None where torch does not run the network itself.
        peak_memory: Bytes by which a fresh process grows that loads it and runs a batch of the
            largest size.
        latency: By batch size.
        size: Tokens of a row; None of images.
        inputs: Split that the inputs are samples of, or ``random``.
    """

    path: str
    format: str
    parameters: int
    bytes: int
    files: list[str]
    multiply_adds: int | None
    peak_memory: int
    latency: dict[int, Latency]
    size: int | None
    inputs: str


def main(args: list[str]) -> None:
    """Run the command."""
    parser = Parser("benchmark", OWN_HELP["benchmark"])
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--size", type=int)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    given, changes = parsed(parser, args)
    numbers = {"batch": min(given.batch), "size": given.size, "repeats": given.repeats}
    for key, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"--{key} must be at least 1, got {number}.")
    found = benchmark(given.paths, given.batch, given.size, given.repeats, changes, given.modules)
    show([row for each in found for row in rows_of(each)], [*_notes(found, given), machine()])
    options = {"batch": given.batch, "size": given.size, "repeats": given.repeats}
    write(given.output, {**options, "artifacts": [asdict(each) for each in found]})


def benchmark(
    paths: Sequence[Path],
    batches: Sequence[int] = BATCHES,
    size: int | None = None,
    repeats: int = REPEATS,
    changes: Mapping[str, Any] | None = None,
    modules: Sequence[str] = (),
    beside: Sequence[Path] = (),
) -> list[Measured]:
    """Measure artifacts; their latencies in turn, so that a busy machine slows all alike.

    Args:
        paths: Checkpoints, or folders that ``export`` wrote.
        batches: Batch sizes B.
        size: Tokens of each row; None takes 128, or as many as all of them take.
        repeats: Rounds of each batch size.
        changes: Arguments of the data that are set otherwise, such as ``root``.
        modules: Those that classes of one's own lie in.
        beside: Artifacts that take their turns before these, and are not returned.

    Raises:
        UsageError: If an artifact takes fewer tokens.
        CheckpointError: If there is no such artifact.
    """
    artifacts = [open_artifact(path) for path in (*beside, *paths)]
    for each in artifacts:
        if each.format == CHECKPOINT and each.predicts is None:
            raise UsageError(
                f"{each.path} holds {each.holds}, which no one calls as it is: export it, and "
                "measure the export."
            )
    data = [artifact.data(changes or {}) for artifact in artifacts]
    tokens = _tokens(artifacts, data, size)
    pairs = [*zip(artifacts, data, strict=True)]
    inputs = {rows: [_inputs(*pair, rows, tokens) for pair in pairs] for rows in batches}
    times: dict[int, list[list[float]]] = {}
    for rows, fields in inputs.items():
        runs = [_call(a, batch) for a, (batch, _) in zip(artifacts, fields, strict=True)]
        times[rows] = _in_turn(runs, repeats, f"Batches of {rows}")
    measured = []
    for number, artifact in enumerate(artifacts[len(beside) :], len(beside)):
        parameters, size_of, files = weights(artifact.path)
        batch, source = inputs[max(batches)][number]
        before = max(number - 1, 0)
        latency = {rows: _latency(t[number], t[0], t[before]) for rows, t in times.items()}
        measured.append(
            Measured(
                path=str(artifact.path),
                format=artifact.format,
                parameters=parameters,
                bytes=size_of,
                files=files,
                multiply_adds=_multiply_adds(artifact, {k: v[:1] for k, v in batch.items()}),
                peak_memory=growth(artifact.path, batch, modules),
                latency=latency,
                size=tokens if "input_ids" in artifact.inputs else None,
                inputs=source,
            )
        )
    return measured


def _tokens(artifacts: Sequence[Artifact], data: Sequence[Any], size: int | None) -> int:
    """Return the tokens of each row, which are the same of all.

    Raises:
        UsageError: If one takes fewer.
    """
    limits = [each.facts.get("max_length") for each in data]
    most = {a.path: m for a, m in zip(artifacts, limits, strict=True) if m is not None}
    if size is None:
        size = min([SIZE, *most.values()])
    for path, limit in most.items():
        if size > limit:
            raise UsageError(f"--size {size}: {path} takes {limit} tokens at most.")
    return size


def _inputs(artifact: Artifact, data: Any, rows: int, size: int) -> tuple[dict[str, Tensor], str]:
    """Return a batch, and the split that it is from, or ``random`` where none can be read."""
    for split in ("test", "val"):
        try:
            samples = data.load(split)
        except (ValueError, OSError):
            continue
        batch = samples[[row % len(samples.lengths) for row in range(rows)]]
        batch = {name: batch[name] for name in artifact.inputs if name in batch}
        return (_filled(batch, size) if "input_ids" in batch else batch), split
    names = [name for name in artifact.inputs if name in data.batch_fields]
    return {name: _random(name, data.facts, rows, size) for name in names}, "random"


def _filled(batch: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """Give each row exactly so many tokens: its own, over and over."""
    lengths = batch["attention_mask"].sum(1).clamp(min=1).tolist()

    def filled(field: Tensor) -> Tensor:
        pairs = zip(field, lengths, strict=True)
        return torch.stack([row[:n].repeat(-(-size // n))[:size] for row, n in pairs])

    return {name: filled(field) for name, field in batch.items()}


def _random(name: str, facts: Mapping[str, int], rows: int, size: int) -> Tensor:
    if name == "pixel_values":
        return random_images(rows, facts["in_channels"], facts["image_size"])
    if name == "input_ids":
        random = torch.Generator().manual_seed(rows * 10_000 + size)
        return torch.randint(facts["vocab_size"], (rows, size), generator=random)
    if name.endswith("mask"):
        return torch.ones(rows, size, dtype=torch.bool)
    return torch.zeros(rows, size, dtype=torch.long)


def _call(artifact: Artifact, batch: Mapping[str, Tensor]) -> Callable[[], object]:
    return lambda: artifact.logits(batch)


@torch.inference_mode()
def _in_turn(runs: Sequence[Callable[[], object]], repeats: int, title: str) -> list[list[float]]:
    """Return the seconds of each call in each round."""
    for run in runs:
        for _ in range(WARM_UP):
            run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in tqdm(range(repeats), desc=title, unit="round", disable=None):
        for run, mine in zip(runs, times, strict=True):
            time.sleep(PAUSE)
            run()  # what others left in the caches goes
            start = time.perf_counter()
            run()
            mine.append(time.perf_counter() - start)
    return times


def _latency(times: Sequence[float], *others: Sequence[float]) -> Latency:
    seconds = np.array(times)
    median, p95 = np.percentile(seconds, [50, 95]) * 1000
    ratios = (float(np.median(seconds / np.array(other))) for other in others)
    return Latency(float(median), float(p95), *ratios)


@torch.no_grad()
def _multiply_adds(artifact: Artifact, sample: Mapping[str, Tensor]) -> int | None:
    if artifact.format.split()[0] not in COUNTED:  # before how it was quantized
        return None
    # On a CPU, torch counts the fused attention as nothing.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        artifact.logits(sample)
    return int(counter.get_total_flops()) // 2


def rows_of(each: Measured) -> Iterable[dict[str, str]]:
    """Yield a line of the table for each batch size, with what all share in the first."""
    row = {
        "artifact": each.path,
        "format": each.format,
        "parameters": f"{each.parameters:,}",
        "weights MB": f"{each.bytes / 1e6:,.2f}",
        "MMAC": "" if each.multiply_adds is None else f"{each.multiply_adds / 1e6:,.1f}",
        "peak MB": f"{each.peak_memory / 1e6:,.1f}",
    }
    for rows, latency in each.latency.items():
        row |= {"batch": f"{rows}", "median ms": f"{latency.median_ms:,.2f}"}
        yield row | {"p95 ms": f"{latency.p95_ms:,.2f}", "ratio": f"{latency.ratio:.2f}"}
        row = {}


def _notes(found: Sequence[Measured], given: Any) -> list[str]:
    sizes = {each.size for each in found if each.size is not None}
    size = f" of {sizes.pop()} tokens" if sizes else ""
    inputs = ", ".join(sorted({each.inputs for each in found}))
    files = dict.fromkeys(name for each in found for name in each.files)
    of_files = f", of an export {', '.join(files)}" if files else ""
    return [
        f"Inputs: rows{size} ({inputs}), {given.repeats} rounds in turn. ratio: of the latency to "
        "the first artifact's, median over the rounds.",
        f"weights MB: of a checkpoint the tensors of its state_dict{of_files}.",
        "MMAC: million multiply-adds of one sample. peak MB: growth of a process that loads the "
        f"artifact and runs a batch of {max(given.batch)}.",
    ]
