"""How fast a run trains."""

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Logs samples and (unpadded) tokens per second over all ranks, validation excluded.

    Attributes:
        seconds: Time spent in training batches by this process.
        samples: Samples trained on, over all ranks.
        tokens: Tokens trained on, over all ranks, padding excluded.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.samples = 0
        self._tokens: torch.Tensor | int = 0
        self._since: float | None = None
        self._logged = (0.0, 0, 0)

    @property
    def tokens(self) -> int:
        """Tokens trained on; reading this waits for the device."""
        return int(self._tokens)

    def rates(self, since: tuple[float, int, int] = (0.0, 0, 0)) -> dict[str, float]:
        """Return rates since an earlier ``(seconds, samples, tokens)``."""
        seconds = max(self.seconds - since[0], 1e-9)
        rates = {"samples_per_s": (self.samples - since[1]) / seconds}
        if self.tokens:
            rates["tokens_per_s"] = (self.tokens - since[2]) / seconds
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted, so that a resumed run goes on counting."""
        return {"seconds": self.seconds, "samples": self.samples, "tokens": self.tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds, self.samples = state_dict["seconds"], state_dict["samples"]
        self._tokens = state_dict["tokens"]
        self._logged = (self.seconds, self.samples, self.tokens)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, also inside an epoch."""
        self._since = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._tick()
        self._since = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again."""
        self._since = time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log as often as everything else is logged."""
        self._tick()
        self.samples += len(batch["index"]) * trainer.world_size
        if "attention_mask" in batch:
            tokens = batch["attention_mask"].sum()
            self._tokens += tokens * trainer.world_size if trainer.world_size > 1 else tokens
        whole_step = not trainer.fit_loop._should_accumulate()
        if whole_step and trainer._logger_connector.should_update_logs:
            rates = self.rates(self._logged)
            pl_module.log_dict({f"throughput/{name}": rate for name, rate in rates.items()})
            self._logged = (self.seconds, self.samples, self.tokens)
