"""Features of the splits of a dataset, kept on disk, and what they are held against.

Shapes: B batch, N samples, D feature width.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from lit_foundry import __version__
from lit_foundry.atomic import replacing
from lit_foundry.checkpoints.exported import fingerprint, moved
from lit_foundry.checkpoints.files import build, load_task, read_checkpoint, recipe_of
from lit_foundry.compress.artifact import told_of
from lit_foundry.datamodule import Split
from lit_foundry.nn import restoring
from lit_foundry.sources import cache_root
from lit_foundry.training.agreement import check_facts, fit_to_data
from lit_foundry.training.probing.encoder import (
    Encoder,
    Pooling,
    batches_of,
    check_finite,
    loader_of,
)
from lit_foundry.usage import UsageError

FORMAT = 1  # of the files; a higher one reads no lower
OF_WEIGHTS = ("tokenizer", "size", "fit", "mode")  # arguments of data that a checkpoint fixes
SIZES = ("vocab_size", "max_length", "in_channels", "image_size")  # facts that must agree
EDGE = 32  # of the images whose pixels are features; larger ones are averaged to it
Samples = tuple[Tensor, Tensor]  # features (N, D) float32, and classes (N,)


@dataclass(frozen=True)
class Source:
    """Where features come from.

    Attributes:
        name: For the reader.
        of: What makes them, besides data: a hash of weights, or the like.
        encode: From a batch to (B, D).
    """

    name: str
    of: str
    encode: Callable[[Mapping[str, Any]], Tensor]


def trained(path: Path, pooling: Pooling, device: torch.device) -> tuple[Source, Any]:
    """Return the features of a checkpoint, and its backbone.

    Raises:
        ValueError: If it has not one backbone.
        CheckpointError: If it is none.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder: features are those of a checkpoint.")
    encode = Encoder(load_task(path).to(device), pooling)
    return Source(str(path), f"{fingerprint(path)} {pooling}", encode), encode.backbone


def untrained(path: Path, data: Any, pooling: Pooling, device: torch.device) -> Source:
    """Return the features of the network as a fit of its recipe begins, with random weights."""
    recipe = recipe_of(read_checkpoint(path), path)["model"]
    with restoring(), torch.random.fork_rng(devices=[]):  # no pretrained weights either
        torch.manual_seed(0)
        task: Any = build(recipe, LightningModule)
        fit_to_data(task.backbones, data)
    of = f"untrained {json.dumps(recipe, sort_keys=True)} {pooling}"
    return Source(f"untrained {path}", of, Encoder(task.to(device), pooling))


def raw_pixels() -> Source:
    """Return the pixels of images as features, those over 32 pixels an edge averaged to 32."""

    def encode(batch: Mapping[str, Any]) -> Tensor:
        pixels: Tensor = batch["pixel_values"].float() / 255
        if max(size := pixels.shape[-2:]) > EDGE:
            edges = (min(size[0], EDGE), min(size[1], EDGE))
            pixels = F.interpolate(pixels, edges, mode="area")
        return pixels.flatten(1)

    return Source("raw pixels", f"pixels {EDGE}", encode)


def data_for(path: Path, backbone: Any, config: Path | None, changes: Mapping[str, Any]) -> Any:
    """Build the data of a checkpoint's recipe, or of a config, framed as its weights need it.

    Labels are those of the data: no weight of the backbone belongs to them.

    Args:
        path: The checkpoint.
        backbone: Its backbone.
        config: Config of a fit, or the part of one that holds data; None takes the recipe's.
        changes: Arguments of the data to set otherwise.

    Raises:
        UsageError: If there are none, or an argument is wrong.
        ValueError: If the backbone cannot read them.
    """
    ours = recipe_of(read_checkpoint(path), path)
    if fixed := [key for key in OF_WEIGHTS if key in changes]:
        raise UsageError(f"--data.{fixed[0]} belongs to the weights of {path}: leave it out.")
    recipe = section(config) if config else ours.get("data")
    if not recipe:
        raise UsageError(f"{config or path} tells of no data: name a config with --data FILE.")
    data: Any = built(recipe, changes)
    name, offered = type(data).__name__, list(data.batch_fields)
    if not {*backbone.inputs} <= {*offered}:
        raise UsageError(
            f"{type(backbone).__name__} reads {list(backbone.inputs)}, and {name} yields {offered}."
        )
    if state := ours.get("data_state"):
        data.restore({**state, "labels": data.labels})
    facts = {fact: value for fact, value in data.facts.items() if fact in SIZES}
    check_facts(backbone, "model.backbone", facts, name)
    return data


def built(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """Build data by a recipe, with some arguments set otherwise.

    Raises:
        UsageError: If one of these is wrong.
    """
    args = {**(recipe.get("init_args") or {}), **changes}
    try:
        return build({**recipe, "init_args": args}, LightningDataModule)
    except ValueError as error:
        if told := told_of(changes, str(error)):
            raise UsageError(told) from error
        raise


def section(config: Path) -> dict[str, Any]:
    """Return the section ``data`` of a config, over those of the configs that it names below it.

    Raises:
        UsageError: If it cannot be read.
    """
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{config}: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise UsageError(f"{config}: it holds keys, got {content!r}.")
    below = content.get("config", [])
    found: dict[str, Any] = {}
    for each in [below] if isinstance(below, str) else below:
        found = _merged(found, section(config.parent / each))
    data = content.get("data", content if "class_path" in content else {})
    own = section(config.parent / data) if isinstance(data, str) else data
    return _merged(found, own)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
    }
    return {**below, **above, **both}


def samples(source: Source, data: Any, split: Split, device: torch.device) -> Samples:
    """Return features and classes of a split, computed once for weights, data and pooling.

    Raises:
        UsageError: If there is no such split.
        ValueError: If features are not finite.
    """
    dataset = data.load(split)
    if dataset is None or not len(dataset.lengths):
        what = {"val": "validation", "test": "test"}.get(split, "training")
        raise UsageError(f"{type(data).__name__} has no {what} split, or an empty one.")
    known = data.fingerprint()
    content = known.get(split)
    # Of training samples too, which an untrained network may be fitted to.
    parts = [FORMAT, __version__, source.of, data.recipe(), data.state(), split, content]
    parts.append(known.get("train"))
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    path = cache_root() / "features" / f"{key[:24]}.safetensors"
    if content is not None:  # else a file could be of other samples
        with suppress(OSError, SafetensorError, KeyError):  # none is there, or a damaged one
            found = load_file(path)
            return found["features"], found["label"]
    features, label = _computed(source, data, dataset, split, device)
    if content is not None:
        with replacing(path) as partial:
            save_file({"features": features, "label": label}, partial)
    return features, label


def _computed(source: Source, data: Any, dataset: Any, split: str, device: torch.device) -> Samples:
    batches = batches_of(dataset.lengths, range(len(dataset.lengths)))
    loaded: Any = loader_of(dataset, batches, getattr(data, "num_workers", 0))
    found, order, labels = [], [], []
    bar = tqdm(loaded, f"{source.name}, {split}", len(batches), unit=" batches", disable=None)
    for batch in bar:
        found.append(source.encode(moved(batch, device)).cpu())
        order.append(batch["index"].clone())
        labels.append(batch["label"].clone())
    place = torch.cat(order).argsort()
    features, label = torch.cat(found)[place], torch.cat(labels)[place]
    check_finite(features, f"the split {split}")
    return features[label >= 0], label[label >= 0]  # of transfer files there is none
