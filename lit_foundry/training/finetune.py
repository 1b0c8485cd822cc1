"""What a fine-tuning run trains, and when."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lit_foundry import ranges
from lit_foundry.nn import Backbone
from lit_foundry.nn.layer_depth import module_depths, parameter_depths
from lit_foundry.nn.lora import add_adapters, is_adapter

B = TypeVar("B", bound=Backbone)
Since = Callable[[int], float]  # of a block so far below the head: for how long it has learnt
ROUNDING = 1e-9  # 0.3 of a run is not before three times 0.1 of it


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters, the only part of a backbone that then learns (needs ``peft``).

    Args:
        rank: Rank of the change that an adapter can make to a weight.
        alpha: Scale of that change, times ``rank``.
        dropout: Probability before an adapter.
        targets: Ends of the names of the layers that are adapted, such as ``[query, value]``; None
            takes all linear layers above the stem or, where there are none, all convolutions.

    Raises:
        ValueError: If a value lies outside its range.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
        https://arxiv.org/abs/2106.09685
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        """Reject values outside their ranges."""
        rules = {
            "rank": (self.rank >= 1, "is at least 1"),
            "alpha": (self.alpha > 0, "is a scale above 0"),
            "dropout": (0 <= self.dropout < 1, "is a probability in [0, 1)"),
        }
        ranges.check("model.finetune.lora", vars(self), rules)


@dataclass(frozen=True)
class Finetune:
    """Which parts of a pretrained backbone are trained, and from when on.

    What does not learn, or not yet, is in eval mode: without dropout, its BatchNorm statistics
    fixed.

    Args:
        freeze: Number of lowest blocks that keep their weights, the embeddings being the first;
            ``all`` trains the head only (linear probing).
        head_first: Fraction of the run, in [0, 1), that trains the head alone.
        unfreeze: Time after which the next block joins, the head alone being the first and the
            lowest block the last: below 1 a fraction of the run, from 1 on a number of epochs;
            0 trains all from the start.
        batchnorm: ``eval`` keeps the statistics of all BatchNorms of the backbone fixed, also
            where weights learn.
        lora: Adapters in place of the backbone's own weights; ``freeze`` then is the number of
            lowest blocks without.

    Raises:
        ValueError: If a value lies outside its range, or two contradict each other.

    Source: Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
        Out-of-Distribution, 2022. https://arxiv.org/abs/2202.10054 (the head first)

        Howard and Ruder, Universal Language Model Fine-tuning for Text Classification, 2018.
        https://arxiv.org/abs/1801.06146 (gradual unfreezing)
    """

    freeze: int | Literal["all"] = 0
    head_first: float = 0.0
    unfreeze: float = 0.0
    batchnorm: Literal["train", "eval"] = "train"
    lora: Lora | None = None

    def __post_init__(self) -> None:
        """Reject values outside their ranges, and pairs without a meaning."""
        whole = self.unfreeze >= 1 and float(self.unfreeze).is_integer()
        rules = {
            "freeze": (self.freeze == "all" or self.freeze >= 0, "is a number of blocks"),
            "head_first": (0 <= self.head_first < 1, "is a fraction of the run in [0, 1)"),
            "unfreeze": (
                0 <= self.unfreeze < 1 or whole,
                "is a fraction of the run in [0, 1), or a whole number of epochs",
            ),
            "batchnorm": (self.batchnorm in ("train", "eval"), "is train or eval"),
        }
        ranges.check("model.finetune", vars(self), rules)
        if self.head_first and self.unfreeze:
            raise ValueError(
                f"model.finetune.head_first={self.head_first} and model.finetune.unfreeze="
                f"{self.unfreeze:g} both say how long the head learns alone: keep one."
            )
        if self.freeze == "all":
            self._refuse_idle("all")

    def _refuse_idle(self, freeze: int | str) -> None:
        for key in ("head_first", "unfreeze", "lora"):
            if value := getattr(self, key):
                raise ValueError(
                    f"model.finetune.{key}={value} means nothing under model.finetune.freeze="
                    f"{freeze}, where nothing of the backbone learns: leave out one of them."
                )

    @property
    def gradual(self) -> bool:
        """Whether parts begin to learn during the run."""
        return bool(self.head_first or self.unfreeze)

    def adapted(self, backbone: B) -> B:
        """Return a backbone that is new, with the adapters that it is to have."""
        if self.lora and self.freeze != "all":
            lora = self.lora
            add_adapters(
                backbone, lora.rank, lora.alpha, lora.dropout, lora.targets, skip=self.freeze
            )
        return backbone

    def num_frozen(self, blocks: int) -> int:
        """Return how many of a backbone's blocks never learn."""
        return blocks if self.freeze == "all" else self.freeze

    def freeze_in(self, backbone: Backbone, name: str, epochs: int | None = None) -> None:
        """Stop the training of what never learns, before the strategy wraps the model.

        Args:
            backbone: A network.
            name: Attribute of the task that holds it.
            epochs: Length of the run, if epochs limit it.

        Raises:
            ValueError: If the backbone has too few blocks, or the run too little time for them, or
                a setting means nothing to it.
        """
        blocks = backbone.blocks()
        frozen, norms = self.num_frozen(len(blocks)), batch_norms(backbone)
        if frozen > len(blocks):
            raise ValueError(
                f"model.finetune.freeze={self.freeze}, but {name} has {len(blocks)} blocks; "
                "lower it, or set it to all."
            )
        if frozen == len(blocks):
            self._refuse_idle(frozen)
        if self.lora and not any(is_adapter(key) for key, _ in backbone.named_parameters()):
            raise ValueError(
                f"model.finetune.lora adapts nothing of {name}: its task has to set it as "
                "finetune.adapted(backbone)."
            )
        self._check_time(len(blocks) - frozen, name, epochs)
        if self.batchnorm == "eval" and not norms:
            raise ValueError(
                f"model.finetune.batchnorm=eval, but {name}, a {type(backbone).__name__}, has no "
                "BatchNorm: leave it out."
            )
        depths = parameter_depths(backbone, blocks)
        for p in (p for p, depth in depths.items() if depth < frozen):
            p.requires_grad_(False)

    def _check_time(self, blocks: int, name: str, epochs: int | None) -> None:
        """Refuse to wait for blocks that would join after the end of the run."""
        length = 1 if self.unfreeze < 1 else epochs or -1
        if 0 < length <= blocks * self.unfreeze:
            unit = "of the run" if self.unfreeze < 1 else f"of {length} epochs"
            raise ValueError(
                f"model.finetune.unfreeze={self.unfreeze:g} has the last of the {blocks} blocks of "
                f"{name} join after {blocks * self.unfreeze:g} {unit}: lower it, or keep the "
                "lowest ones frozen with model.finetune.freeze."
            )

    def thawed(self, progress: float, epochs: float, epoch: float) -> Since:
        """Return since when each block learns, a pure function of the run's progress.

        Args:
            progress: Fraction of the run that is done.
            epochs: Epochs that are done.
            epoch: Fraction of the run that an epoch takes.

        Returns:
            A function from a block's number below the head, which is 0 itself, to the fraction of
            the run for which it has learnt; negative if it does not yet.
        """

        def since(below: int) -> float:
            if not below or not self.gradual:
                return math.inf
            if self.head_first:
                return progress - self.head_first
            done = progress if self.unfreeze < 1 else epochs
            late = done - below * self.unfreeze + ROUNDING
            return late if self.unfreeze < 1 or late < 0 else late * epoch

        return since

    def settle(self, backbone: Backbone, frozen: int) -> None:
        """Put in eval mode what does not learn.

        Args:
            backbone: A network.
            frozen: Number of its lowest blocks that do not learn, or not yet.
        """
        blocks = backbone.blocks()
        if frozen >= len(blocks):
            backbone.eval()
        for module, depth in module_depths(backbone, blocks).items() if frozen else ():
            if depth < frozen:
                module.eval()
        # The statistics belong to the weights that adapters leave alone.
        for norm in batch_norms(backbone) if self.batchnorm == "eval" or self.lora else ():
            norm.eval()


def batch_norms(backbone: nn.Module) -> list[nn.Module]:
    """Return the layers that keep statistics of what they saw."""
    return [m for m in backbone.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
