"""Pairs of words and how alike they are: a dataset of a kind that lit_foundry does not have."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from lit_foundry import DataModule

PairBatch = TypedDict("PairBatch", dict.fromkeys(("first", "second", "index", "label"), Any))


class Rows:
    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows, self.lengths = rows, np.ones(len(rows), np.int64)

    def __getitem__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        some = [self.rows[i] for i in rows]
        words = {k: [[*s[k].encode().ljust(8)] for s in some] for k in ("first", "second")}
        label = {"label": [s["score"] for s in some]} if "score" in some[0] else {}
        return {k: torch.tensor(v) for k, v in {**words, **label, "index": [*rows]}.items()}


class Pairs(DataModule):
    batch_type, target_kind, labels = PairBatch, "value", ["likeness"]
    facts = {"vocab_size": 256, "num_values": 1}

    def __init__(self, folder: str, predict: str = "", batch_size: int = 16) -> None:
        super().__init__(batch_size=batch_size)
        self.folder, self.predict = folder, predict

    def load(self, split: str) -> Rows:
        file = self.predict if split == "predict" else f"{self.folder}/{split}.jsonl"
        return Rows([*map(json.loads, Path(file).read_bytes().splitlines())])

    def batches(self, inputs: Sequence[Any], batch_tokens: int = 8192) -> Iterator[Any]:
        yield Rows(inputs)[range(len(inputs))]
