"""Programs of ``torch.export`` from others, read without running what they hold.

``torch.export.load`` unpickles parts of the archive, loads compiled libraries from it, evaluates
its sizes as Python, and calls whatever function of torch its graph names, such as
``torch.os.system``. So all of it is checked before.
"""

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from lit_foundry.recipe import CheckpointError

MODEL, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
TENSORS = [f"data/{kind}s/model_{kind}s_config.json" for kind in ("weight", "constant")]
MEMBERS = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|archive_format|archive_version|byteorder|"
    r"version|\.format_version|\.storage_alignment|\.data/(version|serialization_id)|"
    + "|".join(map(re.escape, (MODEL, INPUTS, *TENSORS)))
)
# Functions of tensors and numbers alone: two of aten's read and write files.
OPERATORS = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b|save\b)\w+\.[a-zA-Z]\w*|torch\.sym_[a-z]+|"
    r"torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)|"
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|getitem|and_|or_|eq|ne|lt|le|gt|ge)|"
    r"math\.(ceil|floor|sqrt|trunc)"
)
# What the sizes of tensors are computed with, by the names that sympy and torch give it.
ARITHMETIC = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|PythonMod|Max|Min|Abs|FloorDiv|CeilDiv|CleanDiv"
    r"|ModularIndexing|Where|IntTrueDiv|FloatTrueDiv|CeilToInt|FloorToInt|TruncToInt|RoundToInt"
    r"|ToFloat|FloatPow|PowByNatural|Identity|And|Or|Not|Equality|Unequality|LessThan|GreaterThan"
    r"|StrictLessThan|StrictGreaterThan|Eq|Ne|Le|Lt|Ge|Gt|[a-z]+\d+"
)
NODES: tuple[type[ast.AST], ...] = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.keyword)
NODES += (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop)
LETTERS = {"as_string": r"[\w., >-]*", "as_float": r"-?Infinity|NaN"}  # the former as of einsum
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
UNUSED = {"metadata", "torch_version", "guards_code"}  # texts that stay texts, as guards are off


def load_program(path: Path) -> ExportedProgram:
    """Read a program that ``export`` wrote, or one that is like it.

    Raises:
        CheckpointError: If it holds more than tensors and operations on them.
    """
    # The same reader, so that no other can find something else in the same bytes.
    from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

    try:
        with PT2ArchiveReader(str(path)) as archive:
            names = archive.get_file_names()
            mistakes = [name for name in names if not MEMBERS.fullmatch(name)]
            if not mistakes and len({*names}) == len(names):
                parts = {name: archive.read_bytes(name) for name in (MODEL, INPUTS, *TENSORS)}
                # Else load_pt2 would unpickle them without weights_only.
                torch.load(io.BytesIO(parts[INPUTS]), weights_only=True)
                mistakes += [m for name in TENSORS for m in _pickles(json.loads(parts[name]))]
                mistakes += _foreign(json.loads(parts[MODEL]))
    except Exception as error:  # a torn archive, or pickles that name functions, in many ways
        mistakes = [" ".join(f"{type(error).__name__}: {error}".split())]
    if mistakes:
        raise CheckpointError(
            f"{path} is refused, as it holds more than tensors and operations on them "
            f"({mistakes[0][:100]}). Export the checkpoint again."
        )
    return load_pt2(str(path)).exported_programs["model"]


def _pickles(tensors: Any) -> Iterator[str]:
    """Yield what a table of tensors says is none, or pickled."""
    for name, entry in tensors["config"].items():
        place = str(entry["path_name"])
        if entry["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", place):
            yield f"{name} as {place}"


def _foreign(part: Any, key: str = "") -> Iterator[str]:
    """Yield texts of a graph that are neither names, nor arithmetic, nor known operators.

    Torch makes Python of a graph, names included.
    """
    if isinstance(part, dict):
        for name, inner in part.items():
            yield from _foreign(name)
            texts = inner.values() if isinstance(inner, dict) else inner
            if name not in UNUSED or not all(isinstance(text, str) for text in texts):
                yield from _foreign(inner, name)
    elif isinstance(part, list):
        for inner in part:
            yield from _foreign(inner, key)
    elif isinstance(part, str) and not _is_harmless(part, key):
        yield part


def _is_harmless(text: str, key: str) -> bool:
    if key == "expr_str":
        return _is_arithmetic(text)
    if key in ("in_spec", "out_spec"):
        return _is_nesting(json.loads(text))
    if key in ("target", "as_operator"):
        return OPERATORS.fullmatch(text) is not None
    letters = LETTERS.get(key, r"[\w.]*")
    return re.fullmatch(letters, text, re.ASCII) is not None


def _is_arithmetic(text: str) -> bool:
    return "\n" not in text and all(
        isinstance(node, NODES)
        and not (isinstance(node, ast.Name) and not ARITHMETIC.fullmatch(node.id))
        and not (isinstance(node, ast.Constant) and not _is_plain(node.value))
        for node in ast.walk(ast.parse(text, mode="eval"))
    )


def _is_plain(value: Any) -> bool:
    is_name = isinstance(value, str) and re.fullmatch(r"[a-z]+\d+", value) is not None
    return is_name or isinstance(value, int | float)


def _is_nesting(spec: Any) -> bool:
    """Tell whether a description of nested values has plain containers only, of plain keys."""
    if isinstance(spec, list):
        return all(_is_nesting(part) for part in spec if part != 1)  # the version of its form
    keys = json.loads(spec["context"] or "null") or []
    return (
        spec["type"] in CONTAINERS
        and isinstance(keys, list)
        and all(isinstance(key, str) and key.isidentifier() for key in keys)
        and _is_nesting(spec["children_spec"])
    )
