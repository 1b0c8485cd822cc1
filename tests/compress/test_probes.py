"""Features are scored as by hand, once on the test split, with what others lack in the table."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lit_foundry
from lit_foundry.__main__ import foreseen
from lit_foundry.checkpoints.files import load_data, load_task
from lit_foundry.cli.evaluate_command import main
from lit_foundry.compress import features, finetuning, probes
from lit_foundry.compress.confidence import wilson
from lit_foundry.data import Digits, TextFiles
from lit_foundry.nn import TextEncoder
from lit_foundry.tasks import MaskedLM
from lit_foundry.training.probing.knn import nearest
from lit_foundry.training.probing.linear import linear_probe
from tests.conftest import reviews, write_config, write_csv
from tests.labelled import records, write
from tests.probed import BERT, TOKENIZER, of_images, of_texts, saved


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    return of_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_csv(folder / "train.csv", reviews(120, seed=0))
    write_csv(folder / "test.csv", reviews(40, seed=1))
    files = {name: str(folder / f"{name}.csv") for name in ("train", "test")}
    args = {**files, "tokenizer": "gone", "max_length": 32}  # that of the checkpoint is taken
    data = {"class_path": "TextFiles", "init_args": args}
    write_config(folder / "part.yaml", data)
    write_config(folder / "reviews.yaml", {"data": "part.yaml", "trainer": {"max_epochs": 1}})
    below = {"config": "reviews.yaml", "data": {"init_args": {"split_seed": 5}}}
    write_config(folder / "below.yaml", below)
    return of_texts(folder)


def told(folder: Path, *words: str | Path) -> list[dict[str, Any]]:
    """Run the command; return its rows."""
    output = folder / "scores.json"
    main([*map(str, words), "--output", str(output)])
    found: list[dict[str, Any]] = json.loads(output.read_text(encoding="utf-8"))["probes"]
    return found


def whole(task: Any, data: Any, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features of a split in one batch, in eval mode, and its labels."""
    dataset = data.load(split)
    batch = dataset[range(len(dataset))]
    with torch.no_grad():
        return task.eval().backbone.encode(batch).pooled, batch["label"]


def test_scores_are_those_of_whole_splits_in_eval_mode(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--by", "linear", "knn", "--baselines", "--k", "9"]
    rows = told(tmp_path, "--ckpt_path", images, *words)
    assert [(row["artifact"], row["by"]) for row in rows] == [
        (name, by)
        for name in (str(images), f"untrained {images}", "raw pixels")
        for by in ("knn", "linear")
    ]
    task, data = load_task(images), load_data(images)  # it has BatchNorm
    train, val, test = (whole(task, data, split) for split in ("train", "val", "test"))
    right = int((nearest(test[0], *train, 9) == test[1]).sum())
    assert rows[0]["accuracy"] == pytest.approx(right / len(test[1]))
    assert tuple(rows[0]["interval"]) == pytest.approx(wilson(right, len(test[1])))
    on_val = (nearest(val[0], *train, 9) == val[1]).float().mean()
    assert rows[0]["val"] == pytest.approx(float(on_val))
    probe = linear_probe(train, val)
    assert rows[1]["settings"] == f"l2 {probe.l2:g}"
    said = probe.logits(test[0]).argmax(1) == test[1]
    assert rows[1]["accuracy"] == pytest.approx(float(said.float().mean()), abs=2 / len(said))
    assert rows[1]["labels"] == 300
    pixels = [data.load(split)[range(len(data.load(split)))] for split in ("train", "test")]
    flat = [batch["pixel_values"].flatten(1).float() for batch in pixels]
    near = nearest(flat[1], flat[0], pixels[0]["label"], 9) == pixels[1]["label"]
    assert rows[4]["accuracy"] == pytest.approx(float(near.float().mean()), abs=1e-6)
    assert f"{rows[0]['accuracy']:.4f}" in capsys.readouterr().out


def test_untrained_weights_are_those_that_a_fit_begins_with(images: Path) -> None:
    data: Any = load_data(images)
    one = features.untrained(images, data, "default", torch.device("cpu")).encode
    torch.rand(1)
    two: Any = features.untrained(images, data, "default", torch.device("cpu")).encode
    theirs: Any = load_task(images)
    for name, value in two.backbone.state_dict().items():
        assert torch.equal(value, one.backbone.state_dict()[name])  # type: ignore[attr-defined]
        if name.endswith("running_mean"):
            assert not value.any()
    trained = theirs.backbone.state_dict()
    assert any(trained[n].any() for n in trained if n.endswith("running_mean"))


def test_features_of_texts_without_labels_are_scored_on_other_data(
    texts: Path, tmp_path: Path
) -> None:
    config = texts.parent / "reviews.yaml"
    rows = told(tmp_path, texts, "--by", "knn", "linear", "--data", config, "--baselines")
    assert [row["artifact"] for row in rows] == [str(texts)] * 2 + [f"untrained {texts}"] * 2
    assert [row["samples"] for row in rows] == [40] * 4
    tokenizer = texts.parent / "tokenizer"
    lit_foundry.load_data(texts).tokenizer.save_pretrained(tokenizer)
    own = yaml.safe_load((texts.parent / "part.yaml").read_text(encoding="utf-8"))["init_args"]
    data = TextFiles(**own | {"tokenizer": str(tokenizer)})
    train, test = (whole(load_task(texts), data, split) for split in ("train", "test"))
    said = nearest(test[0], *train) == test[1]
    assert rows[0]["accuracy"] == pytest.approx(float(said.float().mean()), abs=1e-6)
    assert rows[0]["labels"] == 108
    other = told(tmp_path, texts, "--by", "knn", "--data", texts.parent / "below.yaml")
    assert other[0]["samples"] == 40
    [pooled] = told(tmp_path, texts, "--by", "linear", "--data", config, "--pooling", "first")
    assert [pooled[k] != rows[1][k] for k in ("val", "settings")] != [False, False]


def test_labels_that_a_checkpoint_was_trained_without_are_read(texts: Path, tmp_path: Path) -> None:
    own = yaml.safe_load((texts.parent / "part.yaml").read_text(encoding="utf-8"))["init_args"]
    data = TextFiles(**own | {"tokenizer": TOKENIZER, "target": "none"})
    encoder = TextEncoder(config=BERT, vocab_size=data.facts["vocab_size"])
    path = saved(tmp_path / "none.ckpt", MaskedLM(encoder), data)
    with pytest.raises(ValueError, match="TextFiles has no labels: set data"):
        main([str(path), "--by", "knn"])
    [row] = told(tmp_path, path, "--by", "knn", "--data.target", "class")
    assert (row["labels"], row["samples"]) == (108, 40)


def test_the_test_split_is_read_when_all_is_chosen_and_not_for_val(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = Digits.load

    def noted(self: Any, split: Any) -> Any:
        read.append(split)
        return load(self, split)

    chosen = probes.linear_probe

    def choose(*args: Any) -> Any:
        read.append("chosen")
        return chosen(*args)

    monkeypatch.setattr(Digits, "load", noted)
    monkeypatch.setattr(probes, "linear_probe", choose)
    told(tmp_path, images, "--by", "linear", "--pooling", "mean")
    assert read == ["train", "val", "chosen", "test"]
    read.clear()
    [row] = told(tmp_path, images, "--by", "linear", "--pooling", "mean", "--split", "val")
    assert read == ["train", "val", "chosen"]
    assert row["accuracy"] == row["val"]


def test_features_are_computed_once_for_weights_data_and_pooling(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIT_FOUNDRY_CACHE", str(tmp_path / "cache"))
    made: list[str] = []
    compute = features._computed

    def noted(source: Any, data: Any, dataset: Any, split: str, device: Any) -> Any:
        made.append(split)
        return compute(source, data, dataset, split, device)

    monkeypatch.setattr(features, "_computed", noted)
    first = told(tmp_path, images, "--by", "knn")
    assert made == ["train", "val", "test"]
    assert told(tmp_path, images, "--by", "knn") == first
    assert len(made) == 3
    for path in (tmp_path / "cache" / "features").iterdir():
        path.write_bytes(path.read_bytes()[:-100])  # damaged: made anew
    assert told(tmp_path, images, "--by", "knn") == first
    assert len(made) == 6
    told(tmp_path, images, "--by", "knn", "--pooling", "mean")
    assert len(made) == 9
    told(tmp_path, images, "--by", "knn", "--data.max_train_samples", "200")
    assert len(made) > 9
    task: Any = load_task(images)
    task.backbone.stages[0][0].weight.data *= 1.1
    other = saved(tmp_path / "other.ckpt", task, load_data(images))
    before = len(made)
    told(tmp_path, other, "--by", "knn")
    assert len(made) == before + 3


def test_what_is_not_finite_is_neither_scored_nor_kept(images: Path, tmp_path: Path) -> None:
    task: Any = load_task(images)
    task.backbone.stages[0][0].weight.data[0] = torch.nan
    broken = saved(tmp_path / "broken.ckpt", task, load_data(images))
    for _ in range(2):
        with pytest.raises(
            ValueError, match="300 of 300 samples of the split train are not finite"
        ):
            main([str(broken), "--by", "knn"])


@pytest.mark.parametrize("target", ["value", "classes", "none"])
def test_labels_of_another_kind_are_refused(texts: Path, tmp_path: Path, target: str) -> None:
    kind = "value" if target == "none" else target
    files = {
        n: str(write(tmp_path / f"{n}.jsonl", records(kind, 40, 0))) for n in ("train", "test")
    }
    args = {**files, "tokenizer": "gone", "max_length": 32, "target": target}
    data = {"class_path": "TextFiles", "init_args": args}
    config = write_config(tmp_path / "data.yaml", {"data": data})
    has = "no labels" if target == "none" else f"labels of the kind {target}"
    with pytest.raises(ValueError, match=f"--by knn needs a class .* TextFiles has {has}"):
        main([str(texts), "--by", "knn", "--data", str(config)])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{texts} --by knn", "--by knn needs a class for each sample, and Corpus has no labels"),
        ("--by knn", "evaluate: name a checkpoint"),
        ("{images} --by nearest", "invalid choice: 'nearest'"),
        ("{images} --by knn --k 301", "k=301 neighbours, and the bank holds 300 samples: lower k"),
        ("{images} --by knn --k 0", "k is a number of neighbours, 1 at least"),
        ("{images} --by knn --temperature 0", "temperature must be above 0"),
        ("{images} --by knn --pooling first", "pooling first is for texts"),
        ("{images} --by knn --data gone.yaml", "gone.yaml: "),
        ("{images} --by knn --data {folder}/reviews.yaml", "ResNet9 reads ['pixel_values']"),
        ("{images} --by knn --data.size 16", "--data.size belongs to the weights"),
        ("{images} --by knn --data.siz 16", "--data.siz: a Digits takes no siz."),
        ("{texts} --by knn --data {folder}/reviews.yaml --data.max_length 512", "max_length up to"),
        ("{images} --by finetune", "--by finetune needs --config FILE"),
        ("{images} --by finetune --config x.yaml --fractions 2", "shares of the labels in (0, 1]"),
        ("{folder} --by knn", "is a folder: features are those of a checkpoint"),
        ("gone.ckpt --by knn", "gone.ckpt is no checkpoint file"),
        ("{images} --bye knn", "evaluate takes no --bye."),
    ],
)
def test_mistakes_are_one_line(images: Path, texts: Path, words: str, said: str) -> None:
    given = words.format(images=images, texts=texts, folder=texts.parent).split()
    with pytest.raises(ValueError, match=r".") as caught:
        main(given)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert foreseen(caught.value)


def test_a_missing_validation_split_is_told(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Digits.load
    monkeypatch.setattr(Digits, "load", lambda s, x: None if x == "val" else load(s, x))
    with pytest.raises(ValueError, match="Digits has no validation split, or an empty one"):
        main([str(images), "--by", "knn", "--data.split_seed", "3"])


@pytest.mark.slow
def test_fits_on_shares_of_the_labels_are_scored_and_gone_on_with(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {
        "class_path": "Classification",
        "init_args": {
            "backbone": {
                "class_path": "ResNet9",
                "init_args": {"width": 4, "mean": [0.3], "std": [0.4]},
            },
            "optim": {"lr": 5e-3},
        },
    }
    data = {"class_path": "Digits", "init_args": {"batch_size": 64, "max_train_samples": 300}}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}
    config = write_config(
        tmp_path / "tune.yaml", {"model": model, "data": data, "trainer": trainer}
    )
    monkeypatch.chdir(tmp_path)
    words = ["--by", "finetune", "--config", config, "--fractions", "0.1", "1", "--baselines"]
    rows = told(tmp_path, images, *words)
    assert [row["by"] for row in rows] == ["finetune 10 %", "finetune 100 %"] * 2
    assert [row["labels"] for row in rows] == [30, 300] * 2
    assert rows[0]["accuracy"] != rows[2]["accuracy"]
    runs = sorted(tmp_path.glob("runs/finetune-*/*/1/config.yaml"))
    begun = [yaml.safe_load(path.read_text(encoding="utf-8"))["model"] for path in runs]
    froms = [each["init_args"]["init_from"] for each in begun]
    assert sorted(map(str, froms)) == sorted(2 * [str(images), "None"])
    monkeypatch.setattr(finetuning, "fit", None)
    assert told(tmp_path, images, *words) == rows
