"""Handwritten digits of 8x8 pixels, which come with scikit-learn: nothing is downloaded.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, 1998, UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49 (its test part, as ``sklearn.datasets.load_digits``)
"""

from typing import Any, Literal

import numpy as np

from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.image.decoding import Mode
from lit_foundry.data.image.labelled import ImageData
from lit_foundry.data.labels import stratified

TEST_FRACTION = 0.2


class Digits(ImageData):
    """1,797 digits in shades of grey, a fifth of each class to test on, always the same.

    Args:
        mode: L for one channel, RGB for three equal ones.
        options: Further arguments of :class:`ImageData`.
    """

    def __init__(self, mode: Mode = "L", **options: Any) -> None:
        super().__init__(mode=mode, **options)

    def read(self, split: Literal["train", "val", "test"]) -> ImageTable | None:
        """Read a split; the dataset has no validation split."""
        if split == "val":
            return None
        table = read_digits()
        tests = stratified(table, TEST_FRACTION, seed=0)
        return table.take(np.flatnonzero(tests if split == "test" else ~tests).tolist())


def read_digits() -> ImageTable:
    """Read all digits, whose 17 shades become 0 to 255.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "Digits come with scikit-learn, which is not installed: pip install "
            "'lit-foundry[digits]'."
        ) from None
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = [str(label) for label in digits.target]
    ids = [str(row) for row in range(len(labels))]
    return ImageTable(pixels, labels, ids, "sklearn.datasets.load_digits")
