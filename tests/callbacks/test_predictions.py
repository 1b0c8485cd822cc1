"""Outputs: never over what is read, for any terminal, and harmless in a spreadsheet."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_foundry import __main__
from lit_foundry.callbacks import PredictionWriter
from lit_foundry.callbacks.predictions import as_text
from lit_foundry.cli import listing
from lit_foundry.cli.tokenizer_command import main as tokenizer
from lit_foundry.report import command as report
from lit_foundry.sources import check_output
from lit_foundry.usage import printable
from tests.predicted import told_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A table and a folder of images, with links to both."""
    (tmp_path / "train.csv").write_text("text,label\na,b\n", encoding="utf-8")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "1.csv").write_text("x", encoding="utf-8")
    (tmp_path / "soft.csv").symlink_to(tmp_path / "train.csv")
    os.link(tmp_path / "train.csv", tmp_path / "hard.csv")
    (tmp_path / "linked").symlink_to(tmp_path / "images")
    return tmp_path


def write(path: Path, ids: list[str], labels: list[str]) -> None:
    """Write one prediction for each id, of the labels in turn."""
    probs = torch.eye(len(labels))[torch.arange(len(ids)) % len(labels)]
    predict(path, labels, {"prob": probs}, ids)


def predict(path: Path, labels: list[str], found: dict[str, Any], ids: list[str]) -> None:
    """Write what a single batch predicts."""
    writer = PredictionWriter(labels, path)
    data = told_data(ids=lambda split: ids)
    trainer: Any = SimpleNamespace(is_global_zero=True, world_size=1, datamodule=data)
    task: Any = object()
    writer.setup(trainer, task, "predict")
    writer.on_predict_batch_end(trainer, task, {"index": torch.arange(len(ids)), **found})
    writer.on_predict_epoch_end(trainer, task)


PREDICTED: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {
    "class": (
        ["no", "yes"],
        {"prob": torch.tensor([[0.2, 0.8]]), "loss": torch.tensor([0.1])},
        {"label": "yes", "prob": {"no": 0.2, "yes": 0.8}, "loss": 0.1},
    ),
    "classes": (
        ["art", "sport", "war"],
        {"prob": torch.tensor([[0.75, 0.25, 0.625]])},
        {"labels": ["art", "war"], "prob": {"art": 0.75, "sport": 0.25, "war": 0.625}},
    ),
    "value": ([], {"value": torch.tensor([0.1])}, {"value": 0.1}),
    "value of one column": ([], {"value": torch.tensor([[-3.5]])}, {"value": -3.5}),
    "values": (
        ["x", "y"],
        {"value": torch.tensor([[1.5, 0.3]], dtype=torch.bfloat16)},
        {"value": {"x": 1.5, "y": 0.30078125}},
    ),
    "tags": (
        ["O", "PER"],
        {"tag": torch.tensor([[1, 0, -100, 0, -100]])},
        {"tags": ["PER", "O", "O"]},
    ),
    "number": ([], {"error": torch.tensor([2.5]), "n": torch.tensor([3])}, {"error": 2.5, "n": 3}),
    "record": ([], {"record": [{"text": "a", "more": ["b"]}]}, {"text": "a", "more": ["b"]}),
}
CELLS: dict[str, dict[str, str]] = {
    "class": {"label": "yes", "prob_no": "0.2", "prob_yes": "0.8", "loss": "0.1"},
    "classes": {
        "labels": "art; war", "prob_art": "0.75", "prob_sport": "0.25", "prob_war": "0.625",
    },
    "value": {"value": "0.1"},
    "value of one column": {"value": "-3.5"},
    "values": {"value_x": "1.5", "value_y": "0.30078125"},
    "number": {"error": "2.5", "n": "3"},
}  # fmt: skip


@pytest.mark.parametrize("kind", PREDICTED)
def test_a_line_holds_what_is_predicted_by_its_kind(kind: str, tmp_path: Path) -> None:
    labels, found, told = PREDICTED[kind]
    predict(tmp_path / "a.jsonl", labels, found, ["s"])
    assert json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8")) == {"id": "s", **told}


@pytest.mark.parametrize("kind", PREDICTED)
def test_a_table_holds_it_too_if_it_is_one(kind: str, tmp_path: Path) -> None:
    labels, found, _ = PREDICTED[kind]
    if kind not in CELLS:
        with pytest.raises(ValueError, match=r"a\.csv: the suffix must be \.jsonl, as what"):
            predict(tmp_path / "a.csv", labels, found, ["s"])
        assert not (tmp_path / "a.csv").exists()
        return
    predict(tmp_path / "a.csv", labels, found, ["s"])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"id": "s", **CELLS[kind]}]


def test_a_table_of_texts_is_refused_before_any_is_written(tmp_path: Path) -> None:
    task: Any = SimpleNamespace(samples=None)
    with pytest.raises(ValueError, match=r"suffix must be \.jsonl, as what this task predicts"):
        PredictionWriter([], tmp_path / "a.csv").setup(task, task, "predict")
    with pytest.raises(ValueError, match=r"suffix must be \.jsonl or \.csv"):
        PredictionWriter([], tmp_path / "a.txt")


@pytest.mark.parametrize("outputs", [None, {}, torch.zeros(2)])
def test_a_task_that_predicts_nothing_of_samples_is_told_so(outputs: Any) -> None:
    nothing: Any = None
    with pytest.raises(ValueError, match=r"NoneType\.predict_step yields nothing of samples"):
        PredictionWriter([]).on_predict_batch_end(nothing, nothing, outputs)


@pytest.mark.parametrize(
    "name", ["train.csv", "./images/../train.csv", "soft.csv", "hard.csv", "images/cat/1.csv"]
)
def test_an_output_that_is_an_input_is_refused_by_any_name(name: str, data: Path) -> None:
    recipe = {"init_args": {"train": str(data / "train.csv"), "root": str(data / "images")}}
    with pytest.raises(ValueError, match=r"--output .* which is an input: name another place"):
        PredictionWriter(["a"], data / name, [recipe])
    assert (data / "train.csv").read_text(encoding="utf-8") == "text,label\na,b\n"


@pytest.mark.parametrize("inputs", ["images", "linked", "images/*", "images/cat/*.csv"])
def test_folders_links_and_patterns_are_inputs_too(inputs: str, data: Path) -> None:
    recipe = {"init_args": {"train": [str(data / inputs)], "text": "text"}}
    with pytest.raises(ValueError, match="which is an input"):
        PredictionWriter(["a"], data / "images" / "cat" / "1.csv", [recipe])


def test_what_lies_in_a_folder_that_is_read_is_not_overwritten(data: Path) -> None:
    recipe = {"init_args": {"root": str(data / "images")}}
    PredictionWriter(["a"], data / "images" / "new.csv", [recipe])
    with pytest.raises(ValueError, match="lies in"):
        PredictionWriter(["a"], data / "images" / "cat" / "1.csv", [recipe])


def test_values_that_name_no_file_refuse_nothing(data: Path) -> None:
    (data / "text").mkdir()
    args = {
        "text": str(data / "text"),
        "delimiter": "*",
        "hub": "a/b:c",
        "val": None,
        "long": "x" * 9999,
    }
    PredictionWriter(["a"], data / "text" / "new.csv", [{"init_args": args}, "\0.csv"])


def test_a_folder_that_holds_an_input_is_refused(data: Path) -> None:
    with pytest.raises(ValueError, match="holds"):
        check_output(data, [data / "train.csv"])
    check_output(data / "images" / "new", [data / "images"])


def test_a_tokenizer_is_not_written_over_what_it_is_trained_on(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / name).write_text("some words", encoding="utf-8")
    for given in (tmp_path, tmp_path / "vocab.txt", tmp_path / "*.txt"):
        with pytest.raises(ValueError, match="which is an input"):
            tokenizer(["--input", str(given), "--output", str(tmp_path)])


def test_a_report_is_not_written_among_the_records_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "config.yaml").write_text("{}", encoding="utf-8")
    for output in (tmp_path, tmp_path / "plots"):
        with pytest.raises(ValueError, match="holds records of the run"):
            report.main([str(tmp_path), "--output", str(output)])
    (tmp_path / "report").mkdir()  # as a report that was killed leaves it
    report.main([str(tmp_path)])


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+cmd", "'+1+cmd"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("\uff1d1", "'\uff1d1"),
        ("-1", "-1"),
        ("+1", "+1"),
        ("-0.5e-3", "-0.5e-3"),
        ("-", "'-"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_cells_that_a_spreadsheet_would_compute_are_made_texts(cell: str, written: str) -> None:
    assert as_text(cell) == written


def test_ids_and_labels_in_csv_are_no_formulas_and_numbers_stay(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ["=1+1", "-7"], ["@good", "-1"])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["id", "label", "prob_@good", "prob_-1"],
            ["'=1+1", "'@good", "1.0", "0.0"],
            ["-7", "-1", "0.0", "1.0"],
        ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_names_of_files_that_are_no_unicode_cost_no_predictions(
    suffix: str, tmp_path: Path
) -> None:
    write(tmp_path / f"a{suffix}", ["caf\udce9.png"], ["ä"])
    text = (tmp_path / f"a{suffix}").read_text(encoding="utf-8")
    assert r"caf\udce9.png" in text
    if suffix == ".jsonl":
        assert json.loads(text)["id"] == "caf\udce9.png"


def test_json_lines_hold_no_character_that_a_terminal_obeys(tmp_path: Path) -> None:
    name = "\x1b[2J\x9b2J\x7f\x85"
    write(tmp_path / "a.jsonl", [name], ["a"])
    text = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert text.rstrip("\n").isprintable()
    assert json.loads(text)["id"] == name
    assert printable(f"{name}\n\té") == r"\x1b[2J\x9b2J\x7f\x85" + "\n\té"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-16"])
def test_pipes_get_utf8_whatever_the_locale(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", pipes[0])
    monkeypatch.setattr(sys, "stderr", pipes[1])
    monkeypatch.setattr(sys, "argv", ["lit_foundry", "list"])
    monkeypatch.setattr(listing, "main", lambda args: print("gut 😀 \udce9"))
    __main__.main()
    print("Fehler ä", file=sys.stderr)
    for pipe, said in zip(pipes, ("gut 😀 \\udce9\n", "Fehler ä\n"), strict=True):
        pipe.flush()
        assert pipe.buffer.getvalue().decode("utf-8") == said  # type: ignore[attr-defined]


class Terminal(io.TextIOWrapper):
    """A terminal that knows 128 characters."""

    def isatty(self) -> bool:
        """Return that it is one."""
        return True


def test_a_terminal_gets_its_own_encoding_and_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    __main__.speak_unicode()
    print("ä", file=terminal, flush=True)
    assert terminal.buffer.getvalue() == b"\\xe4\n"  # type: ignore[attr-defined]
