"""Supervised classification: from scratch, fine-tuned or linearly probed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from lit_foundry import ranges
from lit_foundry.nn import Backbone
from lit_foundry.nn.classification_loss import classification_loss
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.image.mixing import Mixing
from lit_foundry.nn.image.views import TTA
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.tasks.supervised import Supervised, counted
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.metrics import PositiveF1
from lit_foundry.training.optim import OptimConfig


class Classification(Supervised):
    """Classifies texts or images with the head of the backbone's family.

    It logs accuracy (``acc``), the mean F1 of the classes (``f1_macro``), with two classes that of
    the second (``f1``), and the expected calibration error (``calibration_error``).

    Args:
        backbone: Text or image encoder.
        num_classes: Number of classes C; None takes it from the data.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
        class_weights: Weight of each class in the loss, C numbers.
        focal_gamma: Focus of the loss on samples that are still hard (Lin et al., 2017,
            https://arxiv.org/abs/1708.02002); 0 is the cross-entropy, 2 is common.
        dropout: Probability before the last layer; None takes the family's own.
        augment: What is done to training images; None nothing.
        mixing: How training images are mixed; None not at all.
        tta: Test-time augmentation of images, as in :class:`Views`.
        compile: Compile the backbone in training.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one (transfer).

    Raises:
        ValueError: If ``num_classes`` is unknown, or ``class_weights`` are not C.
    """

    monitor: ClassVar[str] = "val/acc"
    mode: ClassVar[Literal["min", "max"]] = "max"
    predicts: ClassVar[str | None] = "class"
    class_weights: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        label_smoothing: float = 0.0,
        class_weights: list[float] | None = None,
        focal_gamma: float = 0.0,
        dropout: float | None = None,
        augment: Augment | None = None,
        mixing: Mixing | None = None,
        tta: TTA = "none",
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        num_classes = counted("num_classes", num_classes, 2)
        if class_weights is not None and len(class_weights) != num_classes:
            raise ValueError(
                f"model.class_weights has {len(class_weights)} numbers for {num_classes} classes."
            )
        own = {"label_smoothing": label_smoothing, "class_weights": class_weights}
        own |= {"focal_gamma": focal_gamma}
        weights = class_weights or [1.0]
        rules = {
            "label_smoothing": (0 <= label_smoothing < 1, "must lie in [0, 1)"),
            "class_weights": (min(weights) >= 0 < sum(weights), "are at least 0, and not all 0"),
            "focal_gamma": (focal_gamma >= 0, "is at least 0"),
        }
        ranges.check("model", own, rules)
        kwargs: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
        accuracy = MulticlassAccuracy(average="micro", **kwargs)
        metrics = {
            "acc": accuracy,
            "f1_macro": MulticlassF1Score(average="macro", **kwargs),
            **({"f1": PositiveF1()} if num_classes == 2 else {}),
            "calibration_error": MulticlassCalibrationError(n_bins=15, **kwargs),
            "confusion": MulticlassConfusionMatrix(**kwargs),
        }
        super().__init__(
            backbone,
            num_classes,
            metrics,
            {"acc": accuracy.clone()},
            dropout,
            augment,
            mixing,
            tta,
            compile,
            finetune,
            optim,
            init_from,
        )
        self.num_classes = num_classes
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        buffer = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", buffer, persistent=False)

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Score a labelled batch."""
        label = batch["label"]
        if stage == "train":
            batch = self.view(batch, stage)
            logits, target = self(batch).float(), batch.get("target", label)
            how = self.label_smoothing, self.focal_gamma
        else:
            # Probabilities are scored, which smoothing and focus leave uncalibrated on purpose.
            logits, target, how = self(batch).float(), label, (0.0, 0.0)
        loss, count = classification_loss(logits, target, self.class_weights, *how)
        if stage == "train":  # its accuracy needs no probabilities
            return Step(loss, count, preds=logits, target=label)
        probs = logits.softmax(-1)
        kept = {"index": batch["index"], "prob": probs, "target": label}
        return Step(loss, count, preds=probs, target=label, samples=kept)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each sample's ``index`` (B,) and ``prob`` (B, C)."""
        # A copy: Lightning keeps it, and what a loader's worker sent holds a file open.
        return {"index": batch["index"].clone(), "prob": self(batch).float().softmax(-1)}
