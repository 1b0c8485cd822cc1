"""What users get wrong ends early, in a few lines that name the place, the rule, the remedy."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_foundry.__main__ import foreseen
from lit_foundry.checkpoints.files import CheckpointError
from lit_foundry.cli.main import main
from lit_foundry.data.files.text_tables import DataError, DatasetNotFoundError
from lit_foundry.usage import UsageError
from tests.conftest import reviews, tiny_config, write_config, write_csv

MOST_LINES = 6
SHORT = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3")  # one step
HEADER = "text,label\n"
ROWS = [f"{text},{label}\n" for text, label in reviews(120, seed=0)]


@dataclass(frozen=True)
class Case:
    """One bad input, and what has to be said about it.

    Args:
        error: Type of the exception.
        parts: What the message holds.
        words: Command line; ``{folder}`` and ``{good}``, the good checkpoint, are filled in, and
            commands that name no checkpoint of their own are given a config.
        files: Content of files of the folder.
        data: Arguments of the data module; a value of ``tiny_config`` is replaced.
        model: Likewise of the task.
        encoder: Likewise of the backbone.
        prepare: Writes what is no text.
    """

    error: type[BaseException]
    parts: tuple[str, ...]
    words: tuple[str, ...] = ("fit",)
    files: dict[str, str | bytes] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path, Path], Any] = lambda folder, good: None


def train(text: str | bytes) -> dict[str, str | bytes]:
    return {"train.csv": text}


def truncated(folder: Path, good: Path) -> None:
    (folder / "torn.ckpt").write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def truncated_with_sums(folder: Path, good: Path) -> None:
    truncated(folder, good)
    sums = good.with_name(f"{good.name}.sha256.json").read_text(encoding="utf-8")
    (folder / "torn.ckpt.sha256.json").write_text(sums, encoding="utf-8")


def foreign(folder: Path, good: Path) -> None:
    state = {"state_dict": {"layer.weight": torch.zeros(2, 2)}, "pytorch-lightning_version": "2.6"}
    torch.save(state, folder / "foreign.ckpt")


def test_of(path: str, *words: str) -> tuple[str, ...]:
    return ("test", "--ckpt_path", path, *words)


def predict(input: str, *words: str) -> tuple[str, ...]:
    return ("predict", "--ckpt_path", "{good}", "--input", input, *words)


test_of.__test__ = False  # type: ignore[attr-defined]

CASES = {
    # files
    "empty file": Case(DataError, ("train.csv", "empty file", "Write it again"), files=train("")),
    "header only": Case(DataError, ("train.csv", "no rows", "Write it again"), files=train(HEADER)),
    "no text column": Case(
        DataError,
        ("train.csv", "no column 'text'", "did you mean 'texts'?", "data.text"),
        files=train("texts,label\n" + "".join(ROWS)),
    ),
    "no label column": Case(
        DataError,
        ("train.csv", "no column 'label'", "did you mean 'labels'?", "data.label"),
        files=train("text,labels\n" + "".join(ROWS)),
    ),
    "missing label": Case(
        DataError,
        ("train.csv, line 122", "no 'label'", "1 of 121 rows", "Fill it in"),
        files=train(HEADER + "".join(ROWS) + "a film,\n"),
    ),
    "unknown label in val": Case(
        DataError,
        ("val.csv", "'neutral'", "row 3", "['neg', 'pos']", "mend the label"),
        files={"val.csv": HEADER + "a,neg\nb,pos\nc,neutral\n"},
        data={"val": "{folder}/val.csv"},
    ),
    "unknown label in test": Case(
        DataError,
        ("test.csv", "'neutral'", "row 2", "['neg', 'pos']", "mend the label"),
        words=test_of("{good}", "--data.test", "{folder}/test.csv"),
        files={"test.csv": HEADER + "a,neg\nb,neutral\n"},
    ),
    "not UTF-8": Case(
        DataError,
        ("train.csv, line 3", "not UTF-8 (byte 0xe9 at position 3)", "iconv"),
        files=train(b"text,label\na,neg\ncaf\xe9,pos\n"),
    ),
    "broken JSON line": Case(
        DataError,
        ("train.jsonl, line 2", "not JSON", "one object a line"),
        files={"train.jsonl": '{"text": "a", "label": "neg"}\n{"text": "b", "label": \n'},
        data={"train": "{folder}/train.jsonl"},
    ),
    "too few fields": Case(
        DataError,
        ("train.csv, line 3", "1 fields, where the header has 2", "Quote commas"),
        files=train(HEADER + "a,neg\nb\n"),
    ),
    "no such file": Case(
        DatasetNotFoundError,
        ("{folder}/trian.csv", "no such file", "data."),
        data={"train": "{folder}/trian.csv"},
    ),
    "unsupported suffix": Case(
        DataError,
        ("train.xlsx", "not a table", ".csv", ".parquet"),
        data={"train": "{folder}/train.xlsx"},
    ),
    "one class to train on": Case(
        DataError,
        ("train.csv", "train split", "only the class 'pos'", "at least two"),
        files=train(HEADER + "a,pos\nb,pos\n"),
    ),
    "one class to validate on": Case(
        DataError,
        ("val.csv", "val split", "only the class 'neg'", "data.val to null"),
        files={"val.csv": HEADER + "a,neg\nb,neg\n"},
        data={"val": "{folder}/val.csv"},
    ),
    # sizes
    "fewer samples than a batch": Case(
        ValueError,
        ("data.batch_size=500", "108 training samples", "lower it"),
        data={"batch_size": 500},
    ),
    "texts longer than positions": Case(
        ValueError,
        ("TextEncoder", "max_length up to 64", "100", "change data.max_length"),
        data={"max_length": 100},
    ),
    "vocabulary larger than the embedding": Case(
        ValueError,
        ("vocab_size up to 100", "TextFiles has 2", "model.backbone.vocab_size", "data.tokenizer"),
        encoder={"vocab_size": 100},
    ),
    "wrong num_classes": Case(
        ValueError,
        ("num_classes=5", "has 2", "set model.num_classes=2, or leave it out"),
        model={"num_classes": 5},
    ),
    "class_weights of wrong length": Case(
        ValueError,
        ("model.class_weights has 3 numbers for 2 classes",),
        model={"class_weights": [1.0, 2.0, 3.0]},
    ),
    "two batch sizes": Case(
        ValueError,
        ("data.batch_size=12", "data.batch_tokens=512", "keep one", "null"),
        data={"batch_tokens": 512},
    ),
    "batch_tokens below the longest text": Case(
        ValueError,
        ("may hold 16 tokens", "longest sample has", "raise data.batch_tokens"),
        data={"batch_size": None, "micro_batch": None, "batch_tokens": 16},
    ),
    "micro_batch 0": Case(
        ValueError, ("data.micro_batch must be at least 1, got 0",), data={"micro_batch": 0}
    ),
    "accumulation by hand": Case(
        ValueError,
        ("trainer.accumulate_grad_batches=2", "set data.micro_batch instead"),
        words=("fit", "--trainer.accumulate_grad_batches", "2"),
    ),
    "clipping by value": Case(
        ValueError,
        ("trainer.gradient_clip_algorithm can only be norm", "remove it"),
        words=("fit", "--trainer.gradient_clip_algorithm", "value"),
    ),
    "vocabulary too small": Case(
        ValueError,
        ("data.tokenizer.vocab_size must be at least 300, got 100",),
        data={"tokenizer": {"vocab_size": 100}},
    ),
    "warmup in steps": Case(
        ValueError,
        ("model.optim.warmup is a fraction of the run in [0, 1), got 500",),
        words=("fit", "--model.optim.warmup", "500"),
    ),
    "more frozen blocks than there are": Case(
        ValueError,
        ("model.finetune.freeze=9", "backbone has 3 blocks", "all"),
        model={"finetune": {"freeze": 9}},
    ),
    # names
    "unknown tokenizer": Case(
        FileNotFoundError,
        ("'nobody/nothing'", "hub", "data.tokenizer to a folder", "package:", "kind: wordpiece"),
        data={"tokenizer": "nobody/nothing"},
    ),
    "unknown weights": Case(
        FileNotFoundError,
        ("'nobody/nothing'", "hub", "model.backbone.pretrained", "package:"),
        encoder={"pretrained": "nobody/nothing", "config": None},
    ),
    # checkpoints
    "truncated checkpoint": Case(
        CheckpointError,
        ("torn.ckpt cannot be read", "truncated", "use another one"),
        words=test_of("{folder}/torn.ckpt"),
        prepare=truncated,
    ),
    "truncated checkpoint with its sums": Case(
        CheckpointError,
        ("torn.ckpt is damaged", "was saved with", "Use another checkpoint"),
        words=test_of("{folder}/torn.ckpt"),
        prepare=truncated_with_sums,
    ),
    "text file for a checkpoint": Case(
        CheckpointError,
        ("notes.ckpt cannot be read", "no checkpoint of lit_foundry"),
        words=test_of("{folder}/notes.ckpt"),
        files={"notes.ckpt": "epoch 3 was best\n"},
    ),
    "no such checkpoint": Case(
        CheckpointError,
        ("{folder}/none.ckpt is no checkpoint file", "runs/<experiment>/<n>/checkpoints/"),
        words=test_of("{folder}/none.ckpt"),
    ),
    "checkpoint of other code": Case(
        CheckpointError,
        ("foreign.ckpt has no recipe", "no checkpoint of lit_foundry"),
        words=test_of("{folder}/foreign.ckpt"),
        prepare=foreign,
    ),
    "checkpoint of another width": Case(
        CheckpointError,
        ("does not fit the model", "What you set", "hidden_size: 32 -> 64"),
        words=test_of("{good}", "--model.backbone.config.hidden_size", "64"),
    ),
    "checkpoint of other classes": Case(
        CheckpointError,
        ("does not fit the model", "head.", "What you set", "model.init_args.num_classes: 2 -> 3"),
        words=test_of("{good}", "--model.num_classes", "3"),
    ),
    "init_from without backbone": Case(
        CheckpointError,
        ("foreign.ckpt has no submodule 'backbone'", "it has ['layer']"),
        model={"init_from": "{folder}/foreign.ckpt"},
        prepare=foreign,
    ),
    # commands
    "test without checkpoint": Case(
        CheckpointError, ("test needs --ckpt_path FILE",), words=("test",)
    ),
    "test without its data": Case(
        DataError,
        ("data.test is not set", "name the file"),
        words=test_of("{good}", "--data.test", "null"),
    ),
    "mistyped key of the checkpoint's data": Case(
        UsageError,
        ("--data.tesst: TextFiles takes no 'tesst'", "Did you mean 'test'?"),
        words=test_of("{good}", "--data.tesst", "a.csv"),
    ),
    "predict without input": Case(
        ValueError,
        ("predict needs texts", "--input FILE", "standard input"),
        words=("predict", "--ckpt_path", "{good}"),
    ),
    "predict on an empty file": Case(
        DataError,
        ("new.txt", "empty"),
        words=predict("{folder}/new.txt"),
        files={"new.txt": ""},
    ),
    "predict to a wrong suffix": Case(
        ValueError,
        ("--output", "new.xlsx", ".jsonl", ".csv"),
        words=predict("{folder}/new.txt", "--output", "{folder}/new.xlsx"),
        files={"new.txt": "a film\n"},
    ),
}


def fit_tiny(folder: Path, *words: str) -> Path:
    """Fit the tiny config in a folder, one step, and return its best checkpoint."""
    write_csv(folder / "train.csv", reviews(120, seed=0))
    write_csv(folder / "test.csv", reviews(40, seed=1))
    config = write_config(folder / "tiny.yaml", tiny_config(folder))
    cli = main(["fit", "--config", str(config), *SHORT, *words])
    return cli.run.checkpoints / "best.ckpt"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda"])
def test_a_missing_gpu_is_said_before_anything_begins(
    accelerator: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"accelerator is .* no GPU: .*accelerator cpu") as error:
        main(["fit", "--config", str(tiny), f"--trainer.accelerator={accelerator}"])
    assert foreseen(error.value)
    assert not (tiny.parent / "runs").exists()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit_tiny(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("case", CASES.values(), ids=[name.replace(" ", "-") for name in CASES])
def test_error_says_what_where_and_what_to_do(
    case: Case,
    good: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sha256(good.read_bytes()).digest()

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{folder}", str(tmp_path)).replace("{good}", str(good))
        return value

    for name, content in case.files.items():
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    case.prepare(tmp_path, good)
    words = [fill(word) for word in case.words]
    if words[0] == "fit":
        config = tiny_config(tmp_path)
        config["data"]["init_args"] |= {k: fill(v) for k, v in case.data.items()}
        args = config["model"]["init_args"]
        args["backbone"]["init_args"] |= case.encoder
        args |= {k: fill(v) for k, v in case.model.items()}
        words[1:1] = ["--config", str(write_config(tiny, config))]

    with pytest.raises(case.error) as caught:
        main(words)
    message = str(caught.value)
    assert foreseen(caught.value)
    assert len(message.splitlines()) <= MOST_LINES, message
    missing = [part for part in map(fill, case.parts) if part not in message]
    assert not missing, message
    assert sha256(good.read_bytes()).digest() == before
    assert not list(tmp_path.glob("runs/**/*.ckpt"))


@pytest.mark.parametrize(
    "words",
    [("--trainer.accumulate_grad_batches", "2"), ("--trainer.gradient_clip_algorithm", "value")],
    ids=["before-training", "in-the-first-step"],
)
def test_good_run_follows_a_bad_one(tiny: Path, words: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="remove it"):
        main(["fit", "--config", str(tiny), *SHORT, *words])
    cli = main(["fit", "--config", str(tiny), *SHORT, "--resume", "auto"])
    assert cli.run.path.name == "2"  # the first left nothing to resume
    assert cli.trainer.global_step == 1
    assert (cli.run.path / "summary.json").exists()
    assert (cli.run.checkpoints / "best.ckpt").exists()
    caches = Path(os.environ["LIT_FOUNDRY_CACHE"]).rglob("*")
    assert not [path for path in caches if "partial" in path.name]
