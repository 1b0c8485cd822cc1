"""Features of any number of inputs as one parquet file, written part by part.

Shapes: N inputs, B batch, D feature width.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm.auto import tqdm

from lit_foundry.atomic import replacing
from lit_foundry.checkpoints.exported import moved
from lit_foundry.datamodule import Data
from lit_foundry.recipe import differences
from lit_foundry.training.probing.encoder import Encoder, batches_of, check_finite, loader_of

PART = 4096  # inputs that are written at once, and that a kill costs at most
KEY = b"lit_foundry"  # of the file's metadata, which says what it was made of


def embed(
    encode: Encoder,
    data: Data,
    output: Path,
    about: Mapping[str, Any],
    normalize: bool = False,
    rows: int = 64,
    device: str | torch.device = "cpu",
) -> int:
    """Write ``id`` and ``embedding`` (D float32) of what is to be predicted on, in its order.

    Parts lie in a hidden folder beside the file until all are there: after a kill, the same call
    goes on with those that are whole.

    Args:
        encode: The network, on ``device``.
        data: Has the inputs as its split ``predict``.
        output: The file.
        about: What else the features depend on, as plain data.
        normalize: Divide each vector by its length.
        rows: Inputs of a batch, at most; features differ by rounding alone.
        device: Where the network is.

    Returns:
        Number of inputs N.

    Raises:
        ValueError: If the file, or the parts, are not of this very call, another process is at work
            on them, or features are not finite.
    """
    dataset = data.load("predict")
    count = len(dataset.lengths)
    about = {**about, "normalize": normalize, "inputs": count}
    folder = output.parent / f".{output.name}.parts"
    if output.exists():
        _check_same(output, _about_of(output), about)
        _remove(folder)  # a kill may have come before that
        return count
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=0)
    try:
        with lock:
            _begin(folder, about)
            starts = range(0, count, PART)
            parts = {start: folder / f"{start:012}.parquet" for start in starts}
            left = [start for start, path in parts.items() if not _is_whole(path)]
            done = sum(min(PART, count - start) for start in starts if start not in left)
            bar = tqdm(None, "Embedding", count, initial=done, unit=" inputs", disable=None)
            ids = data.ids("predict")
            with bar:
                found = _vectors(encode, data, dataset, left, rows, device, bar)
                for start, vectors in found:
                    if normalize:
                        vectors = F.normalize(torch.from_numpy(vectors)).numpy()
                    place = range(start, start + len(vectors))
                    check_finite(torch.from_numpy(vectors), f"the inputs from {start} on")
                    names = [str(i) if ids is None else ids[i] for i in place]
                    with replacing(parts[start]) as partial:
                        pq.write_table(_table(names, vectors), partial)
            _join([*parts.values()], output, about)
    except Timeout:
        raise ValueError(
            f"--output {output} is being written by another process: wait for it, or name another."
        ) from None
    _remove(folder)
    return count


def _vectors(
    encode: Encoder,
    data: Data,
    dataset: Any,
    starts: Sequence[int],
    rows: int,
    device: str | torch.device,
    bar: Any,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the features (at most PART, D) of the parts that begin at some inputs."""
    count = len(dataset.lengths)
    sizes = {start: min(PART, count - start) for start in starts}
    batches = (  # drawn as they are needed
        batch
        for start, size in sizes.items()
        for batch in batches_of(dataset.lengths, range(start, start + size), rows)
    )
    loaded: Any = iter(loader_of(dataset, batches, getattr(data, "num_workers", 0)))  # type: ignore[arg-type]
    for start, size in sizes.items():
        vectors, left = np.empty((0, 0), np.float32), size
        while left:
            batch = next(loaded)
            found = encode(moved(batch, device)).cpu().numpy()
            if not vectors.size:
                vectors = np.empty((size, found.shape[1]), np.float32)
            vectors[batch["index"].numpy() - start] = found
            left -= len(found)
            bar.update(len(found))
        yield start, vectors


def _table(ids: Sequence[str], vectors: NDArray[np.float32]) -> pa.Table:
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    # Names of files may hold what is no Unicode.
    names = [name.encode("utf-8", "backslashreplace").decode() for name in ids]
    return pa.table({"id": pa.array(names, pa.string()), "embedding": column})


def _begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Say what the parts in a folder are made of, or check that those there are of the same."""
    told = folder / "about.json"
    if told.exists():
        _check_same(folder, json.loads(told.read_text(encoding="utf-8")), about)
        return
    with replacing(told) as partial:
        partial.write_text(json.dumps(about), encoding="utf-8")


def _check_same(path: Path, there: Any, about: Mapping[str, Any]) -> None:
    if there is None:
        raise ValueError(f"--output {path} is there, and not of embed: name another file.")
    if changed := "; ".join(differences(there, about)):
        raise ValueError(
            f"{path} is of another embed ({changed}): remove it, or name another --output."
        )


def _about_of(path: Path) -> Any:
    """Return what a file says that it was made of; None if embed did not write it."""
    with suppress(pa.ArrowException, OSError, ValueError):
        return json.loads((pq.read_schema(path).metadata or {})[KEY])["embed"]
    return None


def _is_whole(part: Path) -> bool:
    with suppress(pa.ArrowException, OSError):
        return bool(pq.read_metadata(part).num_rows)
    return False


def _join(parts: Sequence[Path], output: Path, about: Mapping[str, Any]) -> None:
    schema = pq.read_schema(parts[0]).with_metadata({KEY: json.dumps({"embed": about})})
    with replacing(output) as partial, pq.ParquetWriter(partial, schema) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).replace_schema_metadata(schema.metadata))


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
