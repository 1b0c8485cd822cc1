"""Time lit_foundry against what one would run instead, in turn, on the same work.

usage: python scripts/benchmark.py finetune --imdb DIR [--texts N] [--batch_tokens N] [--steps N]
       python scripts/benchmark.py mlm --imdb DIR [--model bert-base] [--length N] [--steps N]
           [--precision bf16-mixed] [--compile] [--workers N]
       python scripts/benchmark.py images-pipeline --cifar10 DIR [--batch_size N] [--workers N]
           [--images N] [--steps N]
       python scripts/benchmark.py images-resnet|images-vit|images-mae (the same)
           [--precision bf16-mixed] [--compile]
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
  images-pipeline
            samples per second that CIFAR-10 yields in random order, cropped at random out of a
            padding of 4, mirrored at random and normalized, nothing decoded: of lit_foundry without
            workers, on whole batches, and of torchvision sample by sample, from images of PIL and
            from tensors, in --workers processes (2)
  images-resnet
            ResNet-18 with the stem for small images, by SGD: training samples per second of
            lit_foundry, and of a plain loop over timm's loader, optimizer, schedule and loss, in
            channels_last and not; the same network, augmentation, rates and images (--images N of
            them, 40,960 if not given, in whole batches); lit_foundry loads them without workers.
            After three steps to warm up; all are scored on 1,000 test images afterwards
  images-vit
            the same of a ViT with patches of 4 x 4, by AdamW, and of the transformers Trainer, with
            torchvision's transforms on PNG images as in its example, and on decoded ones
  images-mae
            pretraining of a masked autoencoder, the same ViT with three quarters of its patches
            hidden: training samples per second of lit_foundry, of ViTMAEForPreTraining of
            transformers in a plain loop on the same batches, and of its Trainer with torchvision's
            transforms on PNG images as in its example, and on decoded ones
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmark_finetune import FINETUNE
from benchmark_images import RESNET, VIT
from benchmark_mae import MAE
from benchmark_mlm import MLM
from benchmark_overhead import BLOCK, OVERHEAD, STARTUP
from benchmark_pipeline import PIPELINE
from rich.console import Console
from rich.table import Table
from timing import MINILM, Figures

# Of each benchmark: the figure that is compared, and the turns of a round, ours first.
BENCHMARKS: dict[str, tuple[str, list[Callable[..., dict[str, Figures]]]]] = {
    "finetune": ("tokens/s", FINETUNE),
    "mlm": ("tokens/s", MLM),
    "images-pipeline": ("samples/s", PIPELINE),
    "images-resnet": ("samples/s", RESNET),
    "images-vit": ("samples/s", VIT),
    "images-mae": ("samples/s", MAE),
    "overhead": ("ms/step", OVERHEAD),
    "startup": ("seconds", STARTUP),
}
# What options are where they are not given.
DEFAULTS = {
    "mlm": {"steps": 20, "workers": 0},
    "images-pipeline": {"steps": 50, "workers": 2, "batch_size": 512},
    "images-resnet": {"steps": 20, "workers": 2, "batch_size": 128},
    "images-vit": {"steps": 20, "workers": 2, "batch_size": 128},
    "images-mae": {"steps": 20, "workers": 2, "batch_size": 128},
    "overhead": {"steps": 2000},
}
TEXTS = ("finetune", "mlm")


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
    process = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    if process.returncode:
        sys.exit(f"Turn {turn + 1} of {benchmark} failed:\n{process.stderr[-3000:]}")
    found: dict[str, Figures] = json.loads(process.stdout.strip().splitlines()[-1])
    return found


def write_texts(benchmark: str, options: dict[str, Any], folder: Path) -> None:
    """Write the texts that all contestants train on."""
    if benchmark in TEXTS:
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
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "val.jsonl").write_text("".join(lines[:8]), encoding="utf-8")


def rounds(benchmark: str, options: dict[str, Any]) -> Iterator[tuple[str, Figures]]:
    """Yield the figures of each contestant in turn, round after round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if benchmark in (*TEXTS, "overhead"):
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
    if name in ("padding", "waiting for data", "of matrix rate", "test accuracy"):
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
    parser.add_argument("--cifar10", help="folder with train.parquet and test.parquet")
    parser.add_argument("--images", type=int, default=40_960)
    parser.add_argument("--batch_size", type=int, default=None)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--turns", type=int, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = vars(parser.parse_args())
    benchmark, file = options.pop("benchmark"), options.pop("json")
    for name, default in DEFAULTS.get(benchmark, {}).items():
        options[name] = default if options[name] is None else options[name]
    data = "imdb" if benchmark in TEXTS else "cifar10" if benchmark.startswith("images") else None
    if data and not options[data]:
        parser.error(f"{benchmark} needs --{data} DIR")
    if data:
        options[data] = str(Path(options[data]).resolve())
    if benchmark == "overhead" and options["steps"] <= 2 * BLOCK:
        parser.error(f"overhead needs more than {2 * BLOCK} steps, two turns")
    if data == "cifar10" and options["images"] < options["batch_size"]:
        parser.error("images need --images N of at least one batch")
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
        file.write_text(
            json.dumps({"options": options, "medians": medians, "rounds": found}), encoding="utf-8"
        )
    return None


if __name__ == "__main__":
    main()
