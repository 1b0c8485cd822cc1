"""Time lit_foundry against what one would run instead, in turn, on the same work.

usage: python scripts/benchmark.py finetune --imdb DIR [--texts N] [--batch_tokens N] [--steps N]
       python scripts/benchmark.py mlm --imdb DIR [--model bert-base] [--length N] [--steps N]
           [--precision bf16-mixed] [--compile] [--workers N]
       python scripts/benchmark.py overhead [--steps N]
       python scripts/benchmark.py startup
       each with --rounds N, --json FILE to keep the figures, and --turns 1 3 to run only some of
       the contestants

  finetune  MiniLM on IMDb at 512 tokens: unpadded training tokens per second of lit_foundry, and
            of the transformers Trainer with random batches and with group_by_length; the same
            weights, texts (each once, if no --steps are given), precision and optimizer, and on
            average as many texts in a step
  mlm       masked language modelling of packed reviews, from scratch: training tokens per second of
            lit_foundry, with and without what makes it fast, and of the transformers Trainer with
            its masking collator, on rows of concatenated reviews as its scripts make them, and on
            padded reviews; after three steps to warm up. With --compile, all networks are compiled;
            the rate of matrix products is measured after the run
  overhead  milliseconds per step beyond a plain PyTorch loop, on an average of word vectors
  startup   seconds from the start of `fit` on the demo to its first step, beyond imports

Contestants take turns, round after round, each in a process of its own (those of overhead in one,
block after block); medians over the rounds are printed with the ratio to the first contestant.
Needs lit-foundry[dev].
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmark_mlm import MLM
from rich.console import Console
from rich.table import Table
from timing import MINILM, Figures, Meter, fit, quiet, trainer_clock

BLOCK = 100  # steps of a turn of `overhead`: an epoch, whose end is part of the work


def text_files(batch: dict[str, int], tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Return the data section for the texts that the benchmark wrote."""
    files = {"train": "train.jsonl", "val": "val.jsonl", "tokenizer": tokenizer}
    return {"class_path": "TextFiles", "init_args": files | {"max_length": max_length} | batch}


def finetune_foundry(
    batch_tokens: int, texts: int, steps: int | None, **_: Any
) -> dict[str, Figures]:
    """Fine-tune with lit_foundry, on every text once if no steps are given."""
    backbone = {"pretrained": MINILM, "dropout": 0.0}
    config = {
        "model": {
            "class_path": "Classification",
            "init_args": {
                "backbone": {"class_path": "TextEncoder", "init_args": backbone},
                "dropout": 0.0,
                "optim": {"lr": 1e-4, "fused": True},
            },
        },
        "data": text_files({"batch_tokens": batch_tokens}, MINILM, 512),
        "trainer": quiet({"max_epochs": 1, "max_steps": steps or -1, "log_every_n_steps": 10}),
    }
    meter = Meter().install()
    watch = fit(config)
    steps = steps or watch.epoch_steps
    if steps > watch.epoch_steps:
        sys.exit(f"{texts} texts are {watch.epoch_steps} steps: ask for fewer, or for more texts.")
    rows = texts / watch.epoch_steps
    figures = meter.figures(watch.end - watch.start, steps)
    return {"lit_foundry": figures | {"rows/step": rows}}


def finetune_trainer(strategy: str, steps: int, rows: int, **_: Any) -> dict[str, Figures]:
    """Fine-tune with the transformers Trainer, with as many rows in each step."""
    import datasets
    import torch
    import transformers as hf

    from lit_foundry.sources import resolve

    folder = resolve(MINILM)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    data = datasets.load_dataset("json", data_files="train.jsonl", split="train")
    data = data.map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=512), batched=True
    )
    names = sorted(set(data["label"]))
    data = data.map(lambda row: {"labels": names.index(row["label"])})
    data = data.map(lambda row: {"length": len(row["input_ids"])}).remove_columns(["text", "label"])
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = hf.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.float32, **off
    )

    watch = trainer_clock()
    args = hf.TrainingArguments(
        "out",
        per_device_train_batch_size=rows,
        max_steps=steps,
        learning_rate=1e-4,
        max_grad_norm=1.0,
        train_sampling_strategy=strategy,
        optim="adamw_torch_fused",
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    collate = hf.DataCollatorWithPadding(tokenizer)
    trainer = hf.Trainer(model, args, train_dataset=data, data_collator=collate, callbacks=[watch])
    meter = Meter().install()
    trainer.train()
    figures = meter.figures(watch.end - watch.start, steps)
    return {f"Trainer, {strategy}": figures | {"rows/step": rows}}


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
    config = yaml.safe_load(Path("configs/demo.yaml").read_text())
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


# Of each benchmark: the figure that is compared, and the turns of a round, ours first.
BENCHMARKS: dict[str, tuple[str, list[Callable[..., dict[str, Figures]]]]] = {
    "finetune": (
        "tokens/s",
        [
            finetune_foundry,
            partial(finetune_trainer, "random"),
            partial(finetune_trainer, "group_by_length"),
        ],
    ),
    "mlm": ("tokens/s", MLM),
    "overhead": ("ms/step", [overhead]),
    "startup": ("seconds", [startup_foundry, startup_imports]),
}


def worker(benchmark: str, turn: int, options: dict[str, Any]) -> None:
    """Take a turn in this process; print the figures of its contestants as the last line."""
    found = BENCHMARKS[benchmark][1][turn](**options)
    for figures in found.values() if len(found) == 1 else ():
        figures["peak memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\n" + json.dumps(found))


def measure(benchmark: str, turn: int, options: dict[str, Any], folder: Path) -> dict[str, Figures]:
    """Take a turn in a process of its own."""
    script = Path(__file__).resolve()
    words = [sys.executable, str(script), "worker", benchmark, str(turn), json.dumps(options)]
    paths = [str(script.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if benchmark == "overhead":  # threads would wait for each other, and their waits vary
        environment["OMP_NUM_THREADS"] = "1"
    process = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"Turn {turn + 1} of {benchmark} failed:\n{process.stderr[-3000:]}")
    found: dict[str, Figures] = json.loads(process.stdout.strip().splitlines()[-1])
    return found


def write_texts(benchmark: str, options: dict[str, Any], folder: Path) -> None:
    """Write the texts that all contestants train on."""
    if benchmark in ("finetune", "mlm"):
        import numpy as np

        from lit_foundry import IMDb

        table = IMDb(MINILM, root=options["imdb"]).table("train")
        chosen = np.random.default_rng(0).choice(len(table), options["texts"], replace=False)
        rows = [(table.texts[i], (table.labels or ())[i]) for i in chosen]
    else:
        rows = [
            (f"word{i % 7} plot {i % 11} scene", ("neg", "pos")[i % 2]) for i in range(4 * BLOCK)
        ]
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "val.jsonl").write_text("".join(lines[:8]))


def rounds(benchmark: str, options: dict[str, Any]) -> Iterator[tuple[str, Figures]]:
    """Yield the figures of each contestant in turn, round after round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if benchmark != "startup":
            write_texts(benchmark, options, folder)
        for number in range(options["rounds"]):
            turns = range(len(BENCHMARKS[benchmark][1]))
            for turn in [turn - 1 for turn in options["turns"]] or turns:
                for contestant, figures in measure(benchmark, turn, options, folder).items():
                    options.setdefault("rows", round(figures.get("rows/step", 0)))  # ours
                    options["steps"] = options["steps"] or int(figures.get("steps", 0))
                    print(f"round {number + 1}, {contestant}: {shown(figures)}", file=sys.stderr)
                    yield contestant, figures


def shown(figures: Figures) -> str:
    """Say figures in a line."""
    return ", ".join(f"{name} {text(name, value)}" for name, value in figures.items())


def text(name: str, value: float) -> str:
    """Write a figure as its kind asks for."""
    if name in ("padding", "waiting for data", "of matrix rate"):
        return f"{value:.2%}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def main() -> None:
    """Run a benchmark, print its medians."""
    if sys.argv[1:2] == ["worker"]:
        return worker(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
    if {"-h", "--help"} & set(sys.argv) or len(sys.argv) < 2:
        return print(__doc__)
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("usage: ")[1].split("\n\n")[0])
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--imdb", help="folder of IMDb, as data.root takes it")
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--batch_tokens", type=int, default=8192)
    parser.add_argument("--model", choices=("bert-mini", "bert-base"), default="bert-mini")
    parser.add_argument("--length", type=int, default=128)
    precisions = "32-true", "bf16-mixed"
    parser.add_argument("--precision", choices=precisions, default=precisions[0])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--turns", type=int, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = vars(parser.parse_args())
    benchmark, file = options.pop("benchmark"), options.pop("json")
    if benchmark in ("finetune", "mlm") and not options["imdb"]:
        parser.error(f"{benchmark} needs --imdb DIR")
    if benchmark == "mlm":
        options["steps"] = options["steps"] or 20
    if options["imdb"]:
        options["imdb"] = str(Path(options["imdb"]).resolve())
    if benchmark == "overhead":
        options["steps"] = options["steps"] or 2000
        if options["steps"] <= 2 * BLOCK:
            parser.error(f"overhead needs more than {2 * BLOCK} steps, two turns")
    found: dict[str, list[Figures]] = {}
    for contestant, figures in rounds(benchmark, options):
        found.setdefault(contestant, []).append(figures)
    medians = {
        contestant: {name: statistics.median(f[name] for f in all_) for name in all_[0]}
        for contestant, all_ in found.items()
    }
    key, first = BENCHMARKS[benchmark][0], next(iter(medians.values()))
    table = Table(title=f"{benchmark}: medians of {options['rounds']} rounds", title_justify="left")
    for column in ("", *first, "lit_foundry / this", "lit_foundry - this"):
        table.add_column(column, justify="right" if column else "left")
    for contestant, figures in medians.items():
        cells = [text(name, figures[name]) if name in figures else "" for name in first]
        ratio, more = first[key] / figures[key], first[key] - figures[key]
        table.add_row(contestant, *cells, f"{ratio:.2f}", text(key, more))
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    if file:
        file.write_text(json.dumps({"options": options, "medians": medians, "rounds": found}))
    return None


if __name__ == "__main__":
    main()
