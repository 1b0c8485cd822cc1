"""What an evaluation leaves behind, beside the checkpoint that it scored."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lit_foundry.callbacks.evaluation_record import EvaluationRecord
from lit_foundry.datamodule import Split, data_of
from lit_foundry.runs.folder import RunFolder
from lit_foundry.runs.tracking import tracker_of


class ScoreRecord(EvaluationRecord):
    """Writes ``test.json``, predictions and a confusion matrix into the run's folder.

    Args:
        ckpt_path: The checkpoint, ``<run>/checkpoints/NAME.ckpt``; one that lies elsewhere
            gets the files in a folder named after it.
        step: Optimizer steps that its network had taken.
    """

    def __init__(self, ckpt_path: Path, step: int = 0) -> None:
        super().__init__(RunFolder.of(ckpt_path))
        self.ckpt_path, self.step = ckpt_path, step

    def _write(self, trainer: Trainer, task: Any, stage: Split) -> None:
        self.record(trainer, task, stage, self.step)
        if not trainer.is_global_zero:
            return
        scores = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(f"{stage}/")
        }
        data = data_of(trainer)
        content: dict[str, Any] = {"data": {} if data is None else data.fingerprint(), **scores}
        limit = getattr(trainer, f"limit_{stage}_batches")
        if isinstance(limit, int) or limit != 1.0:
            content["part"] = f"limit_{stage}_batches={limit}"
            print(f"trainer.{content['part']}: these are scores of a part of the split.")
        content = {"checkpoint": str(self.ckpt_path), **content}
        print(f"Scores written to {self.run.write(f'{stage}.json', content)}")
        if tracker := tracker_of(self.run.path):
            tracker.log_metrics(scores, self.step)
            tracker.log_evaluation(stage, self.step)
            tracker.finalize("success")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test's scores."""
        self._write(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the validation's scores."""
        self._write(trainer, pl_module, "val")
