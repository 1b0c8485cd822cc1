"""Pruning that shrinks: channels, neurons and heads are removed while a network trains."""

import copy
import warnings
from collections.abc import Collection, Sequence
from math import isclose
from typing import Any, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lit_foundry import ranges
from lit_foundry.callbacks.best import start_over
from lit_foundry.callbacks.shrinking import each_backbone, example, print_costs, shrunk_task
from lit_foundry.nn.changes import record
from lit_foundry.nn.pruning.cost import MEASURES, Cost
from lit_foundry.nn.pruning.groups import indices, remove, shrunk
from lit_foundry.nn.pruning.plan import Keep, Plan
from lit_foundry.nn.pruning.scores import Score, gate_gradients, magnitudes
from lit_foundry.nn.pruning.units import Kind
from lit_foundry.recipe import differences
from lit_foundry.training.finetune import ROUNDING
from lit_foundry.training.progress import progress


class Pruning(Callback):
    """Removes units of a task's backbones until a share of their cost is left.

    The features keep their width, so that heads stay as they are and backbones fit other tasks.
    Each round starts the search for the best checkpoint over: no larger network is kept as it. A
    round is a function of weights, scores and progress, all of which a checkpoint holds.

    Args:
        target: Share that stays of what ``of`` counts.
        of: Multiply-adds of one sample (``macs``), ``parameters``, or ``latency`` of one sample,
            which is measured when the run begins, and then approached by the multiply-adds of what
            took so long.
        score: What stays: units with large weights (``magnitude``), on which the loss depends
            (``taylor``), or whose weights moved away from 0 (``movement``).
        begin: Fraction of the run after which it begins.
        end: Fraction after which the target is reached, by the cubic schedule of Zhu and Gupta,
            2017, https://arxiv.org/abs/1710.01878; None means at once.
        rounds: Number of rounds until then.
        parts: What may go: ``channels`` of convolutions, ``neurons`` between linear layers,
            ``heads`` of attention.
        by_layer: Have all layers lose the same share, not those more that score lower.
        least: Share of each layer that stays at least.
        multiple_of: Number that channels and neurons are left a multiple of; hardware is fast with
            multiples of 8.

    Raises:
        ValueError: If a value lies outside its range.
    """

    def __init__(
        self,
        target: float,
        of: Cost = "macs",
        score: Score = "magnitude",
        begin: float = 0.0,
        end: float | None = None,
        rounds: int = 8,
        parts: Sequence[Kind] = get_args(Kind),
        by_layer: bool = False,
        least: float = 0.1,
        multiple_of: int = 8,
    ) -> None:
        last = begin if end is None else end
        kinds, scores = get_args(Kind), get_args(Score)
        blind = begin == last == 0 and score != "magnitude"
        rules = {
            "target": (0 < target < 1, "is a share in (0, 1)"),
            "of": (of in MEASURES, f"is one of {', '.join(MEASURES)}"),
            "score": (score in scores, f"is one of {', '.join(scores)}"),
            "begin": (
                0 <= begin < 1 and not blind,
                f"is a fraction of the run in [0, 1), above 0 where {score} has to see gradients",
            ),
            "end": (begin <= last < 1, "is a fraction of the run from begin on, below 1, or null"),
            "rounds": (rounds >= 1, "is a number of rounds, 1 at least"),
            "parts": ({*parts} <= {*kinds} and len(parts) > 0, f"are some of {', '.join(kinds)}"),
            "least": (0 <= least < 1, "is a share in [0, 1)"),
            "multiple_of": (multiple_of >= 1, "is 1 at least"),
        }
        ranges.check("Pruning", {**locals(), "end": last}, rules)
        self.target, self.of, self.score, self.parts = target, of, score, tuple(parts)
        self.begin, self.end, self.by_layer = begin, last, by_layer
        self.rounds = rounds if last > begin else 1
        self.least, self.multiple_of = least, multiple_of
        self._plans: dict[str, Plan] = {}
        self._restored: dict[str, Any] = {}
        self._before: dict[str, dict[str, float]] = {}
        self._shares: dict[str, float] = {}
        self._scores: dict[str, Tensor] = {}
        self._done = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on from."""
        return {
            "done": self._done,
            "options": self._options(),
            "scores": self._scores,
            "shares": self._shares,
            "before": self._before,
            "original": {name: dict(plan.original) for name, plan in self._plans.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: If the run was begun with other options.
        """
        begun = state_dict.get("options", {})  # of what earlier versions wrote, none are known
        if told := differences(begun, self._options() if begun else {}, "Pruning"):
            raise ValueError(
                f"The run was begun with other options of Pruning ({', '.join(told)}): begin "
                "another with --resume never."
            )
        self._restored = state_dict
        self._done = state_dict["done"]
        self._scores, self._shares = dict(state_dict["scores"]), dict(state_dict["shares"])
        self._before = dict(state_dict["before"])

    def _options(self) -> dict[str, Any]:
        names = ("target", "of", "score", "rounds", "by_layer", "least", "multiple_of")
        return {name: getattr(self, name) for name in names} | {"parts": [*self.parts]}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what can be removed, and whether that is enough.

        Raises:
            ValueError: If it is not, or if something else of the run is in the way.
        """
        restored, self._restored = self._restored, {}
        if not restored:
            self._done = 0
            self._before, self._shares, self._scores = {}, {}, {}
        task, _ = shrunk_task(trainer, pl_module, "Pruning")
        self._check_compared(getattr(pl_module, "needs", ()))
        self._check_learning(trainer, task)
        self._plans = {}
        for name, backbone in each_backbone(task).items():
            few, one = (example(backbone, trainer, task.device, rows) for rows in (2, 1))
            original = restored.get("original", {}).get(name)
            options = self.parts, self.least, self.multiple_of, original
            plan = self._plans[name] = Plan(backbone, few, *options)
            plan.batch = one
            if not plan.groups and not original:
                raise ValueError(
                    f"Pruning: a {type(backbone).__name__} has none of {', '.join(self.parts)} "
                    "that learn and can be removed."
                )
            if not original:
                self._start(name, plan)

    def _check_compared(self, needs: Collection[str]) -> None:
        """Raise ValueError if losses compare with a teacher what there are fewer of."""
        lost = {"attention": "heads", "hidden": "channels"}
        for what, part in lost.items():
            if what in needs and part in self.parts:
                raise ValueError(
                    f"Pruning of {part} leaves other numbers of them than the teacher has, and "
                    f"model.losses compares {what}: leave {part} out of Pruning.parts."
                )

    def _check_learning(self, trainer: Trainer, task: Any) -> None:
        """Raise ValueError if a first round would take blocks that did not learn yet for useless.

        How long an epoch is of a run that steps limit is not known before it begins.
        """
        finetune, epochs = task.finetune, trainer.max_epochs or -1
        if self.score == "magnitude" or (finetune.unfreeze >= 1 and epochs < 0):
            return
        first = self.begin + (self.end - self.begin) / self.rounds
        since = finetune.thawed(first, first * epochs, 1.0)
        for backbone in task.backbones.values():
            blocks = len(backbone.blocks())
            learn = blocks - finetune.num_frozen(blocks)
            if any(since(below) <= 2 * ROUNDING for below in range(1, learn + 1)):
                key = "head_first" if finetune.head_first else "unfreeze"
                raise ValueError(
                    f"Pruning.score={self.score} needs gradients of all blocks before the first "
                    f"round, after {first:.2g} of the run: set Pruning.begin higher, or "
                    f"model.finetune.{key} lower."
                )

    def _start(self, name: str, plan: Plan) -> None:
        """Measure a network before it is pruned, and see how far it can be."""
        before = self._before[name] = {of: plan.cost(of) for of in MEASURES}
        reachable = plan.smallest(self.of) / before[self.of]
        if reachable > self.target:
            raise ValueError(
                f"Pruning.target={self.target} of {self.of} is out of reach: {reachable:.3f} stays "
                f"of {name} if of each layer {self.least} stays (Pruning.least) of its "
                f"{', '.join(self.parts)} (Pruning.parts), in multiples of {self.multiple_of} "
                "(Pruning.multiple_of)."
            )
        self._shares[name] = self.target
        if self.of == "latency":
            scores = [magnitudes(plan.backbone, group) for group in plan.groups]
            most = self.target * before["latency"]
            keep = plan.choose(scores, "magnitude", self.by_layer, "latency", most)
            self._shares[name] = plan.cost("macs", keep) / before["macs"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Prune, if that is due at the start of a step."""
        if self._done >= self.rounds or batch_idx % trainer.accumulate_grad_batches:
            return
        done, step = progress(trainer, batch_idx)
        due = self.rounds if done >= self.end or isclose(done, self.end) else self._done
        for number in range(self._done + 1, self.rounds):
            place = self.begin + (self.end - self.begin) * number / self.rounds
            if done >= place or isclose(done, place):
                due = max(due, number)
        if step and done + 1.5 * step > 1:
            due = self.rounds  # of a short run, the last step is the last chance
        if due > self._done:
            self._done = due
            self._prune(trainer, pl_module)

    def _prune(self, trainer: Trainer, pl_module: LightningModule) -> None:
        [optimizer] = trainer.optimizers
        task, copies = shrunk_task(trainer, pl_module, "Pruning")
        left = (1 - self._done / self.rounds) ** 3
        of: Cost = "macs" if self.of == "latency" else self.of
        for name, plan in self._plans.items():
            share = self._shares[name] + (1 - self._shares[name]) * left
            most = share * self._before[name][of]
            scores = [self._score(name, plan, number) for number in range(len(plan.groups))]
            keep = plan.choose(scores, self.score, self.by_layer, of, most)
            there = indices(plan.groups, keep)
            sizes: dict[str, dict[str, int]] = {}
            for (module, size), index in there.items():
                if len(index) < getattr(plan.backbone.get_submodule(module), size):
                    sizes.setdefault(f"{name}.{module}", {})[size] = len(index)
            for network in (*copies, task):
                state = optimizer.state if network is task else None
                remove(network.get_submodule(name), there, state)
            for module, each in sizes.items():
                record(task, {"op": "narrow", "module": module, **each})
            self._follow(name, plan, keep)
        task.resized()
        start_over(trainer)

    def _score(self, name: str, plan: Plan, number: int) -> Tensor:
        group = plan.groups[number]
        if self.score == "magnitude":
            return magnitudes(plan.backbone, group)
        if (scores := self._scores.get(f"{name}.{group.name}")) is None:
            raise ValueError(
                f"Pruning.score={self.score} has seen no gradients yet: set Pruning.begin higher."
            )
        return scores

    def _follow(self, name: str, plan: Plan, keep: Keep) -> None:
        """Go on with what is left; of a single unit, as with a resume, that is nothing."""
        for group, stays in zip(plan.groups, keep, strict=True):
            key = f"{name}.{group.name}"
            scores = self._scores.pop(key, None)
            if scores is not None and stays.sum() > 1:
                self._scores[key] = scores[stays]
        plan.groups = [group for group in shrunk(plan.groups, keep) if group.count > 1]

    def on_gradients(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add to the scores what the gradients of a step tell."""
        if self.score == "magnitude" or self._done >= self.rounds:
            return
        for name, plan in self._plans.items():
            for group in plan.groups:
                gradients = gate_gradients(plan.backbone, group)
                value = gradients.square() if self.score == "taylor" else -gradients
                key = f"{name}.{group.name}"
                self._scores[key] = self._scores[key] + value if key in self._scores else value

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Until the last round, have no validation stop the run as worse than one before it."""
        if trainer.state.fn == "fit" and self._done < self.rounds:
            start_over(trainer)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell what became of the networks."""
        if self._done < self.rounds:
            warnings.warn(
                f"Pruning: the run ended after round {self._done} of {self.rounds}, before the "
                "target was reached.",
                stacklevel=2,
            )
        for name, plan in self._plans.items():
            now = {group.name: group.count for group in plan.groups}
            sizes = {each: (old, now.get(each, 1)) for each, old in plan.original.items()}
            network = copy.deepcopy(plan.backbone).eval()
            print_costs(f"Pruned {name}", network, plan.batch, self._before[name], sizes)
