"""Distillation: what a student sees, learns and keeps, and what is computed once."""

import copy
import json
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from lit_foundry import (
    CausalLM,
    Classification,
    Distillation,
    Regression,
    ResNet9,
    TextDecoder,
    TextEncoder,
    load,
    load_task,
)
from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.cli.main import main
from lit_foundry.compress.evaluation import evaluate
from lit_foundry.export.command import export
from lit_foundry.nn.distillation import LogitMSE, Outputs
from lit_foundry.tasks import Step
from lit_foundry.training.teaching.answers import Answers
from lit_foundry.usage import UsageError
from tests.conftest import (
    corpus_config,
    digits_config,
    reviews,
    tiny_config,
    write_config,
    write_csv,
)
from tests.labelled import text_config
from tests.processes import run

SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=6",  # two steps
    "--trainer.limit_val_batches=2",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a teacher on tiny reviews."""
    folder = tmp_path_factory.mktemp("distillation")
    write_csv(folder / "train.csv", reviews(120, seed=0))
    write_csv(folder / "test.csv", reviews(40, seed=1))
    config = tiny_config(folder)
    config["model"]["init_args"]["optim"] = {"lr": 5e-3}
    config["trainer"]["max_epochs"] = 3
    main(["fit", "--config", str(write_config(folder / "teacher.yaml", config))])
    return folder


def best(folder: Path, name: str) -> Path:
    return folder / "runs" / name / "1" / "checkpoints" / "best.ckpt"


def distilled(folder: Path, layers: int = 1, **more: Any) -> dict[str, Any]:
    """Return a configuration that distils the teacher into fewer layers."""
    config = tiny_config(folder)
    student = config["model"]
    student["init_args"]["backbone"]["init_args"]["config"]["num_hidden_layers"] = layers
    options = {"student": student, "teacher": str(best(folder, "teacher")), **more}
    config["model"] = {"class_path": "Distillation", "init_args": options}
    config["data"]["init_args"]["tokenizer"] = str(folder / "runs" / "teacher" / "1" / "tokenizer")
    return config


def fit(folder: Path, name: str, config: Mapping[str, Any], *more: str) -> Any:
    shutil.rmtree(folder / "runs" / name, ignore_errors=True)
    return main(
        ["fit", "--config", str(write_config(folder / f"{name}.yaml", dict(config))), *more]
    )


@pytest.fixture(scope="module")
def taught(home: Path) -> Any:
    """Distil the teacher, in a few steps."""
    return fit(home, "taught", distilled(home), *SHORT)


def weights(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def test_checkpoint_is_that_of_the_student_and_needs_no_teacher(home: Path, tmp_path: Path) -> None:
    config = distilled(home, losses=["KD", {"class_path": "HiddenStates"}])
    config["model"]["init_args"]["student"]["init_args"]["backbone"]["init_args"]["config"][
        "hidden_size"
    ] = 16
    fit(home, "alone", config, *SHORT)
    shutil.copytree(home / "runs" / "alone", tmp_path / "alone")
    student: Any = load_task(tmp_path / "alone/1/checkpoints/best.ckpt")
    assert type(student) is Classification
    assert "teacher" not in str(student.recipe())
    assert student.state_dict().keys() == weights(tmp_path / "alone/1/checkpoints/best.ckpt").keys()
    data = ["--data.test", str(home / "test.csv"), "--trainer.accelerator=cpu"]
    main(["test", "--ckpt_path", str(tmp_path / "alone/1/checkpoints/best.ckpt"), *data])
    assert (
        len(load(tmp_path / "alone/1/checkpoints/best.ckpt").predict(["a great plot"]).labels) == 1
    )


def test_same_bits_whether_answers_were_there_are_made_or_kept_in_memory(
    home: Path, tmp_path: Path
) -> None:
    found = []
    for name, more in {
        "cold": {"cache_dir": str(tmp_path)},
        "warm": {"cache_dir": str(tmp_path)},
        "memory": {"cache": "memory"},
    }.items():
        fit(home, name, distilled(home, losses=["KD", "RKD"], **more), *SHORT)
        found.append(weights(best(home, name)))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    [table] = (tmp_path / "teachers").glob("*/answers.f32")
    # 108 training samples, two logits and 32 pooled features.
    assert table.stat().st_size == 4 * 108 * (2 + 32)


def test_answers_computed_once_are_those_of_every_step(home: Path) -> None:
    """But for rounding, as a sample is padded otherwise among others."""
    found = {}
    for cache in ("memory", "none"):
        config = distilled(home, cache=cache, labels=0.0)
        cli = fit(home, cache, config, *SHORT)
        found[cache] = weights(best(home, cache))
        assert bool(cli.model._answers) is (cache == "memory")
    for key, tensor in found["memory"].items():
        torch.testing.assert_close(tensor, found["none"][key], rtol=1e-3, atol=1e-5)


class Samples:
    """Rows of numbers, in place of a split."""

    def __init__(self, count: int) -> None:
        self.lengths = np.arange(count) % 7 + 1

    def __getitem__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor(rows)}


def test_a_killed_process_goes_on_with_its_answers(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer(batch: Mapping[str, Tensor]) -> Outputs:
        rows = batch["input_ids"]
        if len(asked) > 150 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        asked.extend(rows.tolist())
        return Outputs(torch.stack([rows, -rows], 1).float())

    with pytest.raises(KeyboardInterrupt):
        Answers(Samples(300), answer, ("key",), tmp_path)
    (tmp_path / "again").touch()
    first = {*asked[1:]}
    asked.clear()
    found = Answers(Samples(300), answer, ("key",), tmp_path)
    assert first.isdisjoint(asked[1:])  # but for the sample that tells the widths
    assert len(first) + len(asked[1:]) == 300
    rows = torch.tensor([7, 299, 0])
    assert found.of(rows).logits.tolist() == [[7, -7], [299, -299], [0, 0]]
    asked.clear()
    Answers(Samples(300), answer, ("another teacher",), tmp_path)
    assert len(asked) == 301


def test_answers_of_a_process_that_died_are_made_by_who_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_foundry.training.teaching.answers.PATIENCE", 0.1)

    def answer(batch: Mapping[str, Tensor]) -> Outputs:
        return Outputs(batch["input_ids"][:, None].float())

    found = Answers(Samples(300), answer, ("key",), tmp_path, (0, 2))
    assert found.of(torch.arange(300)).logits.flatten().tolist() == [*range(300)]


def test_whole_answers_are_read_from_a_read_only_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(batch: Mapping[str, Tensor]) -> Outputs:
        return Outputs(batch["input_ids"][:, None].float())

    Answers(Samples(20), answer, ("key",), tmp_path)
    for lock in tmp_path.glob("*.lock"):
        lock.unlink()
    monkeypatch.setattr("lit_foundry.training.teaching.answers.FileLock", None)
    found = Answers(Samples(20), answer, ("key",), tmp_path)
    assert found.of(torch.tensor([3])).logits.item() == 3


def test_other_texts_or_ways_to_cut_them_have_answers_of_their_own(
    home: Path, tmp_path: Path
) -> None:
    rows = reviews(120, seed=0)
    rows[1] = (rows[1][0].replace("bright", "lovely").replace("great", "bright"), rows[1][1])
    write_csv(tmp_path / "train.csv", rows)
    for change in ({}, {"train": str(tmp_path / "train.csv")}, {"truncation": "tail"}):
        config = distilled(home, cache_dir=str(tmp_path))
        config["data"]["init_args"] |= change
        fit(home, "keys", config, *SHORT)
    assert len([*(tmp_path / "teachers").glob("*/answers.f32")]) == 3


def test_two_processes_share_the_work_on_a_table(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer(batch: Mapping[str, Tensor]) -> Outputs:
        asked.extend(batch["input_ids"].tolist())
        return Outputs(batch["input_ids"][:, None].float())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.sleep", lambda seconds: Answers(*args, (1, 2)))
        args = Samples(300), answer, ("key",), tmp_path
        found = Answers(*args, (0, 2))
    assert len(asked) == 300 + 2  # each asks about a sample, to know the widths
    assert found.of(torch.arange(300)).logits.flatten().tolist() == [*range(300)]


@pytest.mark.parametrize(
    "hook",
    ["on_train_batch_end", pytest.param("on_validation_batch_end", marks=pytest.mark.slow)],
)
def test_a_stopped_run_goes_on_to_the_same_bits(home: Path, hook: str) -> None:
    """With maps of losses, which the optimizer knows and the checkpoint of the student lacks."""
    config = distilled(
        home, losses=["KD", {"class_path": "HiddenStates", "init_args": {"weight": 0.3}}]
    )
    backbone = config["model"]["init_args"]["student"]["init_args"]["backbone"]["init_args"]
    backbone["config"]["hidden_size"] = 16
    config["trainer"]["limit_val_batches"] = 2
    calm = fit(home, "calm", config)
    send = {"class_path": "tests.processes.Send", "init_args": {"hook": hook, "at": 3}}
    stopped = copy.deepcopy(config)
    stopped["trainer"]["callbacks"] = [send]
    with pytest.raises(SystemExit) as caught:
        fit(home, "stopped", stopped)
    assert caught.value.code == 128 + signal.SIGTERM
    path = str(write_config(home / "stopped.yaml", config))
    resumed = main(["fit", "--config", path, "--resume", "required"])
    assert same(weights(best(home, "calm")), weights(best(home, "stopped")))
    assert same(calm.model.losses.state_dict(), resumed.model.losses.state_dict())
    assert len(calm.model.losses.state_dict()) == 2


def test_resume_with_other_maps_is_refused(home: Path, taught: Any) -> None:
    config = distilled(home)
    student = config["model"]["init_args"]["student"]["init_args"]
    student["backbone"]["init_args"]["config"]["hidden_size"] = 16
    fit(home, "maps", config, *SHORT)
    config["model"]["init_args"]["losses"] = ["KD", "HiddenStates"]
    config["trainer"]["max_epochs"] = 2
    path = str(write_config(home / "maps.yaml", config))
    with pytest.raises(CheckpointError, match=r"model\.losses has other maps"):
        main(["fit", "--config", path, "--resume", "required"])


def twin(config: dict[str, Any]) -> dict[str, Any]:
    """Let the student be the teacher itself, without dropout, and learn from that alone."""
    config["model"]["init_args"] |= {"labels": 0.0, "losses": ["LogitMSE"], "cache": "none"}
    return config


def first_loss(cli: Any) -> float:
    """Return what the first step of a run of twins had to learn."""
    text = (cli.run.path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    column = text[0].split(",").index("train/logitmse_loss")
    return float(next(line.split(",")[column] for line in text[1:] if line.split(",")[column]))


def test_teacher_sees_augmented_and_mixed_images_as_the_student_does(tmp_path: Path) -> None:
    config = digits_config(tmp_path)
    config["trainer"]["max_epochs"] = 1
    main(["fit", "--config", str(write_config(tmp_path / "teacher.yaml", config))])
    student = copy.deepcopy(config["model"])
    student["init_args"]["init_from"] = str(best(tmp_path, "teacher"))
    options = {"student": student, "teacher": str(best(tmp_path, "teacher")), "init_layers": None}
    config["model"] = {"class_path": "Distillation", "init_args": options}
    student["init_args"]["finetune"] = {"batchnorm": "eval"}
    student["init_args"]["optim"] = {"lr": 1e-9}
    twins = fit(tmp_path, "twins", twin(config), *SHORT)
    head = twins.model.student.head
    head.load_state_dict(twins.model.teachers()[0].task.head.state_dict())
    batch = next(iter(twins.datamodule.train_dataloader()))
    twins.model.train()
    step = twins.model.step(batch, "train")
    assert step.loss.item() < 1e-6
    assert twins.model.student.view(batch, "train")["pixel_values"].dtype == torch.float32
    config["model"]["init_args"]["cache"] = "file"
    with pytest.warns(UserWarning, match="augment or mixing makes another image"):
        fit(tmp_path, "warned", config, *SHORT)


def test_teacher_sees_the_masks_of_the_student(tmp_path: Path) -> None:
    config = corpus_config(tmp_path)
    fit(tmp_path, "teacher", config, *SHORT)
    student = copy.deepcopy(config["model"])
    student["init_args"]["init_from"] = str(best(tmp_path, "teacher"))
    student["init_args"]["backbone"]["init_args"]["dropout"] = 0.0
    options = {"student": student, "teacher": str(best(tmp_path, "teacher"))}
    config["model"] = {"class_path": "Distillation", "init_args": options}
    config["data"]["init_args"]["tokenizer"] = str(tmp_path / "runs/teacher/1/tokenizer")
    cli = fit(tmp_path, "twins", twin(config), *SHORT)
    assert first_loss(cli) < 1e-9
    assert weights(best(tmp_path, "twins")).keys() == weights(best(tmp_path, "teacher")).keys()
    config["model"]["init_args"] |= {"losses": ["KD"], "labels": 1.0, "cache": "file"}
    with pytest.warns(UserWarning, match="masks other tokens"):
        fit(tmp_path, "more", config, *SHORT)


def test_student_begins_as_chosen_layers_of_the_teacher(home: Path) -> None:
    config = twin(distilled(home, layers=1, init_layers=[2]))
    config["model"]["init_args"]["student"]["init_args"]["optim"] = {
        "lr": 1e-12,
        "weight_decay": 0.0,
    }
    cli = fit(home, "layers", config, *SHORT)
    student, teacher = cli.model.student, cli.model.teachers()[0].task
    for mine, theirs in zip(
        [*student.backbone.blocks(), student.head],
        [*(teacher.backbone.blocks()[i] for i in (0, 2)), teacher.head],
        strict=True,
    ):
        for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    whole = twin(distilled(home, layers=2, init_layers=[1, 2]))
    whole["model"]["init_args"]["student"]["init_args"]["backbone"]["init_args"]["dropout"] = 0.0
    assert first_loss(fit(home, "whole", whole, *SHORT)) < 1e-9


def test_narrow_students_begin_with_the_main_directions_of_embeddings(home: Path) -> None:
    config = distilled(home, init_embeddings=True)
    student = config["model"]["init_args"]["student"]["init_args"]
    student["optim"] = {"lr": 1e-12, "weight_decay": 0.0}
    student["backbone"]["init_args"]["config"]["hidden_size"] = 16
    cli = fit(home, "narrow", config, *SHORT)
    mine = cli.model.student.backbone.encoder.embeddings.word_embeddings.weight.detach().double()
    teacher = cli.model.teachers()[0].task.backbone.encoder.embeddings
    theirs = teacher.word_embeddings.weight.double()
    _, _, directions = torch.linalg.svd(theirs - theirs.mean(0), full_matrices=False)
    expected = (theirs - theirs.mean(0)) @ directions[:16].T
    # Up to the sign and the scale of all.
    gram, wanted = mine @ mine.T, expected @ expected.T
    torch.testing.assert_close(gram / gram.norm(), wanted / wanted.norm(), rtol=1e-3, atol=1e-6)


def test_micro_batches_change_no_weight(home: Path) -> None:
    found = []
    for micro in (3, 12):
        config = distilled(home, losses=["KD", "HiddenStates"])
        config["data"]["init_args"]["micro_batch"] = micro
        backbone = config["model"]["init_args"]["student"]["init_args"]["backbone"]["init_args"]
        backbone["dropout"] = config["model"]["init_args"]["student"]["init_args"]["dropout"] = 0.0
        fit(
            home,
            f"micro{micro}",
            config,
            *SHORT[::2],
            f"--trainer.limit_train_batches={24 // micro}",
        )
        found.append(weights(best(home, f"micro{micro}")))
    for key, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][key], rtol=1e-3, atol=1e-5)


def unlabelled(folder: Path) -> str:
    path = folder / "transfer.csv"
    path.write_text("text\n" + "".join(f"{t}\n" for t, _ in reviews(60, seed=5)), encoding="utf-8")
    return str(path)


def test_unlabelled_texts_are_learned_from_the_teacher_alone(home: Path) -> None:
    config = distilled(home, losses=["KD", "DKD"])
    args = config["model"]["init_args"]["student"]["init_args"]
    args |= {"class_weights": [1.0, 2.0], "focal_gamma": 1.0}
    config["data"]["init_args"]["transfer"] = unlabelled(home)
    cli = fit(home, "transfer", config, *SHORT)
    assert len(cli.datamodule.load("train").lengths) == 108 + 60
    assert len(cli.datamodule.load("val").lengths) == 12
    batch = cli.datamodule.load("train")[[0, 1, 167]]
    assert batch["label"].tolist()[2] == -100
    model = cli.model.train()
    model.labels = 0.0
    without = model.step(batch, "train")
    assert without.preds is not None
    assert len(without.preds) == 2
    assert without.loss.item() > 0
    assert [*model.scores.states(None)["acc"]], "accuracy counts labelled samples"
    del config["model"]
    config["model"] = tiny_config(home)["model"]
    with pytest.raises(ValueError, match="take Distillation"):
        fit(home, "refused", config)


def test_what_learned_from_unlabelled_texts_needs_them_no_more(home: Path, tmp_path: Path) -> None:
    config = distilled(home)
    transfer = shutil.copy(unlabelled(home), tmp_path / "transfer.csv")
    config["data"]["init_args"]["transfer"] = str(transfer)
    fit(home, "without", config, *SHORT)
    transfer.unlink()
    checkpoint = best(home, "without")
    main(["validate", "--ckpt_path", str(checkpoint), *SHORT[2:]])
    main(["test", "--ckpt_path", str(checkpoint), "--trainer.accelerator=cpu"])
    assert evaluate(checkpoint, "val").samples == 12
    assert load(checkpoint).predict(["a dull plot"]).labels[0] in ("neg", "pos")


def test_unlabelled_samples_add_nothing_to_the_loss_of_labels(taught: Any) -> None:
    model = taught.model.eval()
    batch = taught.datamodule.load("train")[[0, 1, 2, 3]]
    half = {**batch, "label": batch["label"].where(torch.arange(4) < 2, -100)}
    model._some_unlabelled = True
    first = {k: v[:2] for k, v in batch.items()}
    parts = []
    for each in (half, first):
        model.step(each, "train")
        parts.append(model._parts["labels"].item())
    assert parts[0] == pytest.approx(parts[1] / 2, rel=1e-5)


def test_student_learns_what_its_teacher_says(home: Path) -> None:
    config = distilled(home, labels=0.0)
    config["trainer"]["max_epochs"] = 8
    config["model"]["init_args"]["student"]["init_args"]["optim"] = {"lr": 5e-3}
    cli = fit(home, "learns", config)
    model, teacher = cli.model.eval(), cli.model.teachers()[0]
    batch = cli.datamodule.load("train")[range(108)]
    with torch.no_grad():
        agree = model(batch).argmax(1) == teacher.outputs(batch).logits.argmax(1)
    assert agree.float().mean() > 0.9


def test_losses_are_averaged_over_teachers(home: Path, taught: Any) -> None:
    config = distilled(home)  # its earlier student teaches too
    config["model"]["init_args"]["teacher"] = [str(best(home, n)) for n in ("teacher", "taught")]
    cli = fit(home, "both", config, *SHORT)
    model, batch = cli.model.eval(), cli.datamodule.load("train")[[5, 6, 7]]
    model.step(batch, "train")
    kd = model.losses[0][0]
    with torch.no_grad():
        mine = Outputs(model(batch))
        each = [kd(mine, teacher.outputs(batch)).item() for teacher in model.teachers()]
    assert each[0] != each[1]
    assert model._parts["kd"].item() == pytest.approx(sum(each) / 2, rel=0.01)


@pytest.mark.parametrize(
    "format",
    ["safetensors", *(pytest.param(f, marks=pytest.mark.slow) for f in ("hf", "onnx", "torch"))],
)
def test_exports_teach_as_their_checkpoint_does(home: Path, tmp_path: Path, format: str) -> None:
    folder = export(best(home, "teacher"), format, tmp_path / format)
    if format == "hf":
        (folder / "lit_foundry.json").unlink()  # as any folder of transformers
    config = distilled(home)
    config["model"]["init_args"]["teacher"] = str(folder)
    cli = fit(home, f"of_{format}", config, *SHORT)
    batch = cli.datamodule.load("train")[[0, 3, 9]]
    task: Any = load_task(best(home, "teacher"))
    said = cli.model.teachers()[0].outputs(batch).logits
    torch.testing.assert_close(said, task(batch).detach(), rtol=1e-4, atol=1e-4)
    if format in ("hf", "onnx", "torch"):
        config["model"]["init_args"]["losses"] = ["HiddenStates"]
        with pytest.raises(CheckpointError, match="tells its logits alone"):
            fit(home, f"of_{format}", config, *SHORT)


def test_average_of_weights_is_validated_and_kept(home: Path) -> None:
    config = distilled(home, losses=["KD", "HiddenStates"])
    backbone = config["model"]["init_args"]["student"]["init_args"]["backbone"]["init_args"]
    backbone["config"]["hidden_size"] = 16
    config["trainer"]["callbacks"] = [{"class_path": "EMA", "init_args": {"decay": 0.5}}]
    cli = fit(home, "ema", config, *SHORT)
    again = main(["validate", "--ckpt_path", str(best(home, "ema")), *SHORT[2:]])
    score = cli.trainer.checkpoint_callback.best_model_score
    assert again.trainer.callback_metrics["val/acc"] == score


def test_tags_of_words_are_distilled(tmp_path: Path) -> None:
    path = text_config(tmp_path, "TokenClassification", "tags")
    main(["fit", "--config", str(path), *SHORT])
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    teacher = best(tmp_path, path.stem)
    student = copy.deepcopy(config["model"])
    student["init_args"]["init_from"] = str(teacher)
    student["init_args"]["backbone"]["init_args"]["dropout"] = 0.0
    options = {"student": student, "teacher": str(teacher)}
    config["model"] = {"class_path": "Distillation", "init_args": options}
    config["data"]["init_args"]["tokenizer"] = str(teacher.parents[1] / "tokenizer")
    options["losses"] = ["KD"]
    with pytest.warns(UserWarning, match="predicts words"):
        cli = fit(tmp_path, "tags", config, *SHORT)
    assert (cli.model.step(cli.datamodule.load("train")[[0, 1]], "train")).count > 2


def changed(**options: Any) -> Any:
    def apply(config: dict[str, Any]) -> None:
        config["model"]["init_args"] |= options

    return apply


def of_student(**options: Any) -> Any:
    def apply(config: dict[str, Any]) -> None:
        config["model"]["init_args"]["student"]["init_args"] |= options

    return apply


def other_tokens(config: dict[str, Any]) -> None:
    config["data"]["init_args"]["tokenizer"] = {"kind": "bpe", "vocab_size": 300}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (other_tokens, "model.teacher=.* was trained with another tokenizer"),
        (changed(teacher="nowhere.ckpt"), "is not there: fit the teacher first"),
        (changed(teacher="tests"), "is neither a checkpoint nor an exported folder"),
        (
            changed(losses=[{"class_path": "HiddenStates", "init_args": {"layers": {1: 3}}}]),
            "has 1: 3",
        ),
        (changed(losses=["FitNets"]), "of tokens take HiddenStates"),
        (changed(losses=["KDD"]), "Did you mean 'KD'"),
        (changed(init_layers=[1, 2]), "names 2 blocks, and the student has 1"),
        (changed(init_layers=[3]), "the teacher has no block 3"),
        (changed(labels=-1.0), "labels is at least 0"),
        (changed(teacher=[]), "model.teacher is empty"),
        (changed(init_layers=[1], init_embeddings=True), "both|all say what the student begins as"),
        (changed(losses=[], labels=0.0), "nothing would be learnt"),
        (of_student(compile=True), None),
    ],
)
def test_what_cannot_be_distilled_is_told_in_a_line(
    home: Path, spoil: Any, told: str | None
) -> None:
    config = distilled(home)
    spoil(config)
    if told is None:
        config["model"]["init_args"]["losses"] = ["HiddenStates"]
        told = "hides the hidden states"
    with pytest.raises((ValueError, UsageError), match=told) as caught:
        fit(home, "bad", config, *SHORT)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_teacher_of_shorter_texts_is_told(home: Path) -> None:
    config = distilled(home)
    config["model"]["init_args"]["student"]["init_args"]["backbone"]["init_args"]["config"][
        "max_position_embeddings"
    ] = 128
    config["data"]["init_args"]["max_length"] = 128
    with pytest.raises(ValueError, match="takes max_length up to 64, but TextFiles has 128"):
        fit(home, "long", config, *SHORT)


def test_a_folder_of_other_order_of_classes_is_told(home: Path, tmp_path: Path) -> None:
    folder = export(best(home, "teacher"), "hf", tmp_path / "hf")
    (folder / "lit_foundry.json").unlink()
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said["id2label"] = {"0": "pos", "1": "neg"}
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
    config = distilled(home, teacher=str(folder))
    with pytest.raises(CheckpointError, match=r"predicts \['pos', 'neg'\], and the data have"):
        fit(home, "order", config, *SHORT)


def test_a_causal_language_model_is_no_student() -> None:
    gpt = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    with pytest.raises(ValueError, match="CausalLM; one with"):
        Distillation(CausalLM(TextDecoder(config=gpt)), Path("teacher.ckpt"))


def test_values_are_compared_in_deviations_of_their_targets() -> None:
    bert = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1}
    bert |= {"num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
    student: Any = Regression(TextEncoder(config=bert), num_values=1)
    student.head.deviation.fill_(20.0)
    task = Distillation(student, Path("teacher.ckpt"), losses=[LogitMSE()])
    found = task._in_deviations(Outputs(torch.tensor([[40.0]])))
    assert found.logits.item() == 2


def test_teachers_of_other_classes_or_inputs_are_told(home: Path, tmp_path: Path) -> None:
    write_csv(
        tmp_path / "train.csv", [(t, {"neg": "bad", "pos": "good"}[n]) for t, n in reviews(120, 0)]
    )
    config = distilled(home)
    config["data"]["init_args"]["train"] = str(tmp_path / "train.csv")
    with pytest.raises(
        CheckpointError, match=r"predicts \['neg', 'pos'\], and the data have \['bad', 'good'\]"
    ):
        fit(home, "classes", config, *SHORT)
    pixels = digits_config(tmp_path)
    fit(tmp_path, "digits", pixels, *SHORT)
    config = distilled(home)
    config["model"]["init_args"]["teacher"] = str(best(tmp_path, "digits"))
    with pytest.raises(CheckpointError, match="reads pixel_values, and the student input_ids"):
        fit(home, "pixels", config, *SHORT)


def test_a_task_without_head_is_no_student() -> None:
    class Headless(Classification):
        def step(self, batch: Mapping[str, Any], stage: Any) -> Step:
            raise NotImplementedError

    bert = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1}
    bert |= {"num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
    student = Headless(TextEncoder(config=bert), 2)
    del student.head
    with pytest.raises(ValueError, match="Headless; one with a backbone, a head"):
        Distillation(student, Path("teacher.ckpt"))


@pytest.mark.slow
def test_two_ranks_ask_together_and_learn_as_one(home: Path, tmp_path: Path) -> None:
    found = []
    for name, ranks in (("one", 1), ("two", 2)):
        config = distilled(home, cache_dir=str(tmp_path / name))
        student = config["model"]["init_args"]["student"]["init_args"]
        student["dropout"] = student["backbone"]["init_args"]["dropout"] = 0.0
        config["trainer"]["default_root_dir"] = str(tmp_path / "runs")
        config["trainer"]["devices"] = ranks
        config["data"]["init_args"]["micro_batch"] = 6
        path = str(write_config(tmp_path / f"{name}.yaml", config))
        ddp = ["--trainer.strategy=ddp"] if ranks > 1 else []
        assert run(["fit", "--config", path, "--trainer.max_epochs=1", *ddp], ranks=ranks) == 0
        found.append(weights(best(tmp_path, name)))
    for key, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][key], rtol=1e-2, atol=1e-4)
    tables = [next((tmp_path / name / "teachers").glob("*/answers.f32")) for name in ("one", "two")]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_operations_are_counted_anew_after_pruning(tmp_path: Path) -> None:
    student: Any = Classification(ResNet9(width=4, mean=[0.3], std=[0.4], in_channels=1), 3)
    student._forward_flops = {8: 1}
    Distillation(student, tmp_path / "teacher.ckpt").resized()
    assert student._forward_flops == {}
