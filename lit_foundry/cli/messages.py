"""Parts of messages about mistakes, and of the YAML that they point to."""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

import yaml


def brief(message: str) -> list[str]:
    """Return what jsonargparse says, without what repeats the whole config."""
    dull = ("Given value", "Subtypes:", "Errors:", "Does not validate", "Expected a <class 'None")
    lines = [line.strip(" -") for line in message.splitlines()]
    return [line[:200] for line in lines if line and not line.startswith(dull)]


def close_file(path: Path) -> str:
    """Suggest a YAML file beside a path that leads to none."""
    close = get_close_matches(str(path), map(str, path.parent.glob("*.y*ml")), n=1)
    return f"Did you mean {close[0]}?" if close else ""


def not_utf8(name: str, error: UnicodeDecodeError) -> str:
    """Say where a file is not UTF-8."""
    line = error.object.count(b"\n", 0, error.start) + 1
    byte = f"the byte {error.object[error.start]:#04x}"
    return f"{name}, line {line}: not UTF-8: {byte}. Save the file as UTF-8, or name a YAML file."


def without_init_args(key: str) -> str:
    """Return a key as the command line may write it."""
    return key.replace(".init_args", "")


def has(node: yaml.MappingNode, key: str) -> bool:
    """Tell whether a mapping sets a key."""
    return any(name == key for name, _, _ in entries(node))


def entries(node: yaml.MappingNode) -> list[tuple[str, yaml.Node, yaml.Node]]:
    """Return the keys of a mapping as text and node, with their values; ``<<`` is resolved."""
    yaml.SafeLoader("").flatten_mapping(node)
    return [
        (at.value if isinstance(at, yaml.ScalarNode) else yaml.serialize(at).strip(), at, value)
        for at, value in node.value
    ]


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise what a constructor raised: jsonargparse wraps it in a dump of the whole config."""
    try:
        yield
    except ValueError as error:
        cause: BaseException = error
        wraps = ("of the Union subtypes", "Problem with given class_path")
        while any(text in str(cause) for text in wraps) and cause.__cause__:
            cause = cause.__cause__
        if str(cause).startswith("Expected a "):  # of a union, the first failure alone is chained
            told = [line.strip(" -") for line in str(error).splitlines() if " - " in line]
            dull = ("Expected a ", "Does not validate ")
            told = [line for line in told if not line.startswith(dull)]
            raise ValueError("; ".join(told) or str(error)) from cause
        raise cause from cause.__cause__
