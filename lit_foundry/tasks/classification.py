"""Supervised classification: from scratch, fine-tuned or linearly probed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
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
from lit_foundry.nn.image.backbone import ImageBackbone
from lit_foundry.nn.image.mixing import Mixing
from lit_foundry.nn.image.views import TTA, Views
from lit_foundry.randomness import single_precision
from lit_foundry.tasks.base import Task
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.compiling import compile_in_place
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.metrics import PositiveF1
from lit_foundry.training.optim import OptimConfig


class Classification(Task):
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
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"model.num_classes must be at least 2, got {num_classes}; the command line takes "
                "it from the data, in Python pass data.facts['num_classes']."
            )
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
        ranges.check_probs("model", dropout=dropout)
        kwargs: dict[str, Any] = {"num_classes": num_classes, "validate_args": False}
        accuracy = MulticlassAccuracy(average="micro", **kwargs)
        metrics = {
            "acc": accuracy,
            "f1_macro": MulticlassF1Score(average="macro", **kwargs),
            **({"f1": PositiveF1()} if num_classes == 2 else {}),
            "calibration_error": MulticlassCalibrationError(n_bins=15, **kwargs),
            "confusion": MulticlassConfusionMatrix(**kwargs),
        }
        super().__init__(optim, finetune, init_from, metrics, {"acc": accuracy.clone()})
        self.backbone = backbone
        self.num_classes = num_classes
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma
        buffer = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", buffer, persistent=False)
        self.head = backbone.classifier(num_classes, dropout)
        self.views: Views | None = None
        if isinstance(backbone, ImageBackbone):
            self.views = Views(augment or Augment(), mixing or Mixing(), tta)
        elif augment or mixing or tta != "none":
            raise ValueError(
                "model.augment, model.mixing and model.tta are for images, and a "
                f"{type(backbone).__name__} reads {', '.join(backbone.inputs)}: leave them out."
            )
        self.compiled = compile
        self._forward_flops: dict[int, int] = {}  # of a sample, by the size of images

    @property
    def own_facts(self) -> dict[str, int]:
        """What the network sees other than the data hold: the size of images, if they are cut."""
        size = self.views.augment.size if self.views else None
        return {} if size is None else {"image_size": size}

    def check_data(self, data: Any) -> None:
        """Check also the sizes of images that the network will see.

        Raises:
            ValueError: If it cannot see them, or a fact of the data is another than its own.
        """
        super().check_data(data)
        augment = self.views.augment if self.views else Augment()
        edge = getattr(data, "facts", {}).get("image_size")
        if edge is not None:
            augment.shape(torch.empty(1, 1, edge, edge, device="meta"))
        backbone: Any = self.backbone
        if augment.start_size is not None:
            if backbone.image_size is not None:
                raise ValueError(
                    f"model.augment.start_size={augment.start_size} needs a network that takes "
                    f"images of any size, and this one is made for {backbone.image_size}: leave it "
                    "out."
                )
            backbone.try_size(augment.start_size)

    def setup(self, stage: str) -> None:
        """Check and initialize; compile what is trained."""
        super().setup(stage)
        if self.compiled and stage == "fit":
            compile_in_place(self.backbone, self.trainer.strategy.root_device)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return (B, C) logits; in evaluation, of images, the mean over their views."""
        if self.training or self.views is None:
            logits: Tensor = self.head(self.backbone.encode(batch))
            return logits
        return self.views.logits(lambda view: self.head(self.backbone.encode(view)), batch)

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Return the floating point operations that training on a batch of images takes.

        Three times those of a forward pass, as torch counts them, or one if the backbone is
        frozen; 0 for texts.
        """
        if self.views is None:
            return 0.0
        images: Tensor = batch["pixel_values"]
        height, width = self.views.augment.shape(images)
        size = self.views.augment.size_at(self.run_progress, height)
        if size not in self._forward_flops:
            image = images[:1, :, :size, : size if size < height else width]
            self._forward_flops[size] = self._counted(image)
        learns = any(p.requires_grad for p in self.backbone.parameters())
        return len(images) * self._forward_flops[size] * (3 if learns else 1)

    @torch.no_grad()
    def _counted(self, image: Tensor) -> int:
        self.eval()
        with FlopCounterMode(display=False) as counter:
            self.backbone.forward(image)  # past what is compiled
        self.train()
        return int(counter.get_total_flops())

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Score a labelled batch."""
        label = batch["label"]
        if stage == "train":
            batch = self._augmented(batch)
            logits, target = self(batch).float(), batch.get("target", label)
            how = self.label_smoothing, self.focal_gamma
        else:
            # Probabilities are scored, which smoothing and focus leave uncalibrated on purpose.
            logits, target, how = self(batch).float(), label, (0.0, 0.0)
        loss, count = classification_loss(logits, target, self.class_weights, *how)
        if stage == "train":  # its accuracy needs no probabilities
            return Step(loss, count, preds=logits, target=label)
        probs = logits.softmax(-1)
        return Step(loss, count, preds=probs, target=label, probs=probs)

    def _augmented(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.views is None:
            return batch
        seed, epoch = int(os.environ.get("PL_GLOBAL_SEED", "0")), self.current_epoch
        mean: Any = self.backbone.mean
        when = {"seed": seed, "epoch": epoch, "progress": self.run_progress}
        with single_precision():  # of places and angles, bf16 has too few digits
            return self.views.train(batch, self.num_classes, mean * 255, **when)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each sample's ``index`` (B,) and ``prob`` (B, C)."""
        # A copy: Lightning keeps it, and what a loader's worker sent holds a file open.
        return {"index": batch["index"].clone(), "prob": self(batch).float().softmax(-1)}
