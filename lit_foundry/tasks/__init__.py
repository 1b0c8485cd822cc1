"""Training paradigms, each a LightningModule."""

from lit_foundry.tasks.base import Task
from lit_foundry.tasks.causal_lm import CausalLM
from lit_foundry.tasks.classification import Classification
from lit_foundry.tasks.masked_lm import MaskedLM
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.finetune import Finetune, Lora

__all__ = ["CausalLM", "Classification", "Finetune", "Lora", "MaskedLM", "Stage", "Step", "Task"]
