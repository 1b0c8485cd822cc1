"""Text files are UTF-8 whatever the locale: what one machine writes, another reads."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("lit_foundry", "scripts", "tests")
# Calls that open text, and how many positional arguments come before the mode.
MODE_AT = {"open": 1, "fdopen": 1, "TextIOWrapper": None, "read_text": None, "write_text": None}
OTHERS = {"Image", "archive", "gzip", "os", "self", "tracker", "zip"}  # whose open() is another


def opens_text(call: ast.Call) -> bool:
    """Tell whether a call opens a file as text; of ``x.open`` the mode comes first."""
    match call.func:
        case ast.Name(id=name):
            at = MODE_AT.get(name)
        case ast.Attribute(attr="open", value=owner):
            name, at = "open", 0
            if ast.unparse(owner).split(".")[-1] in OTHERS:
                return False
        case ast.Attribute(attr=name):
            at = MODE_AT.get(name)
        case _:
            return False
    if name not in MODE_AT:
        return False
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    if at is not None:
        modes += call.args[at : at + 1]
    return not any("b" in ast.unparse(mode).strip("\"'") for mode in modes)


def unstated(source: str) -> Iterator[ast.Call]:
    """Yield the calls of a module that leave the encoding to the locale."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            captures = given.get("text") == "True"  # of subprocess
            if (opens_text(node) or captures) and "encoding" not in given:
                yield node


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_text_file_is_opened_as_utf8(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:60]}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for call in unstated(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "open(p)",
        "open(p, 'w')",
        "path.open()",
        "path.open('a')",
        "path.read_text()",
        "path.write_text('x')",
        "subprocess.run(c, text=True)",
    ],
)
def test_a_call_without_an_encoding_is_found(source: str) -> None:
    assert list(unstated(source))


@pytest.mark.parametrize(
    "source",
    ["open(p, 'rb')", "path.open('wb')", "path.read_text(encoding='utf-8')", "Image.open(f)"],
)
def test_a_call_that_states_its_encoding_or_bytes_passes(source: str) -> None:
    assert not list(unstated(source))
