"""CIFAR-100, 50,000 small colour images to train on and 10,000 to test on, in 100 classes.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html
"""

from typing import Any, Literal

from lit_foundry.data.files.image_table import ImageTable
from lit_foundry.data.image.labelled import ImageData
from lit_foundry.data.sets.cifar import Layout, read_cifar

NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree
orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum
rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train
trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
LAYOUT = Layout(
    title="CIFAR-100",
    names=tuple(NAMES.split()),
    folder="cifar-100-python",
    batches={"train": ("train",), "test": ("test",)},
    key="fine_labels",
    column="fine_label",
    hub="uoft-cs/cifar100",
    config="cifar100",
)


class CIFAR100(ImageData):
    """Images of 32x32 pixels in 100 classes; validation is a stratified part of training.

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
