"""Regression: its scores, the unit that it learns in, and its way from a fit to an export."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor
from torch.utils.data import DataLoader

import lit_foundry
from lit_foundry.callbacks import EMA
from lit_foundry.checkpoints.files import load_task
from lit_foundry.cli.main import main
from lit_foundry.data import TextFiles
from lit_foundry.export import command as exporting
from lit_foundry.report import command as reporting
from lit_foundry.tasks import Classification, Regression
from lit_foundry.training.optim import OptimConfig
from tests.labelled import gradients, image_config, records, text_config, write
from tests.tasks.test_base import Toy, seeded, trainer  # noqa: F401

SIZES = (7, 1, 30, 12)


class Scripted(Regression):
    """Takes its values from a table."""

    table: Tensor

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the rows of the table; the backbone counts for nothing."""
        rows: Tensor = self.table[batch["index"]]
        return rows + 0 * self.head(self.backbone.encode(TOKENS)).sum()


TOKENS = {"input_ids": torch.ones(1, 2, dtype=torch.long)}
TOKENS["attention_mask"] = torch.ones(1, 2, dtype=torch.bool)


def texts(folder: Path, rows: int = 48, **options: Any) -> TextFiles:
    """Return rows whose words give values around 100 away."""
    for seed, (name, count) in enumerate({"train": rows, "val": 22}.items()):
        write(folder / f"{name}.jsonl", records("value", count, seed))
    paths: Any = {name: str(folder / f"{name}.jsonl") for name in ("train", "val")}
    tokenizer = lit_foundry.TrainTokenizer(vocab_size=300)
    options = {"batch_size": 12, "target": "value"} | options
    return TextFiles(tokenizer, **paths, **options)


def model(seed: int = 0, **options: Any) -> Regression:
    """Return a regression on a Toy."""
    torch.manual_seed(seed)
    return Regression(Toy(), 1, **{"optim": OptimConfig(lr=0.02, schedule="constant")} | options)


@pytest.mark.parametrize("values", [1, 3])
def test_scores_agree_with_scipy_and_scikit_learn(values: int) -> None:
    torch.manual_seed(0)
    target = torch.randn(sum(SIZES), values).mul(4).round() + 50  # with ties
    table = target + torch.randn(sum(SIZES), values).mul(3).round()
    task = Scripted(Toy(), values, standardize=False)
    task.table = table
    label = target[:, 0] if values == 1 else target
    rows: Any = torch.arange(len(label)).split(SIZES)
    batches: Any = [{"index": index, "label": label[index]} for index in rows]
    [scores] = trainer().validate(task, DataLoader(batches, batch_size=None), verbose=False)
    assert scores["val/mae"] == pytest.approx(mean_absolute_error(target, table))
    assert scores["val/rmse"] == pytest.approx(root_mean_squared_error(target, table))
    assert scores["val/r2"] == pytest.approx(r2_score(target, table), abs=1e-6)
    assert scores["val/loss"] == pytest.approx(float((table - target).square().mean()))
    for name, by in {"pearson": pearsonr, "spearman": spearmanr}.items():
        each = [by(target[:, k], table[:, k]).statistic for k in range(values)]
        assert scores[f"val/{name}"] == pytest.approx(sum(each) / values, abs=1e-6)


def test_one_sample_and_constant_values_have_finite_scores() -> None:
    for target in (torch.tensor([[2.0]]), torch.full((4, 1), 2.0)):
        metrics = model().scores.of("val")
        metrics.update(torch.full_like(target, 3.0), target)
        assert all(score.isfinite() for score in metrics.compute().values())


@pytest.mark.parametrize(
    ("loss", "want"), [("mse", 2.125), ("mae", 1.25), ("huber", (2 - 0.5 + 0.125) / 2)]
)
def test_losses_are_those_of_deviations(loss: Any, want: float) -> None:
    task = Scripted(Toy(), 1, loss=loss)
    task.head.learn(torch.tensor([0.0, 20.0]))  # of mean and deviation 10
    task.table = torch.tensor([[20.0], [5.0]])
    batch = {"index": torch.arange(2), "label": torch.tensor([0.0, 10.0])}
    assert task.step(batch, "train").loss.item() == pytest.approx(want)


def test_it_begins_at_the_mean_of_the_training_split_and_a_checkpoint_holds_that(
    tmp_path: Path,
) -> None:
    data, task = texts(tmp_path), model(optim=OptimConfig(lr=1e-9))
    fit = trainer(limit_val_batches=0)
    fit.fit(task, data)
    labels = torch.as_tensor(data.load("train").labels)
    assert task.head.mean.item() == pytest.approx(float(labels.mean()))
    assert task.head.deviation.item() == pytest.approx(float(labels.std(correction=0)))
    batch: Any = data.load("train")[range(8)]
    task.eval()
    assert (task(batch) - labels.mean()).abs().max() < 0.2 * labels.std()
    fit.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_task(tmp_path / "a.ckpt")
    torch.testing.assert_close(loaded(batch), task(batch), rtol=0, atol=0)


def test_unit_of_the_targets_changes_nothing_but_the_unit(tmp_path: Path) -> None:
    found = []
    for scale in (1, 1000):
        rows = [row | {"label": scale * row["label"]} for row in records("value", 48, 0)]
        data = texts(tmp_path)
        write(tmp_path / "train.jsonl", rows)
        task = model()
        trainer(limit_val_batches=0).fit(task, data)
        task.eval()
        batch: Any = data.load("train")[range(8)]
        found.append(task(batch) / scale)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-3)


def test_averages_of_weights_keep_the_unit(tmp_path: Path) -> None:
    task, data = model(), texts(tmp_path)
    fit = trainer(EMA(decay=0.5))
    fit.fit(task, data)
    assert task.head.mean.item() == pytest.approx(float(data.load("train").labels.mean()))
    assert float(fit.callback_metrics["val/mae"]) < 100


def test_data_that_do_not_tell_their_targets_are_refused() -> None:
    batch = {**TOKENS, "index": torch.arange(1), "label": torch.ones(1)}
    loader: Any = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model\.standardize=false"):
        trainer().fit(model(), loader, loader)
    trainer().fit(model(standardize=False), loader, loader)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_targets_are_not_rounded(precision: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"precision={precision} would round targets"):
        trainer(precision=precision).fit(model(), texts(tmp_path))


def test_overfits_one_batch(tmp_path: Path) -> None:
    data, task = texts(tmp_path, rows=12), model()
    fit = trainer(max_epochs=80, limit_val_batches=0)
    fit.fit(task, data)
    assert float(fit.callback_metrics["train/loss"]) < 0.02


def test_micro_batches_give_the_gradients_of_the_whole(tmp_path: Path) -> None:
    dataset, task = texts(tmp_path).load("train"), model()
    task.head.learn(torch.as_tensor(dataset.labels))
    whole = gradients(task, [dataset[range(12)]])
    parts = gradients(task, [dataset[range(5)], dataset[range(5, 12)]])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "label", ["label", pytest.param(["label", "other"], marks=pytest.mark.slow)]
)
def test_text_goes_from_fit_to_export(label: Any, tmp_path: Path) -> None:
    config = text_config(tmp_path, "Regression", "value", label=label, id="text")
    cli = main(["fit", "--config", str(config)])
    assert cli.model.num_values == (1 if label == "label" else 2)
    assert float(cli.trainer.callback_metrics["val/pearson"]) > 0.5
    best = cli.run.path / "checkpoints" / "best.ckpt"
    main(["test", "--ckpt_path", str(best)])
    out = tmp_path / "out.jsonl"
    test = str(tmp_path / "test.jsonl")
    main(["predict", "--ckpt_path", str(best), "--input", test, "--output", str(out)])
    said = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    reporting.write([cli.run.path], tmp_path / "report")
    inputs = [row["text"] for row in records("value", 32, 1)]
    wanted = lit_foundry.load(best).predict(inputs).values
    assert wanted.shape == ((32,) if label == "label" else (32, 2))
    told = [row["value"] if label == "label" else [*row["value"].values()] for row in said]
    torch.testing.assert_close(torch.tensor(told), wanted, rtol=1e-4, atol=1e-4)
    for format in ("hf", "safetensors") if label == "label" else exporting.TOLERANCE:
        folder = exporting.export(best, format)
        found = lit_foundry.load(folder).predict(inputs).values
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)
    if label == "label":
        from transformers import pipeline

        pipe = pipeline("text-classification", str(best.parents[1] / "export/hf"), device="cpu")
        [found] = pipe([inputs[0]])
        assert found["score"] == pytest.approx(float(wanted[0]), rel=1e-4)


@pytest.mark.slow
def test_images_go_from_fit_to_export(tmp_path: Path) -> None:
    cli = main(["fit", "--config", str(image_config(tmp_path, "Regression", "value"))])
    assert float(cli.trainer.callback_metrics["val/pearson"]) > 0.8
    best = cli.run.path / "checkpoints" / "best.ckpt"
    main(["test", "--ckpt_path", str(best)])
    reporting.main([str(cli.run.path), "--batch"])
    files = [tmp_path / f"test{i}.png" for i in range(16)]
    wanted = lit_foundry.load(best).predict(files).values
    found = lit_foundry.load(exporting.export(best, "onnx")).predict(files).values
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-2)
    assert 990 < float(wanted.mean()) < 1040


def test_pairs_of_texts_have_values(tmp_path: Path) -> None:
    config = text_config(tmp_path, "Regression", "value", text=["text", "second"])
    for name in ("train", "test"):
        path = tmp_path / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        write(path, [json.loads(line) | {"second": "warm"} for line in lines])
    cli = main(["fit", "--config", str(config), "--trainer.max_epochs", "1"])
    predictor = lit_foundry.load(cli.run.path / "checkpoints" / "best.ckpt")
    assert predictor.predict([("the cold", "warm"), ("a", "b")]).values.shape == (2,)


def test_labels_of_another_kind_are_refused(tmp_path: Path) -> None:
    message = r"Regression predicts labels of the kind value, and TextFiles has class"
    with pytest.raises(ValueError, match=message):
        model().check_data(texts(tmp_path, target="class"))
    with pytest.raises(ValueError, match=r"Classification predicts .* and TextFiles has value"):
        Classification(Toy(), 2).check_data(texts(tmp_path))
    with pytest.raises(ValueError, match=r"model\.num_values must be at least 1, got None"):
        Regression(Toy())
