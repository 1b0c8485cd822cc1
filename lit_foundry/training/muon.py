"""Muon for hidden matrices and convolutions, with AdamW or SGD for all else."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Muon, Optimizer
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz


class KernelMuon(Muon):
    """Muon that takes convolutions too, as matrices with a row for each filter.

    A group with ``normalize=True`` keeps each weight at the norm that rows of length 1 have, as
    suits a layer before a BatchNorm, where lengths mean nothing: its rate then is the size of a
    step relative to the weight's, and it has no decay.

    Args:
        groups: Parameter groups with any option of ``torch.optim.Muon``.
        options: Defaults of these.

    Source: Jordan, airbench94_muon, 2024, https://github.com/KellerJordan/cifar10-airbench
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        # torch's constructor refuses convolutions, which its groups may hold.
        super().__init__([torch.zeros(1, 1, requires_grad=True)], **options)
        self.param_groups.clear()
        for group in groups:
            self.add_param_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step; ``closure`` is not taken."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[p], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        mean = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        update = grad.lerp(mean, momentum) if group["nesterov"] else mean
        coefficients, steps, eps = (group[key] for key in ("ns_coefficients", "ns_steps", "eps"))
        matrix = _zeropower_via_newtonschulz(update.flatten(1), coefficients, steps, eps)
        rate = group["lr"]
        if group.get("normalize"):
            p.mul_(len(p) ** 0.5 / p.norm().clamp(min=eps))
        else:
            p.mul_(1 - rate * group["weight_decay"])
            rate = _adjust_lr(rate, group["adjust_lr_fn"], matrix.shape)
        p.add_(matrix.view(p.shape), alpha=-rate)


class MuonWith(Optimizer):
    """Muon for matrices and AdamW or SGD for the rest, as the one optimizer that Lightning takes.

    Both share this object's parameter groups and state: rates set here reach them, and a
    checkpoint of it holds what they remember.

    Args:
        params: Parameter groups; those with ``muon=True`` hold matrices and convolutions and go
            to Muon. A group may hold any option of its optimizer.
        rest: Optimizer of the rest.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
        https://kellerjordan.github.io/posts/muon/
    """

    _parts: tuple[Optimizer, ...] = ()

    def __init__(
        self, params: list[dict[str, Any]], rest: Literal["adamw", "sgd"] = "adamw"
    ) -> None:
        super().__init__(params, {"rest": rest})  # in each group, as copies have nothing else
        self._link()

    def _link(self) -> None:
        muon = [group for group in self.param_groups if group.get("muon")]
        rest = [group for group in self.param_groups if not group.get("muon")]
        kind = SGD if self.param_groups[0]["rest"] == "sgd" else AdamW
        self._parts = (
            *([KernelMuon(muon, adjust_lr_fn="match_rms_adamw")] if muon else []),
            *([kind(rest)] if rest else []),
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
