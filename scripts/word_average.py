"""A backbone so small that a step shows what the loop around it costs."""

from typing import ClassVar

from torch import Tensor, nn

from lit_foundry.nn import Backbone, Features


class WordAverage(Backbone):
    """Averages word vectors.

    Args:
        vocab_size: Number of token ids.
        dim: Feature width D.
    """

    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask")

    def __init__(self, vocab_size: int = 400, dim: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, dim)
        self.dim, self.vocab_size = dim, vocab_size

    def blocks(self) -> list[nn.Module]:
        """Return the word vectors."""
        return [self.words]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        """Average the vectors of (B, T) ids."""
        tokens = self.words(input_ids) * attention_mask.unsqueeze(-1)
        return Features(tokens, tokens.sum(1) / attention_mask.sum(1, keepdim=True))
