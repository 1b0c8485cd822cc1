"""What is wrong with a command line or a config: the place, the mistake, the remedy, in a line.

jsonargparse refuses what is wrong, but in terms of its own types. Only then is this module asked:
it walks all that the user wrote, file by file and word by word, beside the arguments that the
named classes take. A type is checked by jsonargparse itself, one value at a time.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from lit_foundry.cli.arguments import (
    LIST,
    MAP,
    NULL,
    TEXT,
    YAML,
    Arguments,
    arguments,
    arguments_of,
    described,
    imported,
    is_list,
    named,
    names,
    nearest,
    no_class,
    parts,
    paths,
    repeated,
    required,
    some,
    takes_arguments,
)
from lit_foundry.cli.messages import (
    brief,
    close_file,
    entries,
    has,
    not_utf8,
    without_init_args,
)
from lit_foundry.cli.parts import BELOW, PATHS, take
from lit_foundry.usage import CONFIG, UsageError, flags

MOST_TOLD = 4  # mistakes
WORDS = "command line"
SHIPPED = "`python -m lit_foundry list` shows the shipped ones."
CLASS_KEYS = ("class_path", "init_args", "dict_kwargs")


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
    try:
        search.everything(words[1:], recipe)
        found = list(dict.fromkeys(search.found)) or search.missing()
    except Exception:  # whatever was written, the search must not hide what jsonargparse said
        found = []
    found = found or brief(str(error))
    more = [f"... and {len(found) - MOST_TOLD} more."] if len(found) > MOST_TOLD else []
    return "\n".join([*found[:MOST_TOLD], *more])


def check_nulls(words: Sequence[str], parser: ArgumentParser, recipe: str | None) -> None:
    """Refuse a null of a command line where none may stand: jsonargparse lets it pass in a class.

    Raises:
        UsageError: If there is one.
    """
    given = flags(words[1:])
    keys = {without_init_args(key) for key, value in given if value in ("null", "None")}
    if keys:
        search = Search(arguments(parser))
        search.everything(words[1:], recipe)
        if found := [told for told in search.found if told.partition(": ")[0] in keys]:
            raise UsageError("\n".join(found))


@dataclass
class Search:
    """Looks for mistakes in what was written, which is given in the order of its precedence.

    Args:
        takes: What the command takes.

    Attributes:
        found: The mistakes.
        classes: Classes by their keys, without ``init_args``, as far as they were named.
        given: Keys that were set.
        above: The configs that name each other, from that of the command line down.
    """

    takes: Arguments
    found: list[str] = field(default_factory=list)
    classes: dict[str, type] = field(default_factory=dict)
    given: set[str] = field(default_factory=set)
    above: list[str] = field(default_factory=list)
    origin: str = WORDS

    def everything(self, words: Sequence[str], recipe: str | None) -> None:
        """Search the recipe, then the configs, then the other words."""
        if recipe:
            self.config(recipe, "the checkpoint's recipe")
        given = list(flags(words))
        for key, value in given:
            if key in CONFIG:
                self.config_file(value)
        for key, value in given:
            if not key:
                self.found.append(
                    f"{value!r}: a word without a key; write --KEY {shlex.quote(str(value))}."
                )
            elif key not in (*CONFIG, "--print_config"):
                self.word(key.lstrip("-"), value)

    def config_file(self, name: str | None, key: str = "--config") -> None:
        """Search the config that ``--config`` names, or the key ``config`` of another one."""
        if name is None:
            self.found.append("--config: needs a value; write --config FILE.")
        elif "\n" in name or ": " in name or name.startswith("{"):
            self.config(name, "--config")
        else:
            path = Path(name)
            try:
                if path.is_file():
                    self.config(path.read_text(encoding="utf-8"), name)
                elif path.is_dir():
                    self.found.append(f"{key} {name}: a folder; name a YAML file in it.")
                elif not path.exists():  # else a pipe, which was read before
                    self.found.append(f"{key} {name}: no such file. {close_file(path) or SHIPPED}")
            except UnicodeDecodeError as error:
                self.found.append(not_utf8(name, error))
            except OSError as error:
                self.found.append(f"{key} {name}: {error.strerror}; name a file to be read.")

    def below(self, place: yaml.Node) -> None:
        """Search a config that another one names under its key ``config``."""
        origin, above = self.origin, self.above
        path = Path(origin).parent / str(place.value)
        chain = [*above, origin]
        if place.tag != TEXT:
            self.tell(place, BELOW, f"must be {PATHS}, got {yaml.serialize(place).split()[0]!r}.")
        elif path.resolve() in (Path(other).resolve() for other in chain):
            circle = " -> ".join([*chain, str(path)])
            self.tell(place, BELOW, f"goes in a circle, {circle}; take one of them out.")
        else:
            self.above = chain
            line = place.start_mark.line + 1
            self.config_file(str(path), f"{origin}, line {line}: {BELOW}:")
        self.origin, self.above = origin, above

    def config(self, text: str, origin: str, key: str = "", want: Any = None) -> None:
        """Search a config; ``origin`` is its file."""
        self.origin = origin
        want = self.takes if want is None else want
        try:
            node = yaml.compose(text)
            if node is None:
                self.found.append(f"{origin}: empty; write its keys, or leave the file out.")
            else:
                self.twice(node, key)
                for file in [] if key else take(node):
                    self.below(file)
                self.value(node, key, want)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            self.found.append(
                f"{origin}{place}: not YAML: {error.problem}. "
                "Look at the indentation, brackets and quotes there."
            )
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            rule = f"not YAML: {error.reason}, the character {chr(error.character)!r}. Remove it."
            self.found.append(f"{origin}, line {line}: {rule}")

    def twice(self, node: yaml.Node, key: str) -> None:
        """Note keys that stand twice, of which YAML would drop the first."""
        for path, first, at in repeated(node, key):
            where = "" if self.origin == WORDS else f", first in line {first.start_mark.line + 1}"
            self.tell(at, path, f"stands twice{where}. Only the last would count: join the two.")

    def word(self, key: str, text: str | None) -> None:
        """Search ``--key text`` of a command line."""
        self.origin = WORDS
        before = len(self.found)
        try:
            node = yaml.compose(text or "") or yaml.ScalarNode(NULL, "")
        except yaml.YAMLError:
            node = yaml.ScalarNode(TEXT, text)
        self.twice(node, key)
        if isinstance(node, yaml.ScalarNode):
            node.value = text or ""
        if key.endswith("+") and not isinstance(node, yaml.SequenceNode):
            node = yaml.SequenceNode(LIST, [node])
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
            f"fit --{key.partition('[')[0]}.help {cls.__name__} explains it."
            for key, cls in self.classes.items()
            if f"{key}[0]" not in self.classes  # which is told of the list's entries
            for name in required(cls)
            if not {f"{key}.{name}", f"{key.partition('[')[0]}.{name}"} & self.given
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
        holds_keys = isinstance(want, dict) or ((base or closed) and str not in options)
        if holds_keys and node.tag == TEXT and self.file(node, key, want):
            return
        if isinstance(want, dict):
            if isinstance(node, yaml.MappingNode):
                self.mapping(node, key, want)
            else:
                state = "is empty, but" if node.tag == NULL else "is a value, but"
                self.tell(node, key or "the config", f"{state} holds keys: {some(want)}.")
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
            if str in options and isinstance(node, yaml.ScalarNode) and self.origin != WORDS:
                hint = " Put it in quotes."
            if item is str and isinstance(node, yaml.SequenceNode):
                hint = " Put each in quotes: YAML takes no for false, and 1 for a number."
            self.tell(node, key, f"must be {described(want)}, got {got!r}.{hint}")

    def file(self, node: yaml.Node, key: str, want: Any) -> bool:
        """Search the file that stands in place of keys, if a value names one."""
        origin = self.origin
        path = Path(origin).parent / str(node.value)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            self.found.append(not_utf8(str(path), error))
            return True
        except (OSError, ValueError):
            if path.suffix in YAML:
                hint = close_file(path) or "Name a file, by its path from this one."
                self.tell(node, key, f"no such file, {path}. {hint}")
            return path.suffix in YAML
        self.config(text, str(path), key, want)
        self.origin = origin
        return True

    def mapping(self, node: yaml.MappingNode, key: str, takes: Arguments, owner: str = "") -> None:
        """Search the keys of a group, and what is below them."""
        for name, at, value in entries(node):
            inner = f"{key}.{name}" if key else name
            self.given.add(without_init_args(inner))
            if name in takes:
                self.value(value, inner, takes[name])
            else:
                hint = self.deeper(name, takes, key) or nearest(name, takes)
                whose = owner or key.rpartition(".")[2] or "a config"
                self.tell(at, inner, f"{whose} takes no {name!r}. {hint}")

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
        given = {name: (at, value) for name, at, value in entries(node)}
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
        if node.tag == NULL or not isinstance(node, yaml.ScalarNode):
            self.tell(node, key, f"has to name a class: {some(names(base))}.")
        elif cls := named(str(node.value), base):
            self.classes[without_init_args(key)] = cls
            return True
        elif not callable(found := imported(str(node.value))) or isinstance(found, type):
            # Neither a class nor a function that returns one.
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
