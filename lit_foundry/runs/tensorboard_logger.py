"""TensorBoard's files, without which a run goes on where the disk is full."""

import logging
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_foundry.atomic import naming, workspace

_log = logging.getLogger(__name__)


class TensorBoard(TensorBoardLogger):
    """Lightning's logger; what it cannot write any more costs one warning, and not the run."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of TensorBoard."""
        if self._experiment is None:
            folder = Path(self.log_dir)
            # The writer's thread would tell of a full disk with a traceback.
            with naming(folder), workspace(folder) as place:
                (place / "test").write_bytes(bytes(4096))
            records = super().experiment.file_writer.event_writer._async_writer._writer
            records._writer = _Forgiving(records._writer, folder)
        return super().experiment

    @rank_zero_only
    def save(self) -> None:
        """Write what is left, and hyperparameters the first time."""
        with naming(Path(self.log_dir)):
            super().save()


class _Forgiving:
    """A file that takes no more after the first failure, and tells of that once."""

    closed = False

    def __init__(self, file: Any, folder: Path) -> None:
        self._file, self._folder = file, folder
        self._failed = False

    def write(self, data: bytes) -> None:
        self._try(self._file.write, data)

    def flush(self) -> None:
        self._try(self._file.flush)

    def close(self) -> None:
        self._try(self._file.close)

    def _try(self, action: Any, *args: Any) -> None:
        try:
            if not self._failed:
                action(*args)
        except OSError as error:
            self._failed = True
            why = error.strerror or error
            _log.warning("%s: %s. The run goes on, and records no more there.", self._folder, why)
