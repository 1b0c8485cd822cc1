"""A batch of training images as the network of a checkpoint sees it, epoch by epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_foundry.checkpoints.files import load_data, load_task
from lit_foundry.data.samplers import EpochRows
from lit_foundry.randomness import Moment
from lit_foundry.report import plots

COLUMNS, EPOCHS = 12, 5


def draw_batch(ckpt_path: Path, seed: int, image: Path) -> Path:
    """Draw some training images as files hold them, and as they look in the first epochs.

    Args:
        ckpt_path: Checkpoint of a task on images, whose data are where the run found them.
        seed: Seed of the run.
        image: PNG to write.

    Raises:
        ValueError: If the task sees no images.
    """
    task: Any = load_task(ckpt_path)
    if task.views is None:
        raise ValueError(f"{ckpt_path} holds a {type(task).__name__} on texts: leave out --batch.")
    data: Any = load_data(ckpt_path)
    dataset = data.load("train")
    rows = [i * len(dataset) // COLUMNS for i in range(COLUMNS)]
    named = data.target_kind == "class"
    titles = [data.labels[i] for i in dataset.labels[rows]] if named else [""] * len(rows)
    plots.plot_images(lines_of(task, data, rows, seed), titles, image)
    return image


def lines_of(task: Any, data: Any, rows: Sequence[int], seed: int) -> list[list[NDArray[np.uint8]]]:
    """Return training images as files hold them, then as the network sees them in each epoch."""
    dataset, lines = data.load("train"), [list(data.images("train", rows))]
    for epoch in range(EPOCHS):
        batch = dataset[EpochRows(rows, seed, epoch)]
        task.moment = Moment(seed, epoch)
        lines.append(_shown(task.view(batch, "train")["pixel_values"]))
    return lines


def _shown(images: Tensor) -> list[NDArray[np.uint8]]:
    pixels = images.float().round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return list(pixels.numpy())
