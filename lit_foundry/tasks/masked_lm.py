"""Masked language modelling, from scratch or continued.

Shapes: B batch, T tokens, K predictions of a row, D feature width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_foundry.datamodule import Data
from lit_foundry.nn import TextDecoder, TextEncoder
from lit_foundry.nn.text.masking import IGNORED, Masked, Masking, mask_tokens
from lit_foundry.randomness import Moment, sample_numbers
from lit_foundry.tasks.language_model import LanguageModel
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.training.finetune import Finetune
from lit_foundry.training.optim import OptimConfig

EVALUATION = Masking()  # 15 % of single tokens, whatever training masks, to compare runs
SHOWN = 5  # fillings of a mask
Filling = list[tuple[int, float]]  # ids and probabilities, most probable first


class MaskedLM(LanguageModel):
    """Predicts tokens that it does not see from those around them.

    The masks of a sample are a function of seed, epoch and sample in training, and of the sample
    alone in evaluation, where 15 % are masked whatever training has. Features of all tokens are
    computed, but those of the vocabulary's size at the predicted places only.

    Args:
        backbone: Encoder of ``transformers``, from scratch or pretrained.
        masking: What is masked.
        compile: Compile the backbone, and the loss on a GPU: a minute more at the start.
        finetune: What is frozen, and when.
        optim: Optimizer and schedule.
        init_from: Checkpoint whose backbone initializes this one.

    Raises:
        ValueError: If the backbone is causal, or the data's tokenizer has no mask token.

    Source: Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language
        Understanding, 2018. https://arxiv.org/abs/1810.04805
    """

    job: str | None = "fill-mask"

    def __init__(
        self,
        backbone: TextEncoder,
        masking: Masking = Masking(),
        compile: bool = False,
        finetune: Finetune = Finetune(),
        optim: OptimConfig = OptimConfig(),
        init_from: Path | None = None,
    ) -> None:
        if isinstance(backbone, TextDecoder):
            raise ValueError(
                "model.backbone is a TextDecoder, which sees nothing after a mask: set its "
                "class_path to TextEncoder, or that of the model to CausalLM."
            )
        super().__init__(backbone, compile, finetune, optim, init_from)
        self.masking = masking
        self._mask_id: int | None = None

    def check_data(self, data: Data) -> None:
        """Demand a mask token too.

        Raises:
            ValueError: If there is none, or the data do not fit the network.
        """
        super().check_data(data)
        self._mask_id = data.facts.get("mask_id")
        if self._mask_id is None:
            raise ValueError(
                "data.tokenizer has no mask token, which MaskedLM needs: take another one, or add "
                "it with tokenizer.add_special_tokens({'mask_token': '[MASK]'}) and "
                "save_pretrained(folder); or train a CausalLM."
            )

    def masked(self, batch: Mapping[str, Any], stage: Stage) -> Masked:
        """Return a batch with its masks."""
        ids = batch["input_ids"]
        train = stage == "train"
        moment, masking = (self.moment, self.masking) if train else (Moment(), EVALUATION)
        special, continues = self.special.to(ids.device), self.continues.to(ids.device)
        return mask_tokens(
            ids,
            maskable=batch["attention_mask"] & ~special[ids],
            starts=~continues[ids],
            keys=moment.keys(sample_numbers(batch)),
            masking=masking,
            prob=masking.prob_at(moment.progress),
            room=masking.room(ids.shape[1]),
            mask_id=self._mask_id or 0,
            vocab_size=len(special),
        )

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Mask a batch, and score what is predicted there."""
        masked = self.masked(batch, stage)
        tokens = self.backbone.encode({**batch, **masked._asdict()}).tokens
        places = masked.positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        target = masked.target.flatten()
        loss, count, preds = self.predicted(tokens.gather(1, places).flatten(0, 1), target)
        return Step(loss, count, preds=preds, target=target)

    def num_predicted(self, size: int) -> int:
        """Return the predictions of a training row of ``size`` tokens."""
        return round(self.masking.prob_at(self.moment.progress) * size)

    @torch.no_grad()
    def fillings(self, batch: Mapping[str, Any], rows: Tensor, places: Tensor) -> list[Filling]:
        """Return the most probable tokens at some places of a batch.

        Args:
            batch: What the network sees.
            rows: Row of each place, shape (N,).
            places: Its token in the row, shape (N,).
        """
        tokens = self.backbone.encode(batch).tokens[rows, places]
        logits = self.head(tokens, self.head.decoder_weight(self.backbone))
        probs, ids = logits.float().softmax(-1).topk(SHOWN)
        pairs = zip(ids.tolist(), probs.tolist(), strict=True)
        return [list(zip(*pair, strict=True)) for pair in pairs]

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """Return ``index`` (B,), and each text with the most probable fillings of its masks."""
        tokenizer = self.tokenizer
        rows, places = (batch["input_ids"] == self._mask_id).nonzero(as_tuple=True)
        found: list[list[Any]] = [[] for _ in batch["index"]]
        if len(rows):
            for row, filling in zip(rows.tolist(), self.fillings(batch, rows, places), strict=True):
                found[row].append(
                    [{"token": tokenizer.decode([i]), "prob": round(p, 6)} for i, p in filling]
                )
        texts = self._texts(batch, tokenizer)
        records = [{"text": t, "masks": m} for t, m in zip(texts, found, strict=True)]
        # A copy: Lightning keeps it, and what a loader's worker sent holds a file open.
        return {"index": batch["index"].clone(), "record": records}

    def samples(self, batch: Mapping[str, Any], tokenizer: Any) -> list[str]:
        """Show texts with their masks, and what the network fills them with."""
        masked = self.masked(batch, "val")
        rows, which = (masked.target != IGNORED).nonzero(as_tuple=True)
        seen = {**batch, "input_ids": masked.input_ids}
        found = self.fillings(seen, rows, masked.positions[rows, which])
        shown = [[text] for text in self._texts(seen, tokenizer)]
        answers = masked.target[rows, which].tolist()
        for row, answer, filling in zip(rows.tolist(), answers, found, strict=True):
            best = ", ".join(f"{tokenizer.decode([i])} {p:.2f}" for i, p in filling)
            shown[row].append(f"  {tokenizer.decode([answer]):>16} : {best}")
        return ["\n".join(lines) for lines in shown]
