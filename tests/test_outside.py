"""A paradigm and a dataset outside of the package need no edit inside of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lit_foundry
from lit_foundry.cli.main import main
from lit_foundry.export.command import export
from lit_foundry.report.command import main as report
from lit_foundry.runs.predictions import Predictions
from tests.conftest import REPO, tiny_config, write_config

SOURCES = sorted((REPO / "tests" / "outside").glob("[!_]*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_each_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40


def words(count: int, seed: int) -> list[dict[str, Any]]:
    """Make pairs of words, of which one half begins alike."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(97, 123, (2, count, 6)).astype(np.uint8)
    alike = rng.random(count) < 0.5
    second[alike, :3] = first[alike, :3]
    texts = [[bytes(w).decode() for w in some] for some in (first, second)]
    triples = zip(*texts, alike.tolist(), strict=True)
    return [{"first": a, "second": b, "score": float(score)} for a, b, score in triples]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outside")
    for number, (split, count) in enumerate({"train": 128, "val": 48, "test": 48}.items()):
        lines = [json.dumps(row) for row in words(count, number)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    content = tiny_config(folder)
    encoder = content["model"]["init_args"].pop("backbone")
    optim = {"lr": 3e-3, "schedule": "constant", "warmup": 0.0}
    content["model"] = {
        "class_path": "tests.outside.siamese.Siamese",
        "init_args": {"encoder": encoder, "optim": optim},
    }
    content["data"] = {
        "class_path": "tests.outside.pairs.Pairs",
        "init_args": {"folder": str(folder)},
    }
    content["trainer"] |= {"max_epochs": 4}
    return write_config(folder / "pairs.yaml", content)


@pytest.fixture(scope="module")
def best(config: Path) -> Path:
    fitted = main(["fit", "--config", str(config), "--experiment", "whole"])
    main(["test", "--ckpt_path", str(fitted.run.checkpoints / "best.ckpt")])
    return fitted.run.checkpoints / "best.ckpt"


def test_it_learns_and_is_recorded(best: Path) -> None:
    run = best.parent.parent
    scores = json.loads((run / "test.json").read_text(encoding="utf-8"))
    found = Predictions.read(run / "predictions" / "test.parquet")
    assert found.kind == "value"
    value, target = (np.array(found.columns[name]) for name in ("value", "target"))
    assert np.abs(value - target).mean() == pytest.approx(scores["test/mae"], abs=1e-6)
    assert np.corrcoef(value, target)[0, 1] > 0.3


def test_it_resumes_to_the_same_bits(config: Path, best: Path) -> None:
    words = ["fit", "--config", str(config), "--experiment", "cut", "--save_every_n_steps", "1"]
    main([*words, "--trainer.max_steps", "13"])
    again = main([*words, "--resume", "required"])
    whole, cut = (
        torch.load(path / "best.ckpt", weights_only=True)["state_dict"]
        for path in (best.parent, again.run.checkpoints)
    )
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_it_predicts_and_reports(best: Path, tmp_path: Path) -> None:
    pairs = [{k: row[k] for k in ("first", "second")} for row in words(5, 9)]
    file, output = tmp_path / "pairs.jsonl", tmp_path / "said.jsonl"
    file.write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    main(["predict", "--ckpt_path", str(best), "--input", str(file), "--output", str(output)])
    told = [json.loads(line)["value"] for line in output.read_text(encoding="utf-8").splitlines()]
    assert lit_foundry.load(best).predict(pairs).values.tolist() == pytest.approx(told, abs=1e-5)
    report([str(best.parent.parent)])
    page = (best.parent.parent / "report" / "index.html").read_text(encoding="utf-8")
    assert "RMSE" in page
    assert "onfusion" not in page


@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_it_is_exported(best: Path, tmp_path: Path, format: str) -> None:
    folder = export(best, format, tmp_path / format)
    pairs = words(7, 11)
    expected = lit_foundry.load(best).predict(pairs).values
    assert torch.allclose(lit_foundry.load(folder).predict(pairs).values, expected, atol=1e-4)


def test_what_transformers_lacks_is_refused_in_a_line(best: Path) -> None:
    with pytest.raises(ValueError, match=r"^transformers has no model like this network: export"):
        export(best, "hf")
