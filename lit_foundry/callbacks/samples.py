"""What a network makes of some samples, texts or images, written down at each validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lit_foundry.report import plots
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.tracking import trackers
from lit_foundry.tasks.pictures import Bars, Images, Shown


class Samples(Callback):
    """Shows what a network makes of the first samples that validate, and tells the loggers.

    A task that has ``samples`` has their texts written to ``samples/<step>.txt``; one that has
    ``pictures`` has these drawn as ``pictures/<step>/<name>.png``.

    Args:
        run: Folder of the run.
        count: Number of samples, as far as the first batch has them.
    """

    def __init__(self, run: RunFolder, count: int = 4) -> None:
        self.run, self.count = run, count
        self._made: Any = None

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Ask the network, while averages of weights are in their place if they validate."""
        if trainer.sanity_checking or batch_idx or not trainer.is_global_zero:
            return
        task: Any = pl_module
        rows = {name: field for name, field in batch.items() if name != "offsets"}
        rows = {name: field[: self.count] for name, field in rows.items()}
        shows = hasattr(task, "pictures")
        self._made = task.pictures(rows) if shows else task.samples(rows, task.tokenizer)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write what it made of them, and what it tells of the whole validation (``charts``)."""
        made, self._made = self._made, None
        if made is None:
            return
        if isinstance(made, Mapping):
            charts = pl_module.charts() if hasattr(pl_module, "charts") else {}
            show(trainer, self.run, {**made, **charts})
        else:
            self._write(trainer, made)

    def _write(self, trainer: Trainer, samples: list[str]) -> None:
        text = "\n\n".join(samples) + "\n"
        self.run.write(f"samples/{trainer.global_step}.txt", text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                shown = "    " + text.replace("\n", "\n    ")  # as code, else Markdown eats it
                logger.experiment.add_text("samples", shown, trainer.global_step)
        for tracker in trackers(trainer):
            tracker.log_samples(samples, trainer.global_step)


def show(trainer: Trainer, run: RunFolder, pictures: Mapping[str, Shown]) -> None:
    """Draw ``pictures/<step>/<name>.png`` in the folder of a run, and tell the loggers."""
    step = trainer.global_step
    paths = {name: run.path / "pictures" / str(step) / f"{name}.png" for name in pictures}
    for name, picture in pictures.items():
        draw(picture, paths[name])
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            for name, path in paths.items():
                pixels = plots.read_image(path)
                logger.experiment.add_image(name, pixels, step, dataformats="HWC")
    for tracker in trackers(trainer):
        tracker.log_images(paths, step)


def draw(picture: Shown, path: Path) -> None:
    """Draw what a task shows."""
    if isinstance(picture, Images):
        plots.plot_rows(picture.rows, path)
    elif isinstance(picture, Bars):
        plots.plot_bars(picture.values, picture.unit, picture.things, path)
    else:
        plots.plot_points(picture.places, picture.classes, picture.names, path)
