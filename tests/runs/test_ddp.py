"""Two ranks do what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_foundry.checkpoints.files import read_checkpoint
from lit_foundry.runs.predictions import Predictions
from tests.conftest import REPO, corpus_config, tiny_config, write_config


def lit_foundry(*args: str) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "lit_foundry", *args]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=400, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_ranks_train_and_score_like_one(tiny: Path) -> None:
    config = tiny_config(tiny.parent)
    encoder = config["model"]["init_args"]["backbone"]["init_args"]
    encoder["dropout"] = config["model"]["init_args"]["dropout"] = 0.0  # differs between ranks
    config["model"]["init_args"]["class_weights"] = [1.0, 3.0]
    write_config(tiny, config)
    ends = {}
    for ranks in (1, 2):
        overlay = yaml.safe_load(
            (REPO / "configs" / "trainer" / "ddp.yaml").read_text(encoding="utf-8")
        )
        path = write_config(tiny.parent / "ddp.yaml", overlay if ranks == 2 else {})
        name = ["--experiment", str(ranks), "--trainer.accelerator", "cpu"]
        lit_foundry("fit", "--config", str(tiny), "--config", str(path), *name)
        run = tiny.parent / "runs" / str(ranks) / "1"
        # Eleven samples on two ranks: none is counted twice.
        odd = tiny.parent / "odd.csv"
        odd.write_text(
            "\n".join((tiny.parent / "test.csv").read_text(encoding="utf-8").splitlines()[:12]),
            encoding="utf-8",
        )
        best = str(run / "checkpoints" / "best.ckpt")
        devices = ["--trainer.accelerator", "cpu", "--trainer.devices", str(ranks)]
        strategy = ["--trainer.strategy", "ddp"] if ranks == 2 else []
        lit_foundry("test", "--ckpt_path", best, "--data.test", str(odd), *devices, *strategy)
        [last] = (run / "checkpoints").glob("recovery-*.ckpt")
        scores = json.loads((run / "test.json").read_text(encoding="utf-8"))
        ends[ranks] = read_checkpoint(last), scores
        assert not (tiny.parent / "runs" / str(ranks) / "2").exists()
    one, two = ends[1], ends[2]
    said = [
        Predictions.read(tiny.parent / "runs" / str(ranks) / "1" / "predictions" / "test.parquet")
        for ranks in (1, 2)
    ]
    assert said[0].samples == said[1].samples
    assert len(said[0].samples["id"]) == 11
    assert said[0].target.tolist() == said[1].target.tolist()
    assert abs(said[0].probs - said[1].probs).max() < 1e-5
    assert one[0]["global_step"] == two[0]["global_step"] == 18
    for name, want in one[0]["state_dict"].items():
        assert (two[0]["state_dict"][name] - want).abs().max() < 1e-5, name
    for name in ("test/acc", "test/loss", "test/f1", "test/f1_macro", "test/calibration_error"):
        assert two[1][name] == pytest.approx(one[1][name], abs=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("task", ["MaskedLM", "CausalLM"])
def test_two_ranks_pretrain_like_one(task: str, tmp_path: Path) -> None:
    config = corpus_config(tmp_path, task)
    config["model"]["init_args"]["backbone"]["init_args"]["dropout"] = 0.0
    # Rows of various numbers of predictions: a mean of the ranks' means would differ.
    config["data"]["init_args"] |= {"max_length": 32, "batch_size": 8, "micro_batch": 2}
    config["data"]["init_args"] |= {"batch_warmup": {"tokens": 3000, "start": 0.7}}
    path = write_config(tmp_path / "tiny.yaml", config)
    overlay = str(REPO / "configs" / "trainer" / "ddp.yaml")
    ends = {}
    for ranks in (1, 2):
        more = ["--config", overlay] if ranks == 2 else []
        name = ["--experiment", str(ranks), "--trainer.accelerator", "cpu"]
        lit_foundry("fit", "--config", str(path), *more, *name)
        run = tmp_path / "runs" / str(ranks) / "1"
        [last] = (run / "checkpoints").glob("recovery-*.ckpt")
        ends[ranks] = (
            read_checkpoint(last),
            json.loads((run / "summary.json").read_text(encoding="utf-8")),
        )
    one, two = ends[1], ends[2]
    assert one[0]["global_step"] == two[0]["global_step"] > 20
    for key, want in one[0]["state_dict"].items():
        assert (two[0]["state_dict"][key] - want).abs().max() < 1e-4, key
    assert two[1]["best_score"] == pytest.approx(one[1]["best_score"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("finetune", [{"unfreeze": 0.2}, {"lora": {"rank": 2}, "head_first": 0.3}])
def test_two_ranks_wait_for_blocks_like_one(tiny: Path, finetune: dict[str, Any]) -> None:
    config = tiny_config(tiny.parent)
    model = config["model"]["init_args"]
    model["backbone"]["init_args"]["dropout"] = model["dropout"] = 0.0  # differs between ranks
    model["finetune"] = finetune
    write_config(tiny, config)
    states = []
    for ranks in (1, 2):
        overlay = yaml.safe_load(
            (REPO / "configs" / "trainer" / "ddp.yaml").read_text(encoding="utf-8")
        )
        path = write_config(tiny.parent / "ddp.yaml", overlay if ranks == 2 else {})
        name = ["--experiment", str(ranks), "--trainer.accelerator", "cpu"]
        lit_foundry("fit", "--config", str(tiny), "--config", str(path), *name)
        saves = tiny.parent / "runs" / str(ranks) / "1" / "checkpoints"
        states.append(read_checkpoint(next(saves.glob("recovery-*.ckpt")))["state_dict"])
    for name, one in states[0].items():
        assert torch.allclose(one, states[1][name], atol=1e-4), name
