"""Lower layers do not import higher ones, and only the command line sees data and tasks."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lit_foundry"
LEAVES = ("atomic", "ranges", "recipe", "signals", "sources")  # what every layer may import
LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}


def qualified(*names: str) -> set[str]:
    return {f"lit_foundry.{name}" for name in names}


def modules() -> set[str]:
    files = {path.stem for path in PACKAGE.glob("*.py")}
    return files | {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"__init__"}


def siblings(layer: str) -> set[str]:
    return qualified(*(modules() - {layer, *LEAVES}))


FORBIDDEN = {
    "nn": LIGHTNING | siblings("nn"),
    "data": siblings("data"),
    "tasks": qualified("data", "cli"),
    "callbacks": qualified("data", "cli"),
}
# The public API and the entry points name everything; they define nothing.
ABOVE_ALL = {"__init__", "__main__", "cli"}


def imported(source: str, package: str) -> set[str]:
    """Return every dotted prefix of what a module of ``package`` imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.ImportFrom(module=module, names=aliases, level=level):
                parents = package.split(".")[: -(level - 1) or None] if level else []
                base = ".".join([*parents, *([module] if module else [])])
                names |= {f"{base}.{alias.name}" for alias in aliases}
    parts = [name.split(".") for name in names]
    return {".".join(p[:i]) for p in parts for i in range(1, len(p) + 1)}


def imports_of(path: Path) -> set[str]:
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    return imported(path.read_text(encoding="utf-8"), package)


@pytest.mark.parametrize("layer", FORBIDDEN)
def test_layer_imports_nothing_above(layer: str) -> None:
    files = sorted((PACKAGE / layer).rglob("*.py"))
    found = {str(path.relative_to(PACKAGE)): imports_of(path) & FORBIDDEN[layer] for path in files}
    assert files
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_imports_nothing_of_the_package(leaf: str) -> None:
    names = imports_of(PACKAGE / f"{leaf}.py")
    assert {name for name in names if name.split(".")[0] in {"lit_foundry", *LIGHTNING}} == set()


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_only_the_command_line_sees_both_data_and_tasks(path: Path) -> None:
    if path.stem not in ABOVE_ALL:
        assert not qualified("data", "tasks") <= imports_of(path)
        assert "lit_foundry.cli" not in imports_of(path)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_modules_import_from_their_layer_and_not_through_the_public_api(path: Path) -> None:
    names = {name for name in imports_of(path) if name.startswith("lit_foundry.")}
    shallow = {".".join(name.split(".")[:2]) for name in names}
    assert shallow <= qualified(*modules(), "__version__")


@pytest.mark.parametrize(
    "source",
    [
        "import lit_foundry.data.base",
        "import numpy, lit_foundry.data as d",
        "from lit_foundry import data",
        "from lit_foundry.data import IMDb",
        "from lit_foundry.data.imdb import IMDb",
        "from .. import data",
        "from ..data import x",
        "from ..data.imdb import x",
        "def late():\n    from lit_foundry.data import IMDb",
        "if TYPE_CHECKING:\n    from ..data import x",
    ],
)
def test_detector_finds_a_forbidden_import(source: str) -> None:
    assert "lit_foundry.data" in imported(source, "lit_foundry.nn")


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from . import data", {"lit_foundry", "lit_foundry.nn", "lit_foundry.nn.data"}),
        ("from .data import x", {f"lit_foundry{x}" for x in ("", ".nn", ".nn.data", ".nn.data.x")}),
        ("from torch.utils import data", {"torch", "torch.utils", "torch.utils.data"}),
        ("# import lit_foundry.data\n'import lit_foundry.data'", set()),
    ],
)
def test_detector_takes_nothing_else_for_one(source: str, found: set[str]) -> None:
    assert imported(source, "lit_foundry.nn") == found
