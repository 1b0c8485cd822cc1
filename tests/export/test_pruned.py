"""Pruned and factorized networks from the command line to exports, transfer and distillation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lit_foundry
from lit_foundry.checkpoints.files import load_task
from lit_foundry.cli.main import main
from lit_foundry.export import command as exporting
from lit_foundry.nn.text.generation import generate
from tests.conftest import (
    REPO,
    corpus_config,
    digits_config,
    reviews,
    tiny_config,
    write_config,
    write_csv,
)

TEXTS = ["a bright story with great actors", "dull", "the city at night"]
WORDS = ["--trainer.max_steps=6", "--trainer.val_check_interval=3"]
PRUNING = {"target": 0.6, "begin": 0.3, "end": 0.6, "rounds": 2, "multiple_of": 4}


def fit(folder: Path, config: dict[str, Any], name: str, *more: str, **callback: Any) -> Any:
    """Fit six steps with a callback."""
    config["trainer"]["callbacks"] = [{"class_path": name, "init_args": callback}]
    path = write_config(folder / f"{name.lower()}.yaml", config)
    return main(["fit", "--config", str(path), *WORDS, *more])


def best(cli: Any) -> Path:
    path: Path = cli.run.path / "checkpoints" / "best.ckpt"
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a config and data."""
    folder = tmp_path_factory.mktemp("text")
    for name, count in {"train": 60, "test": 20}.items():
        write_csv(folder / f"{name}.csv", reviews(count, seed=0))
    return folder


@pytest.fixture(scope="module")
def pruned(text: Path) -> Path:
    return best(fit(text, tiny_config(text), "Pruning", **PRUNING))


def exported(checkpoint: Path, format: str) -> Path:
    folder = exporting.export(checkpoint, format)
    said = json.loads((folder / "lit_foundry.json").read_text(encoding="utf-8"))
    assert said["difference"] <= exporting.TOLERANCE[format]
    return folder


@pytest.mark.parametrize("format", ["safetensors", "torch", "onnx"])
def test_a_pruned_classifier_is_exported(pruned: Path, format: str) -> None:
    folder = exported(pruned, format)
    probs = [lit_foundry.load(place).predict(TEXTS).probs for place in (pruned, folder)]
    torch.testing.assert_close(*probs, atol=1e-4, rtol=0)


def test_transformers_has_no_config_of_layers_that_differ(pruned: Path) -> None:
    with pytest.raises(ValueError, match=r"No config of transformers describes this bert, whose"):
        exporting.export(pruned, "hf")
    assert not (pruned.parents[1] / "export" / "hf").exists()


def test_transformers_has_one_of_neurons_that_went_by_layer(text: Path) -> None:
    from transformers import pipeline

    options = PRUNING | {"target": 0.7, "parts": ["neurons"], "by_layer": True}
    checkpoint = best(fit(text, tiny_config(text), "Pruning", **options))
    folder = exported(checkpoint, "hf")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["intermediate_size"] < 64
    [found] = pipeline("text-classification", str(folder), device="cpu")(TEXTS[:1])
    prob = float(lit_foundry.load(checkpoint).predict(TEXTS[0]).probs.max())
    assert found["score"] == pytest.approx(prob, abs=1e-5)


def test_a_factorized_classifier_is_exported(text: Path) -> None:
    checkpoint = best(fit(text, tiny_config(text), "LowRank", energy=0.7))
    for format in ("safetensors", "torch"):
        exported(checkpoint, format)
    with pytest.raises(ValueError, match="No config of transformers describes this bert"):
        exporting.export(checkpoint, "hf")


def test_a_pruned_network_begins_another_run_and_is_pruned_further(
    text: Path, pruned: Path
) -> None:
    tokenizer = pruned.parents[1] / "tokenizer"
    words = ["--model.init_from", str(pruned), "--data.tokenizer", str(tokenizer)]
    again = best(fit(text, tiny_config(text), "Pruning", *words, **PRUNING | {"target": 0.8}))
    first, second = load_task(pruned), load_task(again)
    sizes = [sum(p.numel() for p in task.parameters()) for task in (first, second)]
    assert sizes[1] < sizes[0]
    places = [{c["module"] for c in task.recipe()["changes"]} for task in (first, second)]  # type: ignore[operator]
    assert places[0] <= places[1]
    # Each layer has one entry, with its last size.
    assert len(second.recipe()["changes"]) == len(places[1])  # type: ignore[operator]
    assert "test/acc" in main(["test", "--ckpt_path", str(again)]).trainer.callback_metrics


def test_a_student_is_pruned_while_it_is_taught(text: Path, pruned: Path) -> None:
    config = tiny_config(text)
    student = config["model"]
    config["model"] = {
        "class_path": "Distillation",
        "init_args": {"student": student, "teacher": str(pruned)},
    }
    config["data"]["init_args"]["tokenizer"] = str(pruned.parents[1] / "tokenizer")
    checkpoint = best(fit(text, config, "Pruning", **PRUNING))
    task = load_task(checkpoint)
    assert type(task).__name__ == "Classification"
    assert all(c["module"].startswith("backbone.") for c in task.recipe()["changes"])  # type: ignore[operator]


def test_a_pruned_image_classifier_is_exported(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    config = digits_config(tmp_path)
    options = PRUNING | {"score": "taylor", "multiple_of": 1}
    checkpoint = best(fit(tmp_path, config, "Pruning", "--trainer.val_check_interval=9", **options))
    for format in ("safetensors", "torch", "onnx"):
        exported(checkpoint, format)


def test_a_pruned_language_model_writes_on(tmp_path: Path) -> None:
    config = corpus_config(tmp_path, "CausalLM")
    llama = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    llama |= {"model_type": "llama", "intermediate_size": 64, "max_position_embeddings": 64}
    config["model"]["init_args"]["backbone"]["init_args"]["config"] = llama
    config["model"]["init_args"]["generation"] = {"max_tokens": 8, "temperature": 0.0}
    cli = fit(tmp_path, config, "Pruning", **PRUNING)  # and has written at each validation
    task: Any = load_task(best(cli))
    assert {c["module"].split(".")[-2] for c in task.recipe()["changes"]} == {"self_attn", "mlp"}
    ids = torch.randint(5, 200, (1, 8), generator=torch.Generator().manual_seed(0))
    [more] = generate(task.writer, ids, ids > 0, task.generation, 64, 0, 1, None)
    task.eval()
    with torch.no_grad():
        for _ in more:
            last = task.backbone(ids, ids > 0).tokens[:, -1]
            logits = task.head(last, task.head.decoder_weight(task.backbone))
            ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), 1)
    assert ids[0, 8:].tolist() == more.tolist()
    with pytest.raises(ValueError, match=r"No config of transformers describes this llama"):
        exporting.export(best(cli), "hf")


IN_ANOTHER_PROCESS = """
import json, sys
import lit_foundry
from lit_foundry.cli.main import main
from tests.conftest import reviews
texts, labels = zip(*reviews(20, seed=0))
found = lit_foundry.load(sys.argv[1]).predict([*texts])
right = sum(map(str.__eq__, found.labels, labels))
scores = main(["validate", "--ckpt_path", sys.argv[1]]).trainer.callback_metrics
print(json.dumps([float(scores["val/acc"]), right / 20, found.probs.tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "target", "left"), [("heads", 0.75, {1}), ("neurons", 0.63, {4})]
)
def test_the_best_of_a_pruned_run_scores_alike_in_another_process(
    text: Path, parts: str, target: float, left: set[int]
) -> None:
    options = {"target": target, "parts": [parts], "least": 0.0, "score": "taylor"}
    cli = fit(text, tiny_config(text), "Pruning", **PRUNING | options)
    checkpoint = best(cli)
    task: Any = load_task(checkpoint)
    layers: Any = task.backbone.encoder.encoder.layer
    counts = {
        "heads": {layer.attention.self.num_attention_heads for layer in layers},
        "neurons": {layer.intermediate.dense.out_features for layer in layers},
    }
    assert counts[parts] == left
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(checkpoint)]
    path = os.pathsep.join((str(REPO), os.environ.get("PYTHONPATH", "")))
    environment = os.environ | {"PYTHONPATH": path}
    said = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    val, right, probs = json.loads(said.stdout.splitlines()[-1])
    summary = json.loads((cli.run.path / "summary.json").read_text(encoding="utf-8"))
    assert summary["best_metric"] == "val/acc"
    assert val == summary["best_score"]
    tested = main(["test", "--ckpt_path", str(checkpoint)]).trainer.callback_metrics
    assert right == pytest.approx(float(tested["test/acc"]), abs=1e-6)
    texts = [words for words, _ in reviews(20, seed=0)]
    assert probs == lit_foundry.load(checkpoint).predict(texts).probs.tolist()
