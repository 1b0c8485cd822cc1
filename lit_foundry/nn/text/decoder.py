"""Causal networks of ``transformers`` as backbones."""

from typing import Any, Literal

from lit_foundry.nn.text.encoder import TextEncoder
from lit_foundry.nn.text.language_head import LanguageHead


class TextDecoder(TextEncoder):
    """Any causal network of ``transformers``: each token attends to those before it.

    Args:
        pretrained: Hub name, folder, or ``package:NAME/FOLDER``.
        config: Config of ``transformers`` with its ``model_type``; without ``pretrained``, builds
            from scratch; with it, overrides entries of the pretrained config.
        pooling: What stands for a text when it is classified: its ``last`` token, or the ``mean``.
        encoder: Further arguments of :class:`TextEncoder`.

    Raises:
        ValueError: If the network is not causal.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        pooling: Literal["last", "mean"] = "last",
        **encoder: Any,
    ) -> None:
        super().__init__(pretrained, config, pooling=pooling, **encoder)
        kind = self.encoder.config.model_type
        if not self.is_causal:  # BERT, and XLNet too: it would see what it is to predict
            raise ValueError(
                f"model.backbone.config.model_type {kind} is no causal network: take one such as "
                "gpt2 or llama, or class_path TextEncoder."
            )

    def language_head(self) -> LanguageHead:
        """Build the output layer, or that of the pretrained weights."""
        return self._language_head(causal=True)
