"""Any number of classes for each sample.

Shapes: B batch, C classes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score

from lit_foundry import ranges
from lit_foundry.nn import Backbone
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.tasks.supervised import Supervised, counted
from lit_foundry.training.metrics import MeanAveragePrecision


class MultiLabelClassification(Supervised):
    """Tells of each class whether it applies, of texts, pairs of texts or images.

    It logs the mean average precision of the classes (``map``), of those with a probability above
    0.5 the mean F1 of the classes (``f1_macro``) and that of all decisions (``f1_micro``), and the
    share of samples of which all are right (``exact_match``).

    Args:
        backbone: Text or image encoder.
        num_classes: Number of classes C; None takes it from the data.
        pos_weight: Weight of each class in the loss where it applies, C numbers; against 1 where
            it does not.
        options: Further arguments of :class:`Supervised`.

    Raises:
        ValueError: If ``num_classes`` is unknown, or ``pos_weight`` are not C.
    """

    monitor: ClassVar[str] = "val/map"
    mode: ClassVar[Literal["min", "max"]] = "max"
    predicts: ClassVar[str | None] = "classes"
    problem: ClassVar[str] = "multi_label_classification"
    pos_weight: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        pos_weight: list[float] | None = None,
        **options: Any,
    ) -> None:
        count = counted("num_classes", num_classes, 1)
        if pos_weight is not None and len(pos_weight) != count:
            raise ValueError(f"model.pos_weight has {len(pos_weight)} numbers for {count} classes.")
        rules = {"pos_weight": (min(pos_weight or [1.0]) > 0, "are above 0")}
        ranges.check("model", {"pos_weight": pos_weight}, rules)
        kwargs: dict[str, Any] = {"num_labels": count, "validate_args": False}
        micro = MultilabelF1Score(average="micro", **kwargs)
        metrics = {
            "map": MeanAveragePrecision(),
            "f1_macro": MultilabelF1Score(average="macro", **kwargs),
            "f1_micro": micro,
            "exact_match": MultilabelExactMatch(**kwargs),
        }
        super().__init__(backbone, count, metrics, {"f1_micro": micro.clone()}, **options)
        self.num_classes = count
        buffer = None if pos_weight is None else torch.tensor(pos_weight)
        self.register_buffer("pos_weight", buffer, persistent=False)

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Score a labelled batch."""
        label, batch = batch["label"], self.view(batch, stage)
        logits = self(batch).float()
        shares = batch.get("target", label).float()
        loss = F.binary_cross_entropy_with_logits(logits, shares, pos_weight=self.pos_weight)
        probs, target = logits.sigmoid(), label.long()
        if stage == "train":
            return Step(loss, len(logits), preds=probs, target=target)
        kept = {"index": batch["index"], "prob": probs, "target": target}
        return Step(loss, len(logits), preds=probs, target=target, samples=kept)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each sample's ``index`` (B,) and ``prob`` (B, C)."""
        # A copy: Lightning keeps it, and what a loader's worker sent holds a file open.
        return {"index": batch["index"].clone(), "prob": self(batch).float().sigmoid()}
