"""Whatever stops a pipeline, the same command goes on, to the same end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_foundry.cli.main import main
from lit_foundry.runs.past import run_folder
from tests.compress.test_pipeline import PRUNE, QUICK, compress, use
from tests.conftest import digits_config, write_config

# What appears, what is sent then, to the pipeline or to its fit, and the exit code of the pipeline.
MOMENTS = (
    ("prune/*/metrics.csv", signal.SIGKILL, "fit", 128 + signal.SIGKILL),
    ("prune/*/checkpoints/recovery-[5-9]?.ckpt", signal.SIGTERM, "pipeline", 128 + signal.SIGTERM),
    ("prune/*/checkpoints/recovery-1??.ckpt", signal.SIGKILL, "pipeline", -signal.SIGKILL),
    ("int8/export/lit_foundry.json", signal.SIGKILL, "pipeline", -signal.SIGKILL),
)


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """Begin the pipeline of a folder."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "lit_foundry", "compress", "--config", "small.yaml"]
    return subprocess.Popen(words, cwd=folder, env=environment)


def child(process: int) -> int:
    """Return the process that a process began."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    [found] = [int(word) for task in tasks for word in task.read_text(encoding="utf-8").split()]
    return found


def prepare(folder: Path) -> Path:
    """Train what begins a pipeline, and write its config."""
    config = digits_config(folder)
    config["trainer"]["default_root_dir"] = str(folder)
    main(["fit", "--config", str(write_config(folder / "tiny.yaml", config))])
    config["trainer"]["max_epochs"] = 20
    write_config(folder / "prune.yaml", config)
    often = PRUNE["set"] | {"save_every_n_steps": 5}
    int8 = {"export": "onnx", "quantize": "int8-static"}
    content = {"start": "tiny/1/checkpoints/best.ckpt", **QUICK}
    content["stages"] = {"prune": PRUNE | {"set": often}, "int8": int8}
    return write_config(folder / "small.yaml", content)


def scores(folder: Path) -> dict[str, Any]:
    """Return what was scored in each stage."""
    files = sorted((folder / "runs" / "small").glob("*/result.json"))
    told = {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}
    return {
        name: (each["scored"] | {"path": ""}, each["difference"]) for name, each in told.items()
    }


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_stopped_at_any_moment_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    calm, stopped = tmp_path / "calm", tmp_path / "stopped"
    for folder in (calm, stopped):
        folder.mkdir()
        config = prepare(folder)
    with monkeypatch.context() as patch:
        use(calm, patch)
        compress(calm / config.name)
    for appears, signum, whom, expected in MOMENTS:
        process, end = start(stopped), time.monotonic() + 200
        while not [*(stopped / "runs" / "small").glob(appears)]:
            assert process.poll() is None, appears
            assert time.monotonic() < end, appears
            time.sleep(0.01)
        os.kill(child(process.pid) if whom == "fit" else process.pid, signum)
        assert process.wait(timeout=100) == expected, appears
    assert start(stopped).wait(timeout=240) == 0
    assert scores(stopped) == scores(calm)
    bests = [
        run_folder(folder / "runs" / "small" / "prune") / "checkpoints" / "best.ckpt"
        for folder in (stopped, calm)
    ]
    one, two = (torch.load(best, weights_only=True)["state_dict"] for best in bests)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
