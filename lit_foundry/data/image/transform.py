"""A transform of single images, as a config or a program gives it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor


def built(spec: Any) -> Callable[[Tensor], Tensor]:
    """Build what ``class_path`` and ``init_args`` describe; a callable is returned as it is.

    Raises:
        ValueError: If there is no such class, or it takes no such arguments.
    """
    if not isinstance(spec, Mapping):
        if not callable(spec):
            raise ValueError(f"data.transform takes class_path and init_args, got {spec!r}.")
        transform: Callable[[Tensor], Tensor] = spec
        return transform
    if set(spec) - {"class_path", "init_args"} or "class_path" not in spec:
        raise ValueError(f"data.transform takes class_path and init_args, got {sorted(spec)}.")
    path, args = str(spec["class_path"]), spec.get("init_args") or {}
    module, _, name = path.rpartition(".")
    remedy = "Name a class with its module, such as torchvision.transforms.v2.RandAugment"
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"data.transform.class_path={path}: {error}. {remedy}.") from None
    # A recipe may come from elsewhere: to call os.system would be to run it.
    if not (isinstance(cls, type) and any("__call__" in vars(base) for base in cls.__mro__)):
        raise ValueError(f"data.transform.class_path={path}: no class of transforms. {remedy}.")
    try:
        transform = cls(**args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data.transform.init_args of {path}: {error}.") from None
    return transform


def plain_spec(spec: Any) -> Any:
    """Return what a recipe can hold of a transform: None of a callable."""
    return dict(spec) if isinstance(spec, Mapping) else None
