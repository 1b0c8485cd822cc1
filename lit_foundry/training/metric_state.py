"""Metrics of an epoch that a checkpoint interrupts."""

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchmetrics import MetricCollection

States = dict[str, dict[str, Tensor]]


def metric_states(metrics: MetricCollection, trainer: Trainer | None) -> States:
    """Return the states of metrics by name, summed over the ranks: all save, one file is kept."""

    def summed(state: Tensor) -> Tensor:
        total = state.clone()
        if trainer and trainer.world_size > 1:
            total = trainer.strategy.reduce(total, reduce_op="sum")
        return total

    return {
        name: {state: summed(getattr(metric, state)) for state in metric._defaults}
        for name, metric in metrics.items(keep_base=True)
    }


def restore_metrics(
    metrics: MetricCollection, states: Mapping[str, Mapping[str, Tensor]], device: torch.device
) -> None:
    """Go on from :func:`metric_states`; without any, from nothing."""
    for name, metric in metrics.items(keep_base=True):
        for state, value in states.get(name, {}).items():
            setattr(metric, state, value.to(device))
        metric._update_count = 1  # else the next compute() warns that nothing was seen
