"""Linear layers made products of two smaller ones before a run trains them."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_foundry import ranges
from lit_foundry.callbacks.pruning import Pruning
from lit_foundry.callbacks.shrinking import each_backbone, example, print_costs, shrunk_task
from lit_foundry.nn.changes import factorize, record
from lit_foundry.nn.pruning.cost import MEASURES, cost
from lit_foundry.nn.pruning.low_rank import factors, layers, put


class LowRank(Callback):
    """Replaces linear layers of a task's backbones by two, when a run begins.

    A layer stays where two would not be smaller. What is left then learns to make up for what went.

    Args:
        energy: Share of the sum of squares of each weight that the two keep.
        share: Share of the numbers of each weight that the two have, in place of ``energy``.
        targets: Ends of the names of layers, such as ``dense``; None takes all.

    Raises:
        ValueError: If a value lies outside its range, or not one of the first two is set.
    """

    def __init__(
        self,
        energy: float | None = None,
        share: float | None = None,
        targets: Sequence[str] | None = None,
    ) -> None:
        if (energy is None) == (share is None):
            raise ValueError(f"LowRank takes energy or share, got {energy} and {share}: set one.")
        rule = "is a share in (0, 1), or null"
        shares = {"energy": energy, "share": share}
        ranges.check(
            "LowRank", shares, {k: (v is None or 0 < v < 1, rule) for k, v in shares.items()}
        )
        self.energy, self.share = energy, share
        self.targets = tuple(targets) if targets else None
        self._done = self._restored = False

    def state_dict(self) -> dict[str, Any]:
        """Return whether the layers were replaced."""
        return {"done": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Leave a network as it is whose layers were."""
        self._restored = bool(state_dict["done"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the layers, and have the optimizer know.

        Raises:
            ValueError: If none can be, or if something else of the run is in the way.
        """
        self._done, self._restored = self._restored, False
        if self._done:
            return
        task, copies = shrunk_task(trainer, pl_module, "LowRank")
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(callback, Pruning) for callback in callbacks):
            raise ValueError(
                "trainer.callbacks: LowRank and Pruning change a network one after the other: set "
                "model.init_from of a second run to the checkpoint of the first."
            )
        for name, backbone in each_backbone(task).items():
            batch = example(backbone, trainer, task.device, 1)
            before: dict[str, float] = {of: cost(backbone.eval(), batch, of) for of in MEASURES}
            ranks = {}
            for layer_name, layer in layers(backbone, batch, self.targets).items():
                first, second = factors(layer.weight, self.energy, self.share)
                if first.numel() + second.numel() >= layer.weight.numel():
                    continue
                ranks[layer_name] = (min(layer.weight.shape), len(first))
                put(backbone, layer_name, (first, second))
                module = f"{name}.{layer_name}"
                for other in copies:  # the weights follow with the first average
                    factorize(other, module, len(first))
                record(task, {"op": "factorize", "module": module, "rank": len(first)})
            if not ranks:
                raise ValueError(
                    f"LowRank makes no linear layer of {name} smaller: lower LowRank."
                    f"{'share' if self.energy is None else 'energy'}, or leave out LowRank.targets."
                )
            print_costs(f"Factorized {name}, by rank", backbone, batch, before, ranks)
            backbone.train()
        task.train()
        trainer.strategy.setup_optimizers(trainer)
        self._done = True
