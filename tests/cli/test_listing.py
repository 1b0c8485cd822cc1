"""The list command, and the other answers that need no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from lit_foundry import __version__
from lit_foundry.cli import listing

ROOT = Path(__file__).parents[2]
# Runs the command line, then fails if that imported anything that takes seconds.
PROBE = """
import runpy, sys
runpy.run_module("lit_foundry", run_name="__main__")
heavy = {"torch", "lightning", "transformers", "numpy", "rich", "jsonargparse"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
CLASSES = '''
from abc import ABC, abstractmethod
import lightning.pytorch as pl

class Root(pl.LightningModule, ABC):
    """The root."""
    @abstractmethod
    def step(self): ...
    @property
    @abstractmethod
    def size(self): ...

class Half(Root):
    """Half done."""
    size = 3

class Other:
    """Of another kind."""
'''
LEAVES = '''
from . import base

class Direct(Root):
    """Direct."""
    size: int = 2
    def step(self): ...

class Indirect(base.Half):
    """First line of :class:`Indirect` with ``code``.

    More.
    """
    def step(self): ...

class Generic(Half[int]):
    def step(self): ...

class Unlisted(Direct):
    """Not exported."""
'''


def answer(*args: str) -> str:
    command = [sys.executable, "-c", PROBE, *args]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, encoding="utf-8"
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_list_names_what_is_shipped_without_torch() -> None:
    words = answer("list").split()
    assert {"Classification", "IMDb", "TextEncoder", "configs/minilm_imdb.yaml"} <= set(words)
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*.yaml")} <= set(words)


def test_list_leaves_out_what_no_config_can_name() -> None:
    names = {line.split()[0] for line in listing.listing().splitlines() if line.startswith("  ")}
    assert names.isdisjoint({"Task", "Step", "DataModule", "TextData", "TextBatch", "Backbone"})


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("report", "--help")])
def test_help_needs_no_torch(args: tuple[str, ...]) -> None:
    assert "usage: python -m lit_foundry" in answer(*args)


def test_version_needs_no_torch() -> None:
    assert answer("--version").strip() == __version__


def test_unknown_argument_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        listing.main(["--task"])
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "list takes no arguments, got '--task'.\n")


def test_list_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    listing.main(["--help"])
    assert "usage: python -m lit_foundry list" in capsys.readouterr().out


def test_shipped_are_the_exported_subclasses_without_abstract_methods(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(CLASSES, encoding="utf-8")
    (tmp_path / "leaves.py").write_text(LEAVES, encoding="utf-8")
    names = ["Direct", "Generic", "Half", "Indirect", "Other", "Root", "function"]
    (tmp_path / "__init__.py").write_text(f"__all__ = {names}", encoding="utf-8")
    assert listing.shipped(tmp_path, "Root") == {
        "Direct": "Direct.",
        "Generic": "",
        "Indirect": "First line of Indirect with code.",
    }


def test_lines_are_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = listing.listing().splitlines()
    monkeypatch.setenv("COLUMNS", "50")
    lines = listing.listing().splitlines()
    assert max(map(len, lines)) == 50
    for line, full in zip(lines, whole, strict=True):
        assert line == full or (line.endswith("...") and full.startswith(line[:-3]))


def test_configs_are_listed_by_path_with_their_first_comment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.yaml").write_text("model: 1\n# What b does.\n# More.\n", encoding="utf-8")
    (tmp_path / "a.yaml").write_text("model: 1\n", encoding="utf-8")
    monkeypatch.setattr(listing, "CONFIGS", tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [line.split(maxsplit=1) for line in listing.listing().splitlines()]
    assert lines[-2:] == [["a.yaml"], ["b.yaml", "What b does."]]


def test_missing_configs_are_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "CONFIGS", tmp_path / "absent")
    assert listing.listing().splitlines()[-1].startswith("Configs: none here")
