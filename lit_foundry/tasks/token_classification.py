"""Tags of words: named entities, parts of speech and their like.

Shapes: B batch, T tokens, W words, C tags.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassF1Score

from lit_foundry.datamodule import Data, data_of
from lit_foundry.nn import Backbone, Network
from lit_foundry.nn.text.masking import IGNORED
from lit_foundry.nn.text.network import TagNetwork
from lit_foundry.nn.text.words import of_words
from lit_foundry.tasks.step import Stage, Step
from lit_foundry.tasks.supervised import Supervised, counted
from lit_foundry.training.metrics import EntityF1, TokenAccuracy


class TokenClassification(Supervised):
    """Tags the words of texts, each by its first token.

    It logs accuracy (``acc``) and the mean F1 of the tags (``f1_macro``), by word; and, where tags
    are named as in BIO (``B-PER``, ``I-PER``, ``O``), the F1 of whole entities (``entity_f1``), as
    seqeval counts them. Words that truncation cuts off have no tag and count nowhere.

    Args:
        backbone: Text encoder that sees both sides of a word.
        num_classes: Number of tags C; None takes it from the data.
        options: Further arguments of :class:`Supervised`.

    Raises:
        ValueError: If ``num_classes`` is unknown, or the backbone is causal.
    """

    monitor: ClassVar[str] = "val/f1_macro"
    mode: ClassVar[Literal["min", "max"]] = "max"
    predicts: ClassVar[str | None] = "tags"

    def __init__(self, backbone: Backbone, num_classes: int | None = None, **options: Any) -> None:
        count = counted("num_classes", num_classes, 2)
        if getattr(backbone, "is_causal", False):
            raise ValueError(
                "model.backbone is causal, so that the first token of a word, which bears its tag, "
                "sees nothing of the rest: take an encoder, such as bert or modernbert."
            )
        if "input_ids" not in backbone.inputs:
            raise ValueError(
                f"TokenClassification tags words, and a {type(backbone).__name__} reads "
                f"{', '.join(backbone.inputs)}: take a text encoder."
            )
        f1 = MulticlassF1Score(count, ignore_index=IGNORED, validate_args=False)
        metrics, acc = {"acc": TokenAccuracy(), "f1_macro": f1}, {"acc": TokenAccuracy()}
        super().__init__(
            backbone, count, metrics, acc, augment=None, mixing=None, tta="none", **options
        )
        self.num_classes, self.job = count, "token-classification"

    def built_head(self, outputs: int, dropout: float | None) -> nn.Module:
        """Build the head that the family tags with."""
        return self.backbone.tagger(outputs, dropout)

    def setup(self, stage: str) -> None:
        """Check and initialize; score entities where tags name them."""
        super().setup(stage)
        data = data_of(self.trainer)
        names = [] if data is None else data.labels
        for evaluation in ("val", "test") if EntityF1.reads(names) else ():
            found = self.scores.of(evaluation)
            if "entity_f1" not in found:
                found.add_metrics({"entity_f1": EntityF1(names)})

    def step(self, batch: Mapping[str, Any], stage: Stage) -> Step:
        """Score a labelled batch; the loss averages over its tagged words."""
        label = batch["label"]
        logits = self(batch).float()
        total = F.cross_entropy(
            logits.flatten(0, 1), label.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        count, tags = (label != IGNORED).sum(), logits.argmax(-1)
        loss = total / count.clamp(min=1)
        if stage == "train":
            return Step(loss, count, preds=tags, target=label)
        said, true = (of_words(each, batch["word"], IGNORED) for each in (tags, label))
        kept = {"index": batch["index"], "tag": said, "target": true}
        return Step(loss, count, preds=tags, target=label, samples=kept)

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Return each text's ``index`` (B,), and ``tag`` (B, W) as :func:`of_words` does."""
        tags = of_words(self(batch).argmax(-1), batch["word"])
        # A copy: Lightning keeps it, and what a loader's worker sent holds a file open.
        return {"index": batch["index"].clone(), "tag": tags}

    def network(self, data: Data) -> Network:
        """Return backbone and head as a function of tensors."""
        return TagNetwork(self.backbone, self.head, data.batch_fields)
