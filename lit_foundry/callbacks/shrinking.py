"""What callbacks that make a network smaller share."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lit_foundry.callbacks.averaging import Averaging
from lit_foundry.datamodule import data_of
from lit_foundry.nn.pruning.cost import MEASURES, cost

_SIZE = 128  # tokens, or pixels of an edge, where the data do not tell


def shrunk_task(trainer: Trainer, module: LightningModule, who: str) -> tuple[Any, list[Any]]:
    """Return the task whose network a callback changes, and the averages of it.

    Raises:
        ValueError: If it cannot.
    """
    if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise ValueError(f"{who} runs on one device: set trainer.devices to 1.")
    task: Any = getattr(module, "served", module)
    if not hasattr(task, "backbones"):
        raise ValueError(f"{who} needs a Task of lit_foundry, got a {type(task).__name__}.")
    if task.finetune.lora:
        raise ValueError(
            f"{who} removes weights that adapters belong to: leave out model.finetune.lora."
        )
    averages = [
        callback._average_model.module
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, Averaging) and callback._average_model is not None
    ]
    return task, [getattr(average, "served", average) for average in averages]


def each_backbone(task: Any) -> dict[str, Any]:
    """Return the backbones of a task by name, one that has several names once."""
    names = {backbone: name for name, backbone in reversed(task.backbones.items())}
    return {name: backbone for backbone, name in reversed(names.items())}


def example(backbone: Any, trainer: Trainer, device: Any, rows: int) -> dict[str, Tensor]:
    """Return samples of the size that the data have."""
    facts = getattr(data_of(trainer), "facts", {})
    longest = getattr(backbone, "max_length", None) or _SIZE
    size = facts.get("image_size") or min(facts.get("max_length", _SIZE), longest)
    return {key: value.to(device) for key, value in backbone.example(rows, size).items()}


@rank_zero_only
def print_costs(
    title: str,
    backbone: Any,
    batch: Mapping[str, Tensor],
    before: Mapping[str, float],
    sizes: Mapping[str, tuple[int, int]],
) -> None:
    """Tell what a network cost before and costs now, and the sizes of its layers."""
    shown = Table(title=title, title_justify="left")
    for column in ("", "before", "now", "share"):
        shown.add_column(column, justify="right" if column else "left")
    for of in MEASURES:
        old, new = before[of], cost(backbone, batch, of)
        label, unit, digits = ("latency, ms", 1e3, ".2f") if of == "latency" else (of, 1, ",.0f")
        numbers = (format(value * unit, digits) for value in (old, new))
        shown.add_row(label, *numbers, f"{new / old:.3f}")
    for name, (wide, narrow) in sizes.items():
        shown.add_row(name, str(wide), str(narrow), f"{narrow / wide:.3f}")
    Console(soft_wrap=True).print(shown)
