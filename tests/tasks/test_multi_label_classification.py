"""Several classes at once: their scores, their loss, and their way from a fit to an export."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torch import Tensor
from torch.utils.data import DataLoader

import lit_foundry
from lit_foundry.checkpoints.files import load_task
from lit_foundry.cli.main import main
from lit_foundry.data import TextFiles
from lit_foundry.export import command as exporting
from lit_foundry.nn.image.mixing import Mixing
from lit_foundry.randomness import Moment
from lit_foundry.report import command as reporting
from lit_foundry.tasks import Classification, MultiLabelClassification
from lit_foundry.training.optim import OptimConfig
from tests.images import Patches
from tests.labelled import gradients, image_config, records, text_config, write
from tests.tasks.test_base import Toy, seeded, trainer  # noqa: F401

SIZES = (7, 1, 30, 12)


class Scripted(MultiLabelClassification):
    """Takes its logits from a table."""

    table: Tensor

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the rows of the table."""
        return self.table[batch["index"]]


def scripted(**options: Any) -> tuple[Scripted, Tensor, Tensor, DataLoader[Any]]:
    torch.manual_seed(0)
    logits = torch.randn(sum(SIZES), 4).mul(2).round()  # with equal ones
    label = (torch.rand(sum(SIZES), 4) < (logits / 2).sigmoid()).float()
    task = Scripted(Toy(), 4, **options)
    task.table = logits
    rows: Any = torch.arange(len(label)).split(SIZES)
    batches: Any = [{"index": index, "label": label[index]} for index in rows]
    return task, logits, label, DataLoader(batches, batch_size=None)


def texts(folder: Path, rows: int = 48, **options: Any) -> TextFiles:
    """Return rows whose words give their classes away."""
    for seed, (name, count) in enumerate({"train": rows, "val": 22}.items()):
        write(folder / f"{name}.jsonl", records("classes", count, seed))
    paths: Any = {name: str(folder / f"{name}.jsonl") for name in ("train", "val")}
    tokenizer = lit_foundry.TrainTokenizer(vocab_size=300)
    return TextFiles(tokenizer, **paths, **{"batch_size": 12, "target": "classes"} | options)


def model(**options: Any) -> MultiLabelClassification:
    """Return a classifier on a Toy."""
    torch.manual_seed(0)
    optim = OptimConfig(lr=0.02, schedule="constant")
    return MultiLabelClassification(Toy(), 3, **{"optim": optim} | options)


def test_scores_agree_with_scikit_learn() -> None:
    task, logits, label, loader = scripted()
    [scores] = trainer().test(task, loader, verbose=False)
    preds = logits > 0
    want = {f"f1_{mean}": f1_score(label, preds, average=mean) for mean in ("macro", "micro")}
    want["map"] = average_precision_score(label, logits.sigmoid(), average="macro")
    want["exact_match"] = accuracy_score(label, preds)
    want["loss"] = float(F.binary_cross_entropy_with_logits(logits, label))
    assert scores == pytest.approx({f"test/{k}": v for k, v in want.items()}, abs=1e-6)


def test_classes_that_never_apply_are_left_out_of_the_mean_precision() -> None:
    metrics = model().scores.of("val")
    metrics.update(torch.rand(9, 3), torch.tensor([[1, 0, 0]] * 9))
    assert metrics.compute()["val/map"] == 1
    metrics.reset()
    metrics.update(torch.rand(9, 3), torch.zeros(9, 3, dtype=torch.long))
    assert metrics.compute()["val/map"] == 0


def test_weights_are_of_classes_that_apply() -> None:
    weights = [1.0, 5.0, 0.5, 2.0]
    task, logits, label, loader = scripted(pos_weight=weights)
    [scores] = trainer().validate(task, loader, verbose=False)
    terms = F.binary_cross_entropy_with_logits(logits, label, reduction="none")
    want = (terms * torch.where(label == 1, torch.tensor(weights), 1)).mean()
    assert scores["val/loss"] == pytest.approx(float(want), abs=1e-6)
    with pytest.raises(ValueError, match=r"model\.pos_weight has 1 numbers for 3 classes"):
        model(pos_weight=[1.0])
    with pytest.raises(ValueError, match=r"model\.pos_weight are above 0"):
        model(pos_weight=[1.0, 0.0, 1.0])


def test_overfits_one_batch_and_a_checkpoint_holds_it(tmp_path: Path) -> None:
    data, task = texts(tmp_path, rows=12), model()
    fit = trainer(max_epochs=100, limit_val_batches=0)
    fit.fit(task, data)
    assert float(fit.callback_metrics["train/loss"]) < 0.1
    assert float(fit.callback_metrics["train/f1_micro"]) == 1
    fit.save_checkpoint(tmp_path / "a.ckpt")
    batch: Any = data.load("train")[range(8)]
    task.eval()
    loaded = load_task(tmp_path / "a.ckpt")
    torch.testing.assert_close(loaded(batch), task(batch), rtol=0, atol=0)


def test_micro_batches_give_the_gradients_of_the_whole(tmp_path: Path) -> None:
    dataset, task = texts(tmp_path).load("train"), model()
    whole = gradients(task, [dataset[range(12)]])
    parts = gradients(task, [dataset[range(5)], dataset[range(5, 12)]])
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_mixed_images_have_the_shares_of_both_sets() -> None:
    images = torch.rand(6, 3, 8, 8) * 255
    label = torch.randint(2, (6, 4)).float()
    mixing = Mixing(mixup=1.0)
    _, shares = mixing(images, torch.arange(6), torch.arange(6), 6, Moment())
    _, target = mixing(images, label, torch.arange(6), 4, Moment())
    torch.testing.assert_close(target, shares @ label)
    task = MultiLabelClassification(Patches(), 4, mixing=mixing)
    batch = {"pixel_values": images.byte(), "index": torch.arange(6), "label": label}
    logits = task(task.view(batch, "train"))
    want = F.binary_cross_entropy_with_logits(logits, target)
    assert task.step(batch, "train").loss.item() == pytest.approx(want.item(), abs=1e-6)


def test_text_goes_from_fit_to_export(tmp_path: Path) -> None:
    config = text_config(tmp_path, "MultiLabelClassification", "classes", id="text")
    learns = ["--model.optim.lr=2e-3", "--trainer.max_epochs=20"]
    learns.append("--trainer.check_val_every_n_epoch=10")
    cli = main(["fit", "--config", str(config), "--data.val_fraction", "0.3", *learns])
    assert float(cli.trainer.callback_metrics["val/map"]) > 0.7  # chance is about a half
    best = cli.run.path / "checkpoints" / "best.ckpt"
    main(["test", "--ckpt_path", str(best)])
    out = tmp_path / "out.jsonl"
    test = str(tmp_path / "test.jsonl")
    main(["predict", "--ckpt_path", str(best), "--input", test, "--output", str(out)])
    said = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    reporting.write([cli.run.path], tmp_path / "report")
    inputs = [row["text"] for row in records("classes", 32, 1)]
    wanted = lit_foundry.load(best).predict(inputs)
    assert wanted.labels == [row["labels"] for row in said]
    assert wanted.probs.std(0).min() > 0.01
    for format in ("hf", "safetensors", "onnx"):  # images go through torch
        found = lit_foundry.load(exporting.export(best, format)).predict(inputs)
        torch.testing.assert_close(found.probs, wanted.probs, rtol=0, atol=1e-4)
    from transformers import pipeline

    folder = str(best.parents[1] / "export/hf")
    [found] = pipeline("text-classification", folder, device="cpu", top_k=None)([inputs[0]])
    scores = {row["label"]: row["score"] for row in found}
    assert [scores[name] for name in ("art", "law", "sport")] == pytest.approx(
        wanted.probs[0].tolist(), abs=1e-4
    )
    with pytest.raises(ValueError, match=r"you set data\.label_delimiter: '\|' -> ';'"):
        main(["test", "--ckpt_path", str(best), "--data.label_delimiter", ";"])
    with pytest.raises(ValueError, match=r"you set data\.target: 'classes' -> 'class'"):
        main(["test", "--ckpt_path", str(best), "--data.target", "class"])


def test_images_go_from_fit_to_export(tmp_path: Path) -> None:
    config = str(image_config(tmp_path, "MultiLabelClassification", "classes"))
    cli = main(["fit", "--config", config, "--model.mixing.cutmix", "1"])
    assert float(cli.trainer.callback_metrics["val/map"]) > 0.8
    best = cli.run.path / "checkpoints" / "best.ckpt"
    main(["test", "--ckpt_path", str(best)])
    reporting.main([str(cli.run.path), "--batch"])
    files = [tmp_path / f"test{i}.png" for i in range(16)]
    wanted = lit_foundry.load(best).predict(files)
    found = lit_foundry.load(exporting.export(best, "torch")).predict(files)
    assert found.labels == wanted.labels


def test_one_class_alone_may_apply_or_not() -> None:
    task = MultiLabelClassification(Toy(), 1)
    metrics = task.scores.of("val")
    metrics.update(torch.tensor([[0.9], [0.2], [0.6]]), torch.tensor([[1], [0], [0]]))
    scores = metrics.compute()
    assert scores["val/f1_macro"].item() == pytest.approx(2 / 3)
    assert scores["val/exact_match"].item() == pytest.approx(2 / 3)


def test_labels_of_another_kind_are_refused(tmp_path: Path) -> None:
    message = r"MultiLabelClassification predicts labels of the kind classes, .* has class"
    rows = [row | {"label": ["x", "y"][i % 2]} for i, row in enumerate(records("value", 9, 0))]
    data = texts(tmp_path, target="class")
    write(tmp_path / "train.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        model().check_data(data)
    with pytest.raises(ValueError, match=r"Classification predicts .* and TextFiles has classes"):
        Classification(Toy(), 3).check_data(texts(tmp_path))
    with pytest.raises(ValueError, match=r"model\.num_classes must be at least 1, got None"):
        MultiLabelClassification(Toy())
