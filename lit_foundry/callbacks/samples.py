"""What a language model makes of some texts, written down at each validation."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.tracking import trackers


class Samples(Callback):
    """Writes ``samples/<step>.txt`` of the first texts that validate, and tells the loggers.

    Args:
        run: Folder of the run.
        count: Number of texts.
    """

    def __init__(self, run: RunFolder, count: int = 4) -> None:
        self.run, self.count = run, count
        self._batch: dict[str, Any] | None = None

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the beginning of the first batch."""
        if batch_idx == 0:
            rows = {name: field for name, field in batch.items() if name != "offsets"}
            self._batch = {name: field[: self.count] for name, field in rows.items()}

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write what the network makes of them."""
        batch, self._batch = self._batch, None
        if trainer.sanity_checking or batch is None or not trainer.is_global_zero:
            return
        samples = pl_module.samples(batch, pl_module.tokenizer)
        text = "\n\n".join(samples) + "\n"
        self.run.write(f"samples/{trainer.global_step}.txt", text)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                shown = "    " + text.replace("\n", "\n    ")  # as code, else Markdown eats it
                logger.experiment.add_text("samples", shown, trainer.global_step)
        for tracker in trackers(trainer):
            tracker.log_samples(samples, trainer.global_step)
