"""Images are classified, from files to predictions, by the task that classifies texts."""

import csv
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lit_foundry import load
from lit_foundry.callbacks.evaluation_record import EvaluationRecord
from lit_foundry.callbacks.predictions import PredictionWriter
from lit_foundry.checkpoints.files import CheckpointError, load_data, load_task
from lit_foundry.checkpoints.initialization import load_submodule
from lit_foundry.cli.main import main
from lit_foundry.data import ImageFolder
from lit_foundry.export.command import export
from lit_foundry.nn import Airbench, ResNet9, TextEncoder
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.image.mixing import Mixing, beta_quantile
from lit_foundry.nn.image.views import Views
from lit_foundry.randomness import Moment
from lit_foundry.runs.folder import RunFolder
from lit_foundry.tasks import Classification, Finetune
from tests.conftest import digits_config, write_config
from tests.images import Patches, write_class_folders

pytest.importorskip("sklearn")
ONE_STEP = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3"]  # of three micro-batches


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train on digits; return the folder of the run."""
    folder = tmp_path_factory.mktemp("digits")
    config = digits_config(folder)
    config["model"]["init_args"] |= {"augment": {"pad": 1}, "mixing": None, "tta": "translate"}
    config["model"]["init_args"]["backbone"]["init_args"]["width"] = 8
    config["data"]["init_args"] |= {
        "max_train_samples": None,
        "batch_size": 64,
        "micro_batch": None,
    }
    config["trainer"]["max_epochs"] = 4
    path = write_config(folder / "digits.yaml", config)
    return main(["fit", "--config", str(path)]).run.path


@pytest.fixture(scope="module")
def best(run: Path) -> Path:
    """Return its best checkpoint."""
    return run / "checkpoints" / "best.ckpt"


def test_digits_are_learnt_and_tested(best: Path, run: Path) -> None:
    main(["test", "--ckpt_path", str(best)])
    assert json.loads((run / "test.json").read_text(encoding="utf-8"))["test/acc"] > 0.93


def test_summary_tells_the_speed_and_the_share_of_what_the_machine_can_do(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["samples_per_s"] > 0
    assert 0 < summary["mfu"] < 1


class NoWaiting(TorchFunctionMode):
    """Refuses what makes the host wait for a GPU: numbers that are copied to it or read from it."""

    REFUSED = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor, Tensor.item)
    REFUSED += (Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__int__)
    REFUSED += (Tensor.__float__, Tensor.__index__, torch.nonzero, Tensor.nonzero, torch.unique)
    REFUSED += (torch.masked_select, Tensor.masked_select, torch.bincount, Tensor.bincount)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function that does not wait."""
        assert func not in self.REFUSED, func
        if func is Tensor.to:
            assert not any(isinstance(x, (torch.device, str)) for x in args), args[1:]
        if func is Tensor.__getitem__:
            key = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(k, Tensor) and k.dtype == torch.bool for k in key)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "augment",
    [
        {"pad": 1, "flip": "random", "cutout": 2},
        {"resized_crop": 0.5, "flip": "alternating", "erasing": 0.5},
        {"jitter": [0.4, 0.4, 0.4, 0.0]},  # torchvision's change of hue waits
    ],
)
def test_a_training_step_does_not_wait_for_the_device(
    augment: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config, steps = digits_config(tmp_path), []
    config["model"]["init_args"]["augment"] = augment
    config["model"]["init_args"]["backbone"]["init_args"] = {"width": 4}
    config["data"]["init_args"]["mode"] = "RGB"
    step = Classification.training_step
    for alpha in (0.2, 1.0):  # a table of each is kept
        beta_quantile(torch.zeros(1), alpha)

    def watched(self: Classification, *args: Any) -> Tensor:
        with NoWaiting():
            steps.append(step(self, *args))
        return steps[-1]

    monkeypatch.setattr(Classification, "training_step", watched)
    main(["fit", "--config", str(write_config(tmp_path / "digits.yaml", config)), *ONE_STEP])
    assert len(steps) == 3


def test_operations_are_counted_for_a_frozen_backbone_once() -> None:
    images = {"pixel_values": pixels(4, 32)}
    tasks = [Classification(Airbench(), 10, finetune=Finetune(freeze=f)) for f in (0, "all")]
    tasks[1].backbone.requires_grad_(False)
    whole, frozen = (task.flops(images) for task in tasks)
    assert whole == 3 * frozen
    # The layers' products, by hand: whitening, then two convolutions in each group.
    edges = (31, 31, 15, 15, 7, 7, 3)
    widths = (3, 24, 64, 64, 256, 256, 256, 256)
    taps = (4, 9, 9, 9, 9, 9, 9)
    sizes = zip(edges, widths[:-1], widths[1:], taps, strict=True)
    products = [edge**2 * before * after * tap for edge, before, after, tap in sizes]
    assert frozen == 2 * 4 * sum(products)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, on itself
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_learns_digits(compiled: bool, tmp_path: Path) -> None:
    config = digits_config(tmp_path)
    config["model"]["init_args"] |= {"augment": {"pad": 1}, "mixing": None, "compile": compiled}
    config["model"]["init_args"]["backbone"]["init_args"]["width"] = 8
    sizes = {"max_train_samples": None, "batch_size": 64, "micro_batch": None}
    config["data"]["init_args"] |= sizes
    config["trainer"] |= {"max_epochs": 4, "accelerator": "gpu", "precision": "bf16-mixed"}
    path = main(["fit", "--config", str(write_config(tmp_path / "c.yaml", config))]).run.path
    main(["test", "--ckpt_path", str(path / "checkpoints" / "best.ckpt")])
    assert json.loads((path / "test.json").read_text(encoding="utf-8"))["test/acc"] > 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*will create 4 worker processes")
def test_weights_are_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    path = write_config(tmp_path / "digits.yaml", digits_config(tmp_path))
    found = []
    for workers in (0, 4):
        task = main(["fit", "--config", str(path), f"--data.num_workers={workers}"]).model
        found.append(task.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_folder_of_images_is_predicted_with_class_names(best: Path, tmp_path: Path) -> None:
    data: Any = load_data(best)
    pixels, rows = data.images("test", range(40)), data.load("test")[list(range(40))]
    for number, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number:03}.png")
    output = tmp_path / "found.csv"
    main(["predict", "--ckpt_path", str(best), "--input", str(tmp_path), "--output", str(output)])
    with output.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [Path(row["id"]).name for row in found] == [f"{n:03}.png" for n in range(40)]
    right = sum(row["label"] == str(int(y)) for row, y in zip(found, rows["label"], strict=True))
    assert right >= 36


def test_python_predicts_arrays_and_files_alike(best: Path, tmp_path: Path) -> None:
    pixels = load_data(best).images("test", [0, 1, 2])  # type: ignore[attr-defined]
    files = []
    for number, image in enumerate(pixels):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image[..., 0]).save(files[-1])
    predictor = load(best)
    assert torch.equal(predictor.predict(files).probs, predictor.predict(list(pixels)).probs)


@pytest.mark.parametrize("format", ["safetensors", "torch", "hf"])
@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_exports_see_what_evaluation_saw(fit: str, format: str, tmp_path: Path) -> None:
    config = digits_config(tmp_path)
    vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "patch_size": 4}
    vit |= {"num_attention_heads": 2, "intermediate_size": 16}
    options = config["model"]["init_args"]
    options["backbone"] = {"class_path": "ImageEncoder", "init_args": {"config": vit}}
    options["augment"], options["mixing"] = {"size": 8, "resized_crop": 0.5}, None
    config["data"]["init_args"] |= {"size": 12, "fit": fit, "mode": "RGB"}
    path = write_config(tmp_path / "cut.yaml", config)
    task: Any = main(["fit", "--config", str(path), *ONE_STEP]).model
    checkpoint = max((tmp_path / "runs").glob("*/1/checkpoints/*.ckpt"))
    data: Any = load_data(checkpoint)
    images = list(data.images("test", [0, 1, 2]))
    expected = torch.cat(
        [row["prob"] for row in [task.eval().predict_step(data.load("test")[[0, 1, 2]], 0)]]
    )
    for source in (checkpoint, export(checkpoint, format)):
        assert torch.allclose(load(source).predict(images).probs, expected, atol=1e-5)


def test_views_are_averaged_from_python_too(best: Path) -> None:
    data, task = load_data(best), load_task(best)
    expected = task.predict_step(data.load("test")[[0, 1, 2]], 0)["prob"]  # type: ignore[attr-defined]
    found = load(best).predict(list(data.images("test", [0, 1, 2])))  # type: ignore[attr-defined]
    assert torch.allclose(found.probs, expected, atol=1e-6)


def test_growing_images_need_a_network_of_any_size(tmp_path: Path) -> None:
    config = digits_config(tmp_path)
    vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "patch_size": 4}
    vit |= {"num_attention_heads": 2, "intermediate_size": 16}
    options = config["model"]["init_args"]
    options["backbone"] = {"class_path": "ImageEncoder", "init_args": {"config": vit}}
    options["augment"] = {"size": 8, "start_size": 4}
    path = write_config(tmp_path / "grow.yaml", config)
    with pytest.raises(ValueError, match=r"start_size=4 needs a network that takes images of any"):
        main(["fit", "--config", str(path)])


def test_weights_keep_the_normalization_that_they_were_trained_with(
    best: Path, tmp_path: Path
) -> None:
    same, other = (ResNet9(8, 1, mean=[mean], std=[0.4]) for mean in (0.3, 0.5))
    load_submodule(same, best)
    for path in (best, export(best, "safetensors", tmp_path / "exported")):
        with pytest.raises(CheckpointError, match=r"trained with model\.backbone\.mean=\[0\.3\]"):
            load_submodule(other, path)
    with pytest.raises(CheckpointError, match="does not fit the model"):  # which tells more
        load_submodule(ResNet9(4, 1, mean=[0.5], std=[0.4]), best)


def test_a_network_of_half_precision_takes_bytes() -> None:
    half, whole = ResNet9(4).bfloat16(), ResNet9(4)
    assert half(pixels(2, 16)).pooled.dtype == torch.bfloat16
    assert torch.equal(half.mean, whole.mean)  # statistics stay exact


@pytest.mark.parametrize(
    "augment", [Augment(policy="randaugment", num_ops=4), Augment(resized_crop=0.3)]
)
def test_augmented_images_are_the_same_in_half_precision(
    augment: Augment, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = {"pixel_values": pixels(), "index": torch.arange(6), "label": torch.zeros(6).long()}
    seen: list[Tensor] = []
    monkeypatch.setattr(ResNet9, "normalize", lambda _, images: seen.append(images) or images.to(p))
    for p in (torch.float32, torch.bfloat16):
        model = Classification(ResNet9(4), 2, augment=augment).to(p)
        torch.set_default_dtype(p)  # as in a step of trainer.precision bf16-true
        try:
            model.step(batch, "train")
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(*seen)


def test_draws_of_one_sample_are_augmented_anew() -> None:
    batch = {"pixel_values": pixels(1).expand(4, 3, 16, 16), "index": torch.zeros(4).long()}
    batch |= {"label": batch["index"], "draw": torch.arange(4)}
    views = Views(Augment(pad=4, policy="trivialaugment"))
    found = views.augmented(batch, Moment())["pixel_values"]
    assert len(found.flatten(1).unique(dim=0)) == 4


def test_report_shows_images_and_what_the_network_sees(best: Path, run: Path) -> None:
    from lit_foundry.report.command import main as report

    main(["test", "--ckpt_path", str(best)])
    report([str(run), "--batch"])
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png') > 30
    assert "Training images" in page
    assert "Accuracy against length" not in page
    assert (run / "report" / "batch_0.png").stat().st_size > 5000


def test_checkpoint_is_a_recipe_that_rebuilds_the_network(best: Path) -> None:
    task: Any = load_task(best)
    assert task.views.tta == "translate"
    batch = load_data(best).load("test")[[0, 1]]  # type: ignore[attr-defined]
    assert task(batch).shape == (2, 10)


def pixels(rows: int = 6, size: int = 16) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(256, (rows, 3, size, size), generator=random, dtype=torch.uint8)


def test_translated_views_have_the_weights_of_airbench() -> None:
    images = pixels()
    views = Views(tta="translate").evaluation({"pixel_values": images})
    assert [weight for weight, _ in views] == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    found = [view["pixel_values"] for _, view in views]
    assert torch.equal(found[0], images)
    assert torch.equal(found[1], images.flip(-1))
    assert torch.equal(found[2][..., 1:, 1:], images[..., :-1, :-1])  # down and right
    assert torch.equal(found[4][..., :-1, :-1], images[..., 1:, 1:])
    assert torch.equal(found[5], found[4].flip(-1))


def test_evaluation_takes_the_centre_and_draws_nothing() -> None:
    views = Views(Augment(size=8, pad=2, flip="random"))
    [(weight, batch)] = views.evaluation({"pixel_values": pixels()})
    assert weight == 1.0
    assert torch.equal(batch["pixel_values"], pixels()[..., 4:12, 4:12])


def test_targets_are_shares_until_mixing_ends() -> None:
    views = Views(mixing=Mixing(mixup=1.0, until=0.5))
    label = torch.arange(6) % 3
    batch = {"pixel_values": pixels(), "index": torch.arange(6), "label": label}
    early, late = (views.mixed(batch, 3, Moment(progress=done)) for done in (0.4, 0.6))
    assert early["target"].shape == (6, 3)
    assert "target" not in late
    assert late["pixel_values"].dtype == torch.uint8


@pytest.mark.parametrize("option", [{"augment": Augment()}, {"mixing": Mixing()}, {"tta": "flip"}])
def test_options_of_images_are_refused_for_texts(option: dict[str, Any]) -> None:
    bert = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    encoder = TextEncoder(config=bert | {"num_attention_heads": 1, "intermediate_size": 8})
    with pytest.raises(ValueError, match=r"model\.augment.* are for images, and a TextEncoder"):
        Classification(encoder, 2, **option)


def test_network_for_another_size_names_the_key(tmp_path: Path) -> None:
    config = digits_config(tmp_path)
    vit = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "patch_size": 4}
    vit |= {"num_attention_heads": 2, "intermediate_size": 16}
    backbone = {"class_path": "ImageEncoder", "init_args": {"config": vit, "image_size": 12}}
    config["model"]["init_args"]["backbone"] = backbone
    path = write_config(tmp_path / "vit.yaml", config)
    with pytest.raises(ValueError, match=r"image_size=12, but Digits has 8; set model\.backbone\."):
        main(["fit", "--config", str(path)])
    backbone["init_args"]["image_size"] = None  # taken from the data
    main(["fit", "--config", str(write_config(path, config)), *ONE_STEP])


def test_whitening_layer_whitens_patches() -> None:
    random = np.random.default_rng(0)
    smooth = random.integers(0, 128, (300, 3, 16, 16)).cumsum(1) % 256  # channels go together
    images = torch.from_numpy(smooth.astype(np.uint8))
    backbone = Airbench(mean=[0.5], std=[0.3])
    backbone.fit_to({"pixel_values": images})
    out = torch.nn.functional.conv2d(backbone.normalize(images), backbone.whiten.weight)
    first, second = out.detach().chunk(2, 1)
    assert torch.allclose(first, -second)
    flat = first.transpose(0, 1).flatten(1).double()
    covariance = flat @ flat.T / flat.shape[1]
    assert torch.allclose(covariance, torch.eye(12, dtype=torch.float64), atol=0.05)


def test_whitening_is_fitted_before_training_and_never_trained(tmp_path: Path) -> None:
    config = digits_config(tmp_path)
    widths = {"widths": [8, 8, 8], "mean": [0.3], "std": [0.4]}
    config["model"]["init_args"]["backbone"] = {"class_path": "Airbench", "init_args": widths}
    config["model"]["init_args"]["optim"] = {"name": "muon_sgd", "lr": 0.01, "muon_lr": 0.1}
    config["data"]["init_args"] |= {"size": 32, "max_train_samples": None}
    path = write_config(tmp_path / "air.yaml", config)
    task: Any = main(["fit", "--config", str(path), *ONE_STEP]).model
    fresh = Airbench((8, 8, 8), in_channels=1, mean=[0.3], std=[0.4])
    data = task.trainer.datamodule
    fresh.fit_to(data.load("train")[range(len(data.load("train")))])
    assert torch.allclose(task.backbone.whiten.weight, fresh.whiten.weight, atol=1e-4)
    assert all((norm.weight == 1).all() for group in task.backbone.groups for norm in group.norms)


@pytest.mark.parametrize(
    "backbone", [Airbench((8, 16, 24)), Airbench((8, 16, 24), depth=3), ResNet9(4)]
)
def test_small_networks_agree_with_their_contract(backbone: Any) -> None:
    images = pixels(4, 32)
    features = backbone(images)
    assert features.pooled.shape == (4, backbone.dim)
    assert features.tokens.shape[::2] == (4, backbone.dim)
    assert torch.equal(features.tokens.amax(1), features.pooled)
    owned = {p for block in backbone.blocks() for p in block.parameters()}
    assert owned == set(backbone.parameters())
    backbone.classifier(5)(features).sum().backward()
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)


def test_evaluation_keeps_no_file_of_a_workers_memory_open(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("val", 120)):
        write_class_folders(tmp_path / "pets" / split, count)
    root = str(tmp_path / "pets")
    data = ImageFolder(root, batch_size=1, num_workers=1, predict=f"{root}/val")
    record, writer = EvaluationRecord(RunFolder(tmp_path)), PredictionWriter(["cat", "dog"])
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(accelerator="cpu", callbacks=[record, writer], **quiet)  # type: ignore[arg-type]
    task = Classification(Patches(3, 8), 2)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 60, before[1]))
    try:
        trainer.validate(task, data, verbose=False)
        assert len(trainer.predict(task, data) or ()) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_another_view_has_other_numbers() -> None:
    batch = {"pixel_values": pixels(), "index": torch.arange(6)}
    views, moment = Views(Augment(pad=4, flip="random")), Moment(3, 1)
    first, again, second = (
        views.augmented(batch, moment, number)["pixel_values"] for number in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    index = {"index": batch["index"][[4]], "pixel_values": batch["pixel_values"][[4]]}
    assert torch.equal(views.augmented(index, moment, 1)["pixel_values"], second[[4]])
