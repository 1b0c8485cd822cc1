"""What is wrong with a command line or a config: the place, the mistake, the remedy, in a line.

jsonargparse refuses what is wrong, but in terms of its own types. Only then is this module asked:
it walks all that the user wrote, file by file and word by word, beside the arguments that the
named classes take. A type is checked by jsonargparse itself, one value at a time.
"""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from jsonargparse import SUPPRESS, ArgumentError, ArgumentParser

MOST_TOLD = 4  # mistakes
MOST_NAMES = 12
WORDS = "command line"
NULL, TEXT, MAP = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "str", "map"))
PLAIN: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    Path: "a path",
    NoneType: "null",
    Any: "anything",
}
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")

Arguments = dict[str, Any]  # type of an argument by its name; Arguments of a group


class UsageError(ValueError):
    """The command line or a config holds a mistake; the message is meant for its author."""


def explain(
    words: Sequence[str], parser: ArgumentParser, recipe: str | None, error: Exception
) -> str:
    """Say what is wrong with a command line that jsonargparse refused.

    Args:
        words: The command, then its keys and values.
        parser: The parser of the command.
        recipe: Config of the checkpoint, in YAML, below all that was written.
        error: What jsonargparse said, told in brief where nothing better is found.
    """
    search = Search(arguments(parser))
    if recipe:
        search.config(recipe, "the checkpoint's recipe")
    given = list(flags(words[1:]))
    for key, value in given:
        if key in ("-c", "--config"):
            search.config_file(value)
    for key, value in given:
        if not key:
            search.found.append(f"{value!r}: a word without a key; write --KEY {value}.")
        elif key not in ("-c", "--config", "--print_config"):
            search.word(key.lstrip("-"), value)
    found = list(dict.fromkeys(search.found)) or search.missing() or brief(str(error))
    more = [f"... and {len(found) - MOST_TOLD} more."] if len(found) > MOST_TOLD else []
    return "\n".join([*found[:MOST_TOLD], *more])


def flags(words: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yield the keys of a command line with their values; a stray word has the key ''."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not word.startswith("-"):
            yield "", word
        elif equals:
            yield key, value
        else:
            yield key, rest.pop(0) if rest and not rest[0].startswith("--") else None


def brief(message: str) -> list[str]:
    """Return what jsonargparse says, without what repeats the whole config."""
    dull = ("Given value", "Subtypes:", "Errors:", "Does not validate", "Expected a <class 'None")
    lines = [line.strip(" -") for line in message.splitlines()]
    return [line[:200] for line in lines if line and not line.startswith(dull)]


@dataclass
class Search:
    """Looks for mistakes in what was written, which is given in the order of its precedence.

    Args:
        takes: What the command takes.

    Attributes:
        found: The mistakes.
        classes: Classes by their keys, without ``init_args``, as far as they were named.
        given: Keys that were set.
    """

    takes: Arguments
    found: list[str] = field(default_factory=list)
    classes: dict[str, type] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    origin: str = WORDS

    def config_file(self, name: str | None) -> None:
        """Search the config that ``--config`` names."""
        if name is None:
            self.found.append("--config: needs a value; write --config FILE.")
        elif "\n" in name or ": " in name:
            self.config(name, "--config")
        elif (path := Path(name)).is_file():
            try:
                self.config(path.read_text(encoding="utf-8"), name)
            except UnicodeDecodeError:
                self.found.append(f"--config {name}: not a text file in UTF-8; name a YAML file.")
        elif path.is_dir():
            self.found.append(f"--config {name}: a folder; name a YAML file in it.")
        else:
            near = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
            close = get_close_matches(str(path), near, n=1)
            hint = f"Did you mean {close[0]}?" if close else SHIPPED
            self.found.append(f"--config {name}: no such file. {hint}")

    def config(self, text: str, origin: str) -> None:
        """Search a config; ``origin`` is its file."""
        self.origin = origin
        try:
            node = yaml.compose(text)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            self.found.append(
                f"{origin}{place}: not YAML: {error.problem}. "
                "Look at the indentation, brackets and quotes there."
            )
        except yaml.YAMLError as error:
            self.found.append(f"{origin}: not YAML: {' '.join(str(error).split())}.")
        else:
            if node is not None:
                self.value(node, "", self.takes)

    def word(self, key: str, text: str | None) -> None:
        """Search ``--key text`` of a command line."""
        self.origin = WORDS
        before = len(self.found)
        try:
            node = yaml.compose(text or "") or yaml.ScalarNode(NULL, "")
        except yaml.YAMLError:
            node = yaml.ScalarNode(TEXT, text)
        if isinstance(node, yaml.ScalarNode):
            node.value = text or ""
        for name in reversed(key.removesuffix("+").split(".")):
            node = yaml.MappingNode(MAP, [(yaml.ScalarNode(TEXT, name), node)])
        self.value(node, "", self.takes)
        if text is None:  # of an unknown key, it is not the value that is wrong
            unknown = [told for told in self.found[before:] if "takes no" in told]
            self.found[before:] = unknown or [f"--{key}: needs a value; write --{key} VALUE."]

    def missing(self) -> list[str]:
        """Return what was not set and has to be."""
        without = [key for key in ("model", "data") if key not in self.classes]
        if without:
            sections = " and no ".join(without)
            return [f"no {sections} section: name a config that has it, --config FILE. {SHIPPED}"]
        return [
            f"{key}: {cls.__name__} needs {name!r}, which is not set; "
            f"fit --{key}.help {cls.__name__} explains it."
            for key, cls in self.classes.items()
            for name in required(cls)
            if f"{key}.{name}" not in self.given
        ]

    def tell(self, node: yaml.Node, key: str, what: str) -> None:
        """Note a mistake at a node of a file, or in a word."""
        if self.origin == WORDS:
            self.found.append(f"--{without_init_args(key)}: {what}")
        else:
            self.found.append(f"{self.origin}, line {node.start_mark.line + 1}: {key}: {what}")

    def value(self, node: yaml.Node, key: str, want: Any) -> None:
        """Search the value of a key, of a type or a group of arguments."""
        options = parts(want)
        item = next((get_args(o)[0] for o in options if is_list(o)), None)
        base = next((o for o in (*options, item) if takes_arguments(o)), None)
        closed = next((o for o in options if isinstance(o, type) and is_dataclass(o)), None)
        if isinstance(want, dict):
            if isinstance(node, yaml.MappingNode):
                self.mapping(node, key, want)
            elif node.tag != NULL:
                self.tell(node, key or "the config", f"holds keys, not a value: {some(want)}.")
        elif isinstance(node, yaml.SequenceNode) and takes_arguments(item):
            for number, entry in enumerate(node.value):
                self.value(entry, f"{key}[{number}]", item)
                # `--trainer.callbacks.KEY` sets an argument of the last.
                plain = without_init_args(key)
                if cls := self.classes.get(f"{plain}[{number}]"):
                    self.classes[plain] = cls
        elif isinstance(node, yaml.MappingNode) and closed and not has(node, "class_path"):
            self.mapping(node, key, arguments_of(closed))
        elif isinstance(node, yaml.MappingNode) and base:
            self.instance(node, key, base)
        elif not self.refused(node, want):
            if base and node.tag == TEXT and (cls := named(str(node.value), base)):
                self.classes[without_init_args(key)] = cls
        elif base and isinstance(node, yaml.ScalarNode) and node.tag in (TEXT, NULL):
            self.class_path(node, key, base)
        else:
            got = yaml.serialize(node).removesuffix("...\n").strip()
            literals = [str(v) for o in options if get_origin(o) is Literal for v in get_args(o)]
            close = get_close_matches(got, literals, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            self.tell(node, key, f"must be {described(want)}, got {got!r}.{hint}")

    def mapping(self, node: yaml.MappingNode, key: str, takes: Arguments, owner: str = "") -> None:
        """Search the keys of a group, and what is below them."""
        for name, value in node.value:
            inner = f"{key}.{name.value}" if key else str(name.value)
            self.given.add(without_init_args(inner))
            if name.value in takes:
                self.value(value, inner, takes[name.value])
            else:
                hint = self.deeper(name.value, takes, key) or nearest(name.value, takes)
                whose = owner or key.rpartition(".")[2] or "a config"
                self.tell(name, inner, f"{whose} takes no {name.value!r}. {hint}")

    def deeper(self, name: str, takes: Arguments, key: str) -> str | None:
        """Suggest a key of this very name further down."""
        below = list(paths(takes))
        if not key:
            for at, cls in self.classes.items():
                below += [f"{at}.{path}" for path in paths(arguments_of(cls))]
        hit = next((path for path in below if path.rpartition(".")[2] == name), None)
        return hit and f"Did you mean {hit!r}?"

    def instance(self, node: yaml.MappingNode, key: str, base: type) -> None:
        """Search a class with its arguments."""
        given = {name.value: (name, value) for name, value in node.value}
        if "class_path" in given and not self.class_path(given["class_path"][1], key, base):
            return
        cls = self.classes.get(without_init_args(key))
        if cls is None:
            self.tell(node, key, f"names no class; add class_path: one of {some(names(base))}.")
            return
        takes = arguments_of(cls)
        for name, (at, value) in given.items():
            if name == "init_args" and isinstance(value, yaml.MappingNode):
                self.mapping(value, f"{key}.init_args", takes, cls.__name__)
            elif name == "init_args":
                rule = "holds keys, not a value; leave it out if there are none."
                self.tell(at, f"{key}.init_args", rule)
            elif name in CLASS_KEYS:
                continue
            elif self.origin == WORDS:  # which may leave init_args out
                one = yaml.MappingNode(MAP, [(at, value)])
                self.mapping(one, f"{key}.init_args", takes, cls.__name__)
            elif name in takes:
                self.tell(at, f"{key}.{name}", f"belongs one level deeper, under {key}.init_args.")
            else:
                rule = "stands where only class_path and init_args can."
                self.tell(at, f"{key}.{name}", f"{rule} {nearest(name, CLASS_KEYS)}")

    def class_path(self, node: yaml.Node, key: str, base: type) -> bool:
        """Find the class that a node names; tell whether it is one."""
        if node.tag == NULL:
            self.tell(node, key, f"is empty; name a class: {some(names(base))}.")
        elif cls := named(str(node.value), base):
            self.classes[without_init_args(key)] = cls
            return True
        elif not Path(str(node.value)).is_file():  # which may be the class's own config
            self.tell(node, key, no_class(str(node.value), base))
        return False

    def refused(self, node: yaml.Node, want: Any) -> bool:
        """Tell whether jsonargparse refuses a value for an argument of a type."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=want)
        try:
            if self.origin == WORDS and isinstance(node, yaml.ScalarNode):
                parser.parse_args([f"--value={node.value}"])  # where 5 may also be a text
            else:
                entry = yaml.MappingNode(MAP, [(yaml.ScalarNode(TEXT, "value"), node)])
                parser.parse_string(yaml.serialize(entry))
        except ArgumentError:
            return True
        return False


SHIPPED = "`python -m lit_foundry list` shows the shipped ones."


def without_init_args(key: str) -> str:
    """Return a key as the command line may write it."""
    return key.replace(".init_args", "")


def has(node: yaml.MappingNode, key: str) -> bool:
    """Tell whether a mapping sets a key."""
    return any(name.value == key for name, _ in node.value)


# What there is to write.


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
    parser.add_class_arguments(cls, key)
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
    module, dot, attribute = name.rpartition(".")
    if not dot:
        return next((cls for cls in subclasses(base) if cls.__name__ == name), None)
    try:
        found = getattr(import_module(module), attribute, None)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


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
        and not issubclass(want, Path)
        and not is_dataclass(want)
    )


# How it is said.


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


def no_class(name: str, base: type) -> str:
    """Say that no class has a name, and which was likely meant."""
    return (
        f"no {base.__name__} is called {name!r}. {nearest(name.rpartition('.')[2], names(base))} "
        "Name a class of your own with its module: package.module.Class."
    )


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
