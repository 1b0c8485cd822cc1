"""Optimizers and learning rates: one flat config, pure schedules, one pass over the gradients.

Schedules read the progress of the run in [0, 1), whatever limits it: steps, epochs, wall-clock.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lit_foundry import ranges
from lit_foundry.nn.layer_depth import matrices, parameter_depths
from lit_foundry.nn.lora import is_adapter
from lit_foundry.training.muon import MuonWith

Name = Literal["adamw", "sgd", "muon", "muon_sgd"]
Schedule = Literal["constant", "linear", "cosine", "wsd"]
Shape = Literal["linear", "sqrt"]
Blocks = Sequence[tuple[nn.Module, list[nn.Module]]]


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and learning-rate schedule of a run.

    Args:
        name: Optimizer; ``muon`` takes the hidden matrices and convolutions of backbones, and AdamW
            the rest, or SGD under ``muon_sgd``.
        lr: Peak learning rate.
        weight_decay: Decay of matrices, convolutions and embeddings; decoupled under AdamW and
            Muon.
        betas: Averaging of the first and second moment in AdamW.
        eps: Added to AdamW's denominator.
        momentum: Nesterov momentum of SGD.
        bias_lr: Peak rate of all else: biases, norms, class tokens, learnt positions of images and
            the like; None means ``lr``.
        bias_decay: Decay of all else.
        muon_lr: Peak rate of Muon, whose updates have AdamW's size; None means ``lr``.
        muon_momentum: Nesterov momentum of Muon.
        muon_normalize: Keep the rows of Muon's weights at length 1 on average, which then have no
            decay, and rates relative to that: for networks with BatchNorm.
        schedule: Shape after the warmup; ``wsd`` (warmup, stable, decay) is flat at first.
        warmup: Fraction of the run, in [0, 1), spent rising linearly to the peak.
        decay: Last fraction of the run over which ``wsd`` falls.
        decay_shape: How: ``linear``, or 1 - sqrt (Hägele et al., https://arxiv.org/abs/2405.18392).
        final: Rate at the end of the run, as a multiple of the peak.
        layer_decay: Multiple of the rate per block below the head, in (0, 1].
        fused: Fused kernels; None means in AdamW, where every parameter is on CPU or CUDA.

    Raises:
        ValueError: If a value breaks its rule; the message names both.
    """

    name: Name = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    bias_lr: float | None = None
    bias_decay: float = 0.0
    muon_lr: float | None = None
    muon_momentum: float = 0.95
    muon_normalize: bool = False
    schedule: Schedule = "linear"
    warmup: float = 0.0
    decay: float = 0.2
    decay_shape: Shape = "linear"
    final: float = 0.0
    layer_decay: float = 1.0
    fused: bool | None = None

    def __post_init__(self) -> None:
        names, schedules = get_args(Name), get_args(Schedule)
        rules = {
            "name": (self.name in names, f"is one of {', '.join(names)}"),
            "lr": (self.lr > 0, "is the peak learning rate, above 0"),
            "weight_decay": (self.weight_decay >= 0, "is at least 0"),
            "betas": (all(0 <= b < 1 for b in self.betas), "are two numbers in [0, 1)"),
            "eps": (self.eps > 0, "is above 0"),
            "momentum": (0 <= self.momentum < 1, "lies in [0, 1)"),
            "bias_lr": (self.bias_lr is None or self.bias_lr > 0, "is a rate above 0, or null"),
            "bias_decay": (self.bias_decay >= 0, "is at least 0"),
            "muon_momentum": (0 <= self.muon_momentum < 1, "lies in [0, 1)"),
            "muon_lr": (self.muon_lr is None or self.muon_lr > 0, "is a rate above 0, or null"),
            "schedule": (self.schedule in schedules, f"is one of {', '.join(schedules)}"),
            "warmup": (0 <= self.warmup < 1, "is a fraction of the run in [0, 1)"),
            "decay": (0 < self.decay <= 1, "is a fraction of the run in (0, 1]"),
            "decay_shape": (self.decay_shape in get_args(Shape), "is linear or sqrt"),
            "final": (0 <= self.final <= 1, "is a multiple of the peak rate in [0, 1]"),
            "layer_decay": (0 < self.layer_decay <= 1, "is a multiple per block in (0, 1]"),
        }
        ranges.check("model.optim", vars(self), rules)
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(
                "model.optim.warmup and model.optim.decay share the run under schedule wsd, so "
                f"their sum is at most 1, got {self.warmup} and {self.decay}: lower one of them."
            )


def _rise(progress: float, step: float, warmup: float) -> float:
    # Without a known step the first one would be taken at rate 0, hence wasted.
    return min(1.0, max((progress + step) / warmup, 0.0 if step else 0.01))


def lr_factor(progress: float, step: float, config: OptimConfig) -> float:
    """Return the multiple of the peak learning rate for one optimizer step.

    The warmup reads the progress at the end of the step, the decay that at its start: neither
    the first nor the last step is wasted at rate 0.

    Args:
        progress: Fraction of the run done when the step starts.
        step: Fraction of the run that the step spans, 0 where unknown.
        config: Schedule, warmup, decay and final rate.
    """
    if progress < config.warmup:
        return _rise(progress, step, config.warmup)
    start = 1 - config.decay if config.schedule == "wsd" else config.warmup
    done = min(1.0, max(0.0, (progress - start) / (1 - start)))
    shape = config.decay_shape if config.schedule == "wsd" else config.schedule
    cosine = 0.5 * (1 - math.cos(math.pi * done))
    fallen = {"constant": 0.0, "cosine": cosine, "sqrt": math.sqrt(done)}.get(shape, done)
    return 1 - (1 - config.final) * fallen


def set_lr(
    optimizer: Optimizer,
    config: OptimConfig,
    progress: float,
    step: float,
    thawed: Callable[[int], float] = lambda below: math.inf,
) -> None:
    """Set the learning rate of every parameter group for the next step.

    Args:
        optimizer: Built by :func:`build_optimizer`.
        config: Schedule.
        progress: Fraction of the run done when the step starts.
        step: Fraction of the run that the step spans, 0 where unknown.
        thawed: For how much of the run a group has learnt that lies so many blocks below the
            head; negative if it does not yet. Groups at rate 0 until then have a warmup of
            their own afterwards.
    """
    factor = lr_factor(progress, step, config)
    for group in optimizer.param_groups:
        since = thawed(group["below"])
        rise = _rise(since, step, config.warmup) if config.warmup else 1.0
        group["lr"] = 0.0 if since < 0 else group["peak_lr"] * factor * rise


def param_groups(
    module: nn.Module, config: OptimConfig, blocks: Blocks, by_block: bool = False
) -> list[dict[str, Any]]:
    """Split trainable parameters by learning rate, weight decay and optimizer.

    In a backbone of n blocks, block i learns at ``layer_decay ** (n - i)`` of the peak, and
    parameters in no block (a class token, a final norm) like the block registered before them,
    or the first. A parameter that is shared belongs where it occurs first.

    Args:
        module: Task whose parameters are optimized.
        config: Peak rates and decays.
        blocks: Each backbone of the task with its blocks in depth order, embeddings first.
        by_block: Keep the blocks of a backbone apart, so that each can thaw at its own time.

    Returns:
        Parameter groups with ``part`` ("backbone" or "head"), ``muon``, and the ``peak_lr`` and
        ``below`` (blocks below the head: 0 in heads; 1 in backbones, unless ``by_block``) that
        :func:`set_lr` reads; none is empty.
    """
    scales: dict[nn.Parameter, float] = {}
    below: dict[nn.Parameter, int] = {}
    hidden: set[nn.Parameter] = set()
    weights = matrices(module)
    for backbone, parts in blocks:
        depths = parameter_depths(backbone, parts)
        inside = {p for part in parts for p in part.parameters() if depths[p]} & weights
        # Of a depthwise convolution, a row is no vector to turn.
        hidden |= {p for p in inside if p.shape[1] > 1}
        for p, depth in depths.items():
            scales.setdefault(p, config.layer_decay ** (len(parts) - depth))
            below.setdefault(p, len(parts) - depth if by_block else 1)
    lookups = (nn.Embedding, nn.EmbeddingBag)
    hidden -= {m.weight for m in module.modules() if isinstance(m, lookups)}
    # The product of an adapter's two factors is what moves; to orthogonalize each is another thing.
    hidden -= {p for name, p in module.named_parameters() if is_adapter(name)}

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for p in (p for p in module.parameters() if p.requires_grad):
        part = "backbone" if p in scales else "head"
        muon = config.name.startswith("muon") and p in hidden
        peak = config.muon_lr if muon else None if p in weights else config.bias_lr
        lr = (peak or config.lr) * scales.get(p, 1.0)
        decay = config.weight_decay if p in weights else config.bias_decay
        group = {"lr": lr, "peak_lr": lr, "weight_decay": decay, "part": part, "muon": muon}
        group["below"] = below.get(p, 0)
        groups.setdefault(tuple(group.values()), group | {"params": []})["params"].append(p)
    return list(groups.values())


def build_optimizer(
    module: nn.Module, config: OptimConfig, blocks: Blocks, by_block: bool = False
) -> Optimizer:
    """Build the optimizer of ``module``; its groups are those of :func:`param_groups`.

    Raises:
        ValueError: If no parameter is trainable.
    """
    groups = param_groups(module, config, blocks, by_block)
    if not groups:
        raise ValueError(
            f"{type(module).__name__} has no trainable parameter, so there is nothing to fit: "
            "freeze less, or run validate or test instead."
        )
    # None and not False: False would also switch off torch's multi-tensor kernels.
    fused = config.fused or None
    sgd: dict[str, Any] = {"momentum": config.momentum, "nesterov": config.momentum > 0}
    muon = {"momentum": config.muon_momentum, "normalize": config.muon_normalize}
    if config.name == "sgd":
        # Unasked, not fused: torch's kernel fails where a parameter of a group has its first
        # gradient later than the others.
        return SGD(groups, fused=fused, **sgd)
    if config.name == "muon_sgd":
        return MuonWith([group | (muon if group["muon"] else sgd) for group in groups], "sgd")
    if config.fused is None:
        parameters = [p for group in groups for p in group["params"]]
        # On CPU, the kernel walks memory and asks for no strides.
        fused = all(p.is_cuda or (p.is_cpu and p.is_contiguous()) for p in parameters) or None
    adamw: dict[str, Any] = {"betas": config.betas, "eps": config.eps, "fused": fused}
    if config.name == "adamw":
        return AdamW(groups, **adamw)
    return MuonWith([group | (muon if group["muon"] else adamw) for group in groups])


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return what a config sets of each group, other than its rate at the moment."""
    return [
        {key: value for key, value in group.items() if key not in ("params", "lr")}
        for group in optimizer.param_groups
    ]


def rates(optimizer: Optimizer) -> dict[str, float]:
    """Return the highest rate of each part, by log key."""
    found: dict[str, float] = {}
    for group in optimizer.param_groups:
        key = f"lr/{group['part']}"
        found[key] = max(group["lr"], found.get(key, 0.0))
    return found


def place_steps(optimizer: Optimizer) -> None:
    """Move the step counts of a loaded state to where the kernels of the optimizer want them.

    torch goes by the options that were saved, not by those of the optimizer that goes on.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if "step" in (state := optimizer.state.get(p, {})):
                on_device = group.get("fused") or group.get("capturable")
                step = torch.as_tensor(state["step"], dtype=torch.float32)
                state["step"] = step.to(p.device if on_device else "cpu")


@torch.no_grad()
def finish_gradients(optimizer: Optimizer, scale: float | Tensor, clip: float | None) -> Tensor:
    """Scale all gradients and clip their global norm, in one pass and without a device sync.

    Gradients of groups whose rate is 0 are dropped: their parameters stay as they are, to the
    bit, and do not count in the norm.

    Args:
        optimizer: Its parameters hold the gradients.
        scale: Factor of the gradients, such as one over the samples that a summed loss counts.
        clip: Largest L2 norm of the scaled gradients; None for no clipping.

    Returns:
        Global L2 norm, a scalar, after ``scale`` and before clipping; 0 without gradients.
    """
    buckets: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)
    for group in optimizer.param_groups:
        for p in group["params"]:
            if group["lr"] == 0:
                p.grad = None
            elif p.grad is not None:
                buckets[p.grad.device, p.grad.dtype, type(p.grad)].append(p.grad)
    if not buckets:
        return torch.zeros(())
    norms: list[Tensor] = []
    for (_, dtype, kind), grads in buckets.items():
        # DTensor has no rule for a dtype here (torch 2.14); its shards are float32 under FSDP.
        wide = torch.promote_types(dtype, torch.float32) if kind is Tensor else None
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads, 2, dtype=wide)))
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        norms.append(norm.to(norms[0].device) if norms else norm)
    total = (norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))) * scale
    factor = torch.ones_like(total) if clip is None else (clip / (total + 1e-6)).clamp(max=1.0)
    for (device, dtype, _), grads in buckets.items():
        # The multi-tensor kernel on CUDA wants the factor in the dtype of the gradients.
        torch._foreach_mul_(grads, (factor * scale).to(device, dtype))
    return total
