"""Made-up predictions of each kind."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from lit_foundry.datamodule import MEMBERS
from lit_foundry.runs.predictions import NO_TAG, Predictions

COUNT = 60
LABELS: dict[str, list[str]] = {
    "class": ["no", "yes", "perhaps"],
    "classes": ["art", "sport", "war & peace"],
    "value": [],
    "values": ["width", "height"],
    "tags": ["O", "PER", "LOC"],
    "number": [],
}


def columns(kind: str, seed: int = 0) -> dict[str, Any]:
    """Return columns of a kind, of some skill; ``values`` is of several values."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99)  # the same for all seeds
    if kind == "class":
        prob = rng.dirichlet([1, 1, 1], COUNT).astype(np.float32)
        return {"prob": prob, "target": truth.integers(3, size=COUNT)}
    if kind == "classes":
        target = truth.integers(2, size=(COUNT, 3))
        prob = np.clip(target + rng.normal(0, 0.4, target.shape), 0, 1).astype(np.float32)
        return {"prob": prob, "target": target}
    if kind.startswith("value"):
        target = truth.normal(5, 2, (COUNT, 2) if kind == "values" else COUNT)
        return {"value": target + rng.normal(size=target.shape), "target": target}
    if kind == "tags":
        target = truth.integers(3, size=(COUNT, 7))
        target[np.arange(7) >= truth.integers(1, 8, (COUNT, 1))] = NO_TAG
        tag = np.where(rng.random(target.shape) < 0.7, target, rng.integers(3, size=target.shape))
        return {"tag": np.where(target == NO_TAG, NO_TAG, tag), "target": target}
    return {"error": rng.gamma(2.0, 1.0, COUNT), "count": rng.integers(9, size=COUNT)}


def predictions(kind: str, seed: int = 0, **samples: Any) -> Predictions:
    """Return predictions of a kind with an id of each sample."""
    ids = [f"s{i}" for i in range(COUNT)]
    return Predictions(LABELS[kind], columns(kind, seed), {"id": ids, **samples}, step=7)


def told_data(**told: Any) -> Any:
    """Return what has the surface of a data module, and says nothing but this."""
    return SimpleNamespace(**dict.fromkeys(MEMBERS) | told)
