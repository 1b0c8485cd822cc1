"""CIFAR-10, 50,000 small colour images to train on and 10,000 to test on, in ten classes.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from typing import Any, Literal

from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.image.labelled import ImageData
from lit_foundry.data.sets.cifar import Layout, read_cifar

NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
LAYOUT = Layout(
    title="CIFAR-10",
    names=tuple(NAMES.split()),
    folder="cifar-10-batches-py",
    batches={
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    },
    key="labels",
    column="label",
    hub="uoft-cs/cifar10",
    config="plain_text",
)


class CIFAR10(ImageData):
    """Images of 32x32 pixels in ten classes; validation is a stratified part of training.

    Args:
        root: Folder of the published layout or of parquet files, or hub name; see
            :func:`~lit_foundry.data.sets.cifar.read_cifar`.
        options: Further arguments of :class:`ImageData`.
    """

    image_column = "img"

    def __init__(self, root: str = LAYOUT.hub, **options: Any) -> None:
        super().__init__(**options)
        self.root = root
        self._labels = self.classes or list(LAYOUT.names)

    def read(self, split: Literal["train", "val", "test"]) -> ImageTable | None:
        """Read a part; the dataset has no validation split."""
        return None if split == "val" else read_cifar(self.root, split, LAYOUT, self.cache)
