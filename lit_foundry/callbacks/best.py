"""The checkpoint with the best validation score."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint


class Best(ModelCheckpoint):
    """Keeps the weights that scored best, also after the run's folder was moved.

    Args:
        folder: Where ``best.ckpt`` goes.
        monitor: Logged metric that decides.
        mode: Whether the smallest or the largest value is best.
    """

    def __init__(self, folder: Path, monitor: str | None, mode: str) -> None:
        # A run that ends before its first validation is told of in its summary.
        this = re.escape(f"monitor={monitor!r}")
        warnings.filterwarnings("ignore", f".*{this}.* could not find the monitored key")
        super().__init__(
            folder,
            "best",
            monitor=monitor,
            mode=mode,
            save_weights_only=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scores; Lightning forgets them if the folder has another name now."""
        here = Path(str(self.dirpath))

        def moved(path: str) -> str:
            return str(here / Path(path).name) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        state = state_dict | {key: moved(state_dict[key]) for key in paths if key in state_dict}
        scores = state_dict.get("best_k_models", {})
        state |= {
            "dirpath": self.dirpath,
            "best_k_models": {moved(k): v for k, v in scores.items()},
        }
        super().load_state_dict(state)


def start_over(trainer: Trainer) -> None:
    """Let the next validation be the best, as after a change of the network; remove what was."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            for path in callback.best_k_models:
                trainer.strategy.remove_checkpoint(path)
            callback.best_k_models = {}
            callback.best_model_path = callback.kth_best_model_path = ""
            callback.best_model_score = callback.current_score = None
        elif isinstance(callback, EarlyStopping):
            worst = torch.tensor(torch.inf)
            callback.best_score = worst if callback.monitor_op == torch.lt else -worst
            callback.wait_count = 0
