"""Training paradigms, each a LightningModule."""

from lit_foundry.tasks.autoencoders.masked import MaskedAutoencoder
from lit_foundry.tasks.autoencoders.plain import Autoencoder
from lit_foundry.tasks.autoencoders.quantized import QuantizedAutoencoder
from lit_foundry.tasks.autoencoders.variational import VariationalAutoencoder
from lit_foundry.tasks.base import Task
from lit_foundry.tasks.causal_lm import CausalLM
from lit_foundry.tasks.classification import Classification
from lit_foundry.tasks.contrastive import Contrastive
from lit_foundry.tasks.denoising_text import DenoisingText
from lit_foundry.tasks.distillation import Distillation
from lit_foundry.tasks.masked_lm import MaskedLM
from lit_foundry.tasks.multi_label_classification import MultiLabelClassification
from lit_foundry.tasks.regression import Regression
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.tasks.token_classification import TokenClassification
from lit_foundry.training.finetune import Finetune, Lora

__all__ = [
    "Autoencoder",
    "CausalLM",
    "Classification",
    "Contrastive",
    "DenoisingText",
    "Distillation",
    "Finetune",
    "Lora",
    "MaskedAutoencoder",
    "MaskedLM",
    "MultiLabelClassification",
    "QuantizedAutoencoder",
    "Regression",
    "Stage",
    "Step",
    "Task",
    "TokenClassification",
    "VariationalAutoencoder",
]
