"""Denoising of texts: a decoder restores what an encoder sees corrupted.

Shapes: B batch, T tokens, D feature width, V vocabulary.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lit_foundry.datamodule import Data, data_of
from lit_foundry.nn import Network, TextEncoder
from lit_foundry.nn.lora import without_adapters
from lit_foundry.nn.text.generation import Generation, end_of, restore
from lit_foundry.nn.text.masking import IGNORED
from lit_foundry.nn.text.noising import Kinds, Noised, Noising, add_noise
from lit_foundry.nn.text.sequence_decoder import (
    SequenceDecoder,
    SequenceNetwork,
    decoder_of,
    sequence_model,
    start_of,
)
from lit_foundry.randomness import Moment, sample_numbers
from lit_foundry.tasks.language_model import LanguageModel
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.optim import OptimConfig


class DenoisingText(LanguageModel):
    """Restores texts of which sentences, words and tokens were moved, swallowed or deleted.

    The encoder sees the corrupted text, and the decoder writes the whole original. What is done to
    a sample is a function of seed, epoch and sample in training, and of the sample alone in
    evaluation. The encoder fine-tunes as any other (``init_from``). What ``finetune`` freezes or
    adapts is of the encoder: the decoder always learns.

    Args:
        backbone: Encoder of an encoder-decoder of ``transformers`` (bart, mbart, pegasus ...), from
            scratch or pretrained; the decoder is that of its family.
        noising: What is done to the texts.
        generation: How ``predict`` and the samples of a validation draw tokens.
        compile: Compile the encoder, and the loss on a GPU: a minute more at the start.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.

    Raises:
        ValueError: If the backbone's family has no such decoder, or the data's tokenizer no mask
            token or none that ends a text.

    Source: Lewis et al., BART: Denoising Sequence-to-Sequence Pre-training for Natural Language
        Generation, Translation, and Comprehension, 2019. https://arxiv.org/abs/1910.13461
    """

    decoder: SequenceDecoder

    def __init__(
        self,
        backbone: TextEncoder,
        noising: Noising = Noising(),
        generation: Generation = Generation(max_tokens=512, temperature=0.0),
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        super().__init__(backbone, compile, finetune, optim, init_from)
        self.noising, self.generation = noising, generation
        self.ends = torch.zeros(0, dtype=torch.bool)
        self._mask_id = self._start_id = self._end_id = 0
        self._longest = sys.maxsize

    @classmethod
    def parts_on(cls, backbone: Any) -> dict[str, nn.Module]:
        """Build decoder and head."""
        decoder, head = decoder_of(backbone)
        return {"decoder": decoder, "head": head}

    def setup(self, stage: str) -> None:
        """Learn also which tokens end a sentence."""
        super().setup(stage)
        data = data_of(self.trainer)
        if data is not None and data.vocabulary is not None:
            ends = torch.from_numpy(data.vocabulary.ends)
            self.ends = ends.to(self.trainer.strategy.root_device)

    def check_data(self, data: Data) -> None:
        """Demand rows that are one text, and tokens for gaps and ends.

        Raises:
            ValueError: If there are none, or the data do not fit the network.
        """
        if data.packing == "isolated":
            raise ValueError(
                "data.packing isolated puts several documents into a row, of which DenoisingText "
                "makes one text: set it to concatenated."
            )
        super().check_data(data)
        mask, end = data.facts.get("mask_id"), end_of(data.tokenizer)
        for name, token in {"a mask": mask, "the end of a text": end}.items():
            if token is None:
                raise ValueError(
                    f"data.tokenizer has no token for {name}, which DenoisingText needs: take "
                    "another one, or have one trained (data.tokenizer.kind)."
                )
        self._mask_id, self._end_id = int(mask or 0), int(end or 0)
        self._start_id = start_of(self.backbone, data.tokenizer)
        self._longest = data.facts.get("max_length", sys.maxsize)

    def noised(self, batch: Mapping[str, Any], stage: Stage) -> Noised:
        """Return what the encoder sees of a batch."""
        ids = batch["input_ids"]
        moment = self.moment if stage == "train" else Moment()
        return add_noise(
            ids,
            batch["attention_mask"],
            Kinds(*(kind.to(ids.device) for kind in (self.special, self.continues, self.ends))),
            moment.keys(sample_numbers(batch)),
            self.noising,
            self._mask_id,
            self.backbone.pad_id or 0,
        )

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Corrupt a batch, and score each token that is written of the original."""
        ids, real = batch["input_ids"], batch["attention_mask"]
        noised = self.noised(batch, stage)
        states = self.backbone.encode(noised._asdict()).tokens
        before = F.pad(ids, (1, 0), value=self._start_id)[:, :-1]
        embedding = self.backbone.encoder.get_input_embeddings()
        written = self.decoder(before, embedding, states, noised.attention_mask)
        target = ids.where(real, IGNORED).flatten()
        loss, count, preds = self.predicted(written.flatten(0, 1), target)
        return Step(loss, count, preds=preds, target=target)

    def num_predicted(self, size: int) -> int:
        """Return the predictions of a training row of ``size`` tokens."""
        return size

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Count also the decoder, as if the encoder saw rows as long as the original.

        Its layers attend twice, to what was written and to what the encoder made.
        """
        rows, size = batch["input_ids"].shape
        layers = self.decoder.layers
        weights = sum(p.numel() for p in layers.parameters() if p.ndim > 1)
        attention = 4 * self.backbone.dim * size * len(layers)
        return super().flops(batch) + float(6 * rows * size * (weights + attention))

    def network(self, data: Data) -> Network:
        """Return encoder, decoder and head as a function of tensors."""
        return SequenceNetwork(self.backbone, self.decoder, self.head, data.facts["vocab_size"])

    def restored(
        self, batch: Mapping[str, Any], tokenizer: Any, several: bool = False
    ) -> list[str]:
        """Return what is written of the rows of a batch, as they are.

        Args:
            batch: The rows.
            tokenizer: Of them.
            several: Whether a row holds several texts, which do not end it.
        """
        found = restore(
            self.writer,
            batch["input_ids"],
            batch["attention_mask"],
            self.generation,
            max_length=min(self.backbone.max_length, self._longest),
            pad_id=self.backbone.pad_id or 0,
            start_id=self._start_id,
            end_id=None if several else self._end_id,
        )
        return list(map(partial(tokenizer.decode, skip_special_tokens=True), found))

    def build_writer(self) -> Any:
        """Build it."""
        backbone = without_adapters(self.backbone)
        return sequence_model(backbone, self.decoder, self.head, exactly=False).to(self.device)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``index`` (B,), and each text, gaps and all, with what is written of it."""
        seen, written = self._texts(batch, self.tokenizer), self.restored(batch, self.tokenizer)
        records = [{"text": a, "restored": b} for a, b in zip(seen, written, strict=True)]
        # A copy: Lightning keeps it, and what a loader's worker sent holds a file open.
        return {"index": batch["index"].clone(), "record": records}

    def samples(self, batch: Mapping[str, Any], tokenizer: Any) -> list[str]:
        """Show texts as they were, as the encoder sees them, and as they are restored."""
        noised = self.noised(batch, "val")._asdict()
        texts = self._texts(batch, tokenizer), self._texts(noised, tokenizer)
        packed = data_of(self.trainer)
        several = packed is not None and packed.packing is not None
        rows = zip(*texts, self.restored(noised, tokenizer, several), strict=True)
        names = "original", "seen", "restored"
        return [
            "\n".join(f"{name:>8}: {text}" for name, text in zip(names, row, strict=True))
            for row in rows
        ]
