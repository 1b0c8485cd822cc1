"""Tiny datasets in published layouts, and configs that fit in seconds."""

import os
import resource
import subprocess

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads would only wait

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

REPO = Path(__file__).parent.parent
# Real datasets lie beside a developer's checkout, or where this names them.
REAL = Path(os.environ.get("LIT_FOUNDRY_DATA", REPO.parent / "shared" / "data"))

WORDS = ["plot", "actors", "scene", "camera", "music", "story", "hero", "city", "night", "rain"]
SIGNS = {"neg": ["dull", "poor", "awful"], "pos": ["bright", "great", "lovely"]}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep token files of tests away from the user's, and no test dependent on an earlier run."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LIT_FOUNDRY_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


def reviews(count: int, seed: int) -> list[tuple[str, str]]:
    """Make (text, label) pairs of various lengths whose label a few words give away."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = ("neg", "pos")[i % 2]
        words = rng.choice(WORDS, rng.integers(3, 24)).tolist()
        for _ in range(2):
            words.insert(int(rng.integers(len(words) + 1)), str(rng.choice(SIGNS[label])))
        rows.append((f"{' '.join(words)} {i}", label))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    """Write reviews as CSV with a header."""
    path.write_text(
        "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8"
    )
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Write a config that trains a two-layer BERT on 120 reviews, and its data; return its path."""
    write_csv(tmp_path / "train.csv", reviews(120, seed=0))
    write_csv(tmp_path / "test.csv", reviews(40, seed=1))
    return write_config(tmp_path / "tiny.yaml", tiny_config(tmp_path))


def tiny_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of :func:`tiny`, to be changed."""
    bert = {
        "model_type": "bert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    backbone = {"class_path": "TextEncoder", "init_args": {"config": bert}}
    data = {
        "train": str(folder / "train.csv"),
        "test": str(folder / "test.csv"),
        "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
        "max_length": 32,
        "batch_size": 12,
        "micro_batch": 4,
    }
    return {
        "model": {
            "class_path": "Classification",
            "init_args": {"backbone": backbone, "optim": {"lr": 2e-3, "warmup": 0.1}},
        },
        "data": {"class_path": "TextFiles", "init_args": data},
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "runs"),
        },
    }


def write_config(path: Path, config: dict[str, Any]) -> Path:
    """Write a configuration as YAML."""
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def corpus_config(folder: Path, task: str = "MaskedLM") -> dict[str, Any]:
    """Write 150 reviews as a corpus; return a configuration that pretrains on it."""
    texts = [text for text, _ in reviews(150, seed=0)]
    (folder / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    config = tiny_config(folder)
    if task == "CausalLM":
        gpt = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
        gpt |= {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
        config["model"]["init_args"]["backbone"] = {
            "class_path": "TextDecoder",
            "init_args": {"config": gpt},
        }
    if task == "DenoisingText":
        sides = "encoder", "decoder"
        sizes = {"layers": 2, "attention_heads": 2, "ffn_dim": 48}
        bart = {f"{side}_{name}": size for side in sides for name, size in sizes.items()}
        bart |= {"model_type": "bart", "d_model": 32, "max_position_embeddings": 64}
        config["model"]["init_args"]["backbone"]["init_args"] = {"config": bart}
    config["model"]["class_path"] = task
    config["data"] = {
        "class_path": "Corpus",
        "init_args": {
            "train": str(folder / "corpus.txt"),
            "delimiter": "\n",
            "tokenizer": {"kind": "wordpiece", "vocab_size": 300},
            "max_length": 64,
            "val_fraction": 0.1,
            "batch_size": 12,
            "micro_batch": 4,
        },
    }
    if task == "DenoisingText":
        config["data"]["init_args"]["packing"] = "concatenated"
    return config


def digits_config(folder: Path) -> dict[str, Any]:
    """Return a configuration that trains a small ResNet on augmented and mixed digits."""
    pytest.importorskip("sklearn")
    config = tiny_config(folder)
    config["model"]["init_args"] = {
        "backbone": {
            "class_path": "ResNet9",
            "init_args": {"width": 4, "mean": [0.3], "std": [0.4]},
        },
        "augment": {"pad": 1, "flip": "random", "cutout": 2},
        "mixing": {"mixup": 0.2, "cutmix": 1.0, "until": 0.8},
        "optim": {"lr": 5e-3, "warmup": 0.1},
    }
    config["data"] = {
        "class_path": "Digits",
        "init_args": {"mode": "L", "max_train_samples": 108, "batch_size": 12, "micro_batch": 4},
    }
    return config


@contextmanager
def full_disk(room: int = 0) -> Iterator[None]:
    """Let no file grow beyond some bytes: writers meet EFBIG where a full disk gives ENOSPC."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder on a read-only file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)
