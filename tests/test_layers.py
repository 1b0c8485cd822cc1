"""The rooms of the house: lower ones do not import higher ones, and nothing goes in circles."""

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lit_foundry"
# What every room may import.
LEAVES = (
    "atomic",
    "datamodule",
    "memory",
    "randomness",
    "ranges",
    "recipe",
    "signals",
    "sources",
    "usage",
)
# Each room may import those before it, but for what FORBIDDEN takes out.
ROOMS = (
    *("nn", "data", "checkpoints", "training", "tasks"),
    *("runs", "report", "callbacks", "export", "compress", "cli"),
)
MOST = 18  # files of a folder
LIGHTNING = {"lightning", "lightning_fabric", "pytorch_lightning"}


def qualified(*names: str) -> set[str]:
    return {f"lit_foundry.{name}" for name in names}


FORBIDDEN = {room: qualified(*ROOMS[number + 1 :]) for number, room in enumerate(ROOMS)}
FORBIDDEN["nn"] |= LIGHTNING
FORBIDDEN["data"] |= qualified("nn")
for _room in ("checkpoints", "training", "tasks", "runs", "callbacks"):
    FORBIDDEN[_room] |= qualified("data")


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


FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def graph() -> dict[str, set[str]]:
    """Return which files of the package each of them imports, at any depth."""
    return {name: (imports_of(path) & FILES.keys()) - above(name) for name, path in FILES.items()}


def above(name: str) -> set[str]:
    """Return a module and the packages that it lies in, which are imported along with it."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a circle, none if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def without_packages(names: set[str]) -> set[str]:
    """Leave out packages of which a module is named too, as they come with it."""
    return {name for name in names if not any(name in above(n) - {n} for n in names)}


def test_no_file_is_imported_by_what_it_imports() -> None:
    assert circle({name: without_packages(names) for name, names in graph().items()}) == []


def test_no_folder_is_imported_by_what_it_imports() -> None:
    """Folders are rooms: ``nn`` is the files in it, and not those of ``nn.text``."""
    folders: dict[str, set[str]] = {}
    for name, names in graph().items():
        if FILES[name].stem != "__init__":  # which only names what the rooms below offer
            home = name.rpartition(".")[0]
            there = {n if FILES[n].stem == "__init__" else n.rpartition(".")[0] for n in names}
            folders.setdefault(home, set()).update(without_packages(there) - {home, "lit_foundry"})
    assert circle({k: v for k, v in folders.items() if k != "lit_foundry"}) == []


@pytest.mark.parametrize("room", FORBIDDEN)
def test_room_imports_nothing_above(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    found = {str(path.relative_to(PACKAGE)): imports_of(path) & FORBIDDEN[room] for path in files}
    assert files
    assert {path: names for path, names in found.items() if names} == {}


def test_every_file_is_a_leaf_an_entry_or_in_a_room() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*LEAVES, "__init__", "__main__"}
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*ROOMS}


def test_no_folder_is_too_full() -> None:
    folders = [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]
    counts = {str(folder.name): len([*folder.glob("*.py")]) for folder in folders}
    assert {name: count for name, count in counts.items() if count > MOST} == {}


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaf_imports_nothing_of_the_package(leaf: str) -> None:
    names = imports_of(PACKAGE / f"{leaf}.py")
    assert {name for name in names if name.split(".")[0] in {"lit_foundry", *LIGHTNING}} == set()


@pytest.mark.parametrize("name", FILES)
def test_only_the_command_line_sees_both_data_and_tasks(name: str) -> None:
    if name.split(".")[1:2] != ["cli"]:
        assert not qualified("data", "tasks") <= imports_of(FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_modules_import_from_their_room_and_not_through_the_public_api(name: str) -> None:
    names = {name for name in imports_of(FILES[name]) if name.startswith("lit_foundry.")}
    shallow = {".".join(name.split(".")[:2]) for name in names}
    assert shallow <= qualified(*ROOMS, *LEAVES, "__version__")


@pytest.mark.parametrize(
    ("edges", "found"),
    [({"a": {"b"}, "b": {"c"}}, False), ({"a": {"b"}, "b": {"c"}, "c": {"a"}}, True)],
)
def test_detector_finds_a_circle(edges: dict[str, set[str]], found: bool) -> None:
    assert bool(circle(edges)) is found


@pytest.mark.parametrize(
    "source",
    [
        "import lit_foundry.data.base",
        "import numpy, lit_foundry.data as d",
        "from lit_foundry import data",
        "from lit_foundry.data import IMDb",
        "from lit_foundry.data.sets.imdb import IMDb",
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
