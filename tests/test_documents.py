"""What README and notebooks show is what happens."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lit_foundry.cli.main import main
from lit_foundry.data import TextFiles
from tests.conftest import REPO, reviews, write_csv

YAML = re.compile(r"```yaml\n(.*?)```", re.S)


def test_readme_overlay_trains(tiny: Path) -> None:
    _, overlay, *_ = YAML.findall((REPO / "README.md").read_text(encoding="utf-8"))
    cli = main(["fit", "--config", str(tiny), "--config", overlay, "--trainer.max_epochs", "2"])
    assert cli.trainer.global_step == 18
    assert type(cli.trainer.optimizers[0]).__name__ == "MuonWith"
    assert cli.trainer.callback_metrics["val/loss"].isfinite()


def test_readme_example_in_python_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = re.findall(
        r"```python\n(.*?)```", (REPO / "README.md").read_text(encoding="utf-8"), re.S
    )
    statements = [s for s in ast.parse(code).body if not isinstance(s, ast.ImportFrom)]
    assert len(statements) <= 10
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "README.md", "exec"), scope)
    assert (tmp_path / "runs/from_python/1/summary.json").exists()
    assert scope["trainer"].callback_metrics["val/acc"] > 0.65  # chance is 0.17
    names = {path.name for path in (tmp_path / "runs/from_python/1/checkpoints").iterdir()}
    assert {"best.ckpt", "best.ckpt.sha256.json"} < names


def test_readme_yaml_is_a_data_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, *_ = YAML.findall((REPO / "README.md").read_text(encoding="utf-8"))
    args = yaml.safe_load(text)["data"]["init_args"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    write_csv(tmp_path / args["train"], reviews(30, 0))
    header, *rows = (tmp_path / args["train"]).read_text(encoding="utf-8").splitlines()
    assert header == "text,label"
    (tmp_path / args["train"]).write_text("\n".join(["review,sentiment", *rows]), encoding="utf-8")
    assert TextFiles(**args | {"tokenizer": "unused"}).labels == ["neg", "pos"]


@pytest.mark.parametrize("number", [2, 3])
def test_readme_configs_of_parts_resolve(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(REPO / "configs", tmp_path / "configs")
    text = YAML.findall((REPO / "README.md").read_text(encoding="utf-8"))[number]
    path = tmp_path / "configs" / "readme.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as done:
        main(["fit", "--config", str(path), "--print_config"])
    assert not done.value.code
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["model"]["init_args"]["optim"]["lr"] > 0
    assert resolved["data"]["class_path"]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(REPO.glob("notebooks/*.ipynb")), ids=lambda p: p.stem)
def test_notebook_runs_from_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[object] = []
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    vars(ipython)["version_info"] = (9, 0)  # which matplotlib asks for at its first figure
    vars(display).update(Image=lambda file: Path(file).read_bytes()[:4], display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"__name__": "notebook"}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), scope)
    out = capsys.readouterr().out
    assert set(shown) == {b"\x89PNG"}
    assert float(re.search(r"test accuracy ([\d.]+)", out)[1]) > 0.5  # type: ignore[index]
