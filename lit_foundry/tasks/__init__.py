"""Training paradigms, each a LightningModule."""

from lit_foundry.tasks.base import Task
from lit_foundry.tasks.causal_lm import CausalLM
from lit_foundry.tasks.classification import Classification
from lit_foundry.tasks.finetune import Finetune, Lora
from lit_foundry.tasks.masked_lm import MaskedLM
from lit_foundry.tasks.step import Stage, Step

__all__ = ["CausalLM", "Classification", "Finetune", "Lora", "MaskedLM", "Stage", "Step", "Task"]
