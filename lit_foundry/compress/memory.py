"""How far the memory of a process grows that loads an artifact and runs a batch: a process itself.

usage: python -m lit_foundry.compress.memory PATH INPUTS [MODULE ...]
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STATUS = Path("/proc/self/status")


def growth(path: Path, batch: Mapping[str, Tensor], modules: Sequence[str] = ()) -> int:
    """Return by how many bytes the resident set of a fresh process grows at most.

    It counts from after the imports of torch, transformers and onnxruntime.

    Args:
        path: Checkpoint, or folder that ``export`` wrote.
        batch: Fields that are run.
        modules: Those that the artifact's own classes lie in.

    Raises:
        RuntimeError: If the process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.safetensors"
        save_file({name: field.contiguous() for name, field in batch.items()}, inputs)
        words = [sys.executable, "-P", "-m", __name__, str(path), str(inputs), *modules]
        places = os.pathsep.join(place for place in sys.path if place)
        threads = str(torch.get_num_threads())
        environment = os.environ | {"PYTHONPATH": places, "OMP_NUM_THREADS": threads}
        process = subprocess.run(
            words, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
        )
    if process.returncode:
        raise RuntimeError(f"{path} could not be run on its own:\n{process.stderr[-2000:]}")
    return int(process.stdout.strip().splitlines()[-1])


def peak() -> int:
    """Return the largest resident set of this process until now, in bytes."""
    # ru_maxrss of a child begins with that of its parent, which holds all artifacts.
    with suppress(OSError, StopIteration):
        lines = STATUS.read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Let the peak begin at the present size, where Linux lets it: imports pass through more."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


@torch.inference_mode()
def main(path: str, inputs: str, *modules: str) -> None:
    """Print the growth as the last line."""
    import transformers  # noqa: F401

    with suppress(ModuleNotFoundError):
        import onnxruntime  # noqa: F401
    from lit_foundry.compress.artifact import open_artifact
    from lit_foundry.recipe import import_named

    import_named(modules)
    batch = load_file(inputs)
    forget_peak()
    before = peak()
    open_artifact(Path(path)).logits(batch)
    print(json.dumps(peak() - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
