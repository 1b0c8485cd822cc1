"""What an object was built from, as plain data: the recipe half of a checkpoint."""

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Self


class Recorded:
    """Remembers the arguments of its constructor, so that a checkpoint can hold its recipe."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Record the arguments, defaults included, before the constructor sees them."""
        self = super().__new__(cls)
        # Partial: copying and unpickling call __new__ without arguments, then restore __dict__.
        signature = inspect.signature(cls)
        bound = signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        record = dict(bound.arguments)
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:  # passed on as if written one by one
                record |= record.pop(name)
            elif parameter.kind is parameter.VAR_POSITIONAL and not record[name]:
                del record[name]
        self.__dict__["_init_args"] = record
        return self

    def recipe(self) -> dict[str, Any]:
        """Return ``{"class_path": ..., "init_args": ...}``, plain enough for YAML.

        Raises:
            TypeError: If an argument has no plain form; the message names it.
        """
        cls = type(self)
        args = {name: plain(value, name) for name, value in self.__dict__["_init_args"].items()}
        return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": args}


def plain(value: Any, name: str = "value") -> Any:
    """Turn a constructor argument into what YAML and ``torch.load(weights_only=True)`` hold."""
    if value is None:
        return value
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # weights_only refuses subclasses, as those of numpy
    if isinstance(value, Recorded):
        return value.recipe()
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{name}.{f.name}") for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, name) for item in value]
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint's recipe cannot hold.")


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """List the dotted keys in which two recipes differ, as ``key: old -> new``."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [f"{key}: {old!r} -> {new!r}"]
    keys = [*old, *(k for k in new if k not in old)]
    join = f"{key}." if key else ""
    return [line for k in keys for line in differences(old.get(k), new.get(k), f"{join}{k}")]
