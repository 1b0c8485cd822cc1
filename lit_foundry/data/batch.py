"""What a batch holds. A data module names one of these; a backbone reads fields of it.

``label`` is, by the ``kind`` of the data module:

- ``class``: (B,) int64, -100 of samples without a label (``data.transfer``);
- ``classes``: (B, K) float32, 1 for each of the K classes that applies, else 0;
- ``value``: (B,) float32, or (B, K) of K values;
- ``tags``: (B, T) int64, the tag of a word at its first token, -100 elsewhere.

Shapes: B batch, T tokens, N documents and stretches of padding; of images, C channels, H height,
W width.
"""

from typing import NotRequired, TypedDict

from torch import Tensor


class TextBatch(TypedDict):
    """Padded token sequences."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) bool, False at padding
    index: Tensor  # (B,) int64, the sample's row in its split
    token_type_ids: NotRequired[Tensor]  # (B, T) int64, 1 in the second text of a pair
    document: NotRequired[Tensor]  # (B, T) int64, which one of the row, from 1; 0 at padding
    offsets: NotRequired[Tensor]  # (N + 1,) int32, where they begin in the rows joined, and the end
    position_ids: NotRequired[Tensor]  # (B, T) int64, place in the document
    cut: NotRequired[Tensor]  # (B, T) bool, True at an end token where a document goes on
    word: NotRequired[Tensor]  # (B, T) int64, which word of the text begins, -1 if none; of tags
    label: NotRequired[Tensor]  # see above
    draw: NotRequired[Tensor]  # (B,) int64, how often the epoch drew the row before; data.balanced


class ImageBatch(TypedDict):
    """Images of one size, as files hold them."""

    pixel_values: Tensor  # (B, C, H, W) uint8, in memory as (B, H, W, C)
    index: Tensor  # (B,) int64, the sample's row in its split
    label: NotRequired[Tensor]  # see above
    draw: NotRequired[Tensor]  # (B,) int64, how often the epoch drew the row before; data.balanced
