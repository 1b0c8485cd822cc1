"""What a checkpoint fixes of the model that goes on with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_foundry.checkpoints.files import CheckpointError, load_strictly
from lit_foundry.checkpoints.initialization import changes_of
from lit_foundry.nn.changes import inherit
from lit_foundry.recipe import differences
from lit_foundry.tasks import Task


def check_same_model(checkpoint: Mapping[str, Any], task: Task) -> None:
    """Refuse a model that the checkpoint cannot fill, with what was written otherwise.

    Raises:
        CheckpointError: If its weights differ in name or shape.
    """
    try:
        load_strictly(task, checkpoint["state_dict"], "The checkpoint")
    except CheckpointError as error:
        old = checkpoint["lit_foundry"]["model"]
        changed = "; ".join(differences(old, task.recipe(), "model"))
        raise CheckpointError(f"{error}\nWhat you set, checkpoint -> yours: {changed}") from None


def resume_from(task: Any, path: str | None) -> None:
    """Make a task ready for a checkpoint, if there is one: it has all weights."""
    if path and isinstance(task, Task):
        task.served.init_from = None
        if Path(path).is_file():
            inherit(task.served, changes_of(Path(path)))
