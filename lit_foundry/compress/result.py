"""What a stage of a pipeline made, and what was measured of it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lit_foundry.atomic import replacing
from lit_foundry.compress.benchmark import Latency, Measured, rows_of
from lit_foundry.compress.command import facts
from lit_foundry.compress.evaluation import SHARES, Comparison, Evaluation, row_of
from lit_foundry.runs.predictions import Predictions

SLOWER = 1.05  # times the latency of the stage before: less is noise
SCORES = {**SHARES, "tags": "accuracy", "value": "pearson"}  # what is compared, of each kind
# Of a stage: what its folder was made with, what was measured, what it predicts.
SETTINGS, RESULT, PREDICTIONS = "settings.json", "result.json", "predictions.parquet"


@dataclass(frozen=True)
class Result:
    """What a stage made, and what was measured of it.

    Attributes:
        name: The stage.
        path: What it made: a checkpoint or an export.
        scored: Its scores.
        cost: What it costs; ratios of latencies are to the start.
        beside_start: Its predictions beside those of the start.
        beside_previous: And beside those of the stage before.
        difference: Of an export: largest difference of logits to what was exported, in units of
            the largest logit or 1.
    """

    name: str
    path: Path
    scored: Evaluation
    cost: Measured
    beside_start: Comparison | None = None
    beside_previous: Comparison | None = None
    difference: float | None = None

    @property
    def score_name(self) -> str:
        """Name of the score that is compared."""
        return SCORES[self.scored.kind]

    @property
    def score(self) -> float:
        """The score that is compared."""
        return self.scored.scores[self.score_name]

    def ratio(self, rows: int) -> float:
        """Return the latency of a batch, relative to the start's."""
        return self.cost.latency[rows].ratio

    def write(self, folder: Path, how: Mapping[str, Any]) -> None:
        """Write it into the folder of its stage, beside the predictions.

        Args:
            folder: The folder.
            how: What it was measured with.
        """
        told = asdict(self) | {"path": str(self.path), "scored": self.scored.told()}
        with replacing(folder / RESULT) as partial:
            text = json.dumps({"how": how, **told, "environment": facts()}, indent=2)
            partial.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path, how: Mapping[str, Any]) -> "Result | None":
        """Read it; None if it is not there, or was measured otherwise."""
        try:
            told = json.loads((folder / RESULT).read_text(encoding="utf-8"))
            if told["how"] != how:
                return None
            predictions = Predictions.read(folder / PREDICTIONS)
            cost = told["cost"]
            cost["latency"] = {int(k): Latency(**v) for k, v in cost["latency"].items()}
            for key in ("beside_start", "beside_previous"):
                told[key] = told[key] and Comparison(**told[key])
            return cls(
                name=told["name"],
                path=Path(told["path"]),
                scored=Evaluation(**told["scored"], predictions=predictions),
                cost=Measured(**cost),
                beside_start=told["beside_start"],
                beside_previous=told["beside_previous"],
                difference=told["difference"],
            )
        except (OSError, ValueError, KeyError, TypeError):  # or a crash left it damaged
            return None


def keep(scored: Evaluation, folder: Path) -> Evaluation:
    """Write the predictions of a stage, and return scores with them as they will be read again.

    Values lose an axis by that, and words that were cut their place.
    """
    (folder / RESULT).unlink(missing_ok=True)  # which is of earlier ones
    path = scored.predictions.write(folder / PREDICTIONS)
    return replace(scored, predictions=Predictions.read(path))


def worth(results: Iterable[Result]) -> list[dict[str, str]]:
    """Return the rows of a table: what each stage scores, beside the start and the one before."""
    rows = []
    for each in results:
        row = row_of(replace(each.scored, path=each.name), each.beside_start)
        if each.beside_previous and each.beside_previous.agreement is not None:
            row["as before"] = f"{each.beside_previous.agreement:.4f}"
        if each.beside_previous and each.beside_previous.difference is not None:
            row["of this stage"] = f"{each.beside_previous.difference:+.4f}"
        if each.difference is not None:
            row["logits"] = f"{each.difference:.1e}"
        for known in ("format", "samples"):  # of the other table, and the same of all
            row.pop(known)
        rows.append({"stage": row.pop("artifact"), **row})
    return rows


def costs(results: Iterable[Result]) -> list[dict[str, str]]:
    """Return the rows of a table: what each stage costs, one for each batch size."""
    rows = [row for each in results for row in rows_of(replace(each.cost, path=each.name))]
    return [{"stage": row.pop("artifact", ""), **row} for row in rows]


def warned(results: Sequence[Result]) -> Iterator[str]:
    """Say which stages made the network slower here than the one before, or are not comparable."""
    for before, each in pairwise(results):
        if each.beside_start is None:
            yield f"{each.name} was scored on other samples than {results[0].name}: not compared."
        for rows, latency in each.cost.latency.items():
            if (times := latency.ratio_before) > SLOWER:
                yield (
                    f"{each.name} takes {times:.2f} times as long here as {before.name}, at batch "
                    f"{rows}."
                )


def smallest(results: Sequence[Result], within: float) -> Result:
    """Return the result of fewest bytes whose score lies at most so far below the first's."""
    first, *rest = results
    near = [each for each in rest if each.beside_start and first.score - each.score <= within]
    return min([first, *near], key=lambda each: each.cost.bytes)


def conclusion(results: Sequence[Result], within: float) -> str:
    """Say which network is the smallest that is about as good as the first."""
    first, best = results[0], smallest(results, within)
    rows = min(best.cost.latency)
    return (
        f"Smallest within {within:g} of {first.name}'s {first.score_name}: {best.name}, "
        f"{best.score:.4f}, 1/{first.cost.bytes / best.cost.bytes:.1f} of the bytes, "
        f"{1 / best.ratio(rows):.1f} times as fast at batch {rows}."
    )
