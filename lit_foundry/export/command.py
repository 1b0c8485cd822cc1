"""Write the network of a checkpoint in a form that others load, once its outputs were compared."""

import io
import json
import logging
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors.torch import save_file

from lit_foundry import __version__
from lit_foundry.atomic import replacing
from lit_foundry.checkpoints.files import MANIFEST, CheckpointError, load_data, load_task
from lit_foundry.data.image.decoded import DecodedImages
from lit_foundry.export.image_samples import pixels_of_files
from lit_foundry.export.inference import JOBS, exported_logits
from lit_foundry.export.network import ImageNetwork, LanguageNetwork, Network
from lit_foundry.nn import ImageBackbone
from lit_foundry.nn.image.as_transformers import image_classifier, image_processor
from lit_foundry.nn.text.as_language_model import language_model
from lit_foundry.nn.text.as_transformers import sequence_classifier
from lit_foundry.recipe import import_named
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.tracking import tracker_of
from lit_foundry.sources import check_output
from lit_foundry.usage import OWN_HELP, Parser

# Largest difference of logits, in units of the largest logit or 1.
TOLERANCE = {"hf": 1e-5, "onnx": 1e-4, "torch": 1e-5, "safetensors": 1e-5}
RGB_ONLY = "pipelines of transformers take colours; lit_foundry.load takes these shades of grey"
CLIPPED = "of greys of 16 bit, transformers makes white what exceeds 255, where predict scales them"


def main(args: list[str]) -> None:
    """Run the command."""
    parser = Parser("export", OWN_HELP["export"])
    parser.add_argument("--ckpt_path", type=Path, required=True)
    parser.add_argument("--format", choices=tuple(TOLERANCE), required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--import", dest="modules", nargs="+", default=[])
    given = parser.parse_args(args)
    import_named(given.modules)
    output = export(given.ckpt_path, given.format, given.output)
    if tracker := tracker_of(RunFolder.of(given.ckpt_path).path):
        tracker.log_artifact(output, type="model", name="export", aliases=[given.format])
        tracker.finalize("success")
    print(f"Exported to {output}. In Python:")
    place = json.dumps(str(output), ensure_ascii=False)
    manifest = json.loads((output / MANIFEST).read_text(encoding="utf-8"))
    job = manifest["job"]
    if job in JOBS:
        print(f'  lit_foundry.load({place}).predict(["{JOBS[job]}"])')
    if given.format == "hf" and manifest["data_state"].get("mode") != "L":  # pipelines take RGB
        text = {
            "text-classification": '"a text", truncation=True',
            "image-classification": '"image.png"',
            "fill-mask": f'"a text with its {manifest["mask"]}"',
            "text-generation": '"a text that"',
        }[job]
        print(f'  transformers.pipeline("{job}", {place})({text})')
    if job not in JOBS:
        print(f"To fine-tune from it: --model.init_from {shlex.quote(str(output))}")


def export(ckpt_path: Path, format: str, output: Path | None = None) -> Path:
    """Write an export, or leave what was there before.

    Args:
        ckpt_path: Checkpoint of a classification task or, for ``hf`` alone, a language model.
        format: ``hf``, ``onnx``, ``torch`` or ``safetensors``.
        output: Folder to write; None takes ``<run>/export/<format>``.

    Returns:
        The folder.

    Raises:
        CheckpointError: If the checkpoint cannot be exported, its outputs differ, or ``output``
            is another folder than an export.
        ValueError: If the format does not know such a network.
    """
    output = output or RunFolder.of(ckpt_path).path / "export" / format
    if output.exists() and not (output / MANIFEST).is_file():
        raise CheckpointError(f"--output {output} exists and is no export: name another folder.")
    check_output(output, [ckpt_path])
    if format == "onnx" and not (find_spec("onnxscript") and find_spec("onnxruntime")):
        raise ModuleNotFoundError("--format onnx: pip install 'lit-foundry[onnx]'.")
    task: Any = load_task(ckpt_path)
    task.merge()
    if not hasattr(task, "head") or not hasattr(task, "backbone"):
        raise CheckpointError(f"{ckpt_path} holds a {type(task).__name__}, which has no head.")
    images = isinstance(task.backbone, ImageBackbone)
    # Name of the pipeline of transformers.
    job = getattr(task, "job", "image-classification" if images else "text-classification")
    if job not in JOBS and format != "hf":
        raise CheckpointError(
            f"--format {format} takes classifiers; a {type(task).__name__} takes --format hf."
        )
    data: Any = load_data(ckpt_path)
    check_output(output, [task.recipe(), data.recipe()])
    if images:
        tta = task.views.tta if format == "safetensors" else "none"
        views = replace(task.views, tta=tta)
        network: Network = ImageNetwork(task.backbone, task.head, data, views).eval()
        if tta != task.views.tta:
            print(f"Note: predict averages views (model.tta {task.views.tta}), {format} sees one.")
    else:
        kind = Network if job in JOBS else LanguageNetwork
        network = kind(task.backbone, task.head, data).eval()
    state = data.state()
    manifest: dict[str, Any] = {
        "version": __version__,
        "format": format,
        "job": job,
        "mask": data.tokenizer.mask_token if job == "fill-mask" else None,
        "inputs": list(network.inputs),
        "checkpoint": str(ckpt_path),
        "data": data.recipe(),
        "data_state": state | {"tokenizer": list(state.get("tokenizer", ()))},
    }
    if format == "hf" and images:
        print(f"Note: {RGB_ONLY if network.backbone.in_channels == 1 else CLIPPED}.")
    if format == "hf" and getattr(data, "truncation", "") == "head_tail":
        print(
            f"Note: of texts over {data.max_length} tokens, transformers keeps the head, where "
            "training kept head and tail, as lit_foundry.load does."
        )
    with replacing(output) as partial:
        partial.mkdir()
        tokenizer = data.save_preprocessor(partial, network.inputs, job == "text-generation")
        if format == "safetensors":
            write_safetensors(task, partial)
        else:
            with traced(task.backbone, format):
                {"hf": write_hf, "onnx": write_onnx, "torch": write_torch}[format](
                    network, partial, data.labels
                )
        if job not in JOBS:
            write_ids(partial, tokenizer)
        cases = list(network.cases(data.facts))
        if isinstance(network, ImageNetwork) and isinstance(data, DecodedImages):
            cases.append((pixels_of_files(network, partial, data, format),))
        with traced(task.backbone, format):
            manifest["difference"] = compare(network, partial, format, cases)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return output


@contextmanager
def traced(backbone: Any, format: str) -> Iterator[None]:
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
        encoder = getattr(backbone, "encoder", backbone)
        raise CheckpointError(
            f"--format {format}: a {type(encoder).__name__} cannot be traced "
            f"({shorten(str(error), 120)}): take --format safetensors."
        ) from error


def write_hf(network: Network, folder: Path, labels: Sequence[str]) -> None:
    """Write what the Auto class of ``transformers`` loads for the job."""
    if isinstance(network, ImageNetwork):
        model = image_classifier(network.backbone, network.head, labels)
        backbone: Any = network.backbone
        crop = network.views.augment.size or network.size
        image_processor(backbone, network.size, network.fit, crop).save_pretrained(folder)
    elif isinstance(network, LanguageNetwork):
        model = language_model(network.backbone, network.head)
    else:
        model = sequence_classifier(network.backbone, network.head, labels)
    model.save_pretrained(folder)


def write_safetensors(task: Any, folder: Path) -> None:
    """Write the weights, and the recipe of the task that they belong to."""
    state = {key: value.contiguous() for key, value in task.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps(task.recipe(), indent=2) + "\n", encoding="utf-8"
    )


def write_ids(folder: Path, tokenizer: Any) -> None:
    """Let a language model's folder know the ids that begin, end and pad a text."""
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            always = "bos_token_id", "eos_token_id", "pad_token_id"
            for key in (*always, *({"cls_token_id", "sep_token_id"} & content.keys())):
                content[key] = getattr(tokenizer, key)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


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
    network: Network, folder: Path, format: str, cases: Iterable[tuple[torch.Tensor, ...]]
) -> float:
    """Return the largest difference between the logits of a network and of its export.

    Args:
        network: What was exported.
        folder: The export.
        format: Its format.
        cases: Inputs to compare them on.

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
    if not worst <= TOLERANCE[format]:  # NaN is not
        raise CheckpointError(
            f"--format {format}: logits differ from the checkpoint's by {worst:.1e}, where "
            f"{TOLERANCE[format]:.0e} is allowed; nothing was exported. Try another format."
        )
    return worst
