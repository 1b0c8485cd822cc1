"""Training paradigms, each a LightningModule."""

from lit_foundry.tasks.base import Task
from lit_foundry.tasks.classification import Classification
from lit_foundry.tasks.finetune import Finetune
from lit_foundry.tasks.step import Stage, Step

__all__ = ["Classification", "Finetune", "Stage", "Step", "Task"]
