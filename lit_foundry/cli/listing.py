"""List what a config can name: tasks, data modules, backbones, and the shipped configs.

usage: python -m lit_foundry list

Read from the sources with ``ast``: importing the classes would import torch and Lightning.
"""

import ast
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
CONFIGS = PACKAGE.parent / "configs"
# Title, folder of the package, base class of what is listed.
KINDS = (
    ("Tasks", "tasks", "Task"),
    ("Data modules", "data", "DataModule"),
    ("Backbones", "nn", "Backbone"),
)


def main(args: list[str]) -> None:
    """Print the lists, or one line on what is wrong with the arguments."""
    match args:
        case []:
            print(listing())
        case ["-h" | "--help"]:
            print(__doc__)
        case [word, *_]:
            print(f"list takes no arguments, got {word!r}.", file=sys.stderr)
            sys.exit(2)


def listing() -> str:
    """Return all lists, names aligned, lines cut to the terminal's width if there is one."""
    sections = {title: shipped(PACKAGE / folder, base) for title, folder, base in KINDS}
    if CONFIGS.is_dir():
        sections["Configs"] = {
            os.path.relpath(path): first_comment(path) for path in sorted(CONFIGS.glob("*.yaml"))
        }
    column = max((len(name) for names in sections.values() for name in names), default=0)
    lines = []
    for title, names in sections.items():
        lines += ["", title, *(f"  {name:{column}}  {text}" for name, text in names.items())]
    if not CONFIGS.is_dir():
        lines += ["", "Configs: none here; they are in the repository's folder configs."]
    width = shutil.get_terminal_size((sys.maxsize, 0)).columns
    return "\n".join(cut(line.rstrip(), width) for line in lines[1:])


def shipped(folder: Path, base: str) -> dict[str, str]:
    """Return what a package exports of one kind, with the summaries of the docstrings.

    Args:
        folder: Folder of the package; its ``__init__.py`` lists the exported names in ``__all__``.
        base: Class that the listed classes derive from, by names within the package. Classes
            that leave a method abstract are left out.
    """
    trees = [ast.parse(path.read_bytes()) for path in sorted(folder.rglob("*.py"))]
    nodes = [node for tree in trees for node in tree.body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    return {
        name: summary(classes[name])
        for name in exported(folder / "__init__.py")
        if name != base and base in lineage(name, classes) and not abstract(name, classes)
    }


def exported(init: Path) -> list[str]:
    """Return ``__all__`` of a package."""
    for node in ast.parse(init.read_bytes()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return list(ast.literal_eval(value))
    return []


def lineage(name: str, classes: Mapping[str, ast.ClassDef]) -> list[str]:
    """Return a class and its bases in order of definition, as far as the package holds them."""
    if name not in classes:
        return []
    bases = [last_name(base) for base in classes[name].bases]
    return [name, *(found for base in bases for found in lineage(base, classes))]


def abstract(name: str, classes: Mapping[str, ast.ClassDef]) -> bool:
    """Tell whether a class leaves a method of its lineage abstract."""
    left: set[str] = set()
    for cls in reversed(lineage(name, classes)):
        for node in classes[cls].body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    marks = {last_name(decorator) for decorator in node.decorator_list}
                    (left.add if "abstractmethod" in marks else left.discard)(node.name)
                case ast.Assign(targets=[ast.Name(id=attribute)]):
                    left.discard(attribute)
                case ast.AnnAssign(target=ast.Name(id=attribute), value=ast.expr()):
                    left.discard(attribute)
    return bool(left)


def last_name(node: ast.expr) -> str:
    """Return ``C`` of ``C``, ``a.b.C``, ``C[T]`` and ``C(...)``."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=inner) | ast.Call(func=inner):
            return last_name(inner)
    return ""


def summary(node: ast.ClassDef) -> str:
    """Return the first line of a class's docstring, which the linter keeps one sentence."""
    first, *_ = (ast.get_docstring(node) or "").split("\n")
    return re.sub(r":\w+:(?=`)|`", "", first)


def first_comment(path: Path) -> str:
    """Return the first comment line of a file."""
    with path.open(encoding="utf-8") as file:
        return next((line.lstrip("# ").rstrip() for line in file if line.startswith("#")), "")


def cut(line: str, width: int) -> str:
    """Cut a line to a width, and mark the cut."""
    return line if len(line) <= width else line[: width - 3].rstrip() + "..."
