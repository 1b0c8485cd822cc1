"""What tasks share that train another task, and write its checkpoints."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lit_foundry.datamodule import Data
from lit_foundry.nn import Backbone, Network
from lit_foundry.tasks.base import Task
from lit_foundry.tasks.step import Stage


class Teaching(Task):
    """Trains another task, its student, and is that in all but :meth:`step`.

    A checkpoint holds the student alone, under its own names; a subclass keeps by itself what it
    has beside it.

    Args:
        student: The task, with its ``optim`` and ``finetune``.
    """

    takes_unlabelled = True

    def __init__(self, student: Task) -> None:
        super().__init__(student.optim, student.finetune)
        self.student: Any = student
        student.takes_unlabelled = True
        # What the student is judged by, and what of it learns when, is its own.
        self.scores, self._thaw = student.scores, student._thaw
        self.job = student.job
        of_class = {"monitor": student.monitor, "mode": student.mode}
        self.__dict__.update(of_class, predicts=student.predicts)
        self.register_state_dict_post_hook(_as_student)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_student)  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:
        """Be the student in whatever this class does not define."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if "student" not in modules:
                raise
            return getattr(modules["student"], name)

    @property
    def served(self) -> Task:
        """The student."""
        student: Task = self.student
        return student

    @property
    def backbones(self) -> dict[str, Backbone]:
        """Those of the student, by their names there."""
        return self.served.backbones

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Fields of a batch that the student reads."""
        return self.served.inputs

    def recipe(self) -> dict[str, Any]:
        """Return that of the student, for its checkpoint."""
        return self.served.recipe()

    def network(self, data: Data) -> Network:
        """Return that of the student."""
        return self.served.network(data)

    def from_loss(self, stage: Stage, loss: Tensor) -> dict[str, Tensor]:
        """Return the student's scores."""
        return self.served.from_loss(stage, loss)

    def inherit_changes(self) -> None:
        """Change the student as what it begins with was."""
        self.served.inherit_changes()

    def check_data(self, data: Data) -> None:
        """Check the data against the student."""
        self.served.check_data(data)

    def setup(self, stage: str) -> None:
        """Set up the student."""
        self.served.setup(stage)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Let the student know the moment."""
        super().on_train_batch_start(batch, batch_idx)
        self.student.moment = self.moment

    def updated(self) -> None:
        """Let the student follow its weights."""
        self.served.updated()

    def resized(self) -> None:
        """Let the student count anew."""
        self.served.resized()

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> Any:
        """Predict as the student does."""
        return self.student.predict_step(batch, batch_idx)

    def forward(self, batch: Mapping[str, Any]) -> Any:
        """Return what the student makes of a batch."""
        return self.student(batch)


def _as_student(task: Any, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Give the tensors of a student the names that they have in a task of its own; drop others."""
    mine = {name: state.pop(name) for name in [*state] if name.startswith(prefix)}
    inside = f"{prefix}student."
    state |= {prefix + n.removeprefix(inside): t for n, t in mine.items() if n.startswith(inside)}


def _from_student(task: Any, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
    """Undo that before tensors are loaded; what was dropped stays as it is."""
    theirs = {name: state.pop(name) for name in [*state] if name.startswith(prefix)}
    state |= {f"{prefix}student.{n.removeprefix(prefix)}": t for n, t in theirs.items()}
    for part, module in task.named_children():
        if part != "student":
            state |= {f"{prefix}{part}.{n}": t for n, t in module.state_dict().items()}
