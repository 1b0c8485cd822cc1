"""What tasks share that train one backbone, which may see images."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lit_foundry.datamodule import Data
from lit_foundry.nn import Backbone
from lit_foundry.nn.image.augment import Augment
from lit_foundry.tasks.base import Task
from lit_foundry.training.compiling import compile_in_place


class Visual(Task):
    """Trains a backbone, of images through the task's views, and counts what that takes.

    Attributes:
        backbone: Text or image encoder.
        compiled: Whether it is compiled in training.
    """

    backbone: Backbone
    compiled: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._forward_flops: dict[int, int] = {}  # of a sample, by the size of images

    @property
    def own_facts(self) -> dict[str, int]:
        """What the network sees other than the data hold: the size of images, if they are cut."""
        size = self.views.augment.size if self.views else None
        return {} if size is None else {"image_size": size}

    @property
    def compiled_parts(self) -> Sequence[nn.Module]:
        """What is compiled in place of the backbone as a whole, if anything is."""
        return ()

    def check_data(self, data: Data) -> None:
        """Check also the sizes of images that the network will see.

        Raises:
            ValueError: If it cannot see them, or a fact of the data is another than its own.
        """
        super().check_data(data)
        augment = self.views.augment if self.views else Augment()
        edge = data.facts.get("image_size")
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
            device = self.trainer.strategy.root_device
            compile_in_place(self.backbone, device, self.compiled_parts)

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Return the floating point operations that training on a batch of images takes.

        Three times those of a forward pass, as torch counts them, or one if the backbone is
        frozen; 0 for texts.
        """
        if self.views is None:
            return 0.0
        images: Tensor = batch["pixel_values"]
        height, width = self.views.augment.shape(images)
        size = self.views.augment.size_at(self.moment.progress, height)
        if size not in self._forward_flops:
            image = images[:1, :, :size, : size if size < height else width]
            self._forward_flops[size] = self._counted(image)
        learns = any(p.requires_grad for p in self.backbone.parameters())
        return len(images) * self._forward_flops[size] * (3 if learns else 1)

    def resized(self) -> None:
        """Count the operations of the smaller network."""
        self._forward_flops = {}

    @torch.no_grad()
    def _counted(self, image: Tensor) -> int:
        self.eval()
        with FlopCounterMode(display=False) as counter:
            self.forward_once(image)
        self.train()
        return int(counter.get_total_flops())

    def forward_once(self, pixel_values: Tensor) -> None:
        """Run what a training step runs, past what is compiled."""
        self.backbone.forward(pixel_values)
