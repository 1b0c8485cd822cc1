"""Training paradigms, each a LightningModule."""

from lit_foundry.tasks.base import Stage, Step, Task
from lit_foundry.tasks.classification import Classification
from lit_foundry.tasks.finetune import Finetune

__all__ = ["Classification", "Finetune", "Stage", "Step", "Task"]
