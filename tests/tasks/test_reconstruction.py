"""Autoencoders of images, plain, variational and quantized, from configs to pictures."""

import json
from collections.abc import Mapping
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_foundry import load_task
from lit_foundry.checkpoints.files import read_checkpoint
from lit_foundry.cli.main import main
from lit_foundry.data import Digits
from lit_foundry.nn import MLP, ImageEncoder, ResNet9, TextEncoder
from lit_foundry.nn.codebooks import FiniteScalar, VectorQuantizer
from lit_foundry.nn.decoders import MLPDecoder
from lit_foundry.nn.image.augment import Augment
from lit_foundry.nn.image.corruption import Corruption
from lit_foundry.nn.likelihoods import Bernoulli, DiscretizedLogistic, kl_to_standard_normal
from lit_foundry.randomness import Moment
from lit_foundry.report import command as report
from lit_foundry.runs.predictions import Predictions
from lit_foundry.tasks import (
    Autoencoder,
    Classification,
    MaskedAutoencoder,
    QuantizedAutoencoder,
    VariationalAutoencoder,
)
from lit_foundry.tasks.autoencoders.masked import PatchDecoder
from lit_foundry.tasks.autoencoders.reconstruction import Reconstruction
from tests.conftest import REPO, digits_config, write_config
from tests.runs.test_ddp import lit_foundry
from tests.runs.test_resume import end_of, fit, kill_and_compare

pytest.importorskip("sklearn")
VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT |= {"intermediate_size": 32, "patch_size": 2}
BACKBONES: dict[str, Any] = {
    "MLP": {"class_path": "MLP", "init_args": {"hidden": [48, 32]}},
    "ViT": {"class_path": "ImageEncoder", "init_args": {"config": VIT}},
}
RESNET = partial(ResNet9, 2, 1, mean=[0.3], std=[0.4])
MODELS: dict[str, dict[str, Any]] = {
    "Autoencoder": {"latent": 8, "corruption": {"kind": "mask", "amount": 0.2}},
    "VariationalAutoencoder": {"latent": 4, "warmup": 0.3, "free_bits": 0.05},
    "QuantizedAutoencoder": {
        "backbone": BACKBONES["ViT"],
        "codebook": {"class_path": "VectorQuantizer", "init_args": {"size": 16, "dim": 4}},
    },
    "MaskedAutoencoder": {
        "backbone": BACKBONES["ViT"],
        "masked": 0.5,
        "decoder": {"width": 16, "layers": 1, "heads": 2},
    },
}
SHOWN = {
    "Autoencoder": {"reconstructions"},
    "VariationalAutoencoder": {
        *("reconstructions", "samples", "interpolations", "traversals", "latents")
    },
    "QuantizedAutoencoder": {"reconstructions", "codes"},
    "MaskedAutoencoder": {"reconstructions"},
}


def config_of(name: str, folder: Path, **options: Any) -> Path:
    config = digits_config(folder)
    model = {"backbone": BACKBONES["MLP"], "optim": {"lr": 3e-3}, **MODELS[name], **options}
    if name in ("Autoencoder", "VariationalAutoencoder"):
        model["decoder"] = {"class_path": "MLPDecoder", "init_args": {"hidden": [32]}}
    config["model"] = {"class_path": name, "init_args": model}
    config["data"]["init_args"] |= {"max_train_samples": 192, "batch_size": 32, "micro_batch": 16}
    return write_config(folder / "tiny.yaml", config)


@pytest.fixture(scope="module", params=[*MODELS])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train each task on digits; return the folder of the run."""
    path = config_of(request.param, tmp_path_factory.mktemp("digits"))
    return Path(main(["fit", "--config", str(path), "--trainer.max_epochs=6"]).run.path)


def task_of(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    if name == "MaskedAutoencoder":
        vit = ImageEncoder(config=VIT, in_channels=1, image_size=8)
        return MaskedAutoencoder(vit, decoder=PatchDecoder(16, 1, 2), image_size=8, **options)
    backbone: Any = RESNET() if name == "QuantizedAutoencoder" else MLP((24, 12), 8, 1)
    made = {
        "Autoencoder": Autoencoder,
        "VariationalAutoencoder": VariationalAutoencoder,
        "QuantizedAutoencoder": QuantizedAutoencoder,
    }[name]
    return made(backbone, image_size=8, decoder=MLPDecoder((16,)), **options)


@pytest.fixture(scope="module")
def batch() -> Mapping[str, Any]:
    data = Digits(max_train_samples=64)
    found: Mapping[str, Any] = data.load("train")[list(range(12))]
    return found


def test_reconstructions_get_better_and_are_tested(run: Path) -> None:
    task = load_task(run / "checkpoints" / "best.ckpt")
    untrained = type(task).__name__
    rows = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    keys = rows[0].split(",")
    losses = [float(cell) for row in rows[1:] if (cell := row.split(",")[keys.index("val/loss")])]
    assert losses[-1] < 0.9 * losses[0], untrained
    main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")])
    scores = json.loads((run / "test.json").read_text(encoding="utf-8"))
    assert scores["test/loss"] < losses[0]
    kept = Predictions.read(run / "predictions" / "test.parquet")
    assert kept.kind is None
    if "test/psnr" in scores:
        want = -10 * torch.tensor(kept.columns["error"]).double().mean().log10()
        assert scores["test/psnr"] == pytest.approx(float(want), abs=1e-4)
    elif "test/kl" in scores:
        total = kept.columns["distortion"].mean() + kept.columns["kl"].mean()
        assert scores["test/loss"] == pytest.approx(total, rel=1e-5)
    else:
        assert scores["test/loss"] == pytest.approx(kept.columns["error"].mean(), rel=1e-5)


def test_pictures_are_drawn_at_validations_and_stand_in_the_report(run: Path) -> None:
    drawn = {int(folder.name): folder for folder in (run / "pictures").iterdir()}
    name = type(load_task(run / "checkpoints" / "best.ckpt")).__name__
    assert {path.stem for path in drawn[max(drawn)].glob("*.png")} == SHOWN[name]
    page = report.write([run], run / "report").read_text(encoding="utf-8")
    assert page.count('<figure class="wide"><figcaption>') >= len(SHOWN[name])
    assert all(f"<figcaption>{title.capitalize()}</figcaption>" in page for title in SHOWN[name])


def test_what_is_predicted_of_an_image_is_how_unlike_the_training_images_it_is(
    run: Path, tmp_path: Path
) -> None:
    best, output = run / "checkpoints" / "best.ckpt", tmp_path / "errors.jsonl"
    images = tmp_path / "images"
    images.mkdir()
    from PIL import Image

    data = Digits()
    digit = next(iter(data.images("train", [0])))
    Image.fromarray(digit[..., 0]).save(images / "a_digit.png")
    Image.fromarray(255 - digit[..., 0]).save(images / "b_negative.png")
    main(["predict", "--ckpt_path", str(best), "--input", str(images), "--output", str(output)])
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    key = "error" if "error" in rows[0] else "distortion"
    least = 1.0 if "MaskedAutoencoder" in str(load_task(best).recipe()) else 0.7
    assert rows[0][key] < least * rows[1][key]


def test_a_classification_begins_with_the_encoder(run: Path, tmp_path: Path) -> None:
    best = run / "checkpoints" / "best.ckpt"
    task: Any = load_task(best)
    recipe = task.recipe()["init_args"]["backbone"]
    config = digits_config(tmp_path)
    config["model"]["init_args"] = {"backbone": recipe, "init_from": str(best)}
    path = write_config(tmp_path / "tiny.yaml", config)
    still = ["--trainer.max_steps=1", "--model.optim.lr=1e-12"]
    model = main(["fit", "--config", str(path), *still]).model
    assert isinstance(model, Classification)
    for name, want in task.backbone.state_dict().items():
        torch.testing.assert_close(model.backbone.state_dict()[name], want, msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_is_the_same_each_time_and_training_is_not(
    name: str, batch: Mapping[str, Any]
) -> None:
    options = {"corruption": Corruption("gaussian", 0.3)} if name == "Autoencoder" else {}
    task = task_of(name, **options).eval()
    with torch.no_grad():
        task.moment = Moment(1, 3, 0.5)
        first = task.step(batch, "val")
        task.moment = Moment(2, 4, 0.9)
        again = task.step({k: v[5:9] for k, v in batch.items()}, "val")
        for column, values in again.samples.items():
            torch.testing.assert_close(first.samples[column][5:9], values, msg=column)
        if name != "QuantizedAutoencoder":  # which draws nothing
            losses = {float(task.step(batch, "train").loss)}
            task.moment = Moment(2, 5, 0.9)
            losses.add(float(task.step(batch, "train").loss))
            assert len(losses) == 2


def test_denoising_sees_what_is_corrupted_and_rebuilds_what_is_not(
    batch: Mapping[str, Any],
) -> None:
    task = task_of("Autoencoder", corruption=Corruption("mask", 0.5))
    seen: list[Tensor] = []
    task.backbone.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    with torch.no_grad():
        step = task.step(batch, "val")
    images = batch["pixel_values"].float()
    assert (seen[0] != images).float().mean() == pytest.approx(0.5, abs=0.1)
    with torch.no_grad():
        rebuilt = task(seen[0]).clamp(-1, 1)
    error = ((rebuilt + 1) / 2 - images / 255).square().flatten(1).mean(1)
    torch.testing.assert_close(step.preds, error)


def test_the_bound_is_weighted_warmed_up_and_has_its_free_bits(batch: Mapping[str, Any]) -> None:
    task = task_of("VariationalAutoencoder", beta=4.0, free_bits=0.3, warmup=0.5, latent=3)

    def loss(progress: float) -> float:
        task.moment = Moment(0, 0, progress)
        return float(task.step(batch, "train").loss)

    with torch.no_grad():
        distortion = loss(0.0)
        mean, log_std = task.posterior(batch["pixel_values"])
        each = kl_to_standard_normal(mean, log_std)
        assert (each < 0.3).any()  # of an untrained network most are
        kl = float(each.clamp(min=0.3).sum(1).mean())
        assert loss(0.25) == pytest.approx(distortion + 2 * kl, rel=1e-5)
        assert loss(0.5) == loss(1.0) == pytest.approx(distortion + 4 * kl, rel=1e-5)
        step = task.step(batch, "val")
        parts = step.samples["distortion"] + step.samples["kl"]
        torch.testing.assert_close(step.loss, parts.mean())
        torch.testing.assert_close(step.samples["kl"], each.sum(1))


@pytest.mark.parametrize("likelihood", [Bernoulli(), DiscretizedLogistic()])
def test_more_samples_bound_more_tightly(likelihood: Any, batch: Mapping[str, Any]) -> None:
    task = task_of("VariationalAutoencoder", likelihood=likelihood, latent=3)
    with torch.no_grad():
        step = task.step(batch, "test")
    one, ten, hundred = (step.samples[f"iw_{k}"] for k in (1, 10, 100))
    assert (one <= ten).all()
    assert (ten <= hundred).all()
    # That of one sample is the evidence lower bound, its divergence sampled too.
    torch.testing.assert_close(one.mean(), -step.loss, rtol=0.05, atol=0.5)


def test_bits_are_those_of_each_channel_of_a_pixel(batch: Mapping[str, Any]) -> None:
    task = task_of("VariationalAutoencoder")
    found = task.from_loss("val", torch.tensor(64 * log(2) * 5))
    assert float(found["bits_per_dim"]) == pytest.approx(5)


@pytest.mark.parametrize("codebook", [VectorQuantizer(8, 4), FiniteScalar((4, 3))])
def test_codes_alone_rebuild_the_image(codebook: Any, batch: Mapping[str, Any]) -> None:
    task = task_of("QuantizedAutoencoder", codebook=codebook).eval()
    with torch.no_grad():
        codes = task.codes(batch["pixel_values"])
        assert codes.shape == (12, 1, 1)
        shown = task.rebuilt(batch)["rebuilt"]
        torch.testing.assert_close(task.decoded(codes), shown)


def assert_alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    for key, want in one.items():
        if not key.endswith("k_proj.bias"):  # whose gradient is nothing but rounding
            torch.testing.assert_close(other[key], want, atol=5e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_make_the_step_of_the_batch(name: str, tmp_path: Path) -> None:
    path = config_of(name, tmp_path)
    ends = []
    for micro_batch in (32, 8):
        more = ["--trainer.max_epochs=1", f"--data.micro_batch={micro_batch}"]
        task = main(["fit", "--config", str(path), "--experiment", str(micro_batch), *more]).model
        ends.append(task.state_dict())
    assert_alike(*ends)


def too_many_codes(tmp_path: Path) -> None:
    codebook = {"class_path": "VectorQuantizer", "init_args": {"size": 5000, "dim": 4}}
    path = config_of("QuantizedAutoencoder", tmp_path, codebook=codebook)
    main(["fit", "--config", str(path)])


def texts(tmp_path: Path) -> None:
    config = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 9}
    encoder: Any = TextEncoder(
        config=config | {"num_attention_heads": 1, "intermediate_size": 8}, vocab_size=9
    )
    Autoencoder(encoder, image_size=8)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (too_many_codes, r"5,000 codes, and the training split only 3,072 places .* fewer codes"),
        (texts, "Autoencoder rebuilds images, and a TextEncoder reads input_ids"),
        (lambda path: Autoencoder(RESNET()), "square images, whose edge model.image_size is"),
        (lambda path: task_of("Autoencoder", latent=0), "model.latent is a width"),
        (
            lambda path: task_of("VariationalAutoencoder", warmup=2.0),
            r"model.warmup is a fraction of the run",
        ),
        (lambda path: task_of("VariationalAutoencoder", beta=-1.0), "model.beta is 0 at least"),
        (
            lambda path: task_of("Autoencoder", augment=Augment(size=6)),
            r"model.augment.size is model.image_size \(8\)",
        ),
        (
            lambda path: task_of("Autoencoder", augment=Augment(size=8, start_size=4)),
            "model.augment.start_size grows nothing here",
        ),
        (lambda path: MLP((4,)), "model.backbone.image_size is the edge"),
        (lambda path: MLP((), 8), "model.backbone.hidden are widths"),
    ],
)
def test_bad_input_is_told_in_a_line(make: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as told:
        make(tmp_path)
    assert "\n" not in str(told.value)


def test_what_the_map_of_features_does_not_depend_on_does_not_learn() -> None:
    config = {"model_type": "convnext", "hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}
    backbone = ImageEncoder(config=config, in_channels=3)
    task = Autoencoder(backbone, image_size=32)
    still = {name for name, p in task.named_parameters() if not p.requires_grad}
    assert still == {"backbone.encoder.layernorm.weight", "backbone.encoder.layernorm.bias"}
    batch = {"pixel_values": torch.full((2, 3, 32, 32), 9), "index": torch.arange(2)}
    task.step(batch, "train").loss.backward()
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_an_image_alone_is_shown_without_interpolations(batch: Mapping[str, Any]) -> None:
    task = task_of("VariationalAutoencoder").eval()
    shown = task.pictures({name: field[:1] for name, field in batch.items()})
    assert set(shown) == SHOWN["VariationalAutoencoder"] - {"interpolations"}


def test_pictures_are_of_the_weights_that_are_validated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[float]] = {"train": [], "val": [], "shown": []}
    step, rebuilt = Autoencoder.step, Autoencoder.rebuilt

    def note(task: Any, where: str) -> None:
        seen[where].append(float(task.bottleneck[1].weight.detach().sum()))

    def watched_step(task: Any, batch: Any, stage: Any) -> Any:
        note(task, stage)
        return step(task, batch, stage)

    def watched_rebuilt(task: Any, batch: Any) -> Any:
        note(task, "shown")
        return rebuilt(task, batch)

    monkeypatch.setattr(Autoencoder, "step", watched_step)
    monkeypatch.setattr(Autoencoder, "rebuilt", watched_rebuilt)
    path = config_of("Autoencoder", tmp_path)
    main(["fit", "--config", str(path), "--trainer.callbacks+=EMA", "--trainer.max_epochs=2"])
    assert len(seen["shown"]) >= 2
    assert {*seen["shown"]} <= {*seen["val"]}


class White(nn.Module):
    """Says that all is white."""

    def forward(self, latents: Tensor) -> Tensor:
        """Return ones."""
        return torch.ones(len(latents), 1, 8, 8)


def test_images_are_rebuilt_in_the_range_that_they_have() -> None:
    """Whatever mean and deviation the backbone has: what is learnt does not depend on them."""
    task = task_of("Autoencoder")
    assert isinstance(task, Reconstruction)
    white = {"pixel_values": torch.full((1, 1, 8, 8), 255), "index": torch.zeros(1).long()}
    task.decoder = White()
    assert float(task.step(white, "train").loss) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_killed_run_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    path = config_of(name, tmp_path)
    assert fit(path, "whole") == 0
    _, _, order = end_of(path, "whole")
    kill_and_compare(path, ([5], [max(order) // 2, max(order) - 3]))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_train_like_one(name: str, tmp_path: Path) -> None:
    path, ends = config_of(name, tmp_path), []
    for ranks in (1, 2):
        ddp = ["--config", str(REPO / "configs" / "trainer" / "ddp.yaml")] if ranks == 2 else []
        words = ["--experiment", str(ranks), "--trainer.accelerator=cpu", "--trainer.max_epochs=2"]
        lit_foundry("fit", "--config", str(path), *ddp, *words)
        [last] = (tmp_path / "runs" / str(ranks) / "1" / "checkpoints").glob("recovery-*.ckpt")
        ends.append(read_checkpoint(last)["state_dict"])
    assert_alike(*ends)
