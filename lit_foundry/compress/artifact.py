"""Checkpoints and exported folders alike: a network with its data, and what its files hold."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_foundry.checkpoints.exported import Logits, exported_data, open_export, read_manifest
from lit_foundry.checkpoints.files import load_data, load_task, read_checkpoint
from lit_foundry.checkpoints.torch_program import load_program
from lit_foundry.usage import UsageError

CHECKPOINT = "checkpoint"  # in place of the format of an export
WEIGHTS = (".safetensors", ".onnx", ".data", ".pt2")  # .data: of ONNX models above 2 GB


@dataclass(frozen=True)
class Artifact:
    """A trained network in use.

    Attributes:
        path: Checkpoint, or folder that ``export`` wrote.
        format: Format of the export and how it was quantized, or ``checkpoint``.
        holds: What it holds, for messages.
        predicts: Kind of what is predicted; None of none that labels could be compared with.
        inputs: Fields of a batch that it reads, as far as the batch has them.
        logits: From a batch to its logits.
    """

    path: Path
    format: str
    holds: str
    predicts: str | None
    inputs: tuple[str, ...]
    logits: Logits

    def data(self, changes: Mapping[str, Any]) -> Any:
        """Rebuild the data module that it was trained on, with some arguments set otherwise.

        Raises:
            UsageError: If it takes no such argument.
        """
        try:
            if self.format == CHECKPOINT:
                return load_data(self.path, **changes)
            return exported_data(self.path, read_manifest(self.path), **changes)
        except ValueError as error:
            if told := told_of(changes, str(error)):
                raise UsageError(told) from error
            raise


def open_artifact(path: Path) -> Artifact:
    """Open a checkpoint, or a folder that ``export`` wrote.

    Raises:
        CheckpointError: If it is neither.
    """
    if path.is_dir():
        said, logits = open_export(path)
        holds = f"a network for {said['job']}" if said["job"] else "a network"
        inputs = tuple(said["inputs"])
        format = " ".join(said[key] for key in ("format", "quantization") if said.get(key))
        return Artifact(path, format, holds, said["predicts"], inputs, logits)
    task: Any = load_task(path)
    found = [(*b.inputs, *b.optional_inputs) for b in getattr(task, "backbones", {}).values()]
    fields = tuple(dict.fromkeys(name for names in found for name in names))
    kind = getattr(task, "predicts", None)
    return Artifact(path, CHECKPOINT, f"a {type(task).__name__}", kind, fields, task)


def told_of(changes: Mapping[str, Any], said: str) -> str | None:
    """Say in a line which option was wrong: jsonargparse dumps the whole recipe."""
    if found := re.search(r"class_path '([\w.]+)': Option '(\w+)' is not accepted", said):
        return f"--data.{found[2]}: a {found[1].rpartition('.')[2]} takes no {found[2]}."
    if (found := re.search(r'Parser key "(\w+)"', said)) and found[1] in changes:
        return f"--data.{found[1]}: it takes no {changes[found[1]]!r}."
    # What a constructor says of an argument stands as an entry of a list.
    found = re.search(rf"^ +- (data\.({'|'.join(changes)})\b.*)", said, re.M) if changes else None
    return found and f"--{found[1]}"


def weights(path: Path) -> tuple[int, int, list[str]]:
    """Count what the tensors of an artifact hold.

    Integers of 64 bits are left out of the parameters, as they count or number something.

    Returns:
        Number of parameters; bytes; and the names of the files that these are the size of. Of a
        checkpoint there are none: bytes are those of the tensors in ``state_dict``, as beside them
        it may hold the state of an optimizer.
    """
    if not path.is_dir():
        tensors = _distinct(read_checkpoint(path)["state_dict"].values())
        return _parameters(tensors), sum(t.numel() * t.element_size() for t in tensors), []
    files = sorted(file for file in path.iterdir() if file.suffix in WEIGHTS)
    told = read_manifest(path).get("parameters")
    parameters = told or 0
    for file in [] if told else files:
        if file.suffix == ".onnx":
            parameters += _onnx_parameters(file)
        elif file.suffix == ".pt2":
            parameters += _parameters(_distinct(load_program(file).state_dict.values()))
        elif file.suffix == ".safetensors":
            parameters += _parameters(load_file(file).values())
    return parameters, sum(file.stat().st_size for file in files), [file.name for file in files]


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Leave out tensors that are tied to others."""
    return list({(t.data_ptr(), t.shape): t for t in tensors}.values())


def _parameters(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() for t in tensors if t.dtype not in (torch.int64, torch.bool))


def _onnx_parameters(path: Path) -> int:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    skipped = (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)
    return sum(prod(t.dims) for t in model.graph.initializer if t.data_type not in skipped)
