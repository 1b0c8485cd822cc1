"""A fit's nearest neighbours: scored as by hand, in eval mode, without a trace in the training."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_foundry.callbacks import EMA, KNN
from lit_foundry.checkpoints.files import load_data, load_task, read_checkpoint
from lit_foundry.cli.main import main
from lit_foundry.training.probing.encoder import Encoder
from lit_foundry.training.probing.knn import WeightedKNN, nearest
from lit_foundry.training.probing.projection import projected
from tests.conftest import REPO, corpus_config, digits_config, tiny_config, write_config
from tests.labelled import text_config
from tests.processes import run

ADDED = ["--trainer.callbacks+=KNN", "--trainer.callbacks.k=9"]


def logged(folder: Path) -> list[float]:
    """Return val/knn of each validation."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["val/knn"]) for row in csv.DictReader(file) if row.get("val/knn")]


def by_hand(path: Path, k: int, most: int | None = None) -> float:
    """Score a checkpoint in whole splits."""
    task: Any = load_task(path)
    data: Any = load_data(path)
    found = []
    for split in ("train", "val"):
        dataset = data.load(split)
        count = len(dataset)
        taken = min(count, most or count) if split == "train" else count
        batch = dataset[[i * count // taken for i in range(taken)]]
        with torch.no_grad():
            found.append((task.backbone.encode(batch).pooled, batch["label"]))
    (bank, label), (queries, truth) = found
    return float((nearest(queries, bank, label, k) == truth).float().mean())


def test_score_is_that_of_the_validated_network_in_eval_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(tmp_path / "digits.yaml", digits_config(tmp_path))  # it has BatchNorm
    cli = main(["fit", "--config", str(path), *ADDED, "--trainer.max_epochs", "3"])
    scores = logged(cli.run.path)
    assert len(scores) == 3
    told = json.loads((cli.run.path / "knn.json").read_text(encoding="utf-8"))
    assert [each["score"] for each in told["all"]] == pytest.approx(scores, abs=1e-6)
    assert told["final"] == told["all"][-1]
    assert told["best"]["score"] == max(each["score"] for each in told["all"])
    [last] = (cli.run.path / "checkpoints").glob("recovery-*.ckpt")
    assert by_hand(last, 9) == pytest.approx(scores[-1], abs=1e-6)
    assert scores[-1] > 0.2  # chance is 0.1
    said = capsys.readouterr().out
    assert f"{scores[-1]:.4f} (epoch 2, step 27) at the end" in said
    assert f"{max(scores):.4f} (epoch {told['best']['epoch']}" in said


def test_training_is_the_same_to_the_bit_without_it(tiny: Path) -> None:
    states = []
    for words in ([], ["--trainer.callbacks+=KNN", "--trainer.callbacks.most=30"]):
        cli = main(["fit", "--config", str(tiny), *words])
        [last] = (cli.run.path / "checkpoints").glob("recovery-*.ckpt")
        states.append(read_checkpoint(last)["state_dict"])
    assert by_hand(last, 30, most=30) == pytest.approx(logged(cli.run.path)[-1], abs=1e-6)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("order", [-1, pytest.param(1, marks=pytest.mark.slow)])
def test_averaged_weights_are_scored_where_they_are_validated(
    tiny: Path, order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    score = WeightedKNN.compute

    def noted(self: WeightedKNN) -> torch.Tensor:
        seen.append(torch.cat(self.features)[torch.cat(self.index).argsort()])
        return score(self)

    monkeypatch.setattr(WeightedKNN, "compute", noted)
    config = tiny_config(tiny.parent)
    both = [{"class_path": "KNN", "init_args": {"k": 5}}]
    both.append({"class_path": "EMA", "init_args": {"decay": 0.95}})
    config["trainer"] |= {"callbacks": both[::order], "max_epochs": 1}
    cli = main(["fit", "--config", str(write_config(tiny, config))])
    assert any(isinstance(callback, EMA) for callback in cli.trainer.callbacks)
    best = cli.run.path / "checkpoints" / "best.ckpt"  # which holds the average
    task, dataset = load_task(best), load_data(best).load("val")
    assert torch.allclose(seen[-1], Encoder(task)(dataset[range(len(dataset))]), atol=1e-5)


@pytest.mark.slow
def test_scores_go_on_across_a_resume(tiny: Path) -> None:
    cli = main(["fit", "--config", str(tiny), *ADDED])
    words = ["--resume", "required", "--trainer.max_epochs", "3"]
    main(["fit", "--config", str(tiny), *ADDED, *words])
    told = json.loads((cli.run.path / "knn.json").read_text(encoding="utf-8"))
    assert [each["epoch"] for each in told["all"]] == [0, 1, 2]


def test_data_without_classes_are_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path / "lm.yaml", corpus_config(tmp_path))
    with pytest.raises(
        ValueError, match="KNN needs a class for each sample, and Corpus has no labels"
    ):
        main(["fit", "--config", str(path), *ADDED])
    path = text_config(tmp_path, "Regression", "value")
    with pytest.raises(ValueError, match="has labels of the kind value"):
        main(["fit", "--config", str(path), *ADDED])


@pytest.mark.parametrize(
    "words", [{"k": 0}, {"temperature": -1.0}, {"most": 0}, {"most": 3, "k": 5}]
)
def test_values_outside_their_range_are_refused(words: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(words))} .*, got"):
        KNN(**words)


@pytest.mark.slow
def test_two_ranks_score_what_one_does(tiny: Path) -> None:
    config = tiny_config(tiny.parent)
    config["model"]["init_args"]["optim"]["lr"] = 1e-30  # weights stay, whatever the ranks sum
    write_config(tiny, config)
    scores = []
    for ranks in (1, 2):
        overlay = REPO / "configs" / "trainer" / "ddp.yaml"
        ddp = yaml.safe_load(overlay.read_text(encoding="utf-8")) if ranks == 2 else {}
        path = write_config(tiny.parent / "ddp.yaml", ddp)
        words = ["--config", str(path), "--experiment", str(ranks), "--trainer.accelerator", "cpu"]
        assert run(["fit", "--config", str(tiny), *words, *ADDED], ranks) == 0
        scores.append(logged(tiny.parent / "runs" / str(ranks) / "1"))
    assert scores[0] == scores[1]
    assert len(scores[0]) == 2


def test_features_are_drawn_at_each_validation_unless_none_are_wanted(tmp_path: Path) -> None:
    path = write_config(tmp_path / "digits.yaml", digits_config(tmp_path))
    words = ["fit", "--config", str(path), *ADDED, "--trainer.max_epochs", "2"]
    drawn = main(words).run.path / "pictures"
    assert sorted(int(found.parent.name) for found in drawn.glob("*/features.png")) == [9, 18]
    plain = main([*words, "--trainer.callbacks.projection=null"]).run.path
    assert not (plain / "pictures").exists()


def test_features_are_of_samples_from_all_over_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("lit_foundry.callbacks.probing.knn.DRAWN", 9)
    monkeypatch.setattr(
        "lit_foundry.callbacks.probing.knn.show", lambda *args: shown.append(args[-1]["features"])
    )
    path = write_config(tmp_path / "digits.yaml", digits_config(tmp_path))
    cli = main(["fit", "--config", str(path), *ADDED, "--trainer.max_epochs", "1"])
    val = cli.datamodule.load("val")
    rows = [i * len(val) // 9 for i in range(9)]
    assert sorted(shown[0].classes.tolist()) == sorted(val[rows]["label"].tolist())
    with pytest.raises(ValueError, match="projection is pca, tsne or null, got umap"):
        KNN(projection="umap")  # type: ignore[arg-type]


def test_projections_are_those_of_scikit_learn() -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    torch.manual_seed(0)
    features = torch.randn(60, 12) * torch.arange(12, 0, -1)
    unit = torch.nn.functional.normalize(features.double(), dim=1).numpy()
    want = torch.from_numpy(decomposition.PCA(2, svd_solver="full").fit_transform(unit))
    found = projected(features, "pca")
    torch.testing.assert_close(found.abs(), want.abs())
    assert torch.equal(projected(features * 3, "pca").sign(), found.sign())
    for how in ("pca", "tsne"):  # of a network that collapsed
        assert projected(torch.ones(5, 3), how).tolist() == [[0.0, 0.0]] * 5  # type: ignore[arg-type]
    centred = features - features.mean(1, keepdim=True)  # as a LayerNorm leaves them
    moved = projected(centred + 1e-6 * torch.randn(60, 12), "pca")
    torch.testing.assert_close(moved, projected(centred, "pca"), atol=1e-4, rtol=0)
    clusters = torch.eye(3).repeat_interleave(20, 0) + 0.01 * torch.randn(60, 3)
    plane = projected(clusters, "tsne").view(3, 20, 2)
    within = (plane - plane.mean(1, keepdim=True)).norm(dim=2).max()
    assert torch.pdist(plane.mean(1)).min() > 2 * within


def test_a_projection_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lit_foundry.training.probing.projection.find_spec", lambda name: None if name else name
    )
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-foundry\[digits\]'"):
        KNN(projection="tsne")
