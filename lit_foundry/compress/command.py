"""What the commands that measure share: options of data, tables, files and facts of the machine."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from lit_foundry.atomic import replacing
from lit_foundry.recipe import import_named
from lit_foundry.runs.folder import environment, version_of
from lit_foundry.sources import check_output
from lit_foundry.usage import Parser, UsageError, flags

WIDTH = 240  # of tables in files and pipes


def parsed(
    parser: Parser, args: Sequence[str], needs_paths: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Parse a command that takes artifacts, and ``--data.KEY VALUE`` beside its own options.

    Args:
        parser: Knows these.
        args: Words that follow the command.
        needs_paths: Whether an artifact has to be named without an option.

    Returns:
        What was given, and the arguments of data that are set otherwise.

    Raises:
        UsageError: If there is a mistake in them.
    """
    parser.add_argument("paths", nargs="+" if needs_paths else "*", metavar="PATH", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--import", dest="modules", nargs="+", default=[])
    changes, own = changes_of(args)
    given = parser.parse_args(own)
    import_named(given.modules)
    if given.output:
        if given.output.is_dir() or given.output.suffix != ".json":
            raise UsageError(f"--output {given.output}: name a file that ends in .json.")
        check_output(given.output, given.paths)
    return given, changes


def changes_of(args: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Part ``--data.KEY VALUE`` from the other words of a command.

    Raises:
        UsageError: If there is a key without a value.
    """
    changes: dict[str, Any] = {}
    own: list[str] = []
    for key, value in flags(args):
        if key.startswith("--data."):
            name = key.removeprefix("--data.")
            if value is None or not name:
                raise UsageError(f"{key} needs a value.")
            try:
                changes[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                changes[name] = value
        else:
            own += [word for word in (key, value) if word]
    return changes, own


def show(rows: Sequence[Mapping[str, str]], notes: Sequence[str]) -> None:
    """Print a table of rows, whose columns are those of all of them, and lines below it."""
    table = Table()
    columns = dict.fromkeys(name for row in rows for name in row)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(row.get(name, "") for name in columns))
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    console.print(table)
    for note in notes:
        console.print(note, soft_wrap=True)


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all, with the facts of the machine; None writes none."""
    if path is None:
        return
    with replacing(path) as partial:
        text = json.dumps({**content, "environment": facts()}, indent=2) + "\n"
        partial.write_text(text, encoding="utf-8")
    print(f"Written to {path}.")


def facts() -> dict[str, Any]:
    """Return what figures depend on beyond the artifacts: processor, threads, versions."""
    found = environment({})
    found["packages"] |= {name: version_of(name) for name in ("onnx", "onnxruntime")}
    threads = found["hardware"]["threads"]  # an ONNX model is opened with as many
    threads = {"torch": threads, "onnxruntime": threads}
    return found | {"hardware": {"cpu": _processor(), **found["hardware"], "threads": threads}}


def machine() -> str:
    """Tell the facts of the machine in a line."""
    found = facts()
    hardware, packages = found["hardware"], found["packages"]
    names = ("torch", "onnxruntime", "transformers", "lit-foundry")
    versions = ", ".join(f"{name} {packages[name]}" for name in names if packages.get(name))
    threads = ", ".join(f"{name} {count}" for name, count in hardware["threads"].items())
    return f"{hardware['cpu']}, {hardware['cpus']} CPUs; threads: {threads}; {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
