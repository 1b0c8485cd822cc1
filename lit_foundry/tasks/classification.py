"""Supervised classification: from scratch, fine-tuned or linearly probed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from lit_foundry.nn import Backbone
from lit_foundry.optim import OptimConfig
from lit_foundry.tasks.base import Task
from lit_foundry.tasks.finetune import Finetune
from lit_foundry.tasks.step import Stage, Step


class Classification(Task):
    """Classifies texts or images with the head of the backbone's family.

    Args:
        backbone: Text or image encoder.
        num_classes: Number of classes C; None takes it from the data.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
        class_weights: Weight of each class in the loss, C numbers.
        dropout: Probability before the last layer; None takes the family's own.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one (transfer).

    Raises:
        ValueError: If ``num_classes`` is unknown, or ``class_weights`` are not C.
    """

    monitor: ClassVar[str] = "val/acc"
    mode: ClassVar[Literal["min", "max"]] = "max"
    class_weights: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        dropout: float | None = None,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"model.num_classes must be at least 2, got {num_classes}; the command line takes "
                "it from the data, in Python pass data.facts['num_classes']."
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"model.label_smoothing must lie in [0, 1), got {label_smoothing}.")
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(
                f"model.class_weights has {len(class_weights)} numbers for {num_classes} classes."
            )
        kwargs: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
        accuracy = MulticlassAccuracy(average="micro", **kwargs)
        metrics = {
            "acc": accuracy,
            "f1": MulticlassF1Score(average="macro", **kwargs),
            "calibration_error": MulticlassCalibrationError(n_bins=15, **kwargs),
            "confusion": MulticlassConfusionMatrix(**kwargs),
        }
        super().__init__(optim, finetune, init_from, metrics, {"acc": accuracy.clone()})
        self.backbone = backbone
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)
        self.head = backbone.classifier(num_classes, dropout)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return (B, C) logits."""
        logits: Tensor = self.head(self.backbone.encode(batch))
        return logits

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Score a labelled batch."""
        logits, label = self(batch).float(), batch["label"]
        smoothing = self.label_smoothing if stage == "train" else 0.0
        loss = F.cross_entropy(logits, label, self.class_weights, label_smoothing=smoothing)
        # Weighted, the loss averages over the weights of the labels.
        count = len(label) if self.class_weights is None else self.class_weights[label].sum()
        if stage == "train":  # its accuracy needs no probabilities
            return Step(loss, count, preds=logits, target=label)
        probs = logits.softmax(-1)
        return Step(loss, count, preds=probs, target=label, probs=probs)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each sample's ``index`` (B,) and ``prob`` (B, C)."""
        return {"index": batch["index"], "prob": self(batch).float().softmax(-1)}
