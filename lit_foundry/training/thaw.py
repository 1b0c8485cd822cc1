"""Which blocks of a task's backbones learn at the moment."""

from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.optim import Optimizer

from lit_foundry.nn import Backbone
from lit_foundry.nn.lora import check_reached
from lit_foundry.training.finetune import Finetune, Since
from lit_foundry.training.progress import epochs


class Thaw:
    """Keeps what does not learn yet in eval mode and, on one device, out of the backward pass.

    All of it follows from the run's progress, so that a resume goes on alike. Where several devices
    wait for each gradient, they compute those of blocks to come too, and drop them.
    """

    def __init__(self) -> None:
        self._finetune = Finetune()
        self._backbones: dict[str, Backbone] = {}
        self._blocks: dict[str, int] = {}
        self._frozen: dict[str, int] = {}
        self._followed: dict[str, int] | None = None
        self._waiting: list[nn.Parameter] = []
        self._is_checked = False

    def begin(
        self, finetune: Finetune, backbones: Mapping[str, Backbone], trainer: Trainer
    ) -> None:
        """Freeze what never learns, before the strategy wraps the model, and begin a run.

        Args:
            finetune: Which parts are trained, and from when on.
            backbones: Networks of the task, by name.
            trainer: Fits the task.
        """
        self._release()  # what had to wait when an earlier run broke off
        length = trainer.max_epochs if (trainer.max_epochs or 0) > 0 else None
        for name, backbone in backbones.items():
            finetune.freeze_in(backbone, name, length)
        self._finetune, self._backbones = finetune, dict(backbones)
        self._blocks = {name: len(backbone.blocks()) for name, backbone in backbones.items()}
        self._frozen = {
            name: count if finetune.gradual else finetune.num_frozen(count)
            for name, count in self._blocks.items()
        }
        self._followed, self._is_checked = None, finetune.lora is None
        self.settle()

    def settle(self) -> None:
        """Put in eval mode what does not learn at the moment."""
        for name, backbone in self._backbones.items():
            self._finetune.settle(backbone, self._frozen[name])

    def check_heads(self, task: nn.Module, optimizer: Optimizer) -> None:
        """Raise ValueError if nothing could learn before a backbone joins."""
        if self._finetune.gradual and all(group["below"] for group in optimizer.param_groups):
            key = "head_first" if self._finetune.head_first else "unfreeze"
            raise ValueError(
                f"model.finetune.{key} has the head learn alone first, but that of "
                f"{type(task).__name__} has no weights of its own here: leave it out."
            )

    def follow(self, trainer: Trainer, batch_idx: int, progress: float, step: float) -> Since:
        """Let blocks join whose time has come.

        Args:
            trainer: Fits the task, and begins an optimizer step.
            batch_idx: Micro-batches of this epoch that are done.
            progress: Fraction of the run that is done.
            step: Fraction of the run that one optimizer step takes.

        Returns:
            Since when each block learns; see :meth:`Finetune.thawed`.
        """
        thawed = self._finetune.thawed(progress, *epochs(trainer, batch_idx, step))
        if self._finetune.gradual:
            frozen = {
                name: max(
                    self._finetune.num_frozen(count),
                    sum(thawed(below) < 0 for below in range(1, count + 1)),
                )
                for name, count in self._blocks.items()
            }
            if frozen != self._followed:
                self._switch(frozen)
                if isinstance(trainer.strategy, SingleDeviceStrategy):
                    self._hold(thawed, trainer.optimizers)
        return thawed

    def _switch(self, frozen: dict[str, int]) -> None:
        self._frozen = self._followed = frozen
        for backbone in self._backbones.values():
            backbone.train()
        self.settle()

    def _hold(self, thawed: Since, optimizers: list[Optimizer]) -> None:
        """Keep what waits out of the graph, which then ends above it."""
        self._release()
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self._waiting = [p for g in groups if thawed(g["below"]) < 0 for p in g["params"]]
        for p in self._waiting:
            p.requires_grad_(False)

    def _release(self) -> None:
        for p in self._waiting:
            p.requires_grad_(True)
        self._waiting = []

    def check_gradients(self) -> None:
        """Once, after the first backward pass: refuse adapters that it did not reach."""
        if not self._is_checked:
            self._is_checked = True
            for name, backbone in self._backbones.items():
                check_reached(backbone, name)
