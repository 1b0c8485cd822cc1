"""A killed and resumed run ends like one that was never interrupted, bit for bit."""

import csv
import json
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_foundry.checkpoints.files import CheckpointError, read_checkpoint, recoveries, step_of
from lit_foundry.cli.main import main
from tests.conftest import corpus_config, digits_config, write_config
from tests.processes import run

# 108 training reviews, 9 steps an epoch, 3 micro-batches a step: 54 micro-steps in all;
# validation after steps 4 and 8 of an epoch, recovery checkpoints every 2 steps.
CADENCE = ["--save_every_n_steps", "2", "--trainer.val_check_interval", "12"]


def fit(tiny: Path, name: str, kill_at: int | None = None, *more: str, ranks: int = 1) -> int:
    log = tiny.parent / f"{name}.jsonl"
    order = ["--trainer.callbacks+=tests.processes.OrderLog", f"--trainer.callbacks.path={log}"]
    if kill_at is not None:
        order.append(f"--trainer.callbacks.kill_at={kill_at}")
    last = recoveries(tiny.parent / "runs" / name / "1" / "checkpoints")
    before = len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0
    code = run(["fit", "--config", str(tiny), "--experiment", name, *CADENCE, *order, *more], ranks)
    if "--resume" in more:  # it went on where the checkpoint was taken, and did nothing again
        lines = log.read_text(encoding="utf-8").splitlines()
        own = [json.loads(line)[1] for line in lines[before:]]
        sizes = yaml.safe_load(tiny.read_text(encoding="utf-8"))["data"]["init_args"]
        accumulate = sizes["batch_size"] // sizes["micro_batch"]
        assert own[:1] in ([], [accumulate * step_of(last[0])])
    return code


def end_of(tiny: Path, name: str) -> tuple[dict[str, Any], list[dict[str, str]], dict[int, Any]]:
    """Return the last checkpoint, the metrics without clock times, and the samples by step."""
    folder = tiny.parent / "runs" / name / "1"
    [path] = (folder / "checkpoints").glob("recovery-*.ckpt")
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            {k: v for k, v in row.items() if "throughput" not in k} for row in csv.DictReader(file)
        ]
    order: dict[int, Any] = {}
    for line in (tiny.parent / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        _, step, rows_seen = json.loads(line)
        assert order.setdefault(step, rows_seen) == rows_seen, (
            f"micro-step {step} saw other samples"
        )
    return read_checkpoint(path), rows, order


def assert_same(got: Any, want: Any, where: str = "checkpoint") -> None:
    if isinstance(want, dict):
        assert got.keys() == want.keys(), where
        for key in want:
            assert_same(got[key], want[key], f"{where}.{key}")
    elif isinstance(want, (list, tuple)):
        assert len(got) == len(want), where
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    elif isinstance(want, torch.Tensor):
        assert torch.equal(got, want), where
    else:
        assert got == want, where


def kill_and_compare(tiny: Path, cases: Sequence[list[int]], *more: str) -> None:
    """Kill runs at these micro-steps, resume them, and compare them to one that was let alone."""
    want, want_rows, want_order = end_of(tiny, "whole")

    def kill_and_resume(kills: list[int]) -> None:
        name = "-".join(["killed", *map(str, kills)])
        for number, kill_at in enumerate(kills):
            resume = ["--resume", "required"] if number else []
            assert fit(tiny, name, kill_at, *more, *resume) == -signal.SIGKILL
        assert fit(tiny, name, None, *more, "--resume", "required") == 0
        got, rows, order = end_of(tiny, name)
        assert order == want_order, name
        assert rows == want_rows, name
        assert got["global_step"] == want["global_step"]
        for part in ("state_dict", "optimizer_states"):
            assert_same(got[part], want[part], f"{name}: {part}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(kill_and_resume, cases))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_run_ends_with_the_same_bits(tiny: Path, workers: int) -> None:
    loader = f"--data.num_workers={workers}"
    assert fit(tiny, "whole", None, loader) == 0
    want, _, order = end_of(tiny, "whole")
    assert sorted(order) == list(range(54))
    assert want["global_step"] == 18
    # In an accumulation window, at a step's end, before and after a validation, at an epoch's
    # first and last micro-step, and twice in one run.
    kills = [7], [8], [11, 14], [23], [26], [27], [30, 44], [53]
    kill_and_compare(tiny, kills, loader)


@pytest.mark.slow
@pytest.mark.parametrize("limits", [[], ["--trainer.max_steps=18", "--trainer.max_epochs=-1"]])
def test_killed_after_the_checkpoint_of_an_epochs_end_it_ends_with_the_same_bits(
    tiny: Path, limits: list[str]
) -> None:
    more = ["--save_every_n_steps", "3", *limits]
    assert fit(tiny, "whole", None, *more) == 0
    kill_and_compare(tiny, ([28], [34]), *more)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["MaskedLM", "CausalLM"])
def test_killed_pretraining_ends_with_the_same_bits(task: str, tmp_path: Path) -> None:
    config = corpus_config(tmp_path, task)
    data, optim = config["data"]["init_args"], config["model"]["init_args"]["optim"]
    # Steps grow from 2 to 8 rows over both epochs, of which the first has more steps.
    data |= {"max_length": 32, "batch_size": 8, "micro_batch": 4}
    data |= {"batch_warmup": {"tokens": 4000, "start": 0.25}}
    optim |= {"schedule": "wsd", "name": "muon"}
    if task == "MaskedLM":
        config["model"]["init_args"]["masking"] = {"prob": 0.3, "final_prob": 0.15, "unit": "span"}
    else:
        data |= {"packing": "concatenated", "num_workers": 1}
    path = write_config(tmp_path / "tiny.yaml", config)
    assert fit(path, "whole") == 0
    want, _, order = end_of(path, "whole")
    steps = max(order) + 1
    assert steps == 2 * want["global_step"] > 40
    first = {len(rows) for rows in list(order.values())[:2]}
    assert first == {1}, "the batch does not grow"
    kills = [5], [13, steps - 10], [steps // 2], [steps // 2 + 1], [steps - 2]
    kill_and_compare(path, kills)


@pytest.mark.slow
def test_killed_image_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = digits_config(tmp_path)
    options = config["model"]["init_args"]
    options["optim"] |= {"name": "muon_sgd", "muon_normalize": True}
    options["finetune"] = {"unfreeze": 0.15}
    options["augment"] |= {"policy": "trivialaugment", "flip": "alternating"}
    config["data"]["init_args"] |= {"num_workers": 1, "balanced": True}
    path = write_config(tmp_path / "tiny.yaml", config)
    assert fit(path, "whole") == 0
    want, _, order = end_of(path, "whole")
    assert sorted(order) == list(range(54))
    assert want["global_step"] == 18
    kill_and_compare(path, ([8], [23], [30, 44]))


def test_demanded_resume_that_finds_nothing_fails(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--resume required.*has no recovery checkpoint"):
        main(["fit", "--config", str(tiny), "--resume", "required"])


def test_resume_with_other_classes_is_refused(tiny: Path) -> None:
    words = ["fit", "--config", str(tiny)]
    main([*words, "--trainer.max_epochs=1"])
    more = ["--resume=required", "--trainer.max_epochs=2", "--data.label_names=[pos,neg]"]
    with pytest.raises(CheckpointError, match=r"with the classes \['neg', 'pos'\], and the data"):
        main([*words, *more])


@pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
def test_an_epoch_that_max_steps_cut_short_is_followed_by_a_whole_one(tiny: Path) -> None:
    words = ["fit", "--config", str(tiny), "--trainer.max_epochs=-1"]
    cli = main([*words, "--trainer.max_steps=5"])
    path = cli.run.path / "checkpoints" / "recovery-5.ckpt"
    cli.trainer.save_checkpoint(path)  # once the epoch is over; our own is made before
    cli = main([*words, "--trainer.max_steps=14", "--resume=required"])
    assert cli.trainer.current_epoch == 2
    assert cli.trainer.global_step == 14
