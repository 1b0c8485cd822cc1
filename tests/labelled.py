"""Tiny data whose labels are values, several classes, or tags of words, and configs for them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.conftest import tiny_config, write_config

SIGNS = {"warm": 2.0, "cold": -2.0, "wet": 0.5, "dry": -0.5}
TOPICS = {"goal": "sport", "paint": "art", "vote": "law"}
COLOURS = ["red", "green", "blue"]
FILLERS = ["the", "a", "we", "saw", "then", "near", "by", "of", "old", "new"]


def records(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Make rows whose words give their labels away."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for _ in range(count):
        words = rng.choice(FILLERS, rng.integers(3, 12)).tolist()
        if kind == "tags":
            tags = ["O"] * len(words)
            place = int(rng.integers(len(words)))
            if rng.random() < 0.5:
                words[place:place], tags[place:place] = ["ada", "byron"], ["B-PER", "I-PER"]
            else:
                words[place:place], tags[place:place] = ["paris"], ["B-LOC"]
            rows.append({"text": words, "label": tags})
            continue
        signs = SIGNS if kind.startswith("value") else TOPICS
        some = [name for name in signs if rng.random() < 0.5]
        text = " ".join(rng.permutation(words + some).tolist())
        if kind == "classes":
            rows.append({"text": text, "label": [TOPICS[name] for name in some]})
        else:
            value = 100 + 10 * sum(SIGNS[name] for name in some)
            rows.append({"text": text, "label": value, "other": len(some)})
    return rows


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text_config(folder: Path, task: str, target: str, **changes: Any) -> Path:
    """Write 192 training and 32 test rows, and a config that learns them; return its path."""
    for seed, (name, count) in enumerate({"train": 192, "test": 32}.items()):
        write(folder / f"{name}.jsonl", records(target, count, seed))
    config = tiny_config(folder)
    config["model"]["class_path"] = task
    config["model"]["init_args"]["optim"] = {"lr": 5e-3, "warmup": 0.1}
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    config["data"]["init_args"] |= {**files, "target": target, **changes}
    config["trainer"]["max_epochs"] = 12
    return write_config(folder / "tiny.yaml", config)


def image_config(folder: Path, task: str, target: str) -> Path:
    """Write 48 images and a config that learns which of three colours they have."""
    rng = np.random.default_rng(0)
    for name, count in {"train": 48, "test": 16}.items():
        rows = []
        for i in range(count):
            there = rng.random(3) < 0.5
            pixels = rng.integers(0, 64, (8, 8, 3)) + 190 * there
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}{i}.png")
            label: Any = [COLOURS[c] for c in np.flatnonzero(there)]
            if target == "value":
                label = 1000 + 10 * len(label)
            rows.append({"image": f"{name}{i}.png", "label": label})
        write(folder / f"{name}.jsonl", rows)
    config = tiny_config(folder)
    config["model"] = {
        "class_path": task,
        "init_args": {
            "backbone": {"class_path": "tests.images.Patches"},
            "augment": {"flip": "random"},
            "optim": {"lr": 1e-2, "warmup": 0.1},
        },
    }
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    data = {**files, "target": target, "size": 8, "batch_size": 12, "micro_batch": 4}
    config["data"] = {"class_path": "ImageFiles", "init_args": data}
    config["trainer"]["max_epochs"] = 10
    return write_config(folder / "images.yaml", config)


def gradients(model: Any, batches: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the gradients of a step that is made of these micro-batches."""
    model.zero_grad()
    steps = [model.step(batch, "train") for batch in batches]
    count = sum(torch.as_tensor(step.count) for step in steps)
    sum(step.loss * step.count for step in steps).backward()
    return {n: p.grad / count for n, p in model.named_parameters() if p.grad is not None}


def splits(kind: str, folder: Path) -> list[str]:
    """Write splits of a kind, values as GLUE has STS-B; return what names them."""
    found = []
    for seed, split in enumerate(("train", "val", "test")):
        rows = records(kind, 48, seed)
        path = folder / f"{split}.jsonl"
        if kind == "value":
            path = folder / f"{split}.tsv"
            lines = [f'{i}\t{row["text"]}\ta "b\t{row["other"]}.5' for i, row in enumerate(rows)]
            text = "\n".join(["index\tsentence1\tsentence2\tscore", *lines])
            path.write_text(f"{text}\n", encoding="utf-8")
        else:
            write(path, rows)
        found.append(f"--data.{split}={path}")
    return found
