"""How fast a run trains."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lit_foundry.training.device_flops import peak_flops

HALF = {"bf16": torch.bfloat16, "16": torch.float16}  # by the beginning of trainer.precision


class Throughput(Callback):
    """Logs samples and (unpadded) tokens per second over all ranks, validation excluded.

    Of tokens also the share that is padding; and of a task that counts its operations (``flops``),
    the share of what the devices can do: model FLOPs utilization (Chowdhery et al., PaLM, 2022,
    https://arxiv.org/abs/2204.02311, appendix B).

    Attributes:
        seconds: Time spent in training batches by this process.
        samples: Samples trained on, over all ranks.
        tokens: Tokens trained on, over all ranks, padding excluded.
        places: The same with padding.
        flops: Floating point operations of this rank that training took.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.samples = self.places = 0
        self.flops = self._peak = 0.0
        self._tokens: torch.Tensor | int = 0
        self._since: float | None = None
        self._logged = self._counts

    @property
    def tokens(self) -> int:
        """Tokens trained on; reading this waits for the device."""
        return int(self._tokens)

    @property
    def _counts(self) -> dict[str, float]:
        names = ("seconds", "samples", "tokens", "places", "flops")
        return {name: getattr(self, name) for name in names}

    def rates(self, since: Mapping[str, float] | None = None) -> dict[str, float]:
        """Return rates and shares of the run, or of what came after earlier counts."""
        new = {k: v - (since or {}).get(k, 0) for k, v in self._counts.items()}
        seconds = max(new["seconds"], 1e-9)
        rates = {"samples_per_s": new["samples"] / seconds}
        if new["places"]:
            rates["padding"] = 1 - new["tokens"] / new["places"]
        if self._peak and new["flops"]:
            rates["mfu"] = new["flops"] / seconds / self._peak
        if new["tokens"]:
            rates["tokens_per_s"] = new["tokens"] / seconds
        return rates

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted, so that a resumed run goes on counting."""
        return self._counts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds, self.samples = state_dict["seconds"], state_dict["samples"]
        self._tokens = state_dict["tokens"]
        self.places, self.flops = state_dict.get("places", 0), state_dict.get("flops", 0.0)
        self._logged = self._counts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, also inside an epoch."""
        if hasattr(pl_module, "flops"):
            half = next((v for k, v in HALF.items() if trainer.precision.startswith(k)), None)
            self._peak = peak_flops(pl_module.device, half or torch.float32)
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
            self.places += batch["attention_mask"].numel() * trainer.world_size
        if self._peak:
            task: Any = pl_module
            self.flops += task.flops(batch)
        whole_step = not trainer.fit_loop._should_accumulate()
        if whole_step and trainer._logger_connector.should_update_logs:
            rates = self.rates(self._logged)
            pl_module.log_dict({f"throughput/{name}": rate for name, rate in rates.items()})
            self._logged = self._counts
