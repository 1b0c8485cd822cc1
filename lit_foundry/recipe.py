"""What an object was built from, as plain data: the recipe half of a checkpoint."""

import inspect
import site
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

# Classes that others took the place of, with the same arguments.
SUCCESSORS = {
    f"{place}{old}": f"lit_foundry.callbacks.{new}"
    for old, new in {"EMAWeightAveraging": "EMA", "WeightAveraging": "Averaging"}.items()
    for place in (
        "",
        "lightning.pytorch.callbacks.",
        "lightning.pytorch.callbacks.weight_averaging.",
    )
}
MOST_LEVELS, MOST_PARTS = 100, 1_000_000  # of a recipe, against aliases of aliases


class CheckpointError(ValueError):
    """A checkpoint is damaged, or is not what it is used for."""


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
        args = {name: plain(value, name) for name, value in self.__dict__["_init_args"].items()}
        recipe = {"class_path": public_path(type(self)), "init_args": args}
        changes = self.__dict__.get("_changes")  # of the network once it was built
        return recipe | {"changes": plain(changes, "changes")} if changes else recipe


def public_path(cls: type) -> str:
    """Return the shortest path by which a class is imported, which outlives its file's moves."""
    parents = cls.__module__.split(".")
    for end in range(1, len(parents)):
        package = ".".join(parents[:end])
        if getattr(sys.modules.get(package), cls.__qualname__, None) is cls:
            return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def renewed(recipe: Any, levels: int = MOST_LEVELS, left: list[int] | None = None) -> Any:
    """Return a recipe, or a part of one, with the public paths of our classes.

    Earlier ones named the file of a class, which may have moved since.

    Args:
        recipe: Plain values.
        levels: How many may lie within each other.
        left: How many there may be, a part that stands in several places counted in each.

    Raises:
        CheckpointError: If there are more, as in one that contains itself.
    """
    if not isinstance(recipe, list | Mapping):
        return recipe
    left = [MOST_PARTS] if left is None else left
    left[0] -= 1 + len(recipe)
    if levels == 0 or left[0] < 0:
        raise CheckpointError(
            f"Lists and mappings lie over {MOST_LEVELS} deep within each other, or hold over "
            f"{MOST_PARTS:,} values."
        )
    if isinstance(recipe, list):
        return [renewed(part, levels - 1, left) for part in recipe]
    new = {key: renewed(part, levels - 1, left) for key, part in recipe.items()}
    path = new["class_path"] if isinstance(new.get("class_path"), str) else ""
    name = path.rpartition(".")[2]
    if path.startswith(f"{__package__}.") and name in sys.modules[__package__].__all__:
        new["class_path"] = f"{__package__}.{name}"
    elif path in SUCCESSORS:
        new["class_path"] = SUCCESSORS[path]
    return new


def plain(value: Any, name: str = "value") -> Any:
    """Turn a constructor argument into what YAML and ``torch.load(weights_only=True)`` hold."""
    if value is None:
        return value
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # weights_only refuses subclasses, as those of numpy
    if isinstance(value, Recorded):
        if "_changes" in vars(value):
            raise TypeError(f"{name} was changed by itself: change the task that it is built into.")
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


def check_classes(recipe: Any, named: Collection[str] = ()) -> None:
    """Refuse a recipe from a file if a class lies in a module that nobody here asked for.

    To build it would import the module, and so run what a file of that name in the current folder
    holds. Modules that are imported already, and those of this package, are asked for.

    Args:
        recipe: Recipe, or any part of one.
        named: Classes that the user named, whose modules are imported.

    Raises:
        CheckpointError: If there is such a class.
    """
    if isinstance(recipe, Mapping):
        path = recipe.get("class_path")
        if isinstance(path, str) and not _is_known(path):
            module = path.rpartition(".")[0]
            if path not in named:
                raise CheckpointError(
                    f"The recipe names {path}, and no module {module} was imported: a file from "
                    "elsewhere may not choose what is run here. If the class is yours, import its "
                    "module before (in Python), or name it: --model, --data or --model.backbone "
                    f"{path} (validate, test, predict), --import {module} (other commands)."
                )
            import_named([module])
        recipe = list(recipe.values())
    if isinstance(recipe, list):
        for part in recipe:
            check_classes(part, named)


def import_named(modules: Iterable[str]) -> None:
    """Import modules that the user named, the current folder's too.

    Raises:
        CheckpointError: If there is no such module.
    """
    for name in modules:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise CheckpointError(f"{name}: {error}; correct the name of this module.") from None


def _is_known(path: str) -> bool:
    """Tell whether a class can be found without an import from outside of this package."""
    module, *names = path.split(".")
    if not names or module == "lit_foundry":
        return True  # a short name is looked up among the classes that are there
    while names and f"{module}.{names[0]}" in sys.modules:
        module = f"{module}.{names.pop(0)}"
    found: Any = sys.modules.get(module)
    for name in names:
        found = getattr(found, name, None)
    return found is not None


@contextmanager
def installed_modules_only() -> Iterator[None]:
    """Import nothing new from the current folder, nor from others that are no installation's.

    ``check_classes`` sees what a recipe calls a class; jsonargparse also takes a mere text for one,
    or for a file that names one.
    """
    places = [sysconfig.get_path("stdlib"), *site.getsitepackages(), site.getusersitepackages()]
    before = sys.path
    sys.path = [path for path in before if path and any(map(Path(path).is_relative_to, places))]
    try:
        yield
    finally:
        sys.path = before
