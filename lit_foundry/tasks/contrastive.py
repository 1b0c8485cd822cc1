"""Contrastive learning: two views of a sample are more alike than those of any two samples.

Shapes: B batch, N samples of a step, D feature width, P width of what is compared.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry import ranges
from lit_foundry.datamodule import Data
from lit_foundry.nn import Backbone, ImageBackbone
from lit_foundry.nn.contrastive_loss import alignment, found, nt_xent
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.image.backbone import random_images
from lit_foundry.nn.image.views import Views
from lit_foundry.randomness import Moment, sample_numbers, seed_dropout, single_precision
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.tasks.visual import Visual
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.image_metrics import Means
from lit_foundry.training.optim import OptimConfig
from lit_foundry.training.whole_step import WholeStep

NAMES = ("alignment", "found")


class Contrastive(Visual):
    """Learns features of images (SimCLR) or texts (SimCSE) by telling samples apart.

    The views of an image are two augmentations of it, those of a text two passes with other
    dropout. All samples of an optimizer step are compared, those of all its micro-batches and
    ranks: these decide on memory, and on nothing else. With several micro-batches each runs twice.
    Statistics of batches (BatchNorm) are those of micro-batches.

    Evaluations compare the samples of a batch. They log how near the views of a sample are
    (``alignment``), and how often the nearest of all other views is the right one (``found``).

    Args:
        backbone: Image or text encoder, which a classification can begin with (``init_from``).
        projection: Widths of the layers behind the features, the last that of what is compared;
            they are left behind. Empty, the features themselves are compared.
        temperature: What similarities are divided by.
        within: Whether views of one kind are told apart too; None does so for images.
        augment: What makes views of images.
        compile: Compile the backbone in training.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.

    Raises:
        ValueError: If the two views would be the same.

    Source: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
        2020, https://arxiv.org/abs/2002.05709; Gao et al., SimCSE, 2021,
        https://arxiv.org/abs/2104.08821
    """

    takes_unlabelled = True

    def __init__(
        self,
        backbone: Backbone,
        projection: tuple[int, ...] = (512, 128),
        temperature: float = 0.1,
        within: bool | None = None,
        augment: Augment | None = None,
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        own = {"projection": projection, "temperature": temperature}
        rules = {
            "projection": (min(projection, default=1) >= 1, "are widths, 1 at least"),
            "temperature": (temperature > 0, "is above 0"),
        }
        ranges.check("model", own, rules)
        super().__init__(optim, finetune, init_from, {"views": Means(NAMES)})
        self.backbone = finetune.adapted(backbone)
        of_images = isinstance(backbone, ImageBackbone)
        if of_images:
            self.views = Views(augment or Augment(), backbone=backbone)  # type: ignore[arg-type]
        self._check_views(augment)
        self.temperature, self.within = temperature, of_images if within is None else within
        widths, layers = (backbone.dim, *projection), list[nn.Module]()
        for before, width in zip(widths, projection, strict=False):
            layers += [nn.Linear(before, width), nn.ReLU()]
        self.projection, self.compiled = nn.Sequential(*layers[:-1]), compile
        self._whole = WholeStep()

    def _check_views(self, augment: Augment | None) -> None:
        """Raise ValueError if both views of a text would be the same."""
        if self.views is not None:
            return
        if augment is not None:
            raise ValueError("model.augment is for images, and this backbone reads texts.")
        drops = (m.p for m in self.backbone.modules() if isinstance(m, nn.Dropout))
        if max(drops, default=0.0) == 0:
            raise ValueError(
                "The two views of a text differ by dropout alone, and the backbone has none: set "
                "model.backbone.dropout, to 0.1 say."
            )

    def check_data(self, data: Data) -> None:
        """Check also that images have two views, by some of them.

        Raises:
            ValueError: If these are the same, or the data do not fit the network.
        """
        super().check_data(data)
        if self.views is None or not isinstance(self.backbone, ImageBackbone):
            return
        size = data.facts.get("image_size", 64)
        images = random_images(32, self.backbone.in_channels, size).to(self.backbone.mean.device)
        batch = {"pixel_values": images, "index": torch.arange(32, device=images.device)}
        with single_precision():
            pair = (self.views.augmented(batch, Moment(), number) for number in (0, 1))
            first, second = (view["pixel_values"] for view in pair)
        if torch.equal(first, second):
            raise ValueError(
                "model.augment makes the two views of an image that are compared, which are the "
                "same here: set it, as configs/simclr_cifar10.yaml does."
            )

    def on_train_start(self) -> None:
        """Make ready to compare whole steps."""
        super().on_train_start()
        self._whole.begin(self.trainer)

    def embedded(self, batch: Mapping[str, Any], moment: Moment) -> Tensor:
        """Return what is compared of two views of each sample, (2, B, P).

        It is a function of the samples, their company, and the moment.
        """
        numbers = sample_numbers(batch)
        if self.views is not None:
            with single_precision():
                pair = [self.views.augmented(batch, moment, number) for number in (0, 1)]
        else:
            pair = [dict(batch)] * 2
        # What runs twice has to drop the same, of images too.
        seed_dropout(int(moment.keys(numbers[:1])) % 2**63, self.device)
        fields = (*self.backbone.inputs, *self.backbone.optional_inputs)
        both = {
            name: torch.cat([view[name] for view in pair])
            for name in fields
            if name in batch and name != "offsets"
        }
        with dropping(self.backbone, self.views is None):  # what is frozen too
            compared: Tensor = self.projection(self.backbone.encode(both).pooled)
        return compared.view(2, len(numbers), -1)

    def compared(self, views: Tensor) -> Tensor:
        """Return the loss of each sample, (N,), of (2, N, P)."""
        return nt_xent(views[0], views[1], self.temperature, self.within)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Run a micro-batch; the last one of a step returns the loss of all."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._whole.clear()
        loss, count = torch.zeros((), device=self.device), 0
        if self._whole.add(batch, self._embed, self.trainer):
            losses = self._whole.compare(self.compared, self.trainer)
            loss, count = losses.mean(), len(losses)
        return self.summed({"": (loss, count)}, batch["index"])

    def _embed(self, batch: Mapping[str, Any]) -> Tensor:
        return self.embedded(batch, self.moment)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Differentiate a whole step."""
        self._whole.backward(self, self._embed, self.trainer)

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Compare the samples of a batch of an evaluation, with the same views each time."""
        views = self.embedded(batch, Moment())
        losses, (first, second) = self.compared(views), views.float()
        told = torch.stack([alignment(first, second), found(first, second).float()], 1)
        kept = {"index": batch["index"], "alignment": told[:, 0]}
        return Step(losses.mean(), len(losses), told, told, kept)

    def forward_once(self, pixel_values: Tensor) -> None:
        """Run both views."""
        self.projection(self.backbone.forward(torch.cat([pixel_values] * 2)).pooled)


@contextmanager
def dropping(network: nn.Module, drops: bool) -> Iterator[None]:
    """Have a network in eval mode drop as in training, if that is wanted."""
    layers = [m for m in network.modules() if drops and not m.training]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
