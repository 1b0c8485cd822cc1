"""What every run is given, by the command line and in Python."""

from lightning.pytorch import Callback, LightningModule

from lit_foundry.callbacks.best import Best
from lit_foundry.callbacks.compatibility import Compatibility
from lit_foundry.callbacks.recovery import Recovery
from lit_foundry.callbacks.run_record import RunRecord
from lit_foundry.callbacks.samples import Samples
from lit_foundry.callbacks.throughput import Throughput
from lit_foundry.runs.folder import RunFolder

SHOWN = {"samples": 4, "pictures": 256}  # samples at most that a task shows, by how


def run_callbacks(
    run: RunFolder, task: LightningModule, config: str | None = None
) -> list[Callback]:
    """Return what keeps the best checkpoint, the recovery checkpoints and the record of a run.

    Args:
        run: Its folder.
        task: Names the metric that makes a checkpoint the best.
        config: Resolved configuration as YAML; the recipes of task and data if None.
    """
    monitor, mode = getattr(task, "monitor", None), getattr(task, "mode", "min")
    best = Best(run.checkpoints, monitor, mode)
    recovery = Recovery(run.checkpoints, run.every_minutes, run.every_n_steps)
    shows = [count for name, count in SHOWN.items() if hasattr(task, name)]
    samples = [Samples(run, count) for count in shows]
    return [Compatibility(), Throughput(), RunRecord(run, config), *samples, best, recovery]
