"""Folders that ``export`` wrote, opened: what they say of themselves, their network and their data.

Shapes: B batch, T tokens, C outputs.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from safetensors.torch import load_file
from torch import Tensor

from lit_foundry.checkpoints.files import MANIFEST, CheckpointError, build, digest, rebuild_data
from lit_foundry.checkpoints.torch_program import load_program
from lit_foundry.nn import restoring
from lit_foundry.nn.image.augment import centre
from lit_foundry.sources import TOKENIZER_FILES, without_its_code

Logits = Callable[[Mapping[str, Tensor]], Tensor]  # fields of a batch to (B, C), or (B, T, C)
Manifest = dict[str, Any]
FILES = {".ckpt", ".safetensors", ".onnx", ".data", ".pt2", ".bin", ".json"}  # of networks
SAID = {"format": str, "inputs": list, "data": dict, "data_state": dict}  # in each manifest


def open_export(folder: Path, device: str | torch.device = "cpu") -> tuple[Manifest, Logits]:
    """Open an exported folder by what it says of itself.

    Args:
        folder: The folder.
        device: Where it runs; ``onnx`` and ``torch`` run on the CPU.

    Returns:
        Its manifest, and its network as :func:`exported_logits` does.

    Raises:
        CheckpointError: If it is no export, or was damaged.
    """
    manifest = read_manifest(folder)
    return manifest, exported_logits(folder, manifest["format"], manifest["inputs"], device)


def fingerprint(path: Path) -> str:
    """Return a hash of a checkpoint, or of the files in a folder that hold a network."""
    return _fingerprint(path, path.stat().st_mtime_ns)


@cache
def _fingerprint(path: Path, changed: int) -> str:
    if path.is_file():
        return digest(path)
    files = sorted(file for file in path.iterdir() if file.suffix in FILES)
    return hashlib.sha256("".join(map(digest, files)).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read what an exported folder says of itself; what earlier exports leave out is filled in.

    Raises:
        CheckpointError: If it says nothing, or too little.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {MANIFEST}, so it is no export of lit_foundry: name a checkpoint "
            "file, or a folder that export wrote."
        )
    again = "Export the checkpoint again."
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}). {again}") from None
    said = manifest if isinstance(manifest, dict) else {}
    if lacks := [key for key, kind in SAID.items() if not isinstance(said.get(key), kind)]:
        raise CheckpointError(f"{path} tells no {' and no '.join(lacks)}. {again}")
    job = manifest.setdefault("job", "text-classification")
    # Earlier exports do not tell; they label or are language models.
    earlier = "class" if str(job).endswith("classification") else None
    return {"predicts": earlier, **manifest}


def exported_data(folder: Path, manifest: Manifest, **changes: Any) -> LightningDataModule:
    """Rebuild the data module of an exported folder, with its labels and tokenizer.

    Args:
        folder: The folder.
        manifest: What it says of itself.
        changes: Arguments to set otherwise, such as ``root="data"``.

    Raises:
        CheckpointError: If it asks for files that belong to no tokenizer.
    """
    state = manifest["data_state"]
    names = state.get("tokenizer") or ()
    if not TOKENIZER_FILES.issuperset(names):
        raise CheckpointError(f"{folder / MANIFEST} names files of no tokenizer: {sorted(names)}.")
    files = {name: (folder / name).read_text(encoding="utf-8") for name in names}
    return rebuild_data(manifest["data"], state | ({"tokenizer": files} if files else {}), changes)


def exported_task(folder: Path) -> LightningModule:
    """Rebuild the task of a folder of the format ``safetensors``, in eval mode."""
    recipe = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with restoring():
        task: LightningModule = build(recipe, LightningModule)
    task.load_state_dict(load_file(folder / "model.safetensors"))
    return task.eval()


def exported_logits(
    folder: Path, format: str, names: Sequence[str], device: str | torch.device = "cpu"
) -> Logits:
    """Open the network of an exported folder.

    Args:
        folder: The folder.
        format: ``hf``, ``onnx``, ``torch`` or ``safetensors``.
        names: Fields of a batch that it takes, in order.
        device: Where it runs; ``onnx`` and ``torch`` run on the CPU.

    Returns:
        From a batch, whose pixels range from 0 to 255, to its logits.
    """

    def taken(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        # Tokenizers yield integer masks, so that is what an export takes.
        fields = {name: batch[name] for name in names if name in batch}
        return {k: v.long() if v.dtype == torch.bool else v for k, v in fields.items()}

    if format == "hf":
        import transformers

        own: Any = {"trust_remote_code": False}
        with without_its_code(str(folder)):
            [name] = transformers.AutoConfig.from_pretrained(folder, **own).architectures
            kind: Any = getattr(transformers, name, None)
            if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
                raise CheckpointError(f"{folder / 'config.json'}: no model is called {name!r}.")
            network: Any = kind
            model = network.from_pretrained(folder, **own).eval().to(device)
        ready = _normalizer(folder) if "pixel_values" in names else dict
        # Of one from elsewhere, names are all that there might be, such as the kinds of tokens.
        takes = inspect.signature(model.forward).parameters
        wanted = [name for name in names if name in takes]

        def of_model(batch: Mapping[str, Tensor]) -> Tensor:
            fields = taken({name: batch[name] for name in wanted if name in batch})
            outputs: Tensor = model(**ready(moved(fields, device))).logits
            return outputs

        return of_model
    if format == "safetensors":
        task: Any = exported_task(folder).to(device)
        masks = {name: torch.bool for name in names if name.endswith("mask")}

        def of_task(batch: Mapping[str, Tensor]) -> Tensor:
            fields = moved(batch, device)
            outputs: Tensor = task(fields | {n: fields[n].to(dtype) for n, dtype in masks.items()})
            return outputs

        return of_task
    if format == "onnx":
        session = onnx_session(folder / "model.onnx")

        def run(batch: Mapping[str, Tensor]) -> Tensor:
            feed = {name: value.numpy() for name, value in taken(batch).items()}
            return torch.from_numpy(session.run(None, feed)[0])

        return run
    if format != "torch":
        raise CheckpointError(f"{folder / MANIFEST}: its format {format!r} is not known.")
    program = load_program(folder / "model.pt2").module(check_guards=False)
    return lambda batch: program(*taken(batch).values())


def onnx_session(path: Path) -> Any:
    """Open an ONNX model, which is run by as many threads as torch has.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path.parent} is an ONNX model: pip install 'lit-foundry[onnx]' to run it."
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    providers = ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # its own kinds; among others, of weights outside of the folder
        raise CheckpointError(
            f"{path} cannot be opened ({shorten(str(error), 200)}). Export the checkpoint again."
        ) from error


def moved(batch: Mapping[str, Any], device: str | torch.device) -> dict[str, Any]:
    """Return the fields of a batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def _normalizer(folder: Path) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Do what the folder's image processor does to pixels of the right size."""
    said = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    mean, std = (torch.tensor(said[key]).view(-1, 1, 1) for key in ("image_mean", "image_std"))

    def normalized(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = batch["pixel_values"].float() * said["rescale_factor"]
        if cut := said.get("crop_size"):
            pixels = centre(pixels, (cut["height"], cut["width"]))
        return {"pixel_values": (pixels - mean.to(pixels)) / std.to(pixels)}

    return normalized
