"""Numbers out of their range end in one line that names key, rule and value."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lit_foundry import ranges
from lit_foundry.callbacks import EarlyStop
from lit_foundry.cli.main import main
from lit_foundry.data import Corpus, Digits, TextFiles
from lit_foundry.data.corpus.row_batches import BatchWarmup
from lit_foundry.data.text.tokenizer_training import TrainTokenizer
from lit_foundry.nn import Airbench, ImageEncoder, ResNet9, TextEncoder, TorchvisionEncoder
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.image.mixing import Mixing
from lit_foundry.nn.text.generation import Generation
from lit_foundry.nn.text.masking import Masking
from lit_foundry.tasks import Classification
from lit_foundry.training.finetune import Finetune, Lora
from lit_foundry.training.optim import OptimConfig

NAN, INF = math.nan, math.inf


def classification(**options: Any) -> Classification:
    return Classification(ResNet9(width=1), num_classes=2, **options)


def text_files(**options: Any) -> TextFiles:
    return TextFiles("none", **options)


def corpus(**options: Any) -> Corpus:
    return Corpus("none", **options)


def encoder(**options: Any) -> TextEncoder:
    return TextEncoder(config={"model_type": "bert"}, **options)


def residual(**options: Any) -> TorchvisionEncoder:
    return TorchvisionEncoder("resnet18", **options)


def vit(**options: Any) -> ImageEncoder:
    return ImageEncoder(config={"model_type": "vit"}, **options)


RATES = (NAN, INF, -1.0)
# What is built, the key before its arguments, and values that none of these may have.
CASES: dict[str, tuple[Callable[..., Any], str, dict[str, tuple[Any, ...]]]] = {
    "OptimConfig": (
        OptimConfig,
        "model.optim",
        {
            "lr": (*RATES, 0.0),
            "weight_decay": RATES,
            "betas": ((NAN, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, INF)),
            "eps": (*RATES, 0.0),
            "momentum": (*RATES, 1.0),
            "bias_lr": (*RATES, 0.0),
            "bias_decay": RATES,
            "muon_lr": (*RATES, 0.0),
            "muon_momentum": (*RATES, 1.0),
            "warmup": (*RATES, 1.0),
            "decay": (*RATES, 0.0, 1.5),
            "final": (*RATES, 1.5),
            "layer_decay": (*RATES, 0.0, 1.5),
        },
    ),
    "Classification": (
        classification,
        "model",
        {
            "label_smoothing": (*RATES, 1.0),
            "class_weights": ([0, 0], [NAN, 1], [1, NAN], [-1, 2], [1, INF]),
            "focal_gamma": RATES,
            "dropout": (*RATES, 1.0, 1.5),
        },
    ),
    "Finetune": (
        Finetune,
        "model.finetune",
        {"freeze": (-1,), "head_first": (*RATES, 1.0), "unfreeze": (*RATES, 1.5)},
    ),
    "Lora": (
        Lora,
        "model.finetune.lora",
        {"rank": (0, -1), "alpha": (*RATES, 0.0), "dropout": (*RATES, 1.0)},
    ),
    "Mixing": (
        Mixing,
        "model.mixing",
        {"mixup": RATES, "cutmix": RATES, "prob": (*RATES, 1.5), "until": (*RATES, 0.0, 1.5)},
    ),
    "Augment": (
        Augment,
        "model.augment",
        {
            "size": (0,),
            "grow_until": (*RATES, 0.0),
            "pad": (-1,),
            "resized_crop": (*RATES, 0.0, 1.5),
            "num_ops": (0,),
            "magnitude": (-1, 31),
            "jitter": ((0.1, NAN, 0.1, 0.1), (INF, 0.1, 0.1, 0.1), (0.1, 0.1, 0.1, 0.6)),
            "cutout": (-1,),
            "erasing": (*RATES, 1.5),
        },
    ),
    "Masking": (
        Masking,
        "model.masking",
        {
            "prob": (*RATES, 1.0),
            "final_prob": (*RATES, 1.0),
            "mask_share": (*RATES, 1.5),
            "span_prob": (*RATES, 1.0),
            "max_span": (0,),
        },
    ),
    "Generation": (
        Generation,
        "model.generation",
        {
            "max_tokens": (0,),
            "temperature": RATES,
            "top_k": (-1,),
            "top_p": (*RATES, 0.0, 1.5),
            "seed": (-1, 2**63),
        },
    ),
    "TextFiles": (
        text_files,
        "data",
        {
            "batch_size": (0, -1),
            "batch_tokens": (0, -1),
            "micro_batch": (0, -1),
            "num_workers": (-1,),
            "max_length": (0, -1),
            "val_fraction": (*RATES, 0.0, 1.0),
            "max_train_samples": (0, -1),
        },
    ),
    "Corpus": (
        corpus,
        "data",
        {"num_workers": (-1,), "val_fraction": (*RATES, 0.0, 1.0), "batch_tokens": (0,)},
    ),
    "Digits": (
        Digits,
        "data",
        {
            "num_workers": (-1,),
            "val_fraction": (*RATES, 0.0, 1.0),
            "size": (0, -1),
            "bad_images": (-1,),
            "max_train_samples": (0, -1),
        },
    ),
    "BatchWarmup": (BatchWarmup, "data.batch_warmup", {"start": (*RATES, 0.0, 1.5)}),
    "TrainTokenizer": (
        TrainTokenizer,
        "data.tokenizer",
        {"vocab_size": (0, -1), "multiple_of": (0, -1)},
    ),
    "EarlyStop": (EarlyStop, "EarlyStop", {"patience": (0, -1), "min_delta": RATES}),
    "TextEncoder": (
        encoder,
        "model.backbone",
        {"dropout": (*RATES, 1.0), "vocab_size": (0, -1), "pad_id": (-1,)},
    ),
    "ResNet9": (
        ResNet9,
        "model.backbone",
        {
            "width": (0, -1),
            "in_channels": (0, -1),
            "mean": ([NAN], [INF], [0.5, NAN, 0.5]),
            "std": ([NAN], [INF], [0.0], [0.5, NAN, 0.5]),
        },
    ),
    "Airbench": (
        Airbench,
        "model.backbone",
        {"widths": ((0, 8, 8), (8, 8, -8)), "depth": (1, 4), "in_channels": (0,)},
    ),
    "TorchvisionEncoder": (
        residual,
        "model.backbone",
        {"drop_path": (*RATES, 1.0), "in_channels": (0, -1)},
    ),
    "ImageEncoder": (
        vit,
        "model.backbone",
        {"drop_path": (*RATES, 1.0), "dropout": (*RATES, 1.0), "in_channels": (0, -1)},
    ),
}
GIVEN: dict[str, dict[str, Any]] = {"BatchWarmup": {"tokens": 9}, "Augment.start_size": {"size": 4}}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in CASES for key in CASES[name][2]])
def test_a_number_out_of_its_range_is_named(name: str, key: str) -> None:
    build, prefix, wrong = CASES[name]
    for value in wrong[key]:
        with pytest.raises(ValueError, match=r".") as error:
            build(**GIVEN.get(name, {}), **{key: value})
        message = str(error.value)
        assert message.startswith(f"{prefix}.{key}"), (value, message)
        assert str(value) in message
        assert "\n" not in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--seed_everything", "-1"), "seed_everything is 0 at least, and below"),
        (("--seed_everything", str(2**32)), "seed_everything is 0 at least, and below"),
        (("--save_every_n_steps", "0"), "save_every_n_steps is 1 at least, or null, got 0"),
        (("--data.num_workers", "-1"), r"data\.num_workers is a number of processes"),
        (("--model.dropout", "1.5"), r"model\.dropout is a probability in \[0, 1\)"),
        (("--model.class_weights", "[0,0]"), r"model\.class_weights are at least 0, and not"),
        (("--model.optim.betas", "[0.9, 1.5]"), r"model\.optim\.betas are two numbers"),
        (("--data.num_workers", "true"), r"num_workers"),
        (("--model.optim.lr", "true"), r"optim\.lr"),
    ],
)
def test_a_number_out_of_its_range_ends_the_command(
    tiny: Path, words: tuple[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        main(["fit", "--config", str(tiny), *words])
    assert not (tiny.parent / "runs").exists()


def test_only_what_is_finite_is_let_through_in_lists_too() -> None:
    assert ranges.is_finite([1, 2.5, None, True, (0.0, "text")])
    assert not ranges.is_finite([1, (0.0, NAN)])
    assert not ranges.is_finite(INF)
