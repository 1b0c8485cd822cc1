"""Tags of words: their scores, their loss, and their way from a fit to an export."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

import lit_foundry
from lit_foundry.checkpoints.files import load_task
from lit_foundry.cli.main import main
from lit_foundry.data import TextFiles
from lit_foundry.export import command as exporting
from lit_foundry.nn.text.as_transformers import token_classifier
from lit_foundry.nn.text.encoder import TextEncoder
from lit_foundry.nn.text.words import of_words
from lit_foundry.report import command as reporting
from lit_foundry.tasks import Classification, Step, TokenClassification
from lit_foundry.training.metrics import EntityF1
from lit_foundry.training.optim import OptimConfig
from tests.export.test_command import FAMILIES, SIZES
from tests.images import Patches
from tests.labelled import gradients, records, text_config, write
from tests.tasks.test_base import Toy, seeded, trainer  # noqa: F401

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def texts(folder: Path, rows: int = 48, kind: Any = "wordpiece", **options: Any) -> TextFiles:
    """Return rows whose words are tagged; of characters, each word has several tokens."""
    for seed, (name, count) in enumerate({"train": rows, "val": 22}.items()):
        write(folder / f"{name}.jsonl", records("tags", count, seed))
    paths: Any = {name: str(folder / f"{name}.jsonl") for name in ("train", "val")}
    tokenizer = lit_foundry.TrainTokenizer(kind, vocab_size=300)
    return TextFiles(tokenizer, **paths, **{"batch_size": 12, "target": "tags"} | options)


def model(num_classes: int = 4, **options: Any) -> TokenClassification:
    """Return a tagger on a Toy."""
    torch.manual_seed(0)
    optim = OptimConfig(lr=0.02, schedule="constant")
    return TokenClassification(Toy(), num_classes, **{"optim": optim} | options)


def entities(tags: list[str]) -> set[tuple[str, int, int]]:
    """Return kind and ends of each entity, as seqeval reads tags by default."""
    found, kind, begin = set(), "", 0
    for place, tag in enumerate([*tags, "O"]):
        goes_on = tag[:2] == "I-" and tag[2:] == kind
        if kind and not goes_on:
            found.add((kind, begin, place))
            kind = ""
        if tag != "O" and not goes_on:
            kind, begin = tag[2:], place
    return found


def test_entities_are_those_of_the_definition() -> None:
    assert entities(["B-PER", "I-PER", "O", "I-LOC", "I-PER"]) == {
        ("PER", 0, 2), ("LOC", 3, 4), ("PER", 4, 5),
    }  # fmt: skip
    torch.manual_seed(0)
    metric, right, said, true = EntityF1(NAMES), 0, 0, 0
    for size in (1, 3, 12):
        target = torch.randint(5, (20, size))
        preds = torch.where(torch.rand(20, size) < 0.7, target, torch.randint(5, (20, size)))
        target[torch.rand(20, size) < 0.2] = -100
        metric.update(preds, target)
        for one, two in zip(preds, target, strict=True):
            known = two != -100
            a, b = (entities([NAMES[i] for i in row[known].tolist()]) for row in (one, two))
            right, said, true = right + len(a & b), said + len(a), true + len(b)
    assert right > 20
    assert metric.compute().item() == pytest.approx(2 * right / (said + true))


@pytest.mark.parametrize(
    ("names", "is_bio"),
    [(NAMES, True), (["B-X", "I-X"], True), (["NOUN", "O"], False), (["O", "I-X"], False)],
)
def test_tags_are_read_as_entities_where_their_names_say_so(names: list[str], is_bio: bool) -> None:
    assert EntityF1.reads(names) == is_bio


def test_words_have_the_tags_of_the_tokens_with_which_they_begin() -> None:
    word = torch.tensor([[-1, 0, -1, 1, -1], [-1, 1, 3, -1, -1], [-1, -1, -1, -1, -1]])
    tags = torch.arange(15).view(3, 5)
    assert of_words(tags, word).tolist() == [
        [1, 3, -100, -100], [-1, 6, -1, 7], [-100, -100, -100, -100],
    ]  # fmt: skip
    assert of_words(tags, word, -100)[1].tolist() == [-100, 6, -100, 7]
    assert of_words(tags[2:], word[2:]).shape == (1, 0)


def test_scores_agree_with_scikit_learn_and_the_definition(tmp_path: Path) -> None:
    data, task = texts(tmp_path, kind="characters"), model()
    fit = trainer()
    fit.fit(task, data)
    [scores] = trainer().validate(task, data, verbose=False)
    task.eval()
    batch: Any = data.load("val")[range(22)]
    known = batch["label"] != -100
    with torch.no_grad():
        logits = task(batch)
    preds, target = logits.argmax(-1)[known], batch["label"][known]
    assert int(known.sum()) == sum(len(row["label"]) for row in records("tags", 22, 1))
    assert scores["val/acc"] == pytest.approx(accuracy_score(target, preds))
    assert scores["val/f1_macro"] == pytest.approx(f1_score(target, preds, average="macro"))
    loss = torch.nn.functional.cross_entropy(logits[known], target)
    assert scores["val/loss"] == pytest.approx(float(loss), abs=1e-6)
    right = said = true = 0
    for tags, label in zip(logits.argmax(-1), batch["label"], strict=True):
        kept = label != -100
        a, b = (entities([data.labels[i] for i in row[kept].tolist()]) for row in (tags, label))
        right, said, true = right + len(a & b), said + len(a), true + len(b)
    assert scores["val/entity_f1"] == pytest.approx(2 * right / (said + true))


def test_overfits_one_batch_and_a_checkpoint_holds_it(tmp_path: Path) -> None:
    data, task = texts(tmp_path, rows=12), model()
    fit = trainer(max_epochs=100, limit_val_batches=0)
    fit.fit(task, data)
    assert float(fit.callback_metrics["train/acc"]) > 0.95
    fit.save_checkpoint(tmp_path / "a.ckpt")
    batch: Any = data.load("train")[range(8)]
    task.eval()
    loaded = load_task(tmp_path / "a.ckpt")
    torch.testing.assert_close(loaded(batch), task(batch), rtol=0, atol=0)


def test_micro_batches_give_the_gradients_of_the_whole(tmp_path: Path) -> None:
    dataset, task = texts(tmp_path).load("train"), model()
    whole = gradients(task, [dataset[range(12)]])
    one, two = dataset[range(3)], dataset[range(3, 12)]
    torch.testing.assert_close(gradients(task, [one, two]), whole, rtol=1e-4, atol=1e-6)
    counts = [int(task.step(batch, "train").count) for batch in (one, two)]
    assert counts == [int((batch["label"] != -100).sum()) for batch in (one, two)]


def test_batch_without_a_tagged_word_adds_nothing(tmp_path: Path) -> None:
    batch: Any = dict(texts(tmp_path).load("train")[range(3)])
    batch["label"] = torch.full_like(batch["label"], -100)
    step = model().step(batch, "train")
    assert (step.loss.item(), int(step.count)) == (0, 0)


def test_a_step_without_a_tagged_word_is_skipped_and_a_run_of_such_fails(tmp_path: Path) -> None:
    class Untagged(TokenClassification):
        bare = (1,)

        def step(self, batch: Any, stage: Any) -> Step:
            if self.global_step in self.bare:
                batch = {**batch, "label": torch.full_like(batch["label"], -100)}
            return super().step(batch, stage)

    torch.manual_seed(0)
    task = Untagged(Toy(), 4)
    with pytest.warns(UserWarning, match="No sample has anything to learn from in epoch 0, step 1"):
        trainer(max_steps=3).fit(task, texts(tmp_path))
    assert all(p.isfinite().all() for p in task.parameters())
    task.bare = (0, 1, 2)
    with (
        pytest.warns(UserWarning, match="nothing to learn from|anything to learn from"),
        pytest.raises(ValueError, match="All 3 steps were skipped"),
    ):
        trainer(max_steps=3).fit(task, texts(tmp_path))


@pytest.mark.parametrize("truncation", ["head", pytest.param("tail", marks=pytest.mark.slow)])
def test_text_goes_from_fit_to_export(truncation: str, tmp_path: Path) -> None:
    options = {"id": "name", "truncation": truncation, "max_length": 24}
    config = text_config(tmp_path, "TokenClassification", "tags", **options)
    for name in ("train", "test"):
        path = tmp_path / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines()
        write(path, [json.loads(x) | {"name": f"r{i}"} for i, x in enumerate(lines)])
    cli = main(["fit", "--config", str(config)])
    assert float(cli.trainer.callback_metrics["val/entity_f1"]) > 0.8
    best = cli.run.path / "checkpoints" / "best.ckpt"
    main(["test", "--ckpt_path", str(best)])
    out, test = tmp_path / "out.jsonl", tmp_path / "test.jsonl"
    rows = records("tags", 32, 1)
    long = ["ada", "saw", *["the"] * 30, "paris"]
    write(test, [{"name": f"r{i}", **row} for i, row in enumerate([*rows, {"text": long}])])
    main(["predict", "--ckpt_path", str(best), "--input", str(test), "--output", str(out)])
    said = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [len(row["tags"]) for row in said[:-1]] == [len(row["text"]) for row in rows]
    tags = said[-1]["tags"]
    if truncation == "tail":  # what was cut off before others keeps its place
        assert len(tags) == len(long)
        assert (tags[0], tags[-1]) == (None, "B-LOC")
    else:
        assert 2 < len(tags) < len(long)
        assert tags[0] == "B-PER"
        assert None not in tags
    reporting.write([cli.run.path], tmp_path / "report")
    inputs = [" ".join(row["text"]) for row in rows] + [" ".join(long), ""]
    wanted = lit_foundry.load(best).predict(inputs).tags
    assert wanted == [*(row["tags"] for row in said), []]
    for format in ("hf", "safetensors") if truncation == "head" else exporting.TOLERANCE:
        exporting.main(["--ckpt_path", str(best), "--format", format])
        assert lit_foundry.load(best.parents[1] / "export" / format).predict(inputs).tags == wanted
    if truncation == "head":
        from transformers import pipeline

        folder = str(best.parents[1] / "export/hf")
        pipe = pipeline("token-classification", folder, device="cpu", aggregation_strategy="first")
        found = {(e["word"], e["entity_group"]) for e in pipe("we saw ada byron near paris")}
        assert found == {("ada byron", "PER"), ("paris", "LOC")}


@pytest.mark.parametrize("family", [*FAMILIES, "electra"])
def test_transformers_computes_the_same(family: str) -> None:
    config = FAMILIES.get(family, SIZES | {"model_type": family, "embedding_size": 16})
    torch.manual_seed(0)
    task = TokenClassification(TextEncoder(config=config, vocab_size=100), 3).eval()
    assert task.head.head.dropout.p == (0 if family == "modernbert" else 0.1)
    theirs = token_classifier(task.backbone, task.head, ["a", "b", "c"])
    batch = task.backbone.example(3, 16)
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"].long()}
    with torch.no_grad():
        ours, found = task(given | {"attention_mask": batch["attention_mask"]}), theirs(**given)
    assert ours.std() > 0.1
    torch.testing.assert_close(found.logits, ours, rtol=1e-4, atol=1e-4)


def test_networks_that_cannot_tag_are_refused() -> None:
    gpt = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
    with pytest.raises(ValueError, match=r"model\.backbone is causal"):
        TokenClassification(TextEncoder(config=gpt, vocab_size=50), 3)
    with pytest.raises(ValueError, match="a Patches reads pixel_values: take a text encoder"):
        TokenClassification(Patches(), 3)
    with pytest.raises(ValueError, match=r"model\.num_classes must be at least 2, got 1"):
        TokenClassification(Toy(), 1)
    with pytest.raises(ValueError, match="no token classifier on a Toy"):
        token_classifier(Toy(), model().head, NAMES)


def test_labels_of_another_kind_are_refused(tmp_path: Path) -> None:
    message = r"Classification predicts labels of the kind class, and TextFiles has tags"
    with pytest.raises(ValueError, match=message):
        Classification(Toy(), 4).check_data(texts(tmp_path))
    rows = [{"text": "a b", "label": label} for label in "xyxyxy"]
    data = texts(tmp_path, target="class")
    write(tmp_path / "train.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"TokenClassification predicts .* and TextFiles has class"
    ):
        model().check_data(data)
