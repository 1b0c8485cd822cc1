"""Contestants of ``scripts/benchmark.py images-pipeline``, and the images of all ``images-``.

All take the same images of CIFAR-10, which lit_foundry's data module chooses and decodes: 2 % of
the training split are left out, as in its configs.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, repeat
from typing import Any

from timing import SKIP, Figures, now

PAD = 4  # pixels on each side, before a random crop
AUGMENT = {"pad": PAD, "pad_mode": "zero", "flip": "random"}


def cifar10_args(cifar10: str, images: int, batch_size: int, **_: Any) -> dict[str, Any]:
    """Return arguments of lit_foundry's CIFAR10, with whole steps only."""
    whole = images // batch_size * batch_size
    sizes = {"batch_size": batch_size, "max_train_samples": whole, "val_fraction": 0.02}
    return {"root": cifar10} | sizes


class Samples:
    """Training images at hand as ``torchvision.datasets.CIFAR10`` has them, and as it yields them.

    Args:
        options: Those of the benchmark.
        transform: What becomes of an image of PIL.
    """

    def __init__(self, options: dict[str, Any], transform: Any = None) -> None:
        from PIL import Image

        from lit_foundry import CIFAR10

        split = CIFAR10(**cifar10_args(**options)).load("train")
        self.rows, self.pixels = split.rows, split.pixels[split.rows]
        self.targets = split.labels.tolist()
        self.size = self.pixels.shape[1]
        self.transform, self.image = transform, Image.fromarray

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.transform(self.image(self.pixels[row])), self.targets[row]


def transforms(size: int, mean: Any, std: Any, last: str = "float", tensors: bool = False) -> Any:
    """Return torchvision's transforms of a sample.

    Args:
        size: Edge of an image.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        last: What images of PIL become: normalized ``float`` or ``uint8`` tensors.
        tensors: Make a tensor of the image first (v2), as torchvision recommends today.
    """
    import torch
    from torchvision import transforms as v1
    from torchvision.transforms import v2

    kind: Any = v2 if tensors else v1
    random = [kind.RandomCrop(size, padding=PAD), kind.RandomHorizontalFlip()]
    if tensors:
        floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        return v2.Compose([v2.ToImage(), *random, *floats])
    if last == "uint8":
        return v1.Compose([*random, v1.PILToTensor()])
    return v1.Compose([*random, v1.ToTensor(), v1.Normalize(mean, std)])


def device() -> Any:
    """Return the GPU if there is one."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def time_batches(batches: Iterator[Any], steps: int, workers: int) -> Figures:
    """Return the rate at which batches come."""
    for _ in range(SKIP):
        next(batches)
    start = now()
    samples = sum(len(next(batches)[0]) for _ in range(steps))
    seconds = now() - start
    figures = {"samples/s": samples / seconds, "seconds": seconds}
    return figures | {"steps": steps, "samples": samples, "workers": workers}


def foundry_batches(**options: Any) -> Iterator[tuple[Any, Any]]:
    """Yield batches as the networks of lit_foundry see them, without workers."""
    from lit_foundry import CIFAR10
    from lit_foundry.nn import TorchvisionEncoder
    from lit_foundry.nn.image.augment import Augment
    from lit_foundry.randomness import Moment

    loader: Any = CIFAR10(**cifar10_args(**options)).train_dataloader()
    augment, place = Augment(**AUGMENT), device()  # type: ignore[arg-type]
    backbone = TorchvisionEncoder("resnet18", stem="small").to(place)
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            batch = {key: value.to(place, non_blocking=True) for key, value in batch.items()}
            images = augment(batch["pixel_values"], batch["index"], Moment(0, epoch))
            yield backbone.normalize(images), batch["label"]


def torchvision_batches(tensors: bool, **options: Any) -> Iterator[tuple[Any, Any]]:
    """Yield batches whose samples torchvision's transforms make one by one."""
    from torch.utils.data import DataLoader

    from lit_foundry.nn.image.backbone import IMAGENET_MEAN, IMAGENET_STD

    data, place, workers = Samples(options), device(), options["workers"]
    data.transform = transforms(data.size, IMAGENET_MEAN, IMAGENET_STD, tensors=tensors)
    loader: Any = DataLoader(
        data,  # type: ignore[arg-type]
        options["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=place.type == "cuda",
    )
    for images, label in chain.from_iterable(repeat(loader)):
        yield images.to(place, non_blocking=True), label.to(place, non_blocking=True)


def pipeline_foundry(**options: Any) -> dict[str, Figures]:
    """Time batches of lit_foundry."""
    return {"lit_foundry": time_batches(foundry_batches(**options), options["steps"], 0)}


def pipeline_torchvision(name: str, tensors: bool, **options: Any) -> dict[str, Figures]:
    """Time batches of torchvision."""
    batches = torchvision_batches(tensors, **options)
    return {name: time_batches(batches, options["steps"], options["workers"])}


PIPELINE: list[Callable[..., dict[str, Figures]]] = [
    pipeline_foundry,
    partial(pipeline_torchvision, "torchvision, PIL", False),
    partial(pipeline_torchvision, "torchvision, tensors", True),
]
