"""Configs made of others.

jsonargparse reads the file whose path stands in place of a class, a group or a dataclass. A whole
config it would also take, under the key ``config``, but of a section that both have it would keep
the later one alone. Here it lies below the config that names it, as one given by ``--config``.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from jsonargparse._actions import ActionConfigFile, previous_config
from lightning.pytorch.cli import LightningArgumentParser

from lit_foundry.cli.arguments import FAST, TEXT, YAML, load_value, repeated
from lit_foundry.usage import CONFIG, flags

BELOW = "config"  # the key
NAMES_CLASS = {"class_path", "model", "data", "backbone"}  # keys, by their last part
PATHS = "the path of a config, or a list of such paths"


class ConfigParser(LightningArgumentParser):
    """Lays a config over those that it names under its key ``config``."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config, after those that it names, whose paths are relative to its file.

        Raises:
            TypeError: If something else than paths stands under the key.
        """
        merged = previous_config.get()
        if merged is not None and BELOW in content:
            places, content = split(content)
            for place in places:
                if place.tag != TEXT:
                    raise TypeError(f"{BELOW}: must be {PATHS}, got {place.value!r}")
                ActionConfigFile.apply_config(self, merged, BELOW, place.value)
        parsed: Namespace = super().parse_string(content, *args, **kwargs)
        return parsed


def split(text: str) -> tuple[list[yaml.Node], str]:
    """Return the places where a config names others, and the config without them.

    What is no YAML, or has a key twice, stays whole, to be refused.
    """
    try:
        node = yaml.compose(text, FAST)
    except yaml.YAMLError:
        return [], text
    places = [] if any(repeated(node)) else take(node)
    return (places, str(yaml.serialize(node))) if node and places else ([], text)


def take(node: yaml.Node | None) -> list[yaml.Node]:
    """Take out of a config what names others, and return the places of their paths."""
    if not isinstance(node, yaml.MappingNode):
        return []
    found = [value for key, value in node.value if key.value == BELOW]
    node.value = [(key, value) for key, value in node.value if key.value != BELOW]
    lists = (v.value if isinstance(v, yaml.SequenceNode) else [v] for v in found)
    return [place for places in lists for place in places]


def classes_written(words: Iterable[str]) -> set[str]:
    """Return the classes that a command line names, and those of its configs and their parts."""
    found: set[str] = set()
    for key, value in flags(words):
        found |= {*_class_paths(value, BELOW if key in CONFIG else key.split(".")[-1])}
    return found


def _class_paths(value: Any, key: str, folder: Path = Path(), *above: Path) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _class_paths(inner, str(name), folder, *above)
    elif isinstance(value, list):
        for inner in value:
            yield from _class_paths(inner, key, folder, *above)
    elif isinstance(value, str):
        if key.lstrip("-") in NAMES_CLASS:
            yield value
        file = folder / value
        with suppress(OSError, ValueError, yaml.YAMLError):  # which the parser tells of
            real = file.resolve()
            if (key == BELOW or file.suffix in YAML) and file.is_file() and real not in above:
                part = load_value(file.read_text(encoding="utf-8"))
                yield from _class_paths(part, "", file.parent, real, *above)
