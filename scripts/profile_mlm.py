"""See where a training step of masked language modelling spends its time on this device.

usage: python scripts/profile_mlm.py [--model bert-base] [--rows N] [--length N]
           [--precision bf16-mixed] [--compile] [--attention sdpa]

Rows hold packed documents of 60 to 512 random tokens, on a GPU if there is one. It is the step
alone, without Lightning's loop: ``scripts/benchmark.py mlm`` times all of it. Prints tokens per
second, the share of the device's rate of matrix products, and what took longest.
"""

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from benchmark_mlm import bert
from timing import now
from torch.profiler import ProfilerActivity, profile

from lit_foundry.data.corpus.dataset import PackedDataset
from lit_foundry.data.corpus.packing import pack
from lit_foundry.nn import TextEncoder
from lit_foundry.tasks import MaskedLM
from lit_foundry.training.device_flops import measured_flops

VOCABULARY, MASK = 30_522, 103  # of BERT
STEPS = 8


class RandomDocuments:
    """Documents of random tokens."""

    def __init__(self, count: int) -> None:
        self.lengths = np.random.default_rng(0).integers(60, 513, count)

    def ids(self, document: int, start: int = 0, stop: int | None = None) -> Any:
        """Return ids of a document."""
        length = self.lengths[document]
        return np.random.default_rng(document).integers(1000, VOCABULARY, length)[start:stop]


def batch_of(rows: int, length: int) -> dict[str, torch.Tensor]:
    """Return rows of packed documents."""
    tokens = RandomDocuments(rows * length // 100)
    documents, rng = np.arange(len(tokens.lengths)), np.random.default_rng(0)
    pieces = pack(tokens.lengths, length, 2, rng)
    every = PackedDataset(tokens, documents, 0 * documents, pieces, ([101], [102]), 0, length)
    return dict(every[range(rows)])


def main() -> None:
    """Train some steps, with and without a profiler."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("usage: ")[1].split("\n\n")[0])
    parser.add_argument("--model", choices=("bert-mini", "bert-base"), default="bert-base")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="bf16-mixed")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--attention", choices=("auto", "sdpa", "eager"), default="auto")
    options = parser.parse_args()
    cuda, half = torch.cuda.is_available(), options.precision == "bf16-mixed"
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.bfloat16 if half else torch.float
    peak = measured_flops(device, dtype)
    backbone = TextEncoder(
        config=bert(options.model), vocab_size=VOCABULARY, attention=options.attention
    )
    task = MaskedLM(backbone, compile=options.compile).to(device)
    task.special, task._mask_id = torch.zeros(VOCABULARY, dtype=torch.bool, device=device), MASK
    task.continues = task.special
    if cuda:
        backbone.pack()
    if options.compile:
        backbone.compile()
    optimizer = torch.optim.AdamW(task.parameters(), 1e-4, fused=True)
    batch = batch_of(options.rows, options.length)
    batch = {name: field.to(device) for name, field in batch.items()}

    def step() -> float:
        start = now()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = task.step(batch, "train").loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return now() - start

    first, *_ = (step() for _ in range(3))
    seconds = statistics.median(step() for _ in range(STEPS))
    rate = task.flops(batch) / seconds
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * cuda]) as profiler:
        step()
    name = torch.cuda.get_device_name() if cuda else "CPU"
    print(profiler.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=25))
    print(f"{name}, torch {torch.__version__}: the first step took {first:.1f} s, then")
    print(
        f"{1000 * seconds:.1f} ms a step, {batch['input_ids'].numel() / seconds:,.0f} tokens/s, "
        f"{rate / 1e12:.2f} of {peak / 1e12:.2f} TFLOP/s: {rate / peak:.1%}"
    )


if __name__ == "__main__":
    main()
