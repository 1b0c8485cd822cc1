"""Losses and metrics of a task, by stage and objective, and their state amid an epoch."""

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection

States = dict[str, dict[str, Tensor]]


class Scores(nn.Module):
    """What a task is judged by.

    Args:
        metrics: Metrics of evaluations, by name; with several objectives, ``objective/name``.
        train_metrics: Those worth their cost in training.
        objectives: Names of the objectives; one alone has the empty name.

    Raises:
        ValueError: If a metric of training keeps samples, which a checkpoint cannot hold, or
            belongs to no objective.
    """

    def __init__(
        self,
        metrics: Mapping[str, Metric],
        train_metrics: Mapping[str, Metric],
        objectives: Sequence[str] = ("",),
    ) -> None:
        super().__init__()
        self.objectives = objectives
        for name, metric in train_metrics.items():
            if any(isinstance(state, list) for state in metric._defaults.values()):
                raise ValueError(
                    f"train_metrics: {name}, a {type(metric).__name__}, keeps all samples of an "
                    "epoch, which no checkpoint holds: give it thresholds, or take it as a metric "
                    "of evaluations alone."
                )
        given = {"train": train_metrics, "val": metrics, "test": metrics}
        self.metrics = nn.ModuleDict()
        self.losses = nn.ModuleDict()
        for stage, all_ in given.items():
            for objective in self.objectives:
                mine = {
                    name.removeprefix(f"{objective}/"): metric
                    for name, metric in all_.items()
                    if name.rpartition("/")[0] == objective
                }
                prefix = f"{stage}/{objective}/" if objective else f"{stage}/"
                groups = stage != "train"  # whose states would be shared, and saved twice
                found = MetricCollection(mine, prefix=prefix, compute_groups=groups)
                self.metrics[_key(stage, objective)] = found.clone()
                if stage != "train":
                    self.losses[_key(stage, objective)] = MeanMetric()
        known = {*self.objectives}
        if lost := [n for n in (*metrics, *train_metrics) if n.rpartition("/")[0] not in known]:
            raise ValueError(f"The metric {lost[0]} belongs to none of {sorted(known)}.")

    def of(self, stage: str, objective: str = "") -> MetricCollection:
        """Return the metrics of a stage and an objective."""
        found = self.metrics[_key(stage, objective)]
        assert isinstance(found, MetricCollection)
        return found

    def _loss(self, stage: str, objective: str) -> MeanMetric:
        found = self.losses[_key(stage, objective)]
        assert isinstance(found, MeanMetric)
        return found

    def update(
        self,
        stage: str,
        objective: str,
        loss: Tensor,
        count: Tensor | int,
        preds: Tensor | None,
        target: Tensor | None,
    ) -> None:
        """Add a batch, as its :class:`~lit_foundry.tasks.Step` has it."""
        if stage != "train":
            self._loss(stage, objective).update(loss, count)
        if preds is not None:
            self.of(stage, objective).update(preds.detach(), target)

    def compute(self, stage: str) -> dict[str, Tensor]:
        """Return the scores of an epoch by log key, the mean loss last, and begin anew."""
        values: dict[str, Tensor] = {}
        for objective in self.objectives:
            metrics = self.of(stage, objective)
            values |= metrics.compute() if len(metrics) else {}
            metrics.reset()
        if stage == "train":
            return values
        losses = []
        for objective in self.objectives:
            mean = self._loss(stage, objective)
            losses.append(mean.compute())
            if objective:
                values[f"{stage}/{objective}/loss"] = losses[-1]
            mean.reset()
        values[f"{stage}/loss"] = torch.stack(losses).sum()
        return values

    def _training(self) -> dict[str, Metric]:
        return {
            f"{objective}/{name}" if objective else name: metric
            for objective in self.objectives
            for name, metric in self.of("train", objective).items(keep_base=True)
        }

    def states(self, trainer: Trainer | None) -> States:
        """Return the states of training metrics, summed over ranks: all save, one file is kept."""

        def summed(state: Tensor) -> Tensor:
            total = state.clone()
            if trainer and trainer.world_size > 1:
                total = trainer.strategy.reduce(total, reduce_op="sum")
            return total

        return {
            name: {state: summed(getattr(metric, state)) for state in metric._defaults}
            for name, metric in self._training().items()
        }

    def restore(self, states: Mapping[str, Mapping[str, Tensor]], device: torch.device) -> None:
        """Go on from :meth:`states`; without any, from nothing."""
        for name, metric in self._training().items():
            for state, value in states.get(name, {}).items():
                setattr(metric, state, value.to(device))
            metric._update_count = 1  # else the next compute() warns that nothing was seen


def _key(stage: str, objective: str) -> str:
    return f"{stage}_of_{objective}"
