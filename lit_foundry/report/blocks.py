"""What a section of a page is made of: headings with pictures, tables and cards below them."""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lit_foundry.runs.past import Run
from lit_foundry.runs.predictions import Kind, Predictions

NONE = "\N{EN DASH}"
# Title of a column and the style of its cells, which hold text, a Run, or a Picture or None.
Column = tuple[str, Literal["", "number", "id", "text", "run", "image"]]


@dataclass(frozen=True)
class Picture:
    """An image as an address that holds it; the title may be a run."""

    form: ClassVar[str] = "picture"
    source: str
    alt: str
    title: Run | str = ""
    wide: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells; the last cell of a short row takes the rest of it."""

    form: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    run: Run | None = None
    caption: str = ""


@dataclass(frozen=True)
class Cards:
    """Pictures of a run's samples with lines of text, and whether they were mistaken."""

    form: ClassVar[str] = "cards"
    run: Run
    cards: Sequence[tuple[Picture, Sequence[str], bool]]


@dataclass(frozen=True)
class Block:
    """A heading with what is below it, side by side in a grid."""

    title: str
    items: Sequence[Picture | Table | Cards]
    note: str = ""
    grid: bool = False


@dataclass(frozen=True)
class View:
    """What a section shows of a split.

    Attributes:
        split: The split.
        found: Predictions of the runs that have those of the section's kind.
        runs: All runs of the page.
        images: Folder to draw pictures into.
    """

    split: str
    found: Mapping[Run, Predictions]
    runs: Sequence[Run]
    images: Path

    def picture(
        self,
        name: str,
        alt: str,
        title: Run | str,
        draw: Callable[..., object],
        *args: Any,
        wide: bool = False,
        **kwargs: Any,
    ) -> Picture:
        """Draw a picture, of a run if that is the title, with a function that takes a path too."""
        prefix = ""
        if isinstance(title, Run):
            alt = f"{alt} of {title.name}"
            if len(self.runs) > 1:
                prefix = _plain(title.name) + "_"
        path = self.images / f"{prefix}{self.split}_{_plain(name)}.png"
        draw(*args, path=path, **kwargs)
        return Picture(embed(path), alt, title, wide)

    def numbered(self, values: Mapping[Run, Any]) -> dict[str, tuple[int, Any]]:
        """Return the number of each run, which gives the colour, beside a value, by name."""
        return {run.name: (self.runs.index(run), value) for run, value in values.items()}


@dataclass(frozen=True)
class Section:
    """What a page shows of predictions of a kind.

    Attributes:
        kind: The kind.
        rows: Returns the samples that it shows.
        blocks: Returns what it shows.
        score: Says in short how good predictions are.
    """

    kind: Kind
    rows: Callable[[Predictions], Iterable[int]]
    blocks: Callable[[View], list[Block]]
    score: Callable[[Predictions], str] | None = None

    def fits(self, found: Predictions) -> bool:
        """Tell whether predictions are of the kind, and there is something to hold them against."""
        known = self.kind == "number" or "target" in found.columns
        return known and self.kind in found.kinds.values() and len(found) > 0


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def page(template: str, **values: Any) -> str:
    """Return a page, from a template of this folder."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def embed(image: Path) -> str:
    """Return an image as an address that holds it."""
    return as_address(image.read_bytes())


def as_address(png: bytes) -> str:
    """Return the content of a PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
