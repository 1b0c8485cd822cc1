"""Causal language modelling, from scratch or continued.

Shapes: B batch, T tokens, D feature width.
"""

import sys
from collections.abc import Mapping
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lit_foundry.datamodule import Data, data_of
from lit_foundry.nn import TextDecoder
from lit_foundry.nn.lora import without_adapters
from lit_foundry.nn.text.as_language_model import language_model
from lit_foundry.nn.text.generation import Generation, end_of, generate
from lit_foundry.nn.text.masking import IGNORED
from lit_foundry.tasks.language_model import LanguageModel
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.optim import OptimConfig

PROMPT = 32  # tokens of a text that a sample goes on with


class CausalLM(LanguageModel):
    """Predicts each token of a document from those before it.

    Args:
        backbone: Decoder of ``transformers``, from scratch or pretrained.
        generation: How ``predict`` and the samples of a validation draw tokens.
        compile: Compile the backbone, and the loss on a GPU: a minute more at the start.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.

    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
        https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
    """

    job: str | None = "text-generation"

    def __init__(
        self,
        backbone: TextDecoder,
        generation: Generation = Generation(),
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        super().__init__(backbone, compile, finetune, optim, init_from)
        self.generation = generation
        self._longest = sys.maxsize

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Score the prediction of every token that follows another one of its document."""
        target = next_tokens(batch)
        tokens = self.backbone.encode(batch).tokens
        loss, count, preds = self.predicted(tokens.flatten(0, 1), target.flatten())
        return Step(loss, count, preds=preds, target=target.flatten())

    def num_predicted(self, size: int) -> int:
        """Return the predictions of a training row of ``size`` tokens."""
        return size

    def continued(self, batch: Mapping[str, Any], tokenizer: Any) -> list[tuple[str, str]]:
        """Return each text of a batch and what follows it.

        Args:
            batch: Texts, of which what ends them (the tokenizer's special tokens) is left out.
            tokenizer: Of the texts.
        """
        ids, end = batch["input_ids"], end_of(tokenizer)
        real = batch["attention_mask"] if end is None else batch["attention_mask"] & (ids != end)
        start = tokenizer.bos_token_id
        found = generate(
            self.writer,
            ids,
            real,
            self.generation,
            max_length=min(self.backbone.max_length, self._longest),
            pad_id=int(tokenizer.pad_token_id or 0),
            start_id=end if start is None else start,
            end_id=end,
        )
        read = partial(tokenizer.decode, skip_special_tokens=True)
        texts = [read(row[kept]) for row, kept in zip(ids, real, strict=True)]
        return list(zip(texts, map(read, found), strict=True))

    def build_writer(self) -> Any:
        """Build it."""
        backbone = without_adapters(self.backbone)
        return language_model(backbone, self.head, exactly=False).to(self.device)

    def check_data(self, data: Data) -> None:
        """Check the data, and keep the length that the network is trained with."""
        super().check_data(data)
        self._longest = data.facts.get("max_length", sys.maxsize)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``index`` (B,), and each text with its continuation."""
        pairs = self.continued(batch, self.tokenizer)
        records = [{"text": text, "continuation": more} for text, more in pairs]
        # A copy: Lightning keeps it, and what a loader's worker sent holds a file open.
        return {"index": batch["index"].clone(), "record": records}

    def samples(self, batch: Mapping[str, Any], tokenizer: Any) -> list[str]:
        """Show beginnings of texts, and how the network goes on."""
        start = {name: value[:, :PROMPT] for name, value in batch.items() if value.ndim == 2}
        if "document" in start:  # of the first one in the row
            start["attention_mask"] = start["document"] == start["document"][:, :1]
        return [f"{text} ||| {more}" for text, more in self.continued(start, tokenizer)]

    def from_loss(self, stage: Stage, loss: Tensor) -> dict[str, Tensor]:
        """Return perplexity and bits per byte of text."""
        found = super().from_loss(stage, loss)
        data = data_of(self.trainer)
        tokens = None if data is None else data.tokens_per_byte(stage)
        if tokens is not None:
            found["bits_per_byte"] = loss / log(2) * tokens
        return found


def next_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Return the token that follows each one in its document, -100 where none does; (B, T).

    An end token where the document goes on, cut to fit a row, is not one to learn.
    """
    ids = batch["input_ids"]
    owner = batch.get("document", batch["attention_mask"].long())
    follows = (owner[:, 1:] == owner[:, :-1]) & (owner[:, 1:] > 0)
    if "cut" in batch:
        follows &= ~batch["cut"][:, 1:]
    return F.pad(ids[:, 1:].where(follows, IGNORED), (0, 1), value=IGNORED)
