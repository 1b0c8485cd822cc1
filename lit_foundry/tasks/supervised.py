"""What tasks share that predict labels of samples from the features of one backbone.

Shapes: B batch, C outputs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn
from torchmetrics import Metric

from lit_foundry import ranges
from lit_foundry.datamodule import Data
from lit_foundry.nn import Backbone, Network
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.image.backbone import ImageBackbone
from lit_foundry.nn.image.mixing import Mixing
from lit_foundry.nn.image.networks.network import ImageNetwork
from lit_foundry.nn.image.views import TTA, Views
from lit_foundry.nn.text.network import TextNetwork
from lit_foundry.randomness import single_precision
from lit_foundry.tasks.step import Stage
from lit_foundry.tasks.visual import Visual
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.optim import OptimConfig


class Supervised(Visual):
    """A backbone with a head, on texts or images. A subclass implements :meth:`step`.

    Args:
        backbone: Text or image encoder.
        outputs: Number of outputs C.
        metrics: Evaluation metrics.
        train_metrics: Those of training.
        dropout: Probability before the last layer; None takes the family's own.
        augment: What is done to training images; None nothing.
        mixing: How training images are mixed; None not at all.
        tta: Test-time augmentation of images, as in :class:`Views`.
        compile: Compile the backbone in training.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one (transfer).

    Attributes:
        problem: What ``transformers`` calls the kind of outputs.
    """

    problem: ClassVar[str] = "single_label_classification"

    def __init__(
        self,
        backbone: Backbone,
        outputs: int,
        metrics: Mapping[str, Metric],
        train_metrics: Mapping[str, Metric],
        dropout: float | None = None,
        augment: Augment | None = None,
        mixing: Mixing | None = None,
        tta: TTA = "none",
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        ranges.check_probs("model", dropout=dropout)
        super().__init__(optim, finetune, init_from, metrics, train_metrics)
        self.outputs = outputs
        self.backbone = finetune.adapted(backbone)
        self.head = self.built_head(outputs, dropout)
        if isinstance(backbone, ImageBackbone):
            self.views = Views(augment or Augment(), mixing or Mixing(), tta, backbone)
        elif augment or mixing or tta != "none":
            raise ValueError(
                "model.augment, model.mixing and model.tta are for images, and a "
                f"{type(backbone).__name__} reads {', '.join(backbone.inputs)}: leave them out."
            )
        self.job = f"{'text' if self.views is None else 'image'}-classification"
        self.compiled = compile

    def built_head(self, outputs: int, dropout: float | None) -> nn.Module:
        """Build what turns features into outputs."""
        return self.backbone.classifier(outputs, dropout)

    def view(self, batch: Mapping[str, Any], stage: Stage, number: int = 0) -> Mapping[str, Any]:
        """Return a view of a batch, mixed if that is set: ``target`` then holds shares."""
        batch = super().view(batch, stage, number)
        if self.views is None or stage != "train":
            return batch
        with single_precision():
            return self.views.mixed(batch, self.outputs, self.moment)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return (B, C) logits; in evaluation, of images, the mean over their views."""
        if self.training or self.views is None:
            logits: Tensor = self.head(self.backbone.encode(batch))
            return logits
        return self.views.logits(lambda view: self.head(self.backbone.encode(view)), batch)

    def network(self, data: Data) -> Network:
        """Return backbone and head as a function of tensors.

        Raises:
            ValueError: If the images are not square.
        """
        if self.views is None:
            return TextNetwork(self.backbone, self.head, data.batch_fields, self.problem)
        if "image_size" not in data.facts:
            raise ValueError("Only square images are exported: set data.size and fit again.")
        assert isinstance(self.backbone, ImageBackbone)
        size, fit = data.facts["image_size"], data.state().get("fit", "squash")
        return ImageNetwork(self.backbone, self.head, self.views, size, fit, self.problem)


def counted(name: str, count: int | None, least: int) -> int:
    """Return the number of outputs that a network is built with.

    Raises:
        ValueError: If it is unknown, or below ``least``.
    """
    if count is None or count < least:
        raise ValueError(
            f"model.{name} must be at least {least}, got {count}; the command line takes it from "
            f"the data, in Python pass data.facts[{name!r}]."
        )
    return count
