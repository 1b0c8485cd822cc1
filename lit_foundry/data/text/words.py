"""Where words begin among the tokens of a text.

Shapes: T tokens.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lit_foundry.data.files.table import WORD


def word_starts(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int32]:
    """Tell which word of a text begins with each of its tokens.

    A token belongs to the word in which it starts, or that comes next: some tokens hold the blank
    before a word, or that alone.

    Args:
        text: Words with blanks between them.
        offsets: Where each token starts and ends in the text, shape (T, 2).

    Returns:
        Numbers of words, -1 at other tokens, shape (T,).
    """
    ends = [match.end() for match in WORD.finditer(text)]
    owners = np.searchsorted(ends, [start for start, _ in offsets], side="right")
    begins = (np.diff(owners, prepend=-1) != 0) & (owners < len(ends))
    return np.where(begins, owners, -1).astype(np.int32)
