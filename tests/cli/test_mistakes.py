"""Mistakes on the command line and in YAML are told in a few lines, with what was likely meant."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Callback

from lit_foundry import usage
from lit_foundry.__main__ import foreseen
from lit_foundry.cli.arguments import repeated
from lit_foundry.cli.main import main
from lit_foundry.cli.mistakes import Search
from lit_foundry.usage import UsageError
from tests.conftest import REPO, write_config

MOST_LINES = 20
WIDTH = 100
NESTED = "model:\n  init_args:\n    backbone:\n      init_args: {%s}\n"

# Words after `fit --config tiny.yaml`, an overlay, and what has to be said of them.
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # on the command line
    "key": ("--data.max_lenght 64", "", ("--data.max_lenght: TextFiles", "mean 'max_length'?")),
    "prefix": ("--trainer.max_epoch 1", "", ("--trainer.max_epoch: trainer", "'max_epochs'?")),
    "section": ("--modle.dropout 1", "", ("--modle: a config takes no 'modle'", "'model'?")),
    "key of elsewhere": ("--lr 1", "", ("--lr: a config takes no 'lr'", "'model.optim.lr'?")),
    "key further down": ("--model.lr 1", "", ("--model.lr: Classification", "'optim.lr'?")),
    "key of a nested class": (
        "--model.backbone.poling mean",
        "",
        ("--model.backbone.poling: TextEncoder takes no 'poling'", "'pooling'?"),
    ),
    "class": ("--model Clasification", "", ("no Task is called", "mean 'Classification'?")),
    "nested class": ("--model.backbone TextEncodr", "", ("no Backbone", "mean 'TextEncoder'?")),
    "callback": ("--trainer.callbacks+=EarlyStoping", "", ("no Callback", "'EarlyStopping'?")),
    "key of a callback": (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitr=a",
        "",
        ("--trainer.callbacks.monitr: EarlyStopping takes no 'monitr'", "mean 'monitor'?"),
    ),
    "type": ("--trainer.max_epochs many", "", ("a whole number or null", "got 'many'")),
    "type in a class": ("--data.batch_size many", "", ("--data.batch_size: must be a whole",)),
    "choice": ("--model.optim.name adamx", "", ("adamw, sgd, muon or muon_sgd", "mean 'adamw'?")),
    "no value": ("--model.optim.lr", "", ("--model.optim.lr: needs a value",)),
    "no value, key": ("--model.optim.lrr", "", ("optim takes no 'lrr'", "mean 'lr'?")),
    "stray word": ("again", "", ("'again': a word without a key", "--KEY again")),
    "missing file": ("--config {folder}/tony.yaml", "", ("no such file", "/tiny.yaml?")),
    "folder": ("--config {folder}", "", ("a folder; name a YAML file",)),
    "config without a file": ("--config", "", ("--config: needs a value",)),
    "help of no class": ("--model.help Clasification", "", ("mean 'Classification'?",)),
    "not an importable class": ("--data no.such.Class", "", ("(No module named 'no')",)),
    "not the right class": ("--data torch.Tensor", "", ("does not derive from DataModule",)),
    "several": ("--lr 1 --trainer.max_epoch 1", "", ("'model.optim.lr'?", "'max_epochs'?")),
    # in a config
    "YAML": ("", "model:\n  init_args:\n   - a: 1\n    b: 2\n", ("line 4, column 5: not YAML",)),
    "YAML, a character": ("", "seed_everything: \x07\n", ("not YAML", "not allowed")),
    "YAML, a key": ("", "trainer:\n  max_epoch: 3\n", ("line 2: trainer.max_epoch", "epochs'?")),
    "YAML, a section": ("", "modle:\n  a: 1\n", ("line 1: modle", "mean 'model'?")),
    "YAML, a type": ("", "trainer:\n\n  max_epochs: three\n", ("line 3", "whole number or null")),
    "YAML, a number": (
        "",
        "model:\n  init_args:\n    optim: {lr: 3e-5x}\n",
        ("line 3: model.init_args.optim.lr: must be a number, got '3e-5x'",),
    ),
    "YAML, a nested key": ("", NESTED % "poling: mean", ("line 4: model", "mean 'pooling'?")),
    "YAML, a nested choice": ("", NESTED % "pooling: maen", ("first, mean or last", "'mean'?")),
    "YAML, a class": ("", "data: {class_path: TextFile}\n", ("line 1: data", "'TextFiles'?")),
    "YAML, a callback": (
        "",
        "trainer:\n  callbacks:\n    - class_path: Tmer\n",
        ("line 3: trainer.callbacks[0]: no Callback is called 'Tmer'", "mean 'Timer'?"),
    ),
    "YAML, a dataclass": (
        "",
        "data:\n  init_args:\n    tokenizer: {knd: bpe}\n",
        ("line 3: data.init_args.tokenizer.knd", "mean 'kind'?"),
    ),
    "YAML, without init_args": (
        "",
        "model:\n  class_path: Classification\n  num_classes: 3\n",
        ("line 3: model.num_classes: belongs one level deeper, under model.init_args.",),
    ),
    "YAML, a value for keys": ("", "trainer: 3\n", ("line 1: trainer: is a value", "max_epochs")),
    "YAML, an empty section": ("", "data:\n", ("line 1: data: has to name", "TextFiles")),
    "YAML, empty init_args": ("", "data:\n  init_args:\n", ("line 2: data.init_args: holds keys",)),
    "YAML, an empty group": (
        "",
        "model:\n  init_args:\n    optim:\n",
        ("line 3: model.init_args.optim: is empty, but holds keys: name, lr",),
    ),
    "YAML, empty": ("", "# nothing\n", ("overlay.yaml: empty; write its keys",)),
    "YAML, quotes in a list": (
        "",
        "data:\n  init_args:\n    label_names: [no, yes]\n",
        ("line 3: data.init_args.label_names: must be", "Put each in quotes: YAML takes no for"),
    ),
    "quotes in a list": ("--data.label_names [no,yes]", "", ("label_names", "Put each in quotes")),
    "YAML, quotes": ("", "experiment: 3\n", ("line 1: experiment", "Put it in quotes.")),
    "YAML, a merged key": (
        "",
        "trainer: {<<: &base {max_epoch: 3}}\n",
        ("line 1: trainer.max_epoch", "mean 'max_epochs'?"),
    ),
    "YAML, a list for a key": ("", "? [a, b]\n: 2\n", ("line 1", "a config takes no '[a, b]'")),
    "YAML, a list for a class": ("", "data: {class_path: [a]}\n", ("data: has to name a class",)),
    "YAML, a list": ("", "model: [a]\n", ("line 1: model: must be a Task (class_path, init",)),
    "YAML, quotes around one of a list": (
        "",
        "data:\n  init_args:\n    label_names: [no, 'yes', 3]\n",
        ("line 3: data.init_args.label_names: must be [a text", "Put each in quotes"),
    ),
    "YAML, a section twice": (
        "",
        "trainer: {max_epochs: 1}\nmodel: {}\ntrainer: {max_steps: 1}\n",
        ("line 3: trainer: stands twice, first in line 1. Only the last would count: join",),
    ),
    "YAML, a key twice": (
        "",
        NESTED % "pooling: mean, 'pooling': mean",
        ("line 4: model.init_args.backbone.init_args.pooling: stands twice, first in line 4",),
    ),
    "YAML, a key of a list twice": (
        "",
        "trainer:\n  callbacks:\n    - class_path: Timer\n      class_path: Timer\n",
        ("line 4: trainer.callbacks[0].class_path: stands twice, first in line 3",),
    ),
    "YAML, a key twice beside a merged one": (
        "",
        "trainer:\n  max_steps: 1\n  <<: {max_steps: 2}\n  max_steps: 3\n",
        ("line 4: trainer.max_steps: stands twice, first in line 2",),
    ),
    "a key twice": ('--model.optim {"lr":0,"lr":0}', "", ("--model.optim.lr: stands twice",)),
    "a key twice in a config as text": (
        '--config {"trainer":{"max_steps":1,"max_steps":1}}',
        "",
        ("--config, line 1: trainer.max_steps: stands twice, first in line 1",),
    ),
    "YAML, a word alone": ("", "model\n", ("is a value, but holds keys: seed_everything",)),
}


@pytest.mark.parametrize("case", CASES)
def test_mistake_is_told_with_its_place_and_what_was_meant(case: str, tiny: Path) -> None:
    words, overlay, said = CASES[case]
    more = words.replace("{folder}", str(tiny.parent)).split()
    if overlay:
        written = tiny.with_name("overlay.yaml")
        written.write_text(overlay, encoding="utf-8")
        more += ["--config", str(written)]
        said = (str(written), *said)
    with pytest.raises(UsageError) as caught:
        main(["fit", "--config", str(tiny), *more])
    message = str(caught.value)
    assert not [part for part in said if part not in message], message
    told = len(message.splitlines())
    assert told == (2 if case == "several" else 1)
    assert sum(1 + len(line) // WIDTH for line in message.splitlines()) <= MOST_LINES
    assert foreseen(caught.value)
    assert not (tiny.parent / "runs").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "no model and no data section"),
        ({"model": {"class_path": "Classification"}}, "no data section"),
        (
            {"model": {"class_path": "Classification"}, "data": {"class_path": "Docstrings"}},
            "model: Classification needs 'backbone', which is not set; fit --model.help",
        ),
    ],
)
def test_what_is_missing_is_named(config: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        main(["fit", "--config", str(write_config(tmp_path / "a.yaml", config))])


def test_only_the_first_mistakes_are_told(tiny: Path) -> None:
    words = [word for i in range(9) for word in (f"--nothing{i}", "1")]
    with pytest.raises(UsageError, match="and 5 more") as caught:
        main(["fit", "--config", str(tiny), *words])
    assert len(str(caught.value).splitlines()) == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"# caf\xe9\n", "line 1: not UTF-8: the byte 0xe9. Save the file as UTF-8"),
        ("trainer:\n".encode("utf-16"), "line 1: not UTF-8: the byte 0xff"),
        (bytes(range(256)), "line 2: not UTF-8: the byte 0x80"),
        (b"a: 1\nb: \0\n", "line 2: not YAML: special characters are not allowed"),
        (b"trainer:\n\tmax_steps: 1\n", "line 2, column 1: not YAML"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_config_that_is_no_text_is_told_with_its_place(
    content: bytes, said: str, nested: bool, tiny: Path
) -> None:
    path = tiny.with_name("part.yaml")
    path.write_bytes(content)
    key = "--trainer" if nested else "--config"
    with pytest.raises(UsageError) as caught:
        main(["fit", "--config", str(tiny), key, str(path)])
    assert str(caught.value).startswith(f"{path}, {said}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_config_may_have_a_byte_order_mark_umlauts_and_merged_keys(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\ufeff# caf\u00e9\ntrainer:\n  <<: {max_steps: 2, max_epochs: 7}\n  max_steps: 3\n"
    tiny.with_name("over.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        main(
            ["fit", "--config", str(tiny), "-c", str(tiny.with_name("over.yaml")), "--print_config"]
        )
    shown = yaml.safe_load(capsys.readouterr().out)["trainer"]
    assert (shown["max_steps"], shown["max_epochs"]) == (3, 7)


def test_a_config_is_read_as_utf8_whatever_the_locale(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: caf\u00e9\n", encoding="utf-8")
    code = (
        "import lit_foundry.cli.arguments, jsonargparse as j; ascii(j.Path('a.yaml').read_text())"
    )
    env = {"PYTHONPATH": str(REPO), "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", code]
    subprocess.run(command, cwd=tmp_path, env=env, check=True)


def test_a_key_twice_in_a_part_is_told_where_it_lies(tiny: Path) -> None:
    part = tiny.with_name("optim.yaml")
    part.write_text("lr: 1e-3\nwarmup: 0.1\nlr: 1e-4\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        main(["fit", "--config", str(tiny), "--model.optim", str(part)])
    told = f"{part}, line 3: model.init_args.optim.lr: stands twice, first in line 1."
    assert str(caught.value).startswith(told)


def test_aliases_that_multiply_cost_no_time() -> None:
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]" for i in range(1, 30))]
    assert not list(repeated(yaml.compose("\n".join(lines))))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("fti", "'fti' is no command. Did you mean 'fit'?"),
        (
            "xyz",
            "There is fit, validate, test, predict, embed, export, evaluate, benchmark, "
            "compress, report, tokenizer, list.",
        ),
        ("--config", "comes after the command: python -m lit_foundry fit --config"),
    ],
)
def test_mistyped_command_is_told(word: str, said: str) -> None:
    assert said in usage.unknown_command(word)
    with pytest.raises(UsageError, match="command"):
        main([word])


@pytest.mark.parametrize("command", usage.HELP)
def test_help_of_a_command_is_one_screen_of_keys_that_exist(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = usage.HELP[command].splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= WIDTH
    with pytest.raises(SystemExit) as done:
        main([command, "--help-all"])
    assert done.value.code == 0
    everything = capsys.readouterr().out
    keys = [word for line in lines for word in line.split() if word.startswith("--")]
    plain = [k for k in keys if not k.startswith(("--model", "--data")) and "help" not in k]
    assert len(plain) > 5
    assert not [key for key in plain if key.rstrip(",") not in everything]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model.help Classification", "--model.optim.lr"),
        ("--data.help IMDb", "--data.root"),
        ("--model.backbone.help=TextEncoder", "--model.backbone.pooling"),
        ("--trainer.callbacks.help EarlyStopping", "--trainer.callbacks.monitor"),
        ("--data.help", "\n  Docstrings\n  IMDb\n"),
    ],
)
def test_help_of_a_class(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["fit", *words.split()])
    assert not done.value.code
    assert said in capsys.readouterr().out


def test_file_in_place_of_keys_is_searched_where_it_lies(tiny: Path) -> None:
    (tiny.parent / "sub").mkdir()
    (tiny.parent / "sub" / "optim.yaml").write_text("lr: 1e-3\nwarmpu: 0.1\n", encoding="utf-8")
    over = tiny.parent / "sub" / "over.yaml"
    over.write_text("model:\n  init_args:\n    optim: optim.yaml\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        main(["fit", "--config", str(tiny), "--config", str(over)])
    place = f"{over.with_name('optim.yaml')}, line 2: model.init_args.optim.warmpu"
    assert str(caught.value) == f"{place}: optim takes no 'warmpu'. Did you mean 'warmup'?"


class Untyped(Callback):
    """A callback without type hints, as users write them."""

    def __init__(self, every, name="x"):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        self.every = every


def test_what_is_right_is_not_blamed(tiny: Path) -> None:
    callback = f"{__name__}.{Untyped.__name__}"
    words = ["--trainer.callbacks+", callback, "--trainer.callbacks.every", "3"]
    words += ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    words += ["--model.class_weights+=1", "--model.class_weights+=2", "--trainer.max_steps", "-1"]
    words += ["--trainer", str(write_config(tiny.with_name("t.yaml"), {"max_epochs": 1}))]
    with pytest.raises(UsageError) as caught:
        main(["fit", *words, "--config", str(tiny), "--lr", "1"])
    assert str(caught.value) == "--lr: a config takes no 'lr'. Did you mean 'model.optim.lr'?"


def test_keys_win_over_configs_wherever_they_stand(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--model.dropout", "1e-3", "--print_config", "-c", str(tiny)])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["dropout"] == 1e-3
    assert config["data"]["class_path"] == "lit_foundry.TextFiles"


def test_failing_search_leaves_what_jsonargparse_said(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Search, "everything", lambda *args: 1 / 0)
    with pytest.raises(UsageError, match=r"trainer\.max_epoch"):
        main(["fit", "--config", str(tiny), "--trainer.max_epoch", "1"])
