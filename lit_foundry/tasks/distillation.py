"""Distillation: a student learns what its teachers say, and is then a task of its own kind.

Shapes: B batch, T tokens, N predictions.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_foundry import ranges
from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.datamodule import Data, data_of
from lit_foundry.nn import LanguageHead
from lit_foundry.nn.distillation import KD, DistillationLoss, Outputs, watched
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.text.masking import IGNORED
from lit_foundry.randomness import run_seed
from lit_foundry.tasks.base import Task
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.tasks.teaching import Teaching
from lit_foundry.training.progress import is_logged
from lit_foundry.training.teaching.answers import Answers, folder_of, framing
from lit_foundry.training.teaching.inheritance import begin_as
from lit_foundry.training.teaching.teacher import Places, Teacher, logits_of

EXAMPLE = 2, 8  # texts and their tokens, on which losses are tried


class Distillation(Teaching):
    """Trains a student on what its teachers say, and on labels.

    Its checkpoints are those of the student: a ``Classification`` (or what ``student`` names) that
    is tested, exported and resumed from without any teacher. Teachers see what the student sees,
    augmented and masked alike, in eval mode. The loss of a sample is

        labels * (loss of the student) + sum over losses of weight * (mean over teachers)

    where samples without a label count with those that have one, and add nothing to the first. With
    ``class_weights``, which are not divided out here, a sample counts with the weight of its class.

    What teachers say of each sample is computed once and kept in a file, if it is the same in each
    epoch and the losses read logits or pooled features alone. Augmentation and masks make it
    another one each time: teachers then run in every step, at the cost of a forward pass each.

    Args:
        student: The task that is to be trained, with its ``optim`` and ``finetune``.
        teacher: Checkpoint, or folder that ``export`` wrote, or folder of ``transformers``; or a
            list of these, of which the losses are averaged.
        losses: What the student learns from a teacher; :class:`KD` alone if left out.
        labels: Weight of the student's own loss; 0 learns from teachers alone.
        init_layers: Blocks of the first teacher that the student's begin as, in order, the first
            after the stem being 1; needs equal widths. Its stem and head come along.
        init_embeddings: Begin with the principal components of the first teacher's token
            embeddings, in a narrower student.
        cache: ``file`` keeps what teachers say for this run and others, ``memory`` for this run;
            ``none`` has them run in every step.
        cache_dir: Folder of the files; by default ``$LIT_FOUNDRY_CACHE`` or
            ``~/.cache/lit_foundry``.

    Raises:
        ValueError: If the student has no backbone and head, or a loss means nothing to it.
    """

    def __init__(
        self,
        student: Task,
        teacher: Path | list[Path],
        losses: list[DistillationLoss] | None = None,
        labels: float = 1.0,
        init_layers: list[int] | None = None,
        init_embeddings: bool = False,
        cache: Literal["file", "memory", "none"] = "file",
        cache_dir: Path | None = None,
    ) -> None:
        ranges.check("model", {"labels": labels}, {"labels": (labels >= 0, "is at least 0")})
        given: Any = student
        whole = hasattr(given, "backbone") and hasattr(given, "head") and len(given.objectives) == 1
        if not whole or (isinstance(given.head, LanguageHead) and given.job != "fill-mask"):
            raise ValueError(
                f"model.student is a {type(student).__name__}; one with a backbone, a head and one "
                "objective is distilled, such as Classification or MaskedLM."
            )
        begins = {
            "model.init_layers": init_layers is not None,
            "model.init_embeddings": init_embeddings,
            "model.student.init_from": student.init_from is not None,
        }
        if len(given_keys := [key for key, is_set in begins.items() if is_set]) > 1:
            raise ValueError(
                f"{' and '.join(given_keys)} all say what the student begins as: keep one."
            )
        if teacher == []:
            raise ValueError("model.teacher is empty: name a checkpoint, or an exported folder.")
        super().__init__(student)
        self.paths = [Path(t) for t in (teacher if isinstance(teacher, list) else [teacher])]
        chosen = [KD()] if losses is None else losses
        self.losses = nn.ModuleList(nn.ModuleList(copy.deepcopy(chosen)) for _ in self.paths)
        self.needs = frozenset[str]().union(*(loss.needs for loss in chosen))
        self.labels, self.init_layers = labels, init_layers
        self.init_embeddings, self.cache, self.cache_dir = init_embeddings, cache, cache_dir
        self._check_losses(chosen)
        self._teachers: list[Teacher] = []
        self._answers: list[Answers] = []
        self._parts: dict[str, Tensor] = {}
        self._some_unlabelled = self._is_prepared = False

    def _check_losses(self, chosen: Sequence[DistillationLoss]) -> None:
        names = [type(loss).__name__ for loss in chosen]
        if not chosen and not self.labels:
            raise ValueError("model.losses is empty and model.labels=0: nothing would be learnt.")
        classes = self.student.predicts in ("class", "tags") or self._is_language
        of_classes = [n for n, loss in zip(names, chosen, strict=True) if loss.of_classes]
        if of_classes and not classes:
            kind = type(self.student).__name__
            raise ValueError(
                f"model.losses: {of_classes[0]} compares probabilities of classes that exclude "
                f"each other, and a {kind} predicts none such: take LogitMSE."
            )
        if {"hidden", "attention"} & self.needs and getattr(self.student, "compiled", False):
            raise ValueError(
                "model.student.compile hides the hidden states and attention that model.losses "
                "asks for: leave it out."
            )

    def _losses(self) -> list[list[DistillationLoss]]:
        """Return the losses by teacher."""
        return [
            [loss for loss in taught.children() if isinstance(loss, DistillationLoss)]
            for taught in self.losses
        ]

    @property
    def _is_language(self) -> bool:
        return isinstance(self.student.head, LanguageHead)

    def inherit_changes(self) -> None:
        """Change the student as what it begins with was, and give the losses their maps."""
        super().inherit_changes()
        self._prepare(data_of(self.trainer))

    def teachers(self) -> list[Teacher]:
        """Return the teachers, which are read once.

        Raises:
            CheckpointError: If one is no network.
        """
        if not self._teachers:
            backbone = self.student.backbone
            optional = {"token_type_ids"} & {*backbone.optional_inputs}
            self._teachers = [Teacher(path, backbone.inputs, optional) for path in self.paths]
        return self._teachers

    def check_data(self, data: Data) -> None:
        """Check the data against the student, and the teachers against both."""
        super().check_data(data)
        for teacher in self.teachers():
            teacher.check(self.student, data)

    def setup(self, stage: str) -> None:
        """Set up the student; begin as the teacher, and try the losses on an example."""
        super().setup(stage)
        data = data_of(self.trainer)
        if data is not None:
            self.check_data(data)
            self._some_unlabelled = data.unlabelled
        if stage != "fit":
            return
        first = self.teachers()[0]
        begin_as(self.student, first.task, first.path, self.init_layers, self.init_embeddings)
        self._prepare(data)

    @torch.no_grad()
    def _prepare(self, data: Data | None) -> None:
        """Build the maps of losses once, and try these, before the strategy wraps the network."""
        if self._is_prepared:
            return
        self._is_prepared = True
        size = EXAMPLE[1] if data is None else data.facts.get("image_size", EXAMPLE[1])
        batch = self.student.backbone.example(EXAMPLE[0], size)
        if self.student.views:
            batch["pixel_values"] = self.student.views.evaluation(batch)[0][1]["pixel_values"]
        places = torch.zeros(EXAMPLE[0], 1, dtype=torch.long)
        batch |= {"positions": places, "target": places, "word": batch.get("input_ids", places)}
        was = self.student.training
        self.student.eval()
        with watched(self.student.backbone, self.needs) as seen:
            features = self.student.backbone.encode(batch)
        mine = seen.outputs(logits_of(self.student, features, self._places(batch)))
        self.student.train(was)
        for teacher, taught in zip(self.teachers(), self._losses(), strict=True):
            theirs = teacher.outputs(batch, self.needs, self._places(batch))
            if theirs.logits.shape != mine.logits.shape:
                raise ValueError(
                    f"model.teacher={teacher.path} has {theirs.logits.shape[-1]} outputs, and the "
                    f"student {mine.logits.shape[-1]}: take one of the same classes or tokens."
                )
            with torch.random.fork_rng(devices=[]):  # maps are a function of the seed alone
                torch.manual_seed(run_seed())
                for each in taught:
                    each.prepare(mine, theirs)
                    each(mine, theirs)

    def _places(self, batch: Mapping[str, Any]) -> Places:
        """Return what takes those tokens of a batch that are predicted; None of whole samples."""
        if self._is_language:
            rows, which = (batch["target"] != IGNORED).nonzero(as_tuple=True)
            return lambda tokens: tokens[rows, batch["positions"][rows, which]]
        if self.student.predicts == "tags":
            return lambda tokens: tokens[batch["word"] >= 0]
        return None

    def on_fit_start(self) -> None:
        """Have the teachers where the student is; ask about all samples where once is enough."""
        for teacher in self.teachers():
            teacher.place(self.trainer.strategy)
        data, self._answers = data_of(self.trainer), []
        if self.cache == "none" or data is None or self.needs & {"hidden", "attention"}:
            return
        samples = data.load("train")
        if why := self._changes(samples):
            warnings.warn(
                f"The teacher runs in every step, as {why}: what it said once would be wrong. "
                "model.cache=none says so.",
                stacklevel=2,
            )
            return
        folder = folder_of(self.cache_dir) if self.cache == "file" else None
        where = str(self.trainer.precision), self.device.type
        share = self.trainer.local_rank, max(1, self.trainer.num_devices)
        for teacher in self.teachers():
            key = [teacher.fingerprint(), *framing(data), *where, *sorted(self.needs)]
            answers = Answers(
                samples, self._asked(teacher), key, folder, share, f"Asking {teacher.path.name}"
            )
            answers.to(self.device)
            self._answers.append(answers)

    def _changes(self, samples: Any) -> str | None:
        """Say why the student does not see the same of a sample in each epoch, if so."""
        if self._is_language:
            return "each epoch masks other tokens"
        if self.student.predicts == "tags":
            return "it predicts words, of which texts have many"
        if getattr(samples, "transform", None) is not None:
            return "data.transform makes another image in each epoch"
        views = self.student.views
        if views and (views.augment != Augment() or views.mixing.mixes(0) or views.mixing.mixes(1)):
            return "model.student.augment or mixing makes another image in each epoch"
        return None

    def _asked(self, teacher: Teacher) -> Any:
        """Return what asks a teacher about a batch as the data yield it."""
        strategy = self.trainer.strategy

        def answer(batch: Any) -> Outputs:
            with strategy.precision_plugin.train_step_context():
                found = teacher.outputs(strategy.batch_to_device(batch), self.needs)
            return Outputs(found.logits, pooled=found.pooled if self.needs else None)

        return answer

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Score a batch as the student does; in training, add what the teachers say."""
        if stage != "train":
            step: Step = self.student.step(batch, stage)
            return step
        with watched(self.student.backbone, self.needs, self.student.head) as seen:
            step = self.student.step(batch, stage)
        places = self._places(seen.batch)
        logits = logits_of(self.student, seen.features, places, seen.output)
        mine = self._in_deviations(seen.outputs(logits, self._target(seen.batch)))
        if not (count := len(mine.logits)):  # no token of these texts is predicted
            unused = sum(p.sum() for p in self.losses.parameters())
            return Step(0 * (step.loss + unused), 0)
        parts = {"labels": step.loss * (step.count / count)}
        loss = self.labels * parts["labels"]
        for number, taught in enumerate(self._losses()):
            theirs = self._taught(number, seen.batch, places)
            for each in taught:
                value = each(mine, theirs)
                loss = loss + each.weight / len(self.losses) * value
                name = type(each).__name__.lower()
                parts[name] = parts.get(name, 0) + value.detach() / len(self.losses)
        self._parts = {name: value.detach() for name, value in parts.items()}
        return Step(loss, count, *self._known(step), samples=step.samples)

    def _taught(self, number: int, batch: Mapping[str, Any], places: Places) -> Outputs:
        if self._answers:
            found = self._answers[number].of(batch["index"])
        else:
            found = self._teachers[number].outputs(batch, self.needs, places)
        return self._in_deviations(found)

    def _in_deviations(self, outputs: Outputs) -> Outputs:
        """Measure predicted values in deviations of the targets, as the student's own loss does."""
        if self.student.predicts == "value" and hasattr(self.student.head, "deviation"):
            return replace(outputs, logits=outputs.logits / self.student.head.deviation)
        return outputs

    def _target(self, batch: Mapping[str, Any]) -> Tensor | None:
        """Return the classes of what is predicted, shape (N,), -100 where they are unknown."""
        if self._is_language:
            target: Tensor = batch["target"]
            return target[target != IGNORED]
        if self.student.predicts == "class":
            label: Tensor = batch["label"]
            return label
        return batch["label"][batch["word"] >= 0] if self.student.predicts == "tags" else None

    def _known(self, step: Step) -> tuple[Tensor | None, Tensor | None]:
        """Return predictions and targets of labelled samples, which alone are scored."""
        if not self._some_unlabelled or step.preds is None or step.target is None:
            return step.preds, step.target
        known = step.target != IGNORED
        return (step.preds[known], step.target[known]) if known.any() else (None, None)

    def finish(self, optimizer: Optimizer) -> None:
        """Log also what the loss is made of, in the last micro-batch of the step."""
        super().finish(optimizer)
        if is_logged(self.trainer):
            self.log_dict({f"train/{name}_loss": value for name, value in self._parts.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the maps of losses, from which a run goes on, and which teachers there were."""
        super().on_save_checkpoint(checkpoint)
        if "optimizer_states" in checkpoint:
            checkpoint["lit_foundry"]["maps"] = dict(self.losses.state_dict())
            checkpoint["lit_foundry"]["teachers"] = [t.fingerprint() for t in self.teachers()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the maps of losses.

        Raises:
            CheckpointError: If there were others.
        """
        super().on_load_checkpoint(checkpoint)
        if not (self._trainer and self.trainer.training):
            return
        ours = checkpoint.get("lit_foundry", {})
        maps, mine = ours.get("maps", {}), self.losses.state_dict()
        if {k: v.shape for k, v in maps.items()} != {k: v.shape for k, v in mine.items()}:
            raise CheckpointError(
                "model.losses has other maps than those that the run began with, and the optimizer "
                "knows these: restore model.losses, or leave out --resume to begin anew."
            )
        if ours.get("teachers") != [teacher.fingerprint() for teacher in self.teachers()]:
            warnings.warn("model.teacher is another than the run began with.", stacklevel=2)
        self.losses.load_state_dict(maps)
