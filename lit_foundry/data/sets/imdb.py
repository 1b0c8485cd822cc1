"""IMDb movie reviews, 25,000 to train on and 25,000 to test on, half negative, half positive.

Source: Maas et al., Learning Word Vectors for Sentiment Analysis, 2011,
https://ai.stanford.edu/~amaas/data/sentiment
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lit_foundry.data.files.table import Table
from lit_foundry.data.files.text_tables import (
    DataError,
    DatasetNotFoundError,
    read_folder,
    read_hub,
    read_table,
)
from lit_foundry.data.text.labelled import TextData
from lit_foundry.data.text.tokenizer_training import TrainTokenizer

NAMES = ("neg", "pos")


class IMDb(TextData):
    """Movie reviews labelled neg or pos; validation is a stratified part of the training half.

    Args:
        root: Folder of the published layout or of parquet files, or hub name; see
            :func:`read_imdb`.
        tokenizer: As in :class:`TextData`, whose other arguments ``text`` takes.
        text: Further arguments of :class:`TextData`.
    """

    def __init__(
        self,
        tokenizer: str | TrainTokenizer,
        root: str = "stanfordnlp/imdb",
        **text: Any,
    ) -> None:
        super().__init__(tokenizer, **text)
        self.root = root

    def read(self, split: Literal["train", "val", "test"]) -> Table | None:
        """Read a half; the dataset has no validation split."""
        return None if split == "val" else read_imdb(self.root, split)


def read_imdb(root: str, split: Literal["train", "test"]) -> Table:
    """Read a split, labelled "neg" and "pos" whatever it comes from.

    Args:
        root: What ``aclImdb_v1.tar.gz`` unpacks to (``{split}/neg/*.txt``, ``{split}/pos/*.txt``),
            or the folder it lies in; or a folder with ``{split}.parquet`` or its shards
            ``{split}-*.parquet``, or with these in ``plain_text/``, as the hub has them; or the
            dataset's name on the hub.
        split: Which half.

    Returns:
        The reviews; ids are file names such as ``pos/12_7.txt``, or row numbers: ``test/123``.

    Raises:
        DatasetNotFoundError: If ``root`` is on this machine and has no such files.
        DataError: If a file is malformed, or has a label that is neither negative nor positive.
    """
    ways = (
        f"Set data.root to the unpacked aclImdb (with {split}/neg and {split}/pos), to a folder "
        f"with {split}.parquet or {split}-*.parquet, or to a hub name such as stanfordnlp/imdb."
    )
    folder = Path(root).expanduser()
    for place in (folder / split, folder / "aclImdb" / split):
        if any((place / name).is_dir() for name in NAMES):
            return read_folder(place, NAMES)
    for place in (folder, folder / "plain_text"):
        files = sorted([*place.glob(f"{split}.parquet"), *place.glob(f"{split}-*.parquet")])
        if files:
            return _join([read_table(file, "text", "label") for file in files], split)
    if folder.exists() or folder.is_absolute() or root.startswith((".", "~")):
        raise DatasetNotFoundError(f"{folder.absolute()}: no {split} split of IMDb here. {ways}")
    return _join([read_hub(root, split, "text", "label", remedy=ways)], split)


def _join(tables: Sequence[Table], split: str) -> Table:
    texts: list[str] = []
    labels: list[str] = []
    numbers = {str(number): name for number, name in enumerate(NAMES)}
    for table in tables:
        names = [numbers.get(label, label) for label in table.labels or ()]
        if unknown := set(names) - set(NAMES):
            row = next(row for row, name in enumerate(names, 1) if name in unknown)
            rule = f"label {names[row - 1]!r}, where IMDb has neg (0) and pos (1)"
            raise DataError(f"{table.source}, row {row}: {rule}. Check data.root.")
        texts += table.texts
        labels += names
    ids = [f"{split}/{row}" for row in range(len(texts))]
    return replace(tables[0], texts=texts, labels=labels, ids=ids)
