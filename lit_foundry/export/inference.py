"""Trained networks in use: labels and probabilities from a checkpoint or an export.

Shapes: N inputs, C classes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from safetensors.torch import load_file
from torch import Tensor

from lit_foundry.checkpoints.files import MANIFEST, CheckpointError, build, load_data, load_task
from lit_foundry.datamodule import Data
from lit_foundry.export.torch_program import load_program
from lit_foundry.nn import restoring
from lit_foundry.nn.image.augment import centre
from lit_foundry.nn.text.words import of_words
from lit_foundry.sources import TOKENIZER_FILES, without_its_code

Logits = Callable[[Mapping[str, Tensor]], Tensor]  # fields of a batch to (B, C), or (B, T, C)


class Predicted(NamedTuple):
    """What a network says of some inputs, in their order."""

    labels: list[Any]  # of each input, the most probable class; of several classes, those over 0.5
    probs: Tensor  # (N, C), in the order of Predictor.labels


class PredictedValues(NamedTuple):
    """Numbers of some inputs, in their order."""

    values: Tensor  # (N,), or (N, K) in the order of Predictor.labels


class PredictedTags(NamedTuple):
    """Tags of the words of some inputs, in their order."""

    tags: list[list[str | None]]  # None of a word that was cut off before others


class Predictor:
    """A network with all that it needs to label raw inputs.

    Args:
        data: Data module that frames inputs as the training did.
        logits: The network.
        kind: What it predicts: ``class``, ``classes``, ``value`` or ``tags``.

    Attributes:
        labels: Names of the classes, values or tags, in the order of the network's outputs.
    """

    def __init__(self, data: Data, logits: Logits, kind: str = "class") -> None:
        self.data, self.logits, self.kind = data, logits, kind
        self.labels: list[str] = data.labels

    @torch.inference_mode()
    def predict(self, inputs: Any, batch_tokens: int = 8192) -> Any:
        """Label texts, pairs of texts, or images.

        Args:
            inputs: One text, or several, or several pairs: a list, an array, a Series, a generator;
                or a DataFrame or records with the columns that were trained on. Likewise of
                images: paths, images of PIL, bytes of a file, or arrays (H, W, C) of uint8, also
                (N, H, W, C).
            batch_tokens: Most tokens at once, padding included.

        Returns:
            :class:`Predicted`, :class:`PredictedValues` or :class:`PredictedTags`, by ``kind``.

        Raises:
            DataError: If an input is of another type.
        """
        rows = self.data.rows(inputs)
        names = self.labels
        found = [torch.zeros(len(names))] * len(rows)
        for batch in self.data.batches(rows, batch_tokens):
            outputs = self.logits(batch).float().cpu()
            if self.kind == "tags":
                outputs = of_words(outputs.argmax(-1), batch["word"])
            for row, output in zip(batch["index"].tolist(), outputs, strict=True):
                found[row] = output
        if self.kind == "tags":
            return PredictedTags([_named(row.tolist(), names) for row in found])
        whole = torch.stack(found) if found else torch.zeros(0, len(names))
        if self.kind == "value":
            return PredictedValues(whole.flatten() if len(names) == 1 else whole)
        if self.kind == "classes":
            probs = whole.sigmoid()
            over = (row.nonzero().flatten().tolist() for row in probs > 0.5)
            return Predicted([[names[i] for i in row] for row in over], probs)
        probs = whole.softmax(-1)
        return Predicted([names[i] for i in probs.argmax(-1).tolist()], probs)


def load(path: str | Path, device: str | torch.device = "cpu") -> Predictor:
    """Load a checkpoint, or a folder that ``export`` wrote, with its tokenizer and label names.

    Args:
        path: ``runs/NAME/1/checkpoints/best.ckpt`` or an exported folder.
        device: Where a checkpoint or a ``transformers`` folder runs.

    Raises:
        CheckpointError: If it is neither, or its task predicts nothing that has labels.
    """
    path = Path(path)
    if not path.is_dir():
        task: Any = load_task(path).to(device)
        if task.predicts is None:
            raise CheckpointError(f"{path} holds a {type(task).__name__}, {_unlabelled(task.job)}.")
        loaded: Any = load_data(path)
        return Predictor(loaded, lambda batch: task(_moved(batch, device)), task.predicts)
    if not (path / MANIFEST).is_file():
        raise CheckpointError(
            f"{path} has no {MANIFEST}, so it is no export of lit_foundry: name a checkpoint file, "
            "or a folder that export wrote."
        )
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    job = manifest.get("job", "text-classification")
    # Earlier exports do not tell; they label or are language models.
    earlier = "class" if str(job).endswith("classification") else None
    kind = manifest.get("predicts", earlier)
    if kind is None:
        raise CheckpointError(f"{path} holds a network {_unlabelled(job)}.")
    data: Any = build(manifest["data"], LightningDataModule)
    state = manifest["data_state"]
    names = state.get("tokenizer") or ()
    if not TOKENIZER_FILES.issuperset(names):
        raise CheckpointError(f"{path / MANIFEST} names files of no tokenizer: {sorted(names)}.")
    files = {name: (path / name).read_text(encoding="utf-8") for name in names}
    data.restore(state | ({"tokenizer": files} if files else {}))
    logits = exported_logits(path, manifest["format"], manifest["inputs"], device)
    return Predictor(data, logits, kind)


def _named(tags: list[int], names: Sequence[str]) -> list[str | None]:
    while tags and tags[-1] < 0:
        tags.pop()
    return [names[i] if i >= 0 else None for i in tags]


def _unlabelled(job: str | None) -> str:
    other = f", or export --format hf and transformers.pipeline({job!r}, FOLDER)" if job else ""
    return f"which labels nothing: use the command predict{other}"


def _moved(batch: Mapping[str, Any], device: str | torch.device) -> dict[str, Any]:
    return {name: value.to(device) for name, value in batch.items()}


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
        fields = {name: batch[name] for name in names}
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
        return lambda batch: model(**ready(_moved(taken(batch), device))).logits
    if format == "safetensors":
        with restoring():
            task: Any = build(
                json.loads((folder / "config.json").read_text(encoding="utf-8")), LightningModule
            )
        task.load_state_dict(load_file(folder / "model.safetensors"))
        task.eval().to(device)
        masks = {name: torch.bool for name in names if name.endswith("mask")}

        def of_task(batch: Mapping[str, Tensor]) -> Tensor:
            fields = _moved(batch, device)
            outputs: Tensor = task(fields | {n: fields[n].to(dtype) for n, dtype in masks.items()})
            return outputs

        return of_task
    if format == "onnx":
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                f"{folder} is an ONNX model: pip install 'lit-foundry[onnx]' to run it."
            ) from None
        try:
            session = onnxruntime.InferenceSession(
                folder / "model.onnx", providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own kinds; among others, of weights outside of the folder
            raise CheckpointError(
                f"{folder / 'model.onnx'} cannot be opened ({shorten(str(error), 200)}). Export "
                "the checkpoint again."
            ) from error

        def run(batch: Mapping[str, Tensor]) -> Tensor:
            feed = {name: value.numpy() for name, value in taken(batch).items()}
            return torch.from_numpy(session.run(None, feed)[0])

        return run
    if format != "torch":
        raise CheckpointError(f"{folder / MANIFEST}: its format {format!r} is not known.")
    program = load_program(folder / "model.pt2").module(check_guards=False)
    return lambda batch: program(*taken(batch).values())


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
