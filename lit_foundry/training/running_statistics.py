"""What the forward passes of a step that is then skipped leave behind in normalization layers."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


class RunningStatistics:
    """Puts back running means and variances, which NaN would never leave again.

    Args:
        module: Whose batch and instance normalization layers are watched.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [part for part in module.modules() if isinstance(part, _NormBase)]
        self._layers = [layer for layer in layers if layer.track_running_stats]
        self._kept: list[Tensor] = []

    def _buffers(self) -> list[Tensor]:
        return [buffer for layer in self._layers for buffer in layer.buffers(recurse=False)]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the statistics before a step, on the device and without waiting for it."""
        buffers = self._buffers()
        places = [[(b.device, b.shape) for b in found] for found in (self._kept, buffers)]
        if places[0] != places[1]:
            self._kept = [buffer.clone() for buffer in buffers]
        elif buffers:
            torch._foreach_copy_(self._kept, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what the step found."""
        if self._kept:
            torch._foreach_copy_(self._buffers(), self._kept)
