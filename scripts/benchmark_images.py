"""Contestants of ``scripts/benchmark.py``, ``images-resnet`` and ``images-vit``."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from benchmark_pipeline import AUGMENT, Samples, cifar10_args, device, transforms
from timing import (
    SKIP,
    Figures,
    Meter,
    count_samples,
    fit,
    gpu_memory,
    now,
    preset,
    quiet,
    trainer_clock,
)

SMOOTHING, WARMUP = 0.1, 0.1  # of labels; of the run
SGD_LR, SGD_DECAY = 0.2 / 512, 5e-4  # configs/cifar10_resnet18.yaml; the rate for each sample
ADAMW_LR, ADAMW_DECAY, CLIP = 1e-3, 0.05, 1.0  # configs/cifar10_vit.yaml
TESTED = 1000  # images


def scores(network: Any, logits: Callable[[Any], Any], options: dict[str, Any]) -> Figures:
    """Score a network on test images, in float32; ``logits`` takes uint8 pixels."""
    import torch
    import torch.nn.functional as F

    from lit_foundry import CIFAR10

    data = CIFAR10(**cifar10_args(**options)).load("test")
    # From all over: files may be sorted by class.
    batch = data[range(0, len(data), max(1, len(data) // TESTED))[:TESTED]]
    network.to(device()).eval()
    pixels, label = (batch[key].to(device()) for key in ("pixel_values", "label"))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        found = torch.cat([logits(part).float() for part in pixels.split(250)])
    right = (found.argmax(-1) == label).float().mean().item()
    return {"test accuracy": right, "test loss": F.cross_entropy(found, label).item()}


def foundry(backbone: str, optim: dict[str, Any], clip: float | None, **options: Any) -> Any:
    """Train with lit_foundry."""
    optim = {"schedule": "cosine", "warmup": WARMUP} | optim
    if optim.get("name") == "sgd":
        optim["lr"] *= options["batch_size"]
    task = {"backbone": preset(backbone), "label_smoothing": SMOOTHING, "augment": AUGMENT}
    task |= {"compile": options["compile"], "optim": optim}
    limits = {"max_steps": options["steps"] + SKIP, "log_every_n_steps": 10}
    trainer = limits | {"precision": options["precision"], "gradient_clip_val": clip}
    config = {
        "model": {"class_path": "Classification", "init_args": task},
        "data": {"class_path": "CIFAR10", "init_args": cifar10_args(**options)},
        "trainer": quiet(trainer),
    }
    meter = Meter("samples", count_samples).install()
    watch = fit(config, SKIP)
    figures = meter.figures(watch.end - watch.start, options["steps"], SKIP) | gpu_memory()
    task = watch.task
    figures |= scores(task, lambda pixels: task({"pixel_values": pixels}), options)
    return {"lit_foundry": figures | {"workers": 0, "parameters": watch.parameters}}


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return what a plain loop computes under."""
    import torch

    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16-mixed")


def timm_loop(name: str, channels_last: bool, **options: Any) -> dict[str, Figures]:
    """Train with a plain loop of timm's parts."""
    import torch
    from timm.data import create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from torchvision.models import resnet18

    from lit_foundry.nn.image.backbone import IMAGENET_MEAN, IMAGENET_STD

    torch.manual_seed(0)
    batch_size, workers, steps = options["batch_size"], options["workers"], options["steps"]
    data, place = Samples(options), device()
    normal: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    loader: Any = create_loader(
        data,
        (3, data.size, data.size),
        batch_size,
        is_training=True,
        num_workers=workers,
        pin_memory=place.type == "cuda",
        device=place,
        **normal,
    )
    # Its own crops change the scale; its loader normalizes whole batches on the device.
    data.transform = transforms(data.size, **normal, last="uint8")
    network: Any = resnet18(num_classes=10)
    network.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    torch.nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = torch.nn.Identity()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network.to(place, memory_format=layout).train()
    if options["compile"]:
        network.compile()
    optimizer = create_optimizer_v2(
        network, "sgd", SGD_LR * batch_size, SGD_DECAY, momentum=0.9
    )  # Nesterov's, by this name
    whole = steps + SKIP
    rise = int(WARMUP * whole)
    schedule = CosineLRScheduler(
        optimizer,
        whole - rise,
        warmup_t=rise,
        warmup_lr_init=SGD_LR * batch_size / max(1, rise),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    criterion, start = LabelSmoothingCrossEntropy(SMOOTHING), 0.0
    meter = Meter("samples", count_samples).install()
    batches = chain.from_iterable(repeat(loader))
    for step in range(whole):
        if step == SKIP:
            start = now()
        images, label = next(batches)
        with autocast(options["precision"]):
            loss = criterion(network(images.contiguous(memory_format=layout)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step_update(step + 1)
    figures = meter.figures(now() - start, steps, SKIP) | gpu_memory()
    figures |= scores(network, lambda x: network(normalized(x, **normal)), options)
    parameters = sum(p.numel() for p in network.parameters())
    return {name: figures | {"workers": workers, "parameters": parameters}}


def normalized(pixels: Any, mean: Any, std: Any) -> Any:
    """Return uint8 pixels as networks without a normalization of their own take them."""
    from torchvision.transforms.v2 import functional as tv

    return tv.normalize(pixels.float() / 255, mean, std)


def run_trainer(
    network: Any, samples: Any, collate: Any, options: dict[str, Any], **settings: Any
) -> Figures:
    """Train with the transformers Trainer; return its figures."""
    import torch
    import transformers as hf

    steps, workers = options["steps"], options["workers"]
    args = hf.TrainingArguments(
        "out",
        per_device_train_batch_size=options["batch_size"],
        max_steps=steps + SKIP,
        optim="adamw_torch_fused",
        bf16=options["precision"] == "bf16-mixed",
        use_cpu=not torch.cuda.is_available(),  # else it refuses bf16
        torch_compile=options["compile"],
        dataloader_num_workers=workers,
        dataloader_persistent_workers=workers > 0,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    watch = trainer_clock(SKIP)
    loop = hf.Trainer(
        network, args, train_dataset=samples, data_collator=collate, callbacks=[watch]
    )
    meter = Meter("samples", count_samples).install()
    loop.train()
    figures = meter.figures(watch.end - watch.start, steps, SKIP) | gpu_memory()
    parameters = sum(p.numel() for p in network.parameters())
    return figures | {"workers": workers, "parameters": parameters}


def trainer(name: str, encoded: bool, **options: Any) -> dict[str, Figures]:
    """Train with the transformers Trainer, whose samples go through torchvision's transforms."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    settings = preset("vit_tiny_small")["init_args"]["config"]
    data = Samples(options)
    normal: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    data.transform = transforms(data.size, **normal)
    family = hf.CONFIG_MAPPING[settings.pop("model_type")]
    config = family(image_size=data.size, num_labels=10, **settings)
    network = hf.AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    samples: Any = from_files(data, options["cifar10"]) if encoded else data
    figures = run_trainer(
        network,
        samples,
        collated,
        options,
        learning_rate=ADAMW_LR,
        weight_decay=ADAMW_DECAY,
        max_grad_norm=CLIP,
        lr_scheduler_type="cosine",
        warmup_steps=int(WARMUP * (options["steps"] + SKIP)),
        label_smoothing_factor=SMOOTHING,
    )
    figures |= scores(network, lambda x: network(normalized(x, **normal)).logits, options)
    return {name: figures}


def from_files(data: Samples, cifar10: str) -> Any:
    """Return the same images as the example of transformers takes them, decoded when asked for."""
    import datasets

    files = {"train": str(Path(cifar10) / "train.parquet")}
    table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir="hub")
    table = table.cast_column("img", datasets.Image()).select(data.rows)

    def transformed(rows: Any) -> dict[str, list[Any]]:
        images = [data.transform(image.convert("RGB")) for image in rows["img"]]
        return {"pixel_values": images, "labels": rows["label"]}

    return table.with_transform(transformed)


def collated(rows: list[Any]) -> dict[str, Any]:
    """Return a batch of the Trainer."""
    import torch

    names = "pixel_values", "labels"
    pairs = [row if isinstance(row, tuple) else [row[name] for name in names] for row in rows]
    images, labels = zip(*pairs, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


SGD = {"name": "sgd", "lr": SGD_LR, "weight_decay": SGD_DECAY}
RESNET: list[Callable[..., dict[str, Figures]]] = [
    partial(foundry, "resnet18_small", SGD, None),
    partial(timm_loop, "timm, channels_last", True),
    partial(timm_loop, "timm", False),
]
ADAMW = {"lr": ADAMW_LR, "weight_decay": ADAMW_DECAY}
VIT: list[Callable[..., dict[str, Figures]]] = [
    partial(foundry, "vit_tiny_small", ADAMW, CLIP),
    partial(trainer, "Trainer, PNG", True),
    partial(trainer, "Trainer, decoded", False),
]
