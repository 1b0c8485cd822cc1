"""How alike two words are, by one encoder: a paradigm of a kind that lit_foundry does not have."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss
from torchmetrics import MeanAbsoluteError

from lit_foundry import Finetune, OptimConfig, Task, TextEncoder
from lit_foundry.nn import Network
from lit_foundry.tasks import Step

WORDS = ("first", "second")


class Siamese(Task):
    predicts, inputs = "value", {"Siamese": WORDS}

    def __init__(self, encoder: TextEncoder, optim: OptimConfig = OptimConfig()) -> None:
        super().__init__(optim, metrics={"mae": MeanAbsoluteError()})
        self.encoder = Finetune().adapted(encoder)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        return cosine_similarity(*(self.encoder(batch[k], batch[k] != 32).pooled for k in WORDS))

    def step(self, batch: Mapping[str, Any], stage: str) -> Step:
        kept = {**self.predict_step(batch, 0), "target": batch["label"]}
        loss = mse_loss(kept["value"], kept["target"])
        return Step(loss, len(kept["value"]), kept["value"], kept["target"], kept)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        return {"index": batch["index"], "value": self(batch).float()}

    def network(self, data: Any) -> Network:
        letters = torch.arange(97, 121).repeat(8, 8)
        words = {"first": letters[:, :8], "second": letters[:, 1:9]}
        return Network(self, WORDS, lambda rows, size: {k: w[:rows] for k, w in words.items()})
