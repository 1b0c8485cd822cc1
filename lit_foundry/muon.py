"""Muon for hidden matrices, with AdamW for all else."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Muon for matrices and AdamW for the rest, as the one optimizer that Lightning takes.

    Both share this object's parameter groups and state: rates set here reach them, and a
    checkpoint of it holds what they remember.

    Args:
        params: Parameter groups; those with ``muon=True`` hold matrices only and go to Muon.
            A group may hold any option of its optimizer.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
        https://kellerjordan.github.io/posts/muon/
    """

    _parts: tuple[Optimizer, ...] = ()

    def __init__(self, params: list[dict[str, Any]]) -> None:
        super().__init__(params, {})
        self._link()

    def _link(self) -> None:
        muon = [group for group in self.param_groups if group.get("muon")]
        rest = [group for group in self.param_groups if not group.get("muon")]
        self._parts = (
            *([Muon(muon, adjust_lr_fn="match_rms_adamw")] if muon else []),
            *([AdamW(rest)] if rest else []),
        )
        for part in self._parts:
            part.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, to Muon if it says ``muon=True``."""
        super().add_param_group(param_group)
        if self._parts:
            self._link()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._link()  # loading replaces the groups and the state that the parts share

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both optimizers, after one evaluation of ``closure``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
