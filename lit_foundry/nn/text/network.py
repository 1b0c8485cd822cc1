"""Text networks as functions of tensors.

Shapes: B batch, T tokens, V vocabulary, C outputs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from lit_foundry.nn.backbone import Backbone
from lit_foundry.nn.network import Headed, Network
from lit_foundry.nn.text.as_language_model import language_model
from lit_foundry.nn.text.as_transformers import sequence_classifier, token_classifier

SPECIAL = "bos_token_id", "eos_token_id", "pad_token_id"


class TextNetwork(Network):
    """Backbone and head as a function of token ids, masks and the like.

    Args:
        backbone: Text encoder.
        head: From its features to (B, C) outputs.
        fields: Fields of the data's batches; optional inputs that these lack are left out.
        problem: What ``transformers`` calls the kind of outputs.
    """

    parts_of: ClassVar[type[Headed]] = Headed

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        fields: Sequence[str],
        problem: str = "single_label_classification",
    ) -> None:
        optional = [name for name in backbone.optional_inputs if name in fields]
        module = self.parts_of(backbone, head)
        super().__init__(module, (*backbone.inputs, *optional), backbone.example)
        self.problem = problem

    def save_transformers(self, folder: Path, labels: Sequence[str]) -> None:
        """Write the model of ``AutoModelForSequenceClassification``."""
        parts: Any = self.module
        model = sequence_classifier(parts.backbone, parts.head, labels, self.problem)
        model.save_pretrained(folder)


class TagNetwork(TextNetwork):
    """Backbone and head as a function whose outputs, (B, T, C), are of every token."""

    def save_transformers(self, folder: Path, labels: Sequence[str]) -> None:
        """Write the model of ``AutoModelForTokenClassification``."""
        parts: Any = self.module
        token_classifier(parts.backbone, parts.head, labels).save_pretrained(folder)


class OnAllTokens(Headed):
    """A language head on the features of all tokens."""

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return (B, T, V) logits."""
        backbone, head = self.backbone, self.head
        tokens = backbone.encode(batch).tokens  # type: ignore[operator]
        logits: Tensor = head(tokens, head.decoder_weight(backbone))  # type: ignore[operator]
        return logits


class LanguageNetwork(TextNetwork):
    """Backbone and language head as a function of token ids and masks.

    Args:
        backbone: Encoder or decoder.
        head: Its language head.
        vocab_size: Number of token ids V.
    """

    formats: ClassVar[tuple[str, ...]] = ("hf",)
    parts_of: ClassVar[type[Headed]] = OnAllTokens

    def __init__(self, backbone: Backbone, head: nn.Module, vocab_size: int) -> None:
        super().__init__(backbone, head, ())
        self.most = self.most // vocab_size

    def save_transformers(self, folder: Path, labels: Sequence[str]) -> None:
        """Write the model of ``AutoModelForMaskedLM`` or ``AutoModelForCausalLM``."""
        parts: Any = self.module
        language_model(parts.backbone, parts.head).save_pretrained(folder)

    def complete(self, folder: Path, tokenizer: Any) -> None:
        """Let the folder know the ids that begin, end and pad a text."""
        for name in ("config.json", "generation_config.json"):
            path = folder / name
            if path.is_file():
                content = json.loads(path.read_text(encoding="utf-8"))
                content |= self.special(tokenizer)
                for key in {"cls_token_id", "sep_token_id"} & content.keys():
                    content[key] = getattr(tokenizer, key)
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def special(self, tokenizer: Any) -> dict[str, int | None]:
        """Return the ids that a config has, by their keys."""
        return {key: getattr(tokenizer, key) for key in SPECIAL}
