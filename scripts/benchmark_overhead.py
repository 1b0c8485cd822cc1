"""Contestants of ``scripts/benchmark.py``, ``overhead`` and ``startup``."""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from timing import Figures, fit, quiet, text_files

BLOCK = 100  # steps of a turn of `overhead`: an epoch, whose end is part of the work


def overhead(steps: int, **_: Any) -> dict[str, Figures]:
    """Time blocks of steps of lit_foundry's loop, all that a run records included, and plain ones.

    Both take turns in one process, block after block: a step takes a few milliseconds, and the
    speed of a machine drifts by more than what is measured from one second to the next.
    """
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    task = {"backbone": {"class_path": "word_average.WordAverage"}, "optim": {"lr": 1e-3}}
    tokenizer = {"kind": "wordpiece", "vocab_size": 400}
    plain, parameters = plain_steps()
    advance: Callable[..., None] = _TrainingEpochLoop.advance
    ours, theirs = [], []
    count, since = 0, 0.0

    def advance_in_turn(*args: Any) -> None:
        nonlocal count, since
        if count % BLOCK == 0:
            now = time.perf_counter()
            ours.append(now - since)
            plain()
            since = time.perf_counter()
            theirs.append(since - now)
        count += 1
        advance(*args)

    _TrainingEpochLoop.advance = advance_in_turn  # type: ignore[method-assign]
    watch = fit(
        {
            "model": {"class_path": "Classification", "init_args": task},
            "data": text_files({"batch_size": 4}, tokenizer, 16),
            "trainer": quiet({"max_steps": steps}),
        }
    )
    if watch.parameters != parameters:
        sys.exit(f"Two networks: {watch.parameters} and {parameters} parameters.")
    # The first block of each warms up; before it, the time of ours is that of starting.
    found = {"lit_foundry": ours[2:], "plain loop": theirs[1:]}
    return {
        name: {
            "ms/step": statistics.median(blocks) / BLOCK * 1e3,
            "steps": steps,
            "parameters": parameters,
        }
        for name, blocks in found.items()
    }


def plain_steps() -> tuple[Callable[[], None], int]:
    """Return a plain loop of one block's steps, with batches at hand, and its parameters."""
    import torch
    import torch.nn.functional as F
    from word_average import WordAverage

    from lit_foundry import TextFiles, TrainTokenizer

    data = TextFiles(
        TrainTokenizer(vocab_size=400), "train.jsonl", "val.jsonl", max_length=16, batch_size=4
    )
    batches = list(data.train_dataloader())[:BLOCK]
    encoder = WordAverage()
    head = encoder.classifier(2, 0.0)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, fused=True)  # as ours is

    def train() -> None:
        for batch in batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(head(encoder.encode(batch)), batch["label"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()

    return train, sum(p.numel() for p in parameters)


def startup_foundry(**_: Any) -> dict[str, Figures]:
    """Time the demo from the start of the process to the first batch; its data are cached."""
    import psutil
    import yaml

    os.chdir(Path(__file__).parents[1])
    config = yaml.safe_load(Path("configs/demo.yaml").read_text(encoding="utf-8"))
    config["trainer"] |= {"max_steps": 1, "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as runs:
        config["trainer"]["default_root_dir"] = runs
        os.chdir(runs)
        watch = fit(config)
    return {"lit_foundry": {"seconds": watch.first - psutil.Process().create_time()}}


def startup_imports(**_: Any) -> dict[str, Figures]:
    """Time the imports that fine-tuning a text encoder with LightningCLI cannot do without."""
    import psutil

    for name in ("lightning.pytorch.cli", "transformers"):
        import_module(name)
    return {"imports alone": {"seconds": time.time() - psutil.Process().create_time()}}


OVERHEAD: list[Callable[..., dict[str, Figures]]] = [overhead]
STARTUP: list[Callable[..., dict[str, Figures]]] = [startup_foundry, startup_imports]
