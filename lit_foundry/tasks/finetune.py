"""What a fine-tuning run trains, and when."""

from dataclasses import dataclass
from typing import Literal

from lit_foundry.nn import Backbone


@dataclass(frozen=True)
class Finetune:
    """Which parts of a pretrained backbone are trained.

    Args:
        freeze: Number of lowest blocks that keep their weights, the embeddings being the first;
            ``all`` trains the head only (linear probing).
        head_first: Fraction of the run, in [0, 1), that trains the head alone.

    Raises:
        ValueError: If a value lies outside its range.

    Source: Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
        Out-of-Distribution, 2022. https://arxiv.org/abs/2202.10054 (the head first)
    """

    freeze: int | Literal["all"] = 0
    head_first: float = 0.0

    def __post_init__(self) -> None:
        """Reject values outside their ranges."""
        if self.freeze != "all" and self.freeze < 0:
            raise ValueError(f"model.finetune.freeze is a number of blocks, got {self.freeze}.")
        if not 0 <= self.head_first < 1:
            raise ValueError(
                "model.finetune.head_first is a fraction of the run in [0, 1), "
                f"got {self.head_first}."
            )

    def freeze_in(self, backbone: Backbone, name: str) -> None:
        """Stop the training of what is frozen, before the strategy wraps the model."""
        blocks = backbone.blocks()
        if self.freeze != "all" and self.freeze > len(blocks):
            raise ValueError(
                f"model.finetune.freeze={self.freeze}, but {name} has {len(blocks)} blocks; "
                "lower it, or set it to all."
            )
        for part in [backbone] if self.freeze == "all" else blocks[: self.freeze]:
            part.requires_grad_(False)
        self.settle(backbone)

    def settle(self, backbone: Backbone) -> None:
        """Keep what is frozen in eval mode, without dropout or moving statistics."""
        for part in [backbone] if self.freeze == "all" else backbone.blocks()[: self.freeze]:
            part.eval()
