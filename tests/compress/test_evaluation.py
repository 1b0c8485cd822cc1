"""An artifact scores what ``test`` says, on the same samples as others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lit_foundry
from lit_foundry.__main__ import foreseen
from lit_foundry.cli.main import main
from lit_foundry.compress import evaluation
from lit_foundry.compress.confidence import wilson
from lit_foundry.compress.evaluation import compare, evaluate
from lit_foundry.export.command import export
from lit_foundry.runs.predictions import Predictions
from lit_foundry.usage import UsageError
from tests.conftest import (
    corpus_config,
    digits_config,
    reviews,
    tiny_config,
    write_config,
    write_csv,
)
from tests.export.test_command import SIZES
from tests.labelled import image_config, text_config


def fitted(config: Path, *words: str) -> Path:
    """Fit; return the checkpoint."""
    cli = main(["fit", "--config", str(config), *words])
    path: Path = cli.run.path / "checkpoints" / "best.ckpt"
    return path


def scored(best: Path, command: str = "test", *words: str) -> dict[str, float]:
    """Return what ``test`` or ``validate`` writes of a checkpoint."""
    main([command, "--ckpt_path", str(best), "--trainer.accelerator", "cpu", *words])
    name = "val" if command == "validate" else "test"
    scores = json.loads((best.parent.parent / f"{name}.json").read_text(encoding="utf-8"))
    return {key.removeprefix(f"{name}/"): score for key, score in scores.items()}


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("class")
    write_csv(folder / "train.csv", reviews(120, seed=0))
    write_csv(folder / "test.csv", reviews(41, seed=1))
    write_csv(folder / "later.csv", reviews(30, seed=2))
    (folder / "unlabelled.csv").write_text("text\na plot\n", encoding="utf-8")
    config = tiny_config(folder)
    config["model"]["init_args"]["backbone"]["init_args"] = {"config": SIZES}
    path = fitted(write_config(folder / "tiny.yaml", config))
    export(path, "onnx")
    export(path, "safetensors")
    return path


def exported(best: Path, format: str) -> Path:
    return best.parent.parent / "export" / format


@pytest.mark.parametrize(("split", "command"), [("test", "test"), ("val", "validate")])
def test_checkpoint_scores_exactly_what_test_says(best: Path, split: Any, command: str) -> None:
    expected = scored(best, command)
    found = evaluate(best, split)
    assert np.float32(found.scores["accuracy"]) == np.float32(expected["acc"])
    assert found.scores["log_loss"] == pytest.approx(expected["loss"], rel=1e-6)
    written = Predictions.read(best.parent.parent / "predictions" / f"{split}.parquet")
    assert np.array_equal(found.predictions.probs, written.probs)
    assert found.samples == len(written)
    assert {*found.predictions.predicted} == {0, 1}  # else the comparison says little
    right = round(found.scores["accuracy"] * found.samples)
    assert found.interval == wilson(right, found.samples)
    again = evaluate(best, split)
    assert again.told() == found.told()
    assert np.array_equal(again.predictions.probs, found.predictions.probs)


def test_command_compares_with_the_first(
    best: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [best, exported(best, "onnx"), exported(best, "safetensors")]
    output = tmp_path / "scores.json"
    evaluation.main([*map(str, paths), "--output", str(output)])
    told = json.loads(output.read_text(encoding="utf-8"))
    first, *others = told["artifacts"]
    assert [each["format"] for each in told["artifacts"]] == ["checkpoint", "onnx", "safetensors"]
    assert first["versus_first"] is None
    for each in others:
        assert each["versus_first"]["agreement"] == 1
        assert each["versus_first"]["difference"] == 0
        low, high = each["versus_first"]["interval"]
        assert low < 0 < high
        assert each["scores"] == pytest.approx(first["scores"], abs=1e-5)
    assert told["environment"]["hardware"]["threads"].keys() == {"torch", "onnxruntime"}
    said = capsys.readouterr().out
    assert f"{first['scores']['accuracy']:.4f}" in said
    assert "1.0000" in said


def test_data_that_lie_elsewhere_are_named(best: Path) -> None:
    later = str(best.parents[4] / "later.csv")
    words = ["--data.test", later, "--data.batch_size", "7"]
    expected = scored(best, "test", *words)
    changes = {"test": later, "batch_size": 7}
    for path in (best, exported(best, "safetensors")):
        found = evaluate(path, "test", changes)
        assert found.samples == 30
        assert np.float32(found.scores["accuracy"]) == np.float32(expected["acc"])
        assert compare(found, evaluate(best)) is None  # which are other samples


def test_comparison_counts_what_differs(best: Path) -> None:
    first = evaluate(best)
    probs = first.predictions.probs.copy()
    right = first.predictions.predicted == first.predictions.target
    turned = np.flatnonzero(right)[:3]
    probs[turned] = probs[turned, ::-1]
    columns = {**first.predictions.columns, "prob": probs}
    other = evaluation.Evaluation(
        **{**vars(first), "predictions": Predictions(first.predictions.labels, columns)}
    )
    found = compare(other, first)
    assert found is not None
    assert found.agreement == pytest.approx(38 / 41)
    assert found.difference == pytest.approx(-3 / 41)
    assert found.interval is not None
    assert found.interval[0] < -3 / 41 < found.interval[1] < 0.05


@pytest.mark.slow
def test_images_score_what_test_says(tmp_path: Path) -> None:
    config = write_config(tmp_path / "digits.yaml", digits_config(tmp_path))
    best = fitted(config, "--model.tta", "flip", "--model.augment.flip", "none")
    expected = scored(best)
    found = evaluate(best)
    assert np.float32(found.scores["accuracy"]) == np.float32(expected["acc"])
    assert found.scores["log_loss"] == pytest.approx(expected["loss"], rel=1e-5)
    beside = compare(evaluate(export(best, "safetensors")), found)
    assert beside is not None
    assert beside.agreement == 1


KINDS = {
    "value": ("Regression", ["mae", "rmse", "r2", "pearson", "spearman"]),
    "classes": ("MultiLabelClassification", ["exact_match", "f1_micro", "f1_macro", "map"]),
    "tags": ("TokenClassification", ["accuracy", "f1_macro", "entity_f1"]),
}


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "tags")) for k in KINDS]
)
def test_other_kinds_score_what_test_says(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, names = KINDS[kind]
    best = fitted(text_config(tmp_path, task, kind), "--trainer.max_epochs", "2")
    expected = {"accuracy": None, **scored(best)}
    expected["accuracy"] = expected.get("acc")
    found = evaluate(best)
    assert {name: found.scores[name] for name in names} == pytest.approx(
        {name: expected[name] for name in names}, rel=1e-6
    )
    assert (found.interval is not None) is (kind == "classes")
    evaluation.main([str(best), str(export(best, "safetensors"))])
    assert ("1.0000" in capsys.readouterr().out) is (kind != "value")  # the agreement


def test_several_classes_of_images_have_an_interval(tmp_path: Path) -> None:
    best = fitted(image_config(tmp_path, "MultiLabelClassification", "classes"))
    found = evaluate(best)
    right = round(found.scores["exact_match"] * found.samples)
    assert found.interval == wilson(right, found.samples)
    same = compare(found, found)
    assert same is not None
    assert (same.agreement, same.difference) == (1, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "required: PATH"),
        ("{best} --splt val", "takes no --splt. Did you mean --split?"),
        ("{best} --split train", "invalid choice: 'train'"),
        ("gone.ckpt", "gone.ckpt is no checkpoint file"),
        ("{folder}", "has no lit_foundry.json, so it is no export"),
        ("{best} --output {folder}", "name a file that ends in .json"),
        ("{best} --output scores.csv", "name a file that ends in .json"),
        ("{best} --data.", "--data. needs a value"),
        ("{best} --data.test", "--data.test needs a value"),
        ("{best} --data.tets x.csv", "--data.tets: a TextFiles takes no tets."),
        ("{best} --data.batch_size many", "--data.batch_size: it takes no 'many'."),
        ("{best} --data.batch_size 0", "--data.batch_size must be at least 1, got 0."),
        ("{best} --data.tokenizer bert", "you set data.tokenizer"),
        ("{onnx} --data.target value", "you set data.target"),
        ("{best} --data.test gone.csv", "gone.csv: no such file"),
        ("{best} --data.test null", "data.test is not set"),
        ("{best} --data.test {folder}/unlabelled.csv", "unlabelled.csv"),
        ("{onnx} --data.test {folder}/unlabelled.csv", "unlabelled.csv"),
        ("{best} --import no_such_module", "no_such_module"),
    ],
)
def test_mistake_is_one_line(words: str, said: str, best: Path) -> None:
    places = {"best": best, "folder": best.parents[4], "onnx": exported(best, "onnx")}
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        evaluation.main([word.format(**places) for word in words.split()])
    assert said in str(caught.value)
    assert foreseen(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_what_predicts_nothing_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path / "lm.yaml", corpus_config(tmp_path))
    best = fitted(config, "--trainer.max_epochs", "1")
    with pytest.raises(UsageError, match="holds a MaskedLM, which predicts nothing"):
        evaluate(best)
    with pytest.raises(UsageError, match="holds a network for fill-mask, which predicts nothing"):
        evaluate(export(best, "hf"))


def test_public_names_still_load(best: Path) -> None:
    assert lit_foundry.load(exported(best, "onnx")).predict("a great plot").probs.shape == (1, 2)
