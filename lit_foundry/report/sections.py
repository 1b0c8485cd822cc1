"""The sections of a page: each shows predictions of one kind, and a new one is a line here."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_foundry.report import (
    class_section,
    classes_section,
    number_section,
    tags_section,
    value_section,
)
from lit_foundry.report.analysis import examples
from lit_foundry.report.blocks import Block, Section, View
from lit_foundry.runs.past import Run
from lit_foundry.runs.predictions import Predictions

SECTIONS: tuple[Section, ...] = (
    class_section.SECTION,
    classes_section.SECTION,
    value_section.SECTION,
    tags_section.SECTION,
    number_section.SECTION,
)


def blocks(split: str, runs: Sequence[Run], images: Path) -> Iterator[Block]:
    """Evaluate and draw what the runs predict of a split, each kind in its section."""
    there = {run: run.predictions[split] for run in runs if split in run.predictions}
    for section in SECTIONS:
        found = {run: said for run, said in there.items() if section.fits(said)}
        if found:
            yield from section.blocks(View(split, found, runs, images))


def shown_rows(found: Predictions) -> set[int]:
    """Return the samples that a page shows: those of each section, some from all over the split."""
    rows = [section.rows(found) for section in SECTIONS if section.fits(found)]
    return {int(row) for each in (examples(found), *rows) for row in each}


def score(found: Predictions) -> str | None:
    """Say in short how good predictions are; None if nothing tells."""
    return next((s.score(found) for s in SECTIONS if s.score and s.fits(found)), None)
