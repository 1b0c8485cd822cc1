"""Documentation of six Python packages, to be told apart: text classification without a download.

Source: The docstrings of matplotlib, networkx, pandas, the standard library, torch and
transformers as installed here; `docstring_corpus` says how they become plain English.
"""

from pathlib import Path
from typing import Any, Literal

from lit_foundry.data.files.table import Table
from lit_foundry.data.sets.docstring_corpus import cached
from lit_foundry.data.text.labelled import TextData
from lit_foundry.data.text.tokenizer_training import TrainTokenizer


class Docstrings(TextData):
    """Docstrings of installed Python packages, to be told apart; nothing is downloaded.

    Texts are split by source file, so that none leaks from training to test.

    Args:
        tokenizer: As in :class:`TextData`, whose other arguments ``options`` takes.
        options: Further arguments of :class:`TextData`.
    """

    def __init__(self, tokenizer: str | TrainTokenizer = TrainTokenizer(), **options: Any) -> None:
        super().__init__(tokenizer, **options)

    def read(self, split: Literal["train", "val", "test"]) -> Table | None:
        """Read a split from the cache, or collect the texts first."""
        return read_split(split, self.cache)


def read_split(split: Literal["train", "val", "test"], cache: Path) -> Table:
    """Read one split, labelled by package.

    Args:
        split: Split.
        cache: Folder for the texts, which take some ten seconds to collect the first time.
    """
    docs = cached(cache)[split]
    texts, labels, ids = ([doc[field] for doc in docs] for field in range(3))
    return Table(texts, labels=labels, ids=ids, source=str(cache))
