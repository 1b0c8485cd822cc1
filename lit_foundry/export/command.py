"""Write the network of a checkpoint in a form that others load, once its outputs were compared."""

import copy
import io
import json
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import save_file

from lit_foundry import __version__
from lit_foundry.atomic import replacing
from lit_foundry.checkpoints.exported import exported_logits
from lit_foundry.checkpoints.files import MANIFEST, CheckpointError, load_data, load_task
from lit_foundry.data.image.decoded import DecodedImages
from lit_foundry.export.image_samples import pixels_of_files
from lit_foundry.export.quantization import LEAST, METHODS, agreement, calibration, quantize
from lit_foundry.export.weight_only import METHODS as WEIGHT_ONLY
from lit_foundry.export.weight_only import check_installed, quantize_weights
from lit_foundry.nn import Network
from lit_foundry.nn.image.networks.network import ImageNetwork
from lit_foundry.recipe import import_named
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.tracking import tracker_of
from lit_foundry.sources import check_output
from lit_foundry.usage import OWN_HELP, Parser

# Largest difference of logits, in units of the largest logit or 1.
TOLERANCE = {"hf": 1e-5, "onnx": 1e-4, "torch": 1e-5, "safetensors": 1e-5}
# What a pipeline of transformers is called with.
USES = {
    "text-classification": '"a text", truncation=True',
    "image-classification": '"image.png"',
    "token-classification": '"a text", aggregation_strategy="first"',
    "fill-mask": '"a text with its {mask}"',
    "text-generation": '"a text that"',
}


def main(args: list[str]) -> None:
    """Run the command."""
    parser = Parser("export", OWN_HELP["export"])
    parser.add_argument("--ckpt_path", type=Path, required=True)
    parser.add_argument("--format", choices=tuple(TOLERANCE), required=True)
    parser.add_argument("--quantize", choices=METHODS)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--import", dest="modules", nargs="+", default=[])
    given = parser.parse_args(args)
    import_named(given.modules)
    output = export(given.ckpt_path, given.format, given.output, given.quantize)
    if tracker := tracker_of(RunFolder.of(given.ckpt_path).path):
        tracker.log_artifact(output, type="model", name="export", aliases=[given.format])
        tracker.finalize("success")
    print(f"Exported to {output}. In Python:")
    place = json.dumps(str(output), ensure_ascii=False)
    manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    job, predicts = manifest["job"], manifest["predicts"]
    if given.quantize:
        print(f"It agrees with the checkpoint on {manifest['agreement']:.1%} of training samples.")
    if predicts:
        example = "image.png" if "pixel_values" in manifest["inputs"] else "a text"
        print(f'  lit_foundry.load({place}).predict(["{example}"])')
    # Pipelines take RGB.
    if given.format == "hf" and job and manifest["data_state"].get("mode") != "L":
        text = USES.get(job, '"a text"').format(mask=manifest["mask"])
        print(f'  transformers.pipeline("{job}", {place})({text})')
    if not predicts:
        print(f"To fine-tune from it: --model.init_from {shlex.quote(str(output))}")


def export(
    ckpt_path: Path,
    format: str,
    output: Path | None = None,
    quantization: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write an export, or leave what was there before.

    Args:
        ckpt_path: Checkpoint of a task that declares a network.
        format: ``hf``, ``onnx``, ``torch`` or ``safetensors``.
        output: Folder to write; None takes ``<run>/export/<format>``, with ``quantization``.
        quantization: How an ``onnx`` model is put into fewer bits, as in ``export.quantization``,
            or a ``torch`` program, as in ``export.weight_only``; None not at all.
        changes: Arguments of the data that are set otherwise, such as ``root``.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the checkpoint cannot be exported, its outputs differ, or ``output``
            is another folder than an export.
        ValueError: If the format does not know such a network.
    """
    check_backend(format, quantization)
    name = f"{format}-{quantization}" if quantization else format
    output = output or RunFolder.of(ckpt_path).path / "export" / name
    if output.exists() and not (output / MANIFEST).is_file():
        raise CheckpointError(f"--output {output} exists and is no export: name another folder.")
    check_output(output, [ckpt_path])
    task: Any = load_task(ckpt_path)
    task.merge()
    data: Any = load_data(ckpt_path, **(changes or {}))
    check_output(output, [task.recipe(), data.recipe()])
    network: Network = task.network(data).eval()
    if format not in network.formats:
        takes = " or ".join(network.formats)
        raise CheckpointError(f"--format {format}: a {type(task).__name__} takes --format {takes}.")
    if isinstance(network, ImageNetwork) and task.views.tta != "none" and format != "safetensors":
        network.show_one_view()
        print(f"Note: predict averages views (model.tta {task.views.tta}), {format} sees one.")
    if note := data.caveat(format):
        print(f"Note: {note}.")
    state = data.state()
    manifest: dict[str, Any] = {
        "version": __version__,
        "format": format,
        "job": task.job,
        "predicts": task.predicts,
        "mask": getattr(data.tokenizer, "mask_token", None),
        "inputs": list(network.inputs),
        "checkpoint": str(ckpt_path),
        "data": data.recipe(),
        "data_state": state | {"tokenizer": list(state.get("tokenizer", ()))},
    }
    samples = calibration(data, network.inputs) if quantization else []  # which may be missing
    with replacing(output) as partial:
        partial.mkdir()
        tokenizer = data.save_preprocessor(partial, network.inputs, task.job == "text-generation")
        if format == "safetensors":
            write_safetensors(task, partial)
        else:
            written = network
            if quantization and format == "torch":
                quantize_weights(written := copy.deepcopy(network), quantization)
            with traced(task, format):
                {"hf": write_hf, "onnx": write_onnx, "torch": write_torch}[format](
                    written, partial, data.labels
                )
        if quantization:
            if format == "onnx":
                quantize(partial / "model.onnx", quantization, samples)
            manifest["quantization"] = quantization  # whose numbers share bytes, and have scales
            manifest["parameters"] = sum(p.numel() for p in network.parameters())
        network.complete(partial, tokenizer)
        cases = list(network.cases(data.facts))
        if isinstance(network, ImageNetwork) and isinstance(data, DecodedImages):
            cases.append((pixels_of_files(network, partial, data, format),))
        with traced(task, format):
            most = float("inf") if quantization else TOLERANCE[format]
            manifest["difference"] = compare(network, partial, format, cases, most)
        if quantization:
            manifest["agreement"] = compare_predictions(
                network, partial, format, quantization, samples, task.predicts
            )
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return output


def check_backend(format: str, quantization: str | None = None) -> None:
    """Check that networks can be written so here.

    Raises:
        CheckpointError: If the format takes no such quantization.
        ModuleNotFoundError: If a package is missing.
    """
    goal = "torch" if quantization in WEIGHT_ONLY else "onnx"
    if quantization and format != goal:
        raise CheckpointError(
            f"--quantize {quantization} is for --format {goal}, and not {format}."
        )
    if quantization and goal == "torch":
        check_installed(quantization)
    if format == "onnx" and not (find_spec("onnxscript") and find_spec("onnxruntime")):
        raise ModuleNotFoundError("--format onnx: pip install 'lit-foundry[onnx]'.")


@contextmanager
def traced(task: Any, format: str) -> Iterator[None]:
    """Name the network in place of what torch throws where it can trace none such.

    Raises:
        CheckpointError: Then.
    """
    try:
        yield
    except (OSError, ValueError, MemoryError):
        raise
    except Exception as error:
        if format not in ("onnx", "torch"):
            raise
        encoders = [getattr(b, "encoder", b) for b in task.backbones.values()]
        names = " or ".join(type(encoder).__name__ for encoder in encoders)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch colours it
        raise CheckpointError(
            f"--format {format}: a {names} cannot be traced ({shorten(plain, 120)}): take "
            "--format safetensors."
        ) from error


def write_hf(network: Network, folder: Path, labels: Sequence[str]) -> None:
    """Write what the Auto class of ``transformers`` loads for the job."""
    network.save_transformers(folder, labels)


def write_safetensors(task: Any, folder: Path) -> None:
    """Write the weights, and the recipe of the task that they belong to."""
    state = {key: value.contiguous() for key, value in task.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(task.recipe(), indent=2) + "\n", encoding="utf-8"
    )


def write_torch(network: Network, folder: Path, labels: Sequence[str]) -> None:
    """Write a program of ``torch.export``."""
    shapes = {"values": network.dynamic_shapes()}
    with torch.no_grad():
        program = torch.export.export(network, network.example(3, 17), dynamic_shapes=shapes)
    content = io.BytesIO()  # on a full disk, torch would end the process
    torch.export.save(program, content)
    (folder / "model.pt2").write_bytes(content.getbuffer())


def write_onnx(network: Network, folder: Path, labels: Sequence[str]) -> None:
    """Write an ONNX model."""
    # It warns of operators of torchvision, which no network here needs, where that is missing.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    torch.onnx.export(
        network,
        network.example(3, 17),
        folder / "model.onnx",
        input_names=list(network.inputs),
        output_names=["logits"],
        dynamic_shapes={"values": network.dynamic_shapes()},
        dynamo=True,
        external_data=size > 1.5e9,  # a file of protobuf holds at most 2 GB
        verbose=False,
    )


@torch.no_grad()
def compare(
    network: Network,
    folder: Path,
    format: str,
    cases: Iterable[tuple[torch.Tensor, ...]],
    tolerance: float,
) -> float:
    """Return the largest difference between the logits of a network and of its export.

    Args:
        network: What was exported.
        folder: The export.
        format: Its format.
        cases: Inputs to compare them on.
        tolerance: How much of it is allowed, in units of the largest logit or 1.

    Raises:
        CheckpointError: If it exceeds the format's tolerance.
    """
    logits = exported_logits(folder, format, network.inputs)
    differences = []
    for values in cases:
        expected = network(*values)
        found = logits(dict(zip(network.inputs, values, strict=True)))
        scale = max(1.0, float(expected.abs().max()))
        differences.append((found - expected).abs().max() / scale)
    worst = float(torch.stack(differences).max())
    if not worst <= tolerance:  # NaN is not
        raise CheckpointError(
            f"--format {format}: logits differ from the checkpoint's by {worst:.1e}, where "
            f"{tolerance:.0e} is allowed; nothing was exported. Try another format."
        )
    return worst


def compare_predictions(
    network: Network,
    folder: Path,
    format: str,
    method: str,
    samples: Sequence[Mapping[str, torch.Tensor]],
    predicts: str | None,
) -> float:
    """Return the share of samples on which a quantized network agrees with what it was.

    Raises:
        CheckpointError: If that is too small.
    """
    logits = exported_logits(folder, format, network.inputs)
    found = agreement(lambda batch: network(*batch.values()), logits, samples, predicts)
    if found < LEAST:
        raise CheckpointError(
            f"--quantize {method}: the outputs agree with the checkpoint's on {found:.0%} of "
            f"training samples, where {LEAST:.0%} is the least; nothing was exported. Try another "
            "method."
        )
    return found
