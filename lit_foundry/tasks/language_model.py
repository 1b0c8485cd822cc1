"""What masked and causal language models share.

Shapes: B batch, T tokens, N predictions, D feature width, V vocabulary.
"""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.checkpoints.files import load_strictly, read_checkpoint, recipe_of
from lit_foundry.datamodule import Data, data_of
from lit_foundry.nn import LanguageHead, Network, TextEncoder
from lit_foundry.nn.text.masking import IGNORED
from lit_foundry.nn.text.network import LanguageNetwork
from lit_foundry.nn.text.packed_attention import attended, check_isolation
from lit_foundry.nn.text.vocabulary_loss import linear_cross_entropy
from lit_foundry.tasks.base import Task
from lit_foundry.tasks.step import Stage
from lit_foundry.training.compiling import compile_in_place
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.metrics import TokenAccuracy
from lit_foundry.training.optim import OptimConfig


class LanguageModel(Task):
    """Predicts tokens, with the head of the backbone's family on the places that are predicted.

    Args:
        backbone: Network of ``transformers``, from scratch or pretrained.
        compile: Compile the backbone, and the loss on a GPU: a minute more at the start.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.
    """

    head: LanguageHead

    def __init__(
        self,
        backbone: TextEncoder,
        compile: bool,
        finetune: Finetune,
        optim: OptimConfig,
        init_from: Path | None,
    ) -> None:
        super().__init__(
            optim, finetune, init_from, {"acc": TokenAccuracy()}, {"acc": TokenAccuracy()}
        )
        self.backbone = finetune.adapted(backbone)
        parts = self.parts_on(self.backbone)
        for name, part in parts.items():
            setattr(self, name, part)
        self._parts = tuple(parts)
        self.compiled, self._is_compiled = compile, False
        self._weights: tuple[int, int] | None = None
        self._writer: Any = None
        # No buffers, whose shape what averages weights would have learnt before there are data.
        self.special = self.continues = torch.zeros(0, dtype=torch.bool)

    @classmethod
    def parts_on(cls, backbone: Any) -> dict[str, nn.Module]:
        """Build what makes logits of a backbone's features, by the names of the parts."""
        return {"head": backbone.language_head()}

    def setup(self, stage: str) -> None:
        """Learn from the data which tokens are special, and which continue a word."""
        super().setup(stage)
        device = self.trainer.strategy.root_device
        data = data_of(self.trainer)
        if device.type == "cuda" and data is not None and data.packing == "isolated":
            self.backbone.pack()
        vocabulary = None if data is None else data.vocabulary
        if vocabulary is not None:
            self.special = torch.from_numpy(vocabulary.special).to(device)
            self.continues = torch.from_numpy(vocabulary.continues).to(device)
        if self.compiled and stage == "fit":
            compile_in_place(self.backbone, device)
            self._is_compiled = True

    def check_data(self, data: Data) -> None:
        """Check also that documents that share a row can be told apart by the backbone.

        Raises:
            ValueError: If they cannot, or a fact of the data is another than the network's.
        """
        super().check_data(data)
        if data.packing == "isolated":
            check_isolation(self.backbone.encoder.config)

    def initialize(self, path: Path) -> None:
        """Take over the head too, from a model with the same objective."""
        super().initialize(path)
        if path.is_dir():
            source = type(self.backbone)(pretrained=str(path))
            found = self.parts_on(source)
            states = {name: part.state_dict() for name, part in found.items()}
        else:
            checkpoint = read_checkpoint(path)
            theirs = recipe_of(checkpoint, path)["model"]["class_path"]
            if theirs != self.recipe()["class_path"]:
                return
            states = {name: {} for name in self._parts}
            for key, value in checkpoint["state_dict"].items():
                part, _, rest = key.partition(".")
                states.get(part, {})[rest] = value
        for name in self._parts:
            load_strictly(getattr(self, name), states[name], f"{path}, {name}")

    def predicted(self, tokens: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score the predictions at some places.

        Args:
            tokens: Features of the places, shape (N, D).
            target: Their ids, shape (N,); -100 is left out.

        Returns:
            Mean loss, number of predictions that it averages, most probable ids (N,).
        """
        weight = self.head.decoder_weight(self.backbone)
        total, preds = linear_cross_entropy(
            self.head.transform(tokens), weight, self.head.bias, target, self._is_compiled
        )
        count = (target != IGNORED).sum()
        return total / count.clamp(min=1), count, preds

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Return the floating point operations that training on a batch takes.

        Six for each weight of a matrix and each place that it is applied to, and those of
        attention as if every token of a row attended to all, or to its window.

        Source: Chowdhery et al., PaLM, 2022. https://arxiv.org/abs/2204.02311 (appendix B)
        """
        rows, size = batch["input_ids"].shape
        config: Any = self.backbone.encoder.config
        if self._weights is None:
            layers = self.backbone.blocks()[1:]
            decoder = self.head.decoder_weight(self.backbone)
            body = sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim > 1)
            if config.model_type == "albert":  # which applies one layer many times
                body *= config.num_hidden_layers // len(layers)
            self._weights = (
                body,
                sum(p.numel() for p in {*self.head.parameters(), decoder} if p.ndim > 1),
            )
        body, head = self._weights
        attention = 2 * self.backbone.dim * sum(attended(config, size))
        per_row = size * (body + attention) + self.num_predicted(size) * head
        return float(6 * rows * per_row)

    def resized(self) -> None:
        """Count the operations of the smaller network."""
        self._weights = None

    @property
    def tokenizer(self) -> Any:
        """That of the data."""
        return self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]

    @staticmethod
    def _texts(batch: Mapping[str, Any], tokenizer: Any) -> list[str]:
        pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        return [tokenizer.decode(ids[mask].tolist()) for ids, mask in pairs]

    def network(self, data: Data) -> Network:
        """Return backbone and head as a function of tensors."""
        return LanguageNetwork(self.backbone, self.head, data.facts["vocab_size"])

    def build_writer(self) -> Any:
        """Build the model of ``transformers`` that writes texts, if it is one that does."""
        return None

    @property
    def writer(self) -> Any:
        """What writes texts with the weights as they are now."""
        return self._writer or self.build_writer()

    def on_predict_start(self) -> None:
        """Build once what writes texts."""
        self.__dict__["_writer"] = self.build_writer()  # no module of this one

    def on_predict_end(self) -> None:
        """Write with other weights the next time."""
        self.__dict__["_writer"] = None

    @abstractmethod
    def num_predicted(self, size: int) -> int:
        """Return the predictions of a training row of ``size`` tokens."""

    def from_loss(self, stage: Stage, loss: Tensor) -> dict[str, Tensor]:
        """Return the perplexity."""
        return {"perplexity": loss.exp()}
