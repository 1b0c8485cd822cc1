"""Numbers predicted of samples.

Shapes: B batch, K values.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError

from lit_foundry.datamodule import data_of
from lit_foundry.nn import Backbone
from lit_foundry.nn.heads import Standardized
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.tasks.supervised import Supervised, counted
from lit_foundry.training.metrics import ValueScores

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
}


class Regression(Supervised):
    """Predicts a number, or several, of texts, pairs of texts or images.

    It logs mean absolute error (``mae``), root mean squared error (``rmse``) and ``r2``, and the
    correlations of Pearson and of Spearman (``pearson``, ``spearman``), in the unit of the targets,
    and of several values the means of theirs. Losses are in squares of the targets' deviations (of
    ``mae``, in deviations), so that 1 is the loss of who always says the mean.

    Args:
        backbone: Text or image encoder.
        num_values: Number of values K; None takes it from the data.
        loss: Squared error (``mse``), absolute error (``mae``), or squared up to an error of one
            deviation and absolute beyond (``huber``).
        standardize: Learn in units of the deviation of each target from its mean, which are those
            of the training split, and part of the checkpoint; else in the targets' own.
        options: Further arguments of :class:`Supervised`.

    Raises:
        ValueError: If ``num_values`` is unknown.
    """

    predicts: ClassVar[str | None] = "value"
    problem: ClassVar[str] = "regression"
    head: Standardized

    def __init__(
        self,
        backbone: Backbone,
        num_values: int | None = None,
        loss: Literal["mse", "mae", "huber"] = "mse",
        standardize: bool = True,
        **options: Any,
    ) -> None:
        count = counted("num_values", num_values, 1)
        scores, mae = {"of_values": ValueScores()}, {"mae": MeanAbsoluteError()}
        super().__init__(backbone, count, scores, mae, mixing=None, **options)
        self.num_values, self.loss, self.standardize = count, loss, standardize

    def built_head(self, outputs: int, dropout: float | None) -> nn.Module:
        """Build the head, in the unit of the targets."""
        return Standardized(super().built_head(outputs, dropout), outputs)

    def setup(self, stage: str) -> None:
        """Check and initialize; take mean and deviation from the training split.

        Raises:
            ValueError: If that does not tell its labels.
        """
        super().setup(stage)
        if stage != "fit" or not self.standardize:
            return
        data = data_of(self.trainer)
        labels = getattr(data and data.load("train"), "labels", None)
        if labels is None:
            raise ValueError(
                "model.standardize=true needs mean and deviation of the targets, and the data have "
                "no array of them (load('train').labels): add it, or set model.standardize=false."
            )
        self.head.learn(torch.as_tensor(labels))

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Score a labelled batch."""
        values = self(self.view(batch, stage)).float()
        target = batch["label"].float().view_as(values)
        off = (values - target) / self.head.deviation
        loss = LOSSES[self.loss](off, torch.zeros_like(off))
        if stage == "train":
            return Step(loss, len(values), preds=values, target=target)
        kept = {"index": batch["index"], "value": values, "target": target}
        return Step(loss, len(values), preds=values, target=target, samples=kept)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each sample's ``index`` (B,) and ``value`` (B, K)."""
        # A copy: Lightning keeps it, and what a loader's worker sent holds a file open.
        return {"index": batch["index"].clone(), "value": self(batch).float()}
