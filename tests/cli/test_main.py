"""A run from the command line: fit, its folder, test, predict, and what each may override."""

import csv
import io
import json
import os
import shlex
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lit_foundry import Classification
from lit_foundry.checkpoints.files import CheckpointError, load_data, load_task
from lit_foundry.cli.main import FoundryCLI, main
from lit_foundry.runs.predictions import Predictions
from lit_foundry.usage import UsageError
from tests.conftest import reviews, tiny_config, write_config, write_csv


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def fitted(folder: Path) -> FoundryCLI:
    """A run of the tiny config, long enough to learn."""
    write_csv(folder / "train.csv", reviews(120, seed=0))
    write_csv(folder / "test.csv", reviews(40, seed=1))
    config = write_config(folder / "tiny.yaml", tiny_config(folder))
    return main(["fit", "--config", str(config), "--trainer.max_epochs", "6"])


@pytest.fixture
def best(fitted: FoundryCLI) -> Path:
    return fitted.run.path / "checkpoints" / "best.ckpt"


def test_run_folder_is_complete(fitted: FoundryCLI, folder: Path) -> None:
    run = fitted.run.path
    assert run == folder / "runs" / "tiny" / "1"
    for name in ("config.yaml", "metrics.csv", "summary.json", "plots/curves.png"):
        assert (run / name).stat().st_size > 0, name
    assert (run / "plots" / "val_confusion.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events*"))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert torch.__version__.startswith(environment["packages"]["torch"])
    assert set(environment["data"]) == {"train", "val"}
    assert set(environment["git"]) == {"commit", "dirty"}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 54
    assert summary["best_score"] > 0.9
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        columns = set(next(csv.reader(file)))
    assert columns >= {
        "step", "train/loss", "train/grad_norm", "train/acc", "lr/backbone", "lr/head", "val/loss",
        "val/acc", "val/f1", "val/f1_macro", "val/calibration_error", "throughput/tokens_per_s",
    }  # fmt: skip


def test_a_fit_pays_for_no_other_command_and_no_search_for_gpus(fitted: FoundryCLI) -> None:
    assert list(fitted._subcommand_parsers) == ["fit"]
    assert torch.cuda.is_available() or "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ
    assert all(group["fused"] for group in fitted.trainer.optimizers[0].param_groups)


def test_what_the_config_left_out_is_resolved_and_saved(fitted: FoundryCLI, best: Path) -> None:
    saved = yaml.safe_load((fitted.run.path / "config.yaml").read_text(encoding="utf-8"))
    facts = fitted.datamodule.facts
    args = saved["model"]["init_args"]
    assert args["num_classes"] == facts["num_classes"] == 2
    assert args["backbone"]["init_args"]["vocab_size"] == facts["vocab_size"]
    recipe = torch.load(best, weights_only=True)["lit_foundry"]
    assert recipe["model"]["init_args"]["num_classes"] == 2
    assert recipe["data_state"]["labels"] == ["neg", "pos"]


def test_saved_config_fits_as_it_is(fitted: FoundryCLI) -> None:
    again = main(["fit", "--config", str(fitted.run.path / "config.yaml"), "--experiment", "again"])
    assert again.run.path.parts[-2:] == ("again", "1")
    assert_same_weights(again.model, fitted.model)


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize(
    ("limit", "longer"),
    [
        ("--trainer.max_epochs=1 --trainer.max_time=00:01:00:00", "max_epochs N"),
        ("--trainer.max_steps=9", "max_steps N"),
        ("--trainer.max_time=00:00:00:01 --trainer.max_epochs=-1", "max_time DD:HH:MM:SS"),
    ],
)
def test_summary_tells_what_to_raise_for_a_longer_run(
    limit: str, longer: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", str(tiny), *limit.split()])
    assert f"--resume required --trainer.{longer}\n" in capsys.readouterr().out


def test_a_run_without_a_validation_says_what_there_is(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = main(["fit", "--config", str(tiny), "--trainer.max_steps=2", "--data.test=null"]).run
    shown = capsys.readouterr().out
    assert "none: it ended before a validation" in shown
    assert f"recovery-2.ckpt{' --data.test FILES'}\n" in shown.replace("'", "")
    assert json.loads((run.path / "summary.json").read_text(encoding="utf-8"))["checkpoint"] == str(
        run.checkpoints / "recovery-2.ckpt"
    )
    with pytest.raises(CheckpointError, match=r"best.ckpt is no .*: take .*recovery-2.ckpt\."):
        main(["test", "--ckpt_path", str(run.checkpoints / "best.ckpt")])


def test_scores_of_a_part_of_a_split_say_so(
    best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "part.ckpt"
    shutil.copy(best, copy)
    cli = main(["test", "--ckpt_path", str(copy), "--trainer.limit_test_batches", "1"])
    assert "limit_test_batches=1: these are scores of a part" in capsys.readouterr().out
    [file] = tmp_path.rglob("test.json")
    assert json.loads(file.read_text(encoding="utf-8"))["part"] == "limit_test_batches=1"
    assert cli.trainer.limit_test_batches == 1


def test_warnings_are_told_without_a_path(best: Path) -> None:
    main(["validate", "--ckpt_path", str(best)])
    assert warnings.formatwarning("so", UserWarning, "file.py", 3) == "warning: so\n"


def test_printed_commands_survive_blanks_and_brackets(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", str(tiny), "--experiment", "mine/my [best] :run:"]
    run = main(["fit", *words, "--trainer.max_epochs", "1"]).run
    shown = capsys.readouterr().out
    assert f"Run {run.path}\n" in shown
    printed = dict(line.split(maxsplit=1) for line in shown.replace("\\\n", "").splitlines()[-4:])
    test, report, longer = (shlex.split(printed[key]) for key in ("test", "report", "longer"))
    assert Path(test[test.index("--ckpt_path") + 1]).is_file()
    assert Path(report[-1]) == run.path
    again = [*longer[3 : longer.index("--trainer.max_epochs")], "--trainer.max_epochs", "2"]
    assert main(again).run.path == run.path


def test_test_needs_only_the_checkpoint(best: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli = main(["test", "--ckpt_path", str(best)])
    scores = json.loads((best.parent.parent / "test.json").read_text(encoding="utf-8"))
    assert scores["test/acc"] == float(cli.trainer.callback_metrics["test/acc"]) > 0.9
    assert (best.parent.parent / "plots" / "test_confusion.png").exists()
    assert "test.json" in capsys.readouterr().out
    assert float(cli.model.results["test/confusion"].sum()) == 40
    said = Predictions.read(best.parent.parent / "predictions" / "test.parquet")
    assert list(said.labels) == ["neg", "pos"]
    assert (said.predicted == said.target).mean() == pytest.approx(scores["test/acc"])
    assert said.samples["text"] == list(cli.datamodule.table("test").texts)
    assert min(said.samples["tokens"]) > 4
    assert said.step == torch.load(best, weights_only=True)["global_step"] > 0


def test_predictions_of_the_validation_are_those_of_the_best_checkpoint(
    fitted: FoundryCLI, best: Path
) -> None:
    run = fitted.run.path
    kept = Predictions.read(run / "predictions" / "val.parquet")
    assert kept.step == torch.load(best, weights_only=True)["global_step"]
    score = json.loads((run / "summary.json").read_text(encoding="utf-8"))["best_score"]
    assert (kept.predicted == kept.target).mean() == pytest.approx(score)


def test_explicit_values_win_over_the_checkpoint(best: Path, tmp_path: Path) -> None:
    other = write_csv(tmp_path / "other.csv", reviews(10, seed=5))
    args = ["test", "--ckpt_path", str(best), "--data.test", str(other)]
    cli = main([*args, "--model.label_smoothing", "0.2", "--data.batch_size", "3"])
    assert (cli.model.label_smoothing, cli.datamodule.batch_size) == (0.2, 3)
    assert float(cli.model.results["test/confusion"].sum()) == 10


def test_a_difference_that_cannot_be_loaded_is_refused_with_a_diff(best: Path) -> None:
    wide = ["--model.backbone.config.hidden_size", "64"]
    with pytest.raises(CheckpointError) as error:
        main(["test", "--ckpt_path", str(best), *wide])
    assert "hidden_size: 32 -> 64" in str(error.value)
    assert "does not fit the model" in str(error.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_predictions_keep_the_order_of_the_texts(best: Path, tmp_path: Path, suffix: str) -> None:
    rows = reviews(30, seed=7)
    (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text, _ in rows), encoding="utf-8")
    output = tmp_path / f"predictions{suffix}"
    args = ["predict", "--ckpt_path", str(best), "--input", str(tmp_path / "texts.txt")]
    main([*args, "--output", str(output), "--data.train", "gone.csv"])
    if suffix == ".csv":
        with output.open(newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        probs = [(float(row["prob_neg"]), float(row["prob_pos"])) for row in found]
    else:
        found = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        probs = [(row["prob"]["neg"], row["prob"]["pos"]) for row in found]
    assert [row["id"] for row in found] == [str(i) for i in range(30)]
    assert sum(row["label"] == label for row, (_, label) in zip(found, rows, strict=True)) > 27
    assert all(abs(sum(pair) - 1) < 1e-4 for pair in probs)


def test_predict_reads_standard_input(
    best: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin = io.TextIOWrapper(
        io.BytesIO(b"a great lovely film\na dull awful film\n"), encoding="utf-8"
    )
    monkeypatch.setattr("sys.stdin", stdin)
    main(["predict", "--ckpt_path", str(best), "--input", "-"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [json.loads(line)["label"] for line in lines] == ["pos", "neg"]


def test_an_output_that_cannot_be_written_is_refused_before_predicting(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("great\n", encoding="utf-8")
    monkeypatch.setattr(Classification, "predict_step", lambda *args: 1 / 0)
    words = ["predict", "--ckpt_path", str(best), "--input", str(tmp_path / "texts.txt")]
    with pytest.raises(ValueError, match=r"a\.jsonl lies below a file"):
        main([*words, "--output", str(tmp_path / "texts.txt" / "a.jsonl")])
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(ValueError, match=r"b\.csv is a folder"):
        main([*words, "--output", str(tmp_path / "b.csv")])


def test_checkpoint_rebuilds_task_and_data_without_the_cli(best: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("great\n", encoding="utf-8")
    data = load_data(best, predict=str(tmp_path / "texts.txt"), train="gone.csv")
    batch = data.load("predict")[[0]]
    with torch.no_grad():
        prob = load_task(best).predict_step(batch, 0)["prob"]
    assert prob.shape == (1, 2)


def test_config_of_a_resumed_run_starts_a_new_run(tiny: Path) -> None:
    first = main(["fit", "--config", str(tiny)]).run.path
    more = ["--resume", "required", "--trainer.max_epochs", "3"]
    resumed = main(["fit", "--config", str(tiny), *more])
    assert (resumed.run.path, resumed.trainer.global_step) == (first, 27)
    summary = json.loads((first / "summary.json").read_text(encoding="utf-8"))
    assert (summary["steps"], summary["best_metric"]) == (27, "val/acc")
    again = main(["fit", "--config", str(first / "config.yaml")])
    assert (again.run.path, again.trainer.global_step) == (first.parent / "2", 27)


def test_run_that_was_moved_keeps_its_best_score(tiny: Path) -> None:
    first = main(["fit", "--config", str(tiny)]).run.path
    score = json.loads((first / "summary.json").read_text(encoding="utf-8"))["best_score"]
    moved = tiny.parent / "elsewhere"
    (tiny.parent / "runs").rename(moved)
    args = ["--trainer.default_root_dir", str(moved), "--resume", "required"]
    cli = main(["fit", "--config", str(tiny), *args])
    assert cli.trainer.checkpoint_callback.best_model_score == score
    assert Path(cli.trainer.checkpoint_callback.best_model_path).is_relative_to(moved)


def test_resume_inside_an_epoch_that_is_cut_otherwise_is_refused(tiny: Path) -> None:
    # 9 steps an epoch: the run ends inside the second.
    main(["fit", "--config", str(tiny), "--trainer.max_steps", "13"])
    again = ["fit", "--config", str(tiny), "--resume", "required"]
    with pytest.raises(ValueError, match=r"inside an epoch, and .*data.micro_batch.*: 3 -> 6"):
        main([*again, "--data.micro_batch", "2"])
    assert main(again).trainer.global_step == 18


def test_another_tokenizer_than_the_checkpoints_is_refused(best: Path) -> None:
    other = ["--data.tokenizer.vocab_size", "400"]
    with pytest.raises(CheckpointError, match=r"data.tokenizer.vocab_size: 300 -> 400; leave it"):
        main(["test", "--ckpt_path", str(best), *other])


def test_predictions_carry_the_column_that_identifies_rows(best: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("key,text\nfirst,great\nsecond,awful\n", encoding="utf-8")
    output = tmp_path / "out.jsonl"
    args = ["--input", str(tmp_path / "in.csv"), "--output", str(output), "--data.id", "key"]
    main(["predict", "--ckpt_path", str(best), *args])
    assert [json.loads(line)["id"] for line in output.read_text(encoding="utf-8").splitlines()] == [
        "first",
        "second",
    ]


@pytest.mark.parametrize("word", ["null", "None"])
def test_null_on_the_command_line_takes_back_what_a_config_set(
    word: str, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(tiny.read_text(encoding="utf-8"))
    config["model"]["init_args"]["optim"] = {"bias_lr": 0.1}
    config["model"]["init_args"]["backbone"]["init_args"]["dropout"] = 0.5
    write_config(tiny, config)
    words = [f"--model.optim.bias_lr={word}", f"--model.backbone.dropout={word}"]
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tiny), *words, "--print_config"])
    found = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert found["optim"]["bias_lr"] is None
    assert found["backbone"]["init_args"]["dropout"] is None


@pytest.mark.parametrize("word", ["null", "None"])
def test_null_is_refused_where_none_may_stand(word: str, tiny: Path) -> None:
    for key, rule in (("tta", "must be none, flip or"), ("label_smoothing", "must be a number")):
        with pytest.raises(UsageError, match=rf"--model\.{key}: {rule}.*got '{word}'"):
            main(["fit", "--config", str(tiny), f"--model.{key}={word}"])


def test_overfit_batches_is_refused_with_what_to_set(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"overfit_batches=1.* set trainer.limit_train_batches"):
        main(["fit", "--config", str(tiny), "--trainer.overfit_batches", "1"])


def test_numbers_given_in_the_config_are_never_overridden(tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"num_classes=3, but TextFiles has 2; set model.num_cl"):
        main(["fit", "--config", str(tiny), "--model.num_classes", "3"])


def test_damaged_predictions_are_told_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "test.parquet"
    rows = 500
    probs = np.random.default_rng(0).random((rows, 2), np.float32)
    columns = {"prob": probs, "target": np.zeros(rows, np.int64)}
    Predictions(["a", "b"], columns).write(file)
    whole = file.read_bytes()
    for torn in (b"PAR1 torn", whole[:100] + bytes(1000) + whole[1100:]):
        file.write_bytes(torn)
        with pytest.raises(ValueError, match=r"test.parquet is damaged .*; test writes it anew"):
            Predictions.read(file)
