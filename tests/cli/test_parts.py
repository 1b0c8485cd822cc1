"""Configs of parts, and configs that depart from others: what holds, and what a run keeps of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_foundry.cli.main import main
from lit_foundry.cli.parts import classes_written
from lit_foundry.usage import UsageError
from tests.conftest import tiny_config, write_config

SHOWN = ("lr", "warmup", "layer_decay")


@pytest.fixture
def parts(tiny: Path) -> Path:
    """Give the tiny config an optim of its own file, in another folder; return its path."""
    config = tiny_config(tiny.parent)
    config["model"]["init_args"]["optim"] = "parts/optim.yaml"
    (tiny.parent / "parts").mkdir()
    write(tiny.parent / "parts" / "optim.yaml", "lr: 2e-3\nwarmup: 0.1\n")
    return write_config(tiny.with_name("parts.yaml"), config)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def resolved(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """Return what a command line resolves to."""
    with pytest.raises(SystemExit):
        main(["fit", *map(str, words), "--print_config"])
    shown: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return shown


def optim(config: dict[str, Any]) -> list[float]:
    return [config["model"]["init_args"]["optim"][key] for key in SHOWN]


def test_part_is_overridden_by_a_word_by_an_overlay_and_by_another_part(
    parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "model: {init_args: {optim: {warmup: 0.3, layer_decay: 0.5}}}\n"
    over = write(parts.with_name("over.yaml"), text)
    other = write(parts.with_name("other.yaml"), "layer_decay: 0.9\n")
    base = ("--config", parts)
    assert optim(resolved(capsys, *base)) == [2e-3, 0.1, 1.0]
    assert optim(resolved(capsys, *base, "--model.optim.lr", "1e-3")) == [1e-3, 0.1, 1.0]
    assert optim(resolved(capsys, *base, "--config", over)) == [2e-3, 0.3, 0.5]
    assert optim(resolved(capsys, *base, "--model.optim", other)) == [2e-3, 0.1, 0.9]


@pytest.mark.parametrize("last", [False, True])
def test_config_departs_from_the_one_that_it_names(
    last: bool, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "model: {init_args: {optim: {lr: 1.0e-3}}}\ntrainer: {max_epochs: 9}\n"
    named = "config: ../parts.yaml\n"
    text = own + named if last else named + own  # which key comes first says nothing
    found = resolved(capsys, "--config", write(parts.parent / "parts" / "derived.yaml", text))
    overlay = write(parts.with_name("overlay.yaml"), own)
    assert found == resolved(capsys, "--config", parts, "--config", overlay)
    assert optim(found) == [1e-3, 0.1, 1.0]
    assert found["data"]["init_args"]["batch_size"] == 12
    assert (found["trainer"]["max_epochs"], found["trainer"]["gradient_clip_val"]) == (9, 1.0)


def test_of_several_configs_that_one_names_the_later_win(
    parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(parts.with_name("long.yaml"), "config: parts.yaml\ntrainer: {max_epochs: 30}\n")
    write(parts.with_name("fast.yaml"), "trainer: {max_epochs: 1, precision: bf16-mixed}\n")
    text = "config: [long.yaml, fast.yaml]\nmodel: {init_args: {dropout: 0.25}}\n"
    found = resolved(capsys, "--config", write(parts.with_name("both.yaml"), text))
    assert (found["trainer"]["max_epochs"], found["trainer"]["precision"]) == (1, "bf16-mixed")
    assert found["model"]["init_args"]["dropout"] == 0.25
    assert optim(found) == [2e-3, 0.1, 1.0]
    text = f"{{config: '{parts}', trainer: {{max_epochs: 5}}}}"  # relative to the current folder
    assert resolved(capsys, "--config", text)["trainer"]["max_epochs"] == 5


def test_quotes_of_a_config_that_names_another_stay(
    parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "config: parts.yaml\nexperiment: '1e-3'\ntrainer: {max_time: '00:01:00:00'}\n"
    write(parts.with_name("quoted.yaml"), text)
    alone = write(parts.with_name("alone.yaml"), "config: quoted.yaml # and nothing else\n")
    found = resolved(capsys, "--config", alone)
    assert (found["experiment"], found["trainer"]["max_time"]) == ("1e-3", "00:01:00:00")


def test_run_and_checkpoint_hold_values_and_no_path_of_a_part(parts: Path) -> None:
    text = "config: parts.yaml\ntrainer: {max_epochs: 1}\n"
    run = main(["fit", "--config", str(write(parts.with_name("one.yaml"), text))]).run.path
    assert run.parent.name == "one"
    saved = (run / "config.yaml").read_text(encoding="utf-8")
    assert optim(yaml.safe_load(saved)) == [2e-3, 0.1, 1.0]
    recipe = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["lit_foundry"]
    assert optim(recipe) == [2e-3, 0.1, 1.0]
    assert ".yaml" not in saved + str(recipe)


# Files, and what has to be said of a fit with the first.
MISTAKES: dict[str, tuple[dict[str, str], str]] = {
    "key of a part": (
        {"a.yaml": "model: {init_args: {optim: b.yaml}}\n", "b.yaml": "lr: 1e-3\nwarmpu: 0.1\n"},
        "b.yaml, line 2: model.init_args.optim.warmpu: optim takes no 'warmpu'. Did you",
    ),
    "type in a part": (
        {"a.yaml": "data: d.yaml\n", "d.yaml": "class_path: TextFiles\ninit_args: {text: [3]}\n"},
        "d.yaml, line 2: data.init_args.text: must be",
    ),
    "class of a part": (
        {"a.yaml": "model: {init_args: {backbone: b.yaml}}\n", "b.yaml": "class_path: TextEncodr"},
        "b.yaml, line 1: model.init_args.backbone: no Backbone is called 'TextEncodr'. Did you",
    ),
    "part that is missing": (
        {"a.yaml": "model:\n  init_args: {optim: optin.yaml}\n", "optim.yaml": "lr: 1\n"},
        "a.yaml, line 2: model.init_args.optim: no such file, optin.yaml. Did you mean optim.yaml?",
    ),
    "part of a class that is missing": (
        {"a.yaml": "model: {init_args: {backbone: nets/bert.yaml}}\n"},
        "a.yaml, line 1: model.init_args.backbone: no such file, nets/bert.yaml. Name a file, by",
    ),
    "key of a config that is named": (
        {"a.yaml": "config: b.yaml\n", "b.yaml": "\ntrainer: {max_epoch: 3}\n"},
        "b.yaml, line 2: trainer.max_epoch: trainer takes no 'max_epoch'. Did you mean",
    ),
    "config that is missing": (
        {"a.yaml": "trainer: {max_epochs: 1}\nconfig: [c.yaml]\n", "b.yaml": "trainer: {}\n"},
        "a.yaml, line 2: config: c.yaml: no such file. Did you mean",
    ),
    "config that is a folder": (
        {"a.yaml": "config: .\n"},
        "a.yaml, line 1: config: .: a folder; name a YAML file in it.",
    ),
    "no path": (
        {"a.yaml": "config: {trainer: {max_epochs: 1}}\n"},
        "a.yaml, line 1: config: must be the path of a config, or a list of such paths, got",
    ),
    "twice": (
        {"a.yaml": "config: b.yaml\nconfig: b.yaml\n", "b.yaml": "trainer: {max_epochs: 3}\n"},
        "a.yaml, line 2: config: stands twice, first in line 1.",
    ),
    "circle": (
        {"a.yaml": "config: b.yaml\n", "b.yaml": "config: [a.yaml]\n"},
        "b.yaml, line 1: config: goes in a circle, a.yaml -> b.yaml -> a.yaml; take one of them",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_in_a_file_that_a_config_names_is_told_where_it_lies(
    case: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, said = MISTAKES[case]
    monkeypatch.chdir(tiny.parent)
    for name, text in files.items():
        write(Path(name), text)
    with pytest.raises(UsageError) as caught:
        main(["fit", "--config", "tiny.yaml", "--config", "a.yaml"])
    assert str(caught.value).startswith(said)
    assert len(str(caught.value).splitlines()) == 1


def test_a_class_of_ones_own_may_be_named_in_a_part(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    text = "config: below.yaml\nmodel: {init_args: {backbone: parts/net.yaml}}\n"
    config = write(tmp_path / "a.yaml", text)
    write(tmp_path / "below.yaml", "config: a.yaml\ndata: own.Data\n")  # a circle ends
    net = write(tmp_path / "parts" / "net.yaml", "class_path: own.Net\n")
    assert classes_written(["--config", str(config)]) >= {"own.Data", "own.Net"}
    assert "own.Net" in classes_written([f"--model.backbone={net}"])
