"""Tiny networks of three families, data for them, and what tests of fine-tuning write down."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from lit_foundry.data import DataModule, TextBatch
from lit_foundry.data.base import BatchDataset, Split
from lit_foundry.data.batch import ImageBatch
from lit_foundry.nn import Backbone, ImageEncoder, TextEncoder
from lit_foundry.nn.layer_depth import module_depths, parameter_depths
from lit_foundry.tasks import Classification, Finetune
from lit_foundry.training.optim import OptimConfig

KINDS = ("bert", "resnet", "vit")
each = pytest.mark.parametrize("kind", KINDS)
BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
    "hidden_dropout_prob": 0.1,
}
BLOCKS = 3  # of each of them


def network(kind: str) -> Backbone:
    """Build the network of a family."""
    if kind == "bert":
        return TextEncoder(config=BERT)
    return ImageEncoder(config={"resnet": RESNET, "vit": VIT}[kind], image_size=8)


class Examples:
    """Random texts or images whose class shows; 9 of 10 are of class 0."""

    def __init__(self, kind: str, count: int) -> None:
        rng = np.random.default_rng(count)
        self.lengths = np.ones(count, np.int64)
        self.labels = (np.arange(count) % 10 == 0).astype(np.int64)
        if kind == "bert":
            ids = rng.integers(2, 25, (count, 8)) + 24 * self.labels[:, None]
            self.fields = {"input_ids": torch.from_numpy(ids)}
            self.fields["attention_mask"] = torch.ones(count, 8, dtype=torch.bool)
        else:
            pixels = rng.integers(0, 128, (count, 3, 8, 8)) + 127 * self.labels[:, None, None, None]
            self.fields = {"pixel_values": torch.from_numpy(pixels.astype(np.uint8))}

    def __getitem__(self, rows: Sequence[int]) -> Mapping[str, Any]:
        batch = {name: field[list(rows)] for name, field in self.fields.items()}
        label = torch.from_numpy(self.labels[list(rows)])
        return batch | {"index": torch.tensor(rows), "label": label}


class Data(DataModule):
    """Forty training and twenty validation examples; an epoch has five steps."""

    facts: Mapping[str, int] = {"num_classes": 2}

    def __init__(self, kind: str, micro_batch: int | None = None, balanced: bool = False) -> None:
        super().__init__(batch_size=8, micro_batch=micro_batch, balanced=balanced)
        self.kind = kind
        self.batch_type = TextBatch if kind == "bert" else ImageBatch  # type: ignore[misc]

    def load(self, split: Split) -> BatchDataset:
        """Open a split."""
        return Examples(self.kind, 40 if split == "train" else 20)


def classifier(
    kind: str, finetune: Finetune = Finetune(), seed: int = 0, **options: Any
) -> Classification:
    """Return a classifier on the network of a family."""
    torch.manual_seed(seed)
    optim = OptimConfig(lr=0.01, schedule="constant", weight_decay=0.1)
    return Classification(network(kind), 2, finetune=finetune, **{"optim": optim} | options)


def state(module: nn.Module) -> dict[str, Tensor]:
    """Copy weights and statistics."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def block_of(model: Classification) -> dict[str, int]:
    """Return the block of each tensor of a backbone, by name in the model's state."""
    backbone = model.backbone
    depths: dict[Any, int] = {**parameter_depths(backbone, backbone.blocks())}
    found = {name: depths[p] for name, p in backbone.named_parameters()}
    modules = module_depths(backbone, backbone.blocks())
    for path, module in backbone.named_modules():
        for name, _ in module.named_buffers(recurse=False):
            found[f"{path}.{name}"] = modules.get(module, 0)
    return {f"backbone.{name}": depth for name, depth in found.items()}


class Moves(Callback):
    """Notes after each optimizer step which tensors it changed, and how blocks were."""

    def __init__(self) -> None:
        self.changed: list[set[str]] = []
        self.training: list[set[int]] = []
        self.learning: list[set[str]] = []
        self._before: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Copy what there is."""
        self._before = state(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare, where a step is whole."""
        if trainer.global_step == len(self.changed):
            return
        after, before = state(pl_module), self._before
        self.changed.append({n for n in after if not torch.equal(after[n], before[n])})
        depths = module_depths(pl_module.backbone, pl_module.backbone.blocks())
        self.training.append({depth for module, depth in depths.items() if module.training})
        named = pl_module.named_parameters()
        self.learning.append({name for name, p in named if p.requires_grad})
        self._before = after
