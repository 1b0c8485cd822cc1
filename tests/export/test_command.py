"""Exports compute what the checkpoint computes, and a failing one harms nothing."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import lit_foundry
from lit_foundry.checkpoints.exported import exported_data, open_export
from lit_foundry.checkpoints.files import CheckpointError, load_task
from lit_foundry.cli.main import main
from lit_foundry.export import command as exporting
from lit_foundry.nn.text.network import LanguageNetwork
from lit_foundry.usage import UsageError
from tests.conftest import reviews, tiny_config, write_config, write_csv

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "model_type": "bert"}
SIZES |= {"initializer_range": 0.3}  # large weights, so that a wrong one shows in the logits
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES | {"model_type": "roberta", "pad_token_id": 0, "type_vocab_size": 1},
    "distilbert": {
        "model_type": "distilbert",
        "dim": 32,
        "hidden_dim": 64,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    },
    "modernbert": SIZES
    | {
        "model_type": "modernbert",
        "pad_token_id": 0,
        "local_attention": 8,  # shorter than the texts
        "global_attn_every_n_layers": 2,
    },
}
TEXTS = ["a bright story with great actors", "dull", "an awful plot " * 30, "", "the city at night"]


def train(folder: Path, data: dict[str, Any] | None = None, **backbone: Any) -> Path:
    """Fit a few steps; return the checkpoint."""
    write_csv(folder / "train.csv", reviews(60, seed=0))
    config = tiny_config(folder)
    config["model"]["init_args"]["backbone"]["init_args"] = backbone
    config["data"]["init_args"] |= data or {}
    path = write_config(folder / "tiny.yaml", config)
    cli = main(
        ["fit", "--config", str(path), "--trainer.max_steps", "6", "--model.optim.lr", "0.005"]
    )
    return cli.run.path / "checkpoints" / "best.ckpt"


# One of the four in each test run, which they would otherwise lengthen by a minute.
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "bert"]


@pytest.fixture(scope="module", params=["bert", *SLOW])
def best(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp(request.param), config=FAMILIES[request.param])


@pytest.mark.parametrize("format", exporting.TOLERANCE)
def test_export_predicts_as_the_checkpoint(best: Path, format: str) -> None:
    exporting.main(["--ckpt_path", str(best), "--format", format])
    folder = best.parent.parent / "export" / format
    said = json.loads((folder / "lit_foundry.json").read_text(encoding="utf-8"))
    assert said["difference"] <= exporting.TOLERANCE[format]
    expected, found = lit_foundry.load(best).predict(TEXTS), lit_foundry.load(folder).predict(TEXTS)
    assert found.labels == expected.labels
    torch.testing.assert_close(found.probs, expected.probs, atol=1e-4, rtol=0)
    assert expected.probs.std(0).max() > 1e-3  # or else the comparison says nothing


def test_pipeline_cuts_long_texts_where_training_did(tmp_path: Path) -> None:
    from transformers import pipeline

    best = train(tmp_path, {"truncation": "tail"}, config=SIZES)
    pipe = pipeline("text-classification", str(exporting.export(best, "hf")), device="cpu")
    text = "dull night " * 30 + "great lovely bright story " * 30
    [found] = pipe([text], truncation=True)
    prob = float(lit_foundry.load(best).predict(text).probs.max())
    assert found["score"] == pytest.approx(prob, abs=1e-5)


def test_pipeline_of_transformers_loads_the_folder(best: Path) -> None:
    from transformers import pipeline

    folder = exporting.export(best, "hf")
    pipe = pipeline("text-classification", str(folder), top_k=None, device="cpu")
    predictor = lit_foundry.load(best)
    texts = [text for text in TEXTS if text]
    for text, prob in zip(texts, predictor.predict(texts).probs.tolist(), strict=True):
        found = {row["label"]: row["score"] for row in pipe([text], truncation=True)[0]}
        assert found == pytest.approx(dict(zip(predictor.labels, prob, strict=True)), abs=1e-5)


@pytest.fixture(scope="module")
def mean_pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("mean"), config=SIZES, pooling="mean")


def test_network_that_transformers_lacks_is_refused_by_name(mean_pooled: Path) -> None:
    with pytest.raises(ValueError, match=r"pooling 'mean'. Fit with .* --format onnx, torch"):
        exporting.export(mean_pooled, "hf")
    assert not (mean_pooled.parent.parent / "export").exists()


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_failing_export_leaves_the_older_one(
    error: float, mean_pooled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exporting.export(mean_pooled, "torch", tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    forward = exporting.Network.forward
    monkeypatch.setattr(
        exporting.Network, "forward", lambda self, *values: forward(self, *values) + error
    )
    compare = exporting.compare

    def compare_with_the_true_network(*args: Any) -> float:
        monkeypatch.setattr(exporting.Network, "forward", forward)
        return compare(*args)

    monkeypatch.setattr(exporting, "compare", compare_with_the_true_network)
    with pytest.raises(CheckpointError, match=r"logits differ .* where 1e-05 is"):
        exporting.export(mean_pooled, "torch", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
    monkeypatch.setattr(exporting, "compare", compare)
    exporting.export(mean_pooled, "torch", folder)  # a good one takes its place
    assert list(tmp_path.iterdir()) == [folder]


def test_a_network_of_ours_is_exported_whatever_its_pooling(
    mean_pooled: Path, tmp_path: Path
) -> None:
    folder = exporting.export(mean_pooled, "safetensors", tmp_path / "model")
    told, expected = (lit_foundry.load(path).predict(TEXTS) for path in (folder, mean_pooled))
    assert torch.allclose(told.probs, expected.probs, atol=1e-6)


def test_folder_that_is_no_export_is_never_replaced(mean_pooled: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(CheckpointError, match="exists and is no export"):
        exporting.export(mean_pooled, "torch", tmp_path)
    with pytest.raises(CheckpointError, match=r"no lit_foundry.json, so it is no export"):
        lit_foundry.load(tmp_path)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged"),
        ("[]", "tells no format and no inputs and no data and no data_state"),
        ('{"format": "hf", "inputs": [], "data_state": {}}', "tells no data. Export"),
    ],
)
def test_damaged_manifest_is_told(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "lit_foundry.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=said):
        open_export(tmp_path)


def test_export_opens_by_its_manifest(mean_pooled: Path, tmp_path: Path) -> None:
    folder = exporting.export(mean_pooled, "torch", tmp_path / "model")
    manifest, logits = open_export(folder)
    data: Any = exported_data(folder, manifest, batch_size=5)
    batch = next(iter(data.val_dataloader()))
    assert len(batch["label"]) <= 4 < data.batch_size  # micro_batch, as the recipe has it
    expected = load_task(mean_pooled)(batch)
    torch.testing.assert_close(logits(batch), expected, atol=1e-5, rtol=0)


def test_missing_onnx_packages_are_told(mean_pooled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-foundry\[onnx\]'"):
        exporting.export(mean_pooled, "onnx")


def test_pairs_are_exported_with_their_segments(tmp_path: Path) -> None:
    rows = [(f"{text},{text[::-1]},{label}") for text, label in reviews(40, seed=0)]
    (tmp_path / "train.csv").write_text("\n".join(["first,second,label", *rows]), encoding="utf-8")
    config = tiny_config(tmp_path)
    config["data"]["init_args"] |= {"text": ["first", "second"], "test": None}
    path = write_config(tmp_path / "pairs.yaml", config)
    cli = main(["fit", "--config", str(path), "--trainer.max_steps", "4"])
    best = cli.run.path / "checkpoints" / "best.ckpt"
    pairs = [("a bright story", "great"), ("dull", "awful night"), ("rain", "")]
    expected = lit_foundry.load(best).predict(pairs)
    for format in ("hf", "onnx"):
        folder = exporting.export(best, format)
        assert json.loads((folder / "lit_foundry.json").read_text(encoding="utf-8"))["inputs"] == [
            "input_ids", "attention_mask", "token_type_ids",
        ]  # fmt: skip
        found = lit_foundry.load(folder).predict(pairs)
        torch.testing.assert_close(found.probs, expected.probs, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"Input 1 has 1 texts, but .* trained on pairs of texts"):
        lit_foundry.load(best).predict([pairs[0], "alone"])


def test_prediction_from_python_equals_the_command(mean_pooled: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS[:3]), encoding="utf-8")
    output = tmp_path / "said.jsonl"
    files = ["--input", str(tmp_path / "texts.txt"), "--output", str(output)]
    main(["predict", "--ckpt_path", str(mean_pooled), *files])
    told = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    predictor = lit_foundry.load(mean_pooled)
    labels, probs = predictor.predict(TEXTS[:3])
    assert [row["label"] for row in told] == labels
    for row, prob in zip(told, probs.tolist(), strict=True):
        assert row["prob"] == pytest.approx(
            dict(zip(predictor.labels, prob, strict=True)), abs=2e-6
        )
    assert predictor.predict("one text").probs.shape == (1, 2)
    assert predictor.predict([]).probs.shape == (0, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--ckpt_pth a.ckpt", "export takes no --ckpt_pth. Did you mean --ckpt_path?"),
        ("--format hf", "required: --ckpt_path"),
        ("--ckpt_path a.ckpt --format onx", "invalid choice: 'onx'"),
        ("--ckpt_path a.ckpt --format hf --outptu b", "no --outptu. Did you mean --output?"),
    ],
)
def test_mistake_in_the_command_is_one_line(words: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        exporting.main(words.split())
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_ids_of_a_language_model_are_those_of_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"cls_token_id": null, "eos_token_id": null}', encoding="utf-8"
    )
    kinds = ("bos", "eos", "pad", "cls", "sep")
    tokenizer = SimpleNamespace(**{f"{kind}_token_id": i for i, kind in enumerate(kinds)})
    network = LanguageNetwork.__new__(LanguageNetwork)
    network.complete(tmp_path, cast(Any, tokenizer))
    expected = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "cls_token_id": 3}
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == expected
