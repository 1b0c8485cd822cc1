"""What a network says of each sample of a labelled split, kept as one parquet file.

Shapes: N samples, C classes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lit_foundry.atomic import replacing


@dataclass(frozen=True)
class Predictions:
    """Probabilities and true classes of a split, in its order.

    Attributes:
        labels: Names of the classes, in the order of the network's outputs.
        probs: Probability of each class, shape (N, C).
        target: True class, shape (N,).
        samples: What the data tell of each sample, by column of length N: ``id``; for texts their
            beginning (``text``) and number of ``tokens`` before truncation; for images a small
            PNG (``image``) of those that a page shows, None for others.
        step: Optimizer steps that the network had taken.
    """

    labels: Sequence[str]
    probs: NDArray[np.float32]
    target: NDArray[np.int64]
    samples: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    step: int = 0

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Most probable class, shape (N,)."""
        best: NDArray[np.int64] = self.probs.argmax(1)
        return best

    def write(self, path: Path) -> Path:
        """Write the file, whole or not at all: label, predicted and prob_NAME beside the samples.

        ``pandas.read_parquet`` reads it too.
        """
        names = np.array(self.labels)
        columns = dict(self.samples) | {
            "label": names[self.target],
            "predicted": names[self.predicted],
        }
        for name, column in zip(self.labels, self.probs.T, strict=True):
            columns[f"prob_{name}"] = column
        about = {"labels": list(self.labels), "step": self.step}
        table = pa.table(columns).replace_schema_metadata({"lit_foundry": json.dumps(about)})
        with replacing(path) as partial:
            pq.write_table(table, partial, compression="zstd")
        return path

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read what :meth:`write` wrote.

        Raises:
            ValueError: If it is another file.
        """
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); test writes it anew.") from error
        about = json.loads((table.schema.metadata or {}).get(b"lit_foundry", "{}"))
        if "labels" not in about:
            raise ValueError(f"{path} holds no predictions of lit_foundry; test writes them anew.")
        labels = about["labels"]
        columns = {name: table.column(name) for name in table.column_names}
        probs = np.stack([columns.pop(f"prob_{name}").to_numpy() for name in labels], axis=1)
        classes = {name: i for i, name in enumerate(labels)}
        target = np.array([classes[name] for name in columns.pop("label").to_pylist()], np.int64)
        del columns["predicted"]
        samples = {name: column.to_pylist() for name, column in columns.items()}
        return cls(labels, probs, target, samples, about["step"])
