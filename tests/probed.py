"""Checkpoints of networks that were never trained, which are there in no time."""

from pathlib import Path
from typing import Any

import torch

from lit_foundry.checkpoints.files import our_part
from lit_foundry.data import Corpus, Digits, TrainTokenizer
from lit_foundry.nn import ResNet9, TextEncoder
from lit_foundry.tasks import Classification, MaskedLM
from tests.conftest import reviews

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
TOKENIZER = TrainTokenizer(kind="wordpiece", vocab_size=300)


def saved(path: Path, task: Any, data: Any) -> Path:
    """Write a checkpoint of a task as it is."""
    checkpoint = {"state_dict": task.state_dict(), "lit_foundry": our_part(task, data)}
    torch.save(checkpoint | {"global_step": 0}, path)
    return path


def of_texts(folder: Path) -> Path:
    """Write a masked language model of reviews without labels, and its corpus."""
    lines = "\n".join(text for text, _ in reviews(150, seed=3))
    (folder / "corpus.txt").write_text(lines, encoding="utf-8")
    data = Corpus(TOKENIZER, train=str(folder / "corpus.txt"), delimiter="\n", max_length=32)
    torch.manual_seed(0)
    task = MaskedLM(TextEncoder(config=BERT, vocab_size=data.facts["vocab_size"], pooling="mean"))
    return saved(folder / "texts.ckpt", task, data)


def of_images(folder: Path, **options: Any) -> Path:
    """Write a classifier of digits, whose BatchNorm has seen some of them."""
    data = Digits(max_train_samples=300)
    torch.manual_seed(0)
    task = Classification(ResNet9(width=4, in_channels=1, mean=[0.3], std=[0.4]), 10, **options)
    rows = data.load("train")[range(100)]
    for _ in range(20):
        task.train()(rows)
    return saved(folder / "images.ckpt", task.eval(), data)
