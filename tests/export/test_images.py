"""Exports of image classifiers compute what the checkpoint computes."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import lit_foundry
from lit_foundry.checkpoints.exported import exported_logits
from lit_foundry.checkpoints.files import CheckpointError, load_task
from lit_foundry.checkpoints.initialization import load_submodule
from lit_foundry.cli.main import main
from lit_foundry.data.base import DataModule, Split
from lit_foundry.data.batch import ImageBatch
from lit_foundry.data.image.decoding import Form
from lit_foundry.export import command as exporting
from lit_foundry.nn import ImageEncoder, TorchvisionEncoder
from lit_foundry.nn.image.augment import centre
from lit_foundry.nn.image.networks.as_transformers import image_classifier, image_processor
from tests.conftest import write_config
from tests.images import noise, write_class_folders, write_kinds

SIZE = 32


class Noise(DataModule):
    """Images of random pixels, whose brighter half is one class.

    Args:
        channels: Channels C.
        square: Whether height equals width.
        options: Arguments of :class:`DataModule`.
    """

    batch_type: ClassVar[type] = ImageBatch
    batch_fields: ClassVar[list[str]] = ["pixel_values"]

    def __init__(self, channels: int = 3, square: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.channels, self.square = channels, square

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return ["bright", "dark", "striped"]

    @property
    def facts(self) -> Mapping[str, int]:
        """Classes, channels and size."""
        edge = {"image_size": SIZE} if self.square else {}
        return {"num_classes": 3, "in_channels": self.channels, **edge}

    def state(self) -> dict[str, Any]:
        """What to make of an image."""
        return {"labels": self.labels, "fit": "squash"}

    def load(self, split: Split) -> Any:
        """Open a split."""
        return NoiseImages(self.channels)

    def batches(
        self, inputs: Sequence[Any], batch_tokens: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield arrays as one batch, in memory as a file holds them."""
        images = torch.from_numpy(np.stack([np.asarray(item) for item in inputs]))
        yield {"pixel_values": images.permute(0, 3, 1, 2), "index": torch.arange(len(inputs))}

    def save_preprocessor(self, folder: Path, inputs: Sequence[str], goes_on: bool = False) -> None:
        """Write nothing."""


class NoiseImages(torch.utils.data.Dataset[Any]):
    """Twelve images."""

    def __init__(self, channels: int) -> None:
        random = torch.Generator().manual_seed(0)
        shape = 12, channels, SIZE, SIZE
        self.label = torch.arange(12) % 3
        pixels = torch.randint(128, shape, generator=random)
        self.pixels = (pixels + 60 * self.label.view(-1, 1, 1, 1)).to(torch.uint8)
        self.lengths = np.ones(12, np.int64)

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        index = torch.tensor(list(rows))
        return {
            "pixel_values": self.pixels[index],
            "index": index,
            "label": self.label[index],
        }


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
VIT |= {"model_type": "vit", "intermediate_size": 48, "initializer_range": 0.3}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "deit": VIT | {"model_type": "deit"},
    "dinov2": {k: v for k, v in VIT.items() if k != "intermediate_size"} | {"model_type": "dinov2"},
    "beit": VIT | {"model_type": "beit", "use_relative_position_bias": True},
    "convnext": CONVNEXT | {"initializer_range": 0.3},
    "swin": {
        "model_type": "swin",
        "embed_dim": 16,
        "depths": [1, 2],
        "num_heads": [2, 2],
        "window_size": 4,
        "patch_size": 2,
        "initializer_range": 0.3,
    },
    "resnet": {
        "model_type": "resnet",
        "hidden_sizes": [8, 16],
        "depths": [1, 2],
        "embedding_size": 8,
        "layer_type": "basic",
    },
}


def fitted(
    folder: Path,
    backbone: str,
    init_args: dict[str, Any],
    kind: str = f"{__name__}.Noise",
    augment: dict[str, Any] | None = None,
    **data: Any,
) -> Path:
    """Fit two steps; return the checkpoint."""
    part = {"class_path": backbone, "init_args": init_args}
    model = {"backbone": part, "optim": {"lr": 3e-4}, "augment": augment}
    config = {
        "model": {"class_path": "Classification", "init_args": model},
        "data": {"class_path": kind, "init_args": {"batch_size": 6} | data},
        "trainer": {
            "max_steps": 4,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder / "runs"),
        },
    }
    cli = main(["fit", "--config", str(write_config(folder / "noise.yaml", config))])
    path: Path = cli.run.path / "checkpoints" / "best.ckpt"
    return path


SMALL = {
    "resnet": ("TorchvisionEncoder", {"name": "resnet18", "stem": "small"}),
    "vit": ("ImageEncoder", {"config": VIT}),
    "timm": ("TimmEncoder", {"name": "test_convnext"}),
}
FORMATS = [
    ("vit", "onnx"),
    ("vit", "torch"),
    ("vit", "safetensors"),
    pytest.param(("resnet", "torch"), marks=pytest.mark.slow),
    pytest.param(("resnet", "onnx"), marks=pytest.mark.slow),
    pytest.param(("timm", "torch"), marks=pytest.mark.slow),
    pytest.param(("timm", "onnx"), marks=pytest.mark.slow),
]


@cache
def best_of(kind: str, folder: Path) -> Path:
    return fitted(folder, *SMALL[kind])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fits")


@pytest.fixture(scope="module")
def vit(folder: Path) -> Path:
    return best_of("vit", folder)


def arrays(count: int, channels: int = 3) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    scale = np.linspace(40, 255, count)
    shape = SIZE, SIZE, channels
    return [random.integers(0, int(top), shape, dtype=np.uint8) for top in scale]


@pytest.mark.parametrize("case", FORMATS, ids=str)
def test_export_predicts_as_the_checkpoint(case: tuple[str, str], folder: Path) -> None:
    best, format = best_of(case[0], folder), case[1]
    exporting.main(["--ckpt_path", str(best), "--format", format])
    output = best.parent.parent / "export" / format
    said = json.loads((output / "lit_foundry.json").read_text(encoding="utf-8"))
    assert (said["job"], said["inputs"]) == ("image-classification", ["pixel_values"])
    assert said["difference"] <= exporting.TOLERANCE[format]
    images = arrays(5)
    expected, found = (lit_foundry.load(path).predict(images) for path in (best, output))
    assert found.labels == expected.labels
    torch.testing.assert_close(found.probs, expected.probs, atol=1e-4, rtol=0)
    assert expected.probs.std(0).max() > 1e-3  # or else the comparison says nothing
    one = lit_foundry.load(output).predict(images[0])
    torch.testing.assert_close(one.probs, found.probs[:1], atol=1e-4, rtol=0)
    if format == "onnx":
        check_input(output / "model.onnx")


def check_input(path: Path) -> None:
    """Bytes, and any number of images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    [taken] = session.get_inputs()
    assert (taken.name, taken.type) == ("pixel_values", "tensor(uint8)")
    assert taken.shape[1:] == [3, SIZE, SIZE]
    for rows in (1, 7):
        pixels = np.zeros((rows, 3, SIZE, SIZE), np.uint8)
        assert session.run(None, {"pixel_values": pixels})[0].shape == (rows, 3)


@pytest.mark.parametrize("family", CONFIGS)
def test_transformers_computes_the_logits_of_each_family(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = ImageEncoder(config=CONFIGS[family], image_size=SIZE).eval()
    head = backbone.classifier(3).eval()
    image_classifier(backbone, head, ["a", "b", "c"]).save_pretrained(tmp_path)
    image_processor(backbone, SIZE, "squash", SIZE).save_pretrained(tmp_path)
    images = backbone.example(4, SIZE)
    with torch.no_grad():
        expected = head(backbone.encode(images))
        found = exported_logits(tmp_path, "hf", ["pixel_values"])(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-3


def test_pipeline_of_transformers_loads_the_folder(vit: Path) -> None:
    from transformers import pipeline

    exporting.main(["--ckpt_path", str(vit), "--format", "hf"])
    folder = vit.parent.parent / "export" / "hf"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "bright", "1": "dark", "2": "striped"}
    pipe = pipeline("image-classification", str(folder), device="cpu")
    predictor, images = lit_foundry.load(vit), arrays(3)
    for image, prob in zip(images, predictor.predict(images).probs.tolist(), strict=True):
        found = {row["label"]: row["score"] for row in pipe(Image.fromarray(image))}
        assert found == pytest.approx(dict(zip(predictor.labels, prob, strict=True)), abs=1e-5)
    probs = lit_foundry.load(folder).predict(images).probs
    torch.testing.assert_close(probs, predictor.predict(images).probs, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_kinds(tmp_path_factory.mktemp("kinds"))


def fitted_on_files(folder: Path, augment: dict[str, Any] | None = None, **data: Any) -> Path:
    root = str(write_class_folders(folder / "pets", 20))
    return fitted(folder, *SMALL["vit"], "ImageFolder", augment, root=root, **data)


# The pipeline leaves animations open, and lets PIL complain of palettes with transparent colours.
UNTIDY = pytest.mark.filterwarnings(
    "ignore:Palette images with Transparency", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def piped(folder: Path, files: Sequence[Path]) -> Tensor:
    """Return the logits of the pipeline of transformers, by the names of the classes."""
    from transformers import pipeline

    pipe = pipeline("image-classification", str(folder), device="cpu")
    found = pipe([str(file) for file in files], function_to_apply="none", top_k=None)
    return torch.tensor(
        [[row["score"] for row in sorted(r, key=itemgetter("label"))] for r in found]
    )


@pytest.fixture(scope="module")
def cropped(folder: Path) -> Path:
    return fitted_on_files(folder, size=SIZE)


@UNTIDY
def test_every_export_sees_the_pixels_of_files_that_predict_sees(
    cropped: Path, kinds: list[Path]
) -> None:
    predictor = lit_foundry.load(cropped)
    [batch] = predictor.data.batches(kinds)
    with torch.no_grad():
        expected = predictor.logits(batch)
    assert expected.std(0).min() > 1e-3  # or else the comparison says nothing
    hf = exporting.export(cropped, "hf")
    torch.testing.assert_close(piped(hf, kinds), expected, atol=1e-5, rtol=1e-5)
    for format in ("hf", "torch", "safetensors"):
        export = hf if format == "hf" else exporting.export(cropped, format)
        probs = lit_foundry.load(export).predict([str(file) for file in kinds]).probs
        torch.testing.assert_close(probs, expected.softmax(-1), atol=1e-5, rtol=0)


@UNTIDY
def test_processor_squashes_and_cuts_as_data_and_network_do(
    tmp_path: Path, kinds: list[Path]
) -> None:
    best = fitted_on_files(tmp_path, {"size": SIZE}, size=SIZE + 5, fit="squash")
    predictor = lit_foundry.load(best)
    [batch] = predictor.data.batches(kinds)
    with torch.no_grad():
        expected = predictor.logits(batch)
    found = piped(exporting.export(best, "hf"), kinds)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_processor_cuts_once_where_two_cuts_are_one() -> None:
    backbone = ImageEncoder(config=VIT, image_size=SIZE)
    for height in range(SIZE + 4, SIZE + 12):
        image = Image.fromarray(noise(height, height, SIZE + 4))
        processor = image_processor(backbone, SIZE + 4, "crop", SIZE)
        found = processor(images=image, return_tensors="pt")["pixel_values"]
        pixels = torch.from_numpy(Form(SIZE + 4).pixels(image)).permute(2, 0, 1)[None]
        expected = backbone.normalize(centre(pixels, (SIZE, SIZE)))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"data.size 37 and model.augment.size 32 .*safetensors"):
        image_processor(backbone, SIZE + 5, "crop", SIZE)


def test_a_processor_that_sees_other_pixels_is_not_exported(
    cropped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.image_processing_backends import TorchvisionBackend

    resize = TorchvisionBackend.resize
    monkeypatch.setattr(TorchvisionBackend, "resize", lambda *a, **k: resize(*a, **k).clamp(min=1))
    with pytest.raises(CheckpointError, match=r"hf: of \w+.\w+, .* differ from predict's by 1.0"):
        exporting.export(cropped, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_one_channel_are_exported(tmp_path: Path) -> None:
    best = fitted(tmp_path, *SMALL["vit"], channels=1)
    images = arrays(3, channels=1)
    expected = lit_foundry.load(best).predict(images).probs
    folder = exporting.export(best, "hf")
    found = lit_foundry.load(folder).predict(images).probs
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_networks_that_transformers_lacks_are_refused_by_name() -> None:
    clip = VIT | {"model_type": "clip_vision_model"}
    for backbone, words in (
        (TorchvisionEncoder("squeezenet1_1"), r"classifier on a TorchvisionEncoder.*safetensors"),
        (ImageEncoder(config=VIT, pooling="mean"), r"'vit' with model.backbone.pooling 'mean'"),
        (ImageEncoder(config=clip, image_size=SIZE), r"of model_type 'clip_vision_model'"),
    ):
        with pytest.raises(ValueError, match=words):
            image_classifier(backbone, backbone.classifier(2), ["a", "b"])


def test_images_that_are_not_square_are_refused(vit: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(Noise, "facts", {"num_classes": 3, "in_channels": 3})
    with pytest.raises(ValueError, match=r"Only square images are exported: set data.size"):
        exporting.export(vit, "torch")


def test_exports_initialize_other_networks(vit: Path, tmp_path: Path) -> None:
    trained: Any = load_task(vit).backbone
    for format in ("hf", "safetensors"):
        folder = exporting.export(vit, format, tmp_path / format)
        fresh = lit_foundry.ImageEncoder(config=VIT, image_size=SIZE)
        load_submodule(fresh, folder)
        for key, value in fresh.state_dict().items():
            assert torch.equal(value, trained.state_dict()[key])
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_submodule(TorchvisionEncoder("squeezenet1_1"), tmp_path / "safetensors")
