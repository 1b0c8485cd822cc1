"""What a config can name: classes, their arguments, the types of these; and how to say it."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import SUPPRESS, ArgumentParser, Namespace, get_loader, set_loader
from jsonargparse import Path as ConfigPath  # type: ignore[attr-defined]

from lit_foundry.recipe import CheckpointError, renewed
from lit_foundry.usage import UsageError

MOST_NAMES = 12
NULL, TEXT, MAP, LIST, MERGE = (  # the last is that of the key <<
    f"tag:yaml.org,2002:{kind}" for kind in ("null", "str", "map", "seq", "merge")
)
YAML = (".yaml", ".yml", ".json")
PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    NoneType: "null",
    Any: "anything",
}

FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_load_yaml = get_loader("yaml")


def load_value(text: str) -> Any:
    """Load a value or a config from YAML; the text ``None``, where null may stand, is null.

    As that, jsonargparse passes the null of a command line on to an argument of a class.

    Raises:
        yaml.YAMLError: If it is not YAML, a key stands twice, so that the first would be lost, or a
            value contains itself.
    """
    try:
        value = renewed(None if text == "None" else _load_yaml(text))
        if isinstance(value, dict | list) and any(repeated(yaml.compose(text, FAST))):
            raise yaml.YAMLError("A key stands twice.")
    except (CheckpointError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None
    return value


def repeated(
    node: yaml.Node | None, key: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
    """Yield the path of each key that stands twice in a mapping, with both places.

    Args:
        node: Where to look, at any depth.
        key: Its own path.
        seen: Nodes that were looked at, as an alias may lead to one a million times.
    """
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            yield from repeated(entry, f"{key}[{number}]", seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], yaml.Node] = {}
        for at, value in node.value:
            path = f"{key}.{at.value}".removeprefix(".")
            earlier = first.setdefault((at.tag, str(at.value)), at)
            if earlier is not at and at.tag != MERGE:
                yield path, earlier, at
            yield from repeated(value, path, seen)


_read_text = ConfigPath.read_text


def read_text(self: ConfigPath) -> str:
    """Read a config, which is UTF-8 whatever the locale, as a method of jsonargparse's paths."""
    file = Path(self.absolute)
    return file.read_text(encoding="utf-8") if file.is_file() else str(_read_text(self))


set_loader("yaml", load_value, (yaml.YAMLError,))
ConfigPath.read_text = read_text  # type: ignore[method-assign]

Arguments = dict[str, Any]  # type of an argument by its name; Arguments of a group


def arguments(parser: ArgumentParser) -> Arguments:
    """Return what a parser takes, nested as in a config."""
    tree: Arguments = {}
    for action in parser._actions:
        if action.default == SUPPRESS or action.dest in ("config", "print_config"):
            continue
        *groups, name = action.dest.split(".")
        group = tree
        for part in groups:
            group = group.setdefault(part, {})
        group[name] = getattr(action, "_typehint", None) or action.type or Any
    return tree


def parser_of(cls: type, key: str = "of") -> ArgumentParser:
    """Return a parser of what the constructor of a class takes, below a key."""
    parser = ArgumentParser(usage=SUPPRESS, add_help=False)
    parser.add_class_arguments(cls, key, fail_untyped=False)
    return parser


def arguments_of(cls: type) -> Arguments:
    """Return what the constructor of a class takes, nested as in a config."""
    tree: Arguments = arguments(parser_of(cls)).get("of", {})
    return tree


def required(cls: type) -> list[str]:
    """Return the arguments without which a class cannot be built."""
    actions = parser_of(cls)._actions
    return [action.dest.removeprefix("of.") for action in actions if action.required]


def paths(tree: Arguments) -> Iterator[str]:
    """Yield the dotted keys of all arguments."""
    for name, inner in tree.items():
        if isinstance(inner, dict):
            yield from (f"{name}.{path}" for path in paths(inner))
        else:
            yield name


def subclasses(base: type) -> Iterator[type]:
    """Yield a class and what is derived from it, as far as it was imported."""
    yield base
    derived: list[type] = base.__subclasses__()
    for cls in derived:
        yield from subclasses(cls)


def names(base: type) -> list[str]:
    """Return the names of the public subclasses that can be built, our own first."""
    found = {cls.__name__: cls for cls in subclasses(base) if cls is not base}
    public = [n for n, cls in found.items() if n[0] != "_" and not inspect.isabstract(cls)]
    return sorted(public, key=lambda n: (not found[n].__module__.startswith("lit_foundry"), n))


def named(name: str, base: type) -> type | None:
    """Return the subclass of ``base`` that a config means by a name or a path, if any."""
    if "." not in name:
        return next((cls for cls in subclasses(base) if cls.__name__ == name), None)
    found = imported(name)
    return found if isinstance(found, type) and issubclass(found, base) else None


def imported(path: str) -> Any:
    """Return what a dotted path names, or the exception that says why it names nothing."""
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # whatever a module of the user raises
        return error


def parts(want: Any) -> tuple[Any, ...]:
    """Return the alternatives of a type."""
    if get_origin(want) in (Union, UnionType):
        return tuple(part for option in get_args(want) for part in parts(option))
    return (want,)


def is_list(want: Any) -> bool:
    """Tell whether a type is a list, or another iterable, of one type."""
    origin = get_origin(want)
    return inspect.isclass(origin) and issubclass(origin, Iterable) and len(get_args(want)) == 1


def takes_arguments(want: Any) -> bool:
    """Tell whether a config gives a type as a class with its arguments."""
    return (
        inspect.isclass(want)
        and get_origin(want) is None
        and want.__module__ not in ("builtins", "datetime", "typing")
        and not issubclass(want, (Path, Enum))
        and not is_dataclass(want)
    )


def no_class(name: str, base: type) -> str:
    """Say why a name is no class of a kind, and which was likely meant."""
    rule = f"no {base.__name__} is called {name!r}."
    hint = nearest(name.rpartition(".")[2], names(base))
    if "." not in name:
        return f"{rule} {hint} Name a class of your own with its module: package.module.Class."
    found = imported(name)
    why = found if isinstance(found, Exception) else f"it does not derive from {base.__name__}"
    return f"{rule} {hint} ({why})"


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest what was likely meant, or list what there is."""
    lower = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), lower, n=1)
    if close:
        return f"Did you mean {lower[close[0]]!r}?"
    return f"There is {some(lower.values())}." if lower else "It takes none."


def some(known: Iterable[str]) -> str:
    """List names, as many as a line or two hold."""
    first = list(known)
    return ", ".join([*first[:MOST_NAMES], "and more"] if len(first) > MOST_NAMES else first)


def described(want: Any) -> str:
    """Say in words what a type admits."""
    told: list[str] = []
    for part in parts(want):
        inner = get_args(part)
        if get_origin(part) is Literal:
            told += map(str, inner)
        elif get_origin(part) is tuple:
            told.append(f"[{', '.join(described(i) for i in inner if i is not ...)}]")
        elif is_list(part):
            told.append(f"[{described(inner[0])}, ...]")
        elif takes_arguments(part):
            told.append(f"a {part.__name__} (class_path, init_args)")
        else:
            told.append(PLAIN.get(part) or str(getattr(part, "__name__", part)))
    return " or ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


def class_help(key: str, name: str | None, base: type) -> str:
    """Explain the arguments of a class.

    Args:
        key: Key of the class, such as ``--model``, before each argument.
        name: Name or path of the class; all names are listed if None.
        base: What the class has to derive from.

    Raises:
        UsageError: If there is no such class.
    """
    if name is None:
        lines = "\n  ".join(names(base))
        return f"{key}.help NAME explains one of these:\n  {lines}"
    cls = named(name, base)
    if cls is None:
        raise UsageError(f"{key}.help: {no_class(name, base)}")
    text = parser_of(cls, key.lstrip("-")).format_help().strip()
    return f"{cls.__module__}.{cls.__name__}\n\n{text}"


FILLED = (
    "num_classes",
    "num_values",
    "vocab_size",
    "in_channels",
    "image_size",
)  # facts, at some cost


def _inner(value: Any) -> Iterator[Any]:
    """Yield what an argument holds that may have arguments itself, at any depth."""
    if isinstance(value, Namespace):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _inner(part)


def has_gaps(args: Any) -> bool:
    """Tell whether an argument that a fact of the data could fill was left out."""
    return any(
        (value is None and name in FILLED) or any(map(has_gaps, _inner(value)))
        for name, value in vars(args).items()
    )


def fill_facts(args: Any, facts: Mapping[str, int]) -> None:
    """Set what was left out (None) and bears the name of a fact; never what was written."""
    for name, value in vars(args).items():
        if value is None and name in facts:
            args[name] = facts[name]
        for inner in _inner(value):
            fill_facts(inner, facts)
