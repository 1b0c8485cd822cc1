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
    writer = PredictionWriter(labels, path)
    probs = torch.eye(len(labels))[torch.arange(len(ids)) % len(labels)]
    writer._outputs.add({"index": torch.arange(len(ids)), "prob": probs})
    table = SimpleNamespace(table=lambda split: SimpleNamespace(ids=ids))
    trainer: Any = SimpleNamespace(is_global_zero=True, world_size=1, datamodule=table)
    writer.on_predict_epoch_end(trainer, None)  # type: ignore[arg-type]


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
