"""A batch of training images as the network of a checkpoint sees it, epoch by epoch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_foundry import plots
from lit_foundry.checkpoint import load_data, load_task

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
    if getattr(task, "views", None) is None:
        raise ValueError(f"{ckpt_path} holds a {type(task).__name__} on texts: leave out --batch.")
    data: Any = load_data(ckpt_path)
    dataset = data.load("train")
    rows = [i * len(dataset.lengths) // COLUMNS for i in range(COLUMNS)]
    batch = dataset[rows]
    seen = [_seen(task, batch, seed, epoch) for epoch in range(EPOCHS)]
    lines = [_shown(images) for images in (batch["pixel_values"], *seen)]
    plots.plot_images(lines, [data.labels[i] for i in batch["label"].tolist()], image)
    return image


def _seen(task: Any, batch: Mapping[str, Any], seed: int, epoch: int) -> Tensor:
    when = {"seed": seed, "epoch": epoch, "progress": 0.0}
    views = task.views.train(batch, task.num_classes, task.backbone.mean * 255, **when)
    images: Tensor = views["pixel_values"]
    return images


def _shown(images: Tensor) -> list[Any]:
    pixels = images.float().round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return list(pixels.numpy())
