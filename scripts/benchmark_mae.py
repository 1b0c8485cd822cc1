"""Contestants of ``scripts/benchmark.py images-mae``."""

from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from typing import Any

from benchmark_images import autocast, collated, from_files, run_trainer
from benchmark_pipeline import Samples, cifar10_args, device
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
)

LR, DECAY, BETAS, CLIP = 1e-3, 0.05, (0.9, 0.95), 1.0
MASKED, CROP = 0.75, 0.2  # shares of patches, and of an image's area at least
DECODER = {"width": 128, "layers": 2, "heads": 4}


def foundry(**options: Any) -> dict[str, Figures]:
    """Pretrain with lit_foundry."""
    task = {
        "backbone": preset("vit_tiny_small"),
        "masked": MASKED,
        "decoder": DECODER,
        "augment": {"resized_crop": CROP, "flip": "random"},
        "compile": options["compile"],
        "optim": {"lr": LR, "weight_decay": DECAY, "betas": list(BETAS)},
    }
    limits = {"max_steps": options["steps"] + SKIP, "log_every_n_steps": 10}
    limits |= {"precision": options["precision"], "gradient_clip_val": CLIP}
    config = {
        "model": {"class_path": "MaskedAutoencoder", "init_args": task},
        "data": {"class_path": "CIFAR10", "init_args": cifar10_args(**options)},
        "trainer": quiet(limits),
    }
    meter = Meter("samples", count_samples).install()
    watch = fit(config, SKIP)
    figures = meter.figures(watch.end - watch.start, options["steps"], SKIP) | gpu_memory()
    return {"lit_foundry": figures | {"workers": 0, "parameters": watch.parameters}}


def model_of(size: int) -> Any:
    """Return the model of transformers with the same sizes."""
    import transformers as hf

    settings = preset("vit_tiny_small")["init_args"]["config"]
    settings.pop("model_type")
    config = hf.ViTMAEConfig(
        **settings,
        image_size=size,
        mask_ratio=MASKED,
        norm_pix_loss=True,
        decoder_hidden_size=DECODER["width"],
        decoder_num_hidden_layers=DECODER["layers"],
        decoder_num_attention_heads=DECODER["heads"],
        decoder_intermediate_size=4 * DECODER["width"],
    )
    return hf.ViTMAEForPreTraining(config)


def plain_loop(**options: Any) -> dict[str, Figures]:
    """Pretrain ViTMAEForPreTraining in a plain loop, on the batches that lit_foundry's takes."""
    import torch

    from lit_foundry import CIFAR10
    from lit_foundry.nn.image.augment import Augment
    from lit_foundry.randomness import Moment

    torch.manual_seed(0)
    data: Any = CIFAR10(**cifar10_args(**options))
    loader, place, steps = data.train_dataloader(), device(), options["steps"]
    network = model_of(data.facts["image_size"]).to(place).train()
    if options["compile"]:
        network.compile()
    augment = Augment(resized_crop=CROP, flip="random")
    optimizer = torch.optim.AdamW(network.parameters(), LR, BETAS, weight_decay=DECAY, fused=True)
    mean, std = (torch.full((3, 1, 1), 127.5, device=place) for _ in range(2))
    meter, start = Meter("samples", count_samples).install(), 0.0
    batches = chain.from_iterable(repeat(loader))
    for step in range(steps + SKIP):
        if step == SKIP:
            start = now()
        batch = {key: value.to(place) for key, value in next(batches).items()}
        images = (augment(batch["pixel_values"], batch["index"], Moment()) - mean) / std
        with autocast(options["precision"]):
            loss = network(images).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
    figures = meter.figures(now() - start, steps, SKIP) | gpu_memory()
    parameters = sum(p.numel() for p in network.parameters())
    return {"ViTMAEForPreTraining, loop": figures | {"workers": 0, "parameters": parameters}}


def trainer(name: str, encoded: bool, **options: Any) -> dict[str, Figures]:
    """Pretrain it with the transformers Trainer and torchvision's transforms, as in its example."""
    import torch
    from torchvision import transforms as v1

    torch.manual_seed(0)
    data = Samples(options)
    data.transform = v1.Compose(
        [
            v1.RandomResizedCrop(
                data.size, (CROP, 1.0), interpolation=v1.InterpolationMode.BICUBIC
            ),
            v1.RandomHorizontalFlip(),
            v1.ToTensor(),
            v1.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    network = model_of(data.size)
    samples: Any = from_files(data, options["cifar10"]) if encoded else data

    def images(rows: list[Any]) -> dict[str, Any]:
        return {"pixel_values": collated(rows)["pixel_values"]}

    figures = run_trainer(
        network,
        samples,
        images,
        options,
        learning_rate=LR,
        weight_decay=DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=CLIP,
    )
    return {name: figures}


MAE: list[Callable[..., dict[str, Figures]]] = [
    foundry,
    plain_loop,
    partial(trainer, "Trainer, PNG", True),
    partial(trainer, "Trainer, decoded", False),
]
