"""What losses of distillation compare: what student and teacher make of the same inputs.

Shapes: N predictions, C classes, B batch, T tokens, D feature width, H heads, d width of a head.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_foundry.nn.backbone import Backbone
from lit_foundry.nn.features import Features


class Attention(NamedTuple):
    """What a layer attends with, each of shape (B, H, T, d)."""

    query: Tensor
    key: Tensor
    value: Tensor


@dataclass
class Outputs:
    """What a network makes of a batch.

    Attributes:
        logits: Shape (N, C): of samples, of tagged words or of masked tokens.
        target: Class of each of them, shape (N,), -100 where it is unknown; None of a teacher.
        pooled: Features of the samples, shape (B, D).
        hidden: What goes into the first block after the stem, and what comes out of each, in depth
            order: (B, T, D) of texts, (B, D, height, width) of feature maps.
        attention: Of each layer with attention.
        mask: True at real tokens, shape (B, T); None of images.
    """

    logits: Tensor
    target: Tensor | None = None
    pooled: Tensor | None = None
    hidden: list[Tensor] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    mask: Tensor | None = None


class Seen:
    """What passed through a backbone: its batch, its features and what lies between.

    Attributes:
        batch: What it was given.
        features: What it returned.
        output: What the head made of that; None if it was not called.
        hidden: As in :class:`Outputs`.
        attention: As in :class:`Outputs`.
    """

    batch: Mapping[str, Any]
    features: Features
    output: Any

    def __init__(self) -> None:
        self.output = None
        self.hidden: list[Tensor] = []
        self.attention: list[Attention] = []

    def outputs(self, logits: Tensor, target: Tensor | None = None) -> Outputs:
        """Return what a network made of the batch, with its logits."""
        pooled, mask = self.features.pooled, self.batch.get("attention_mask")
        return Outputs(logits.float(), target, pooled, self.hidden, self.attention, mask)


@contextmanager
def watched(
    backbone: Backbone, needs: Collection[str], head: nn.Module | None = None
) -> Iterator[Seen]:
    """Note what passes through a backbone that encodes one batch.

    Args:
        backbone: A network.
        needs: ``hidden`` and ``attention``, if these are asked for.
        head: Whose output is noted too.
    """
    seen, encode = Seen(), backbone.encode

    def noted(batch: Mapping[str, Any]) -> Features:
        seen.batch = batch
        with ExitStack() as stack:
            if "hidden" in needs:
                stack.enter_context(_noting_blocks(backbone, seen.hidden))
            if "attention" in needs:
                stack.enter_context(_NotingAttention(seen.attention))
            seen.features = encode(batch)
        return seen.features

    def after(module: nn.Module, args: Any, output: Any) -> None:
        seen.output = output

    backbone.__dict__["encode"] = noted  # around what may be compiled
    handle = head.register_forward_hook(after) if head is not None else None
    try:
        yield seen
    finally:
        del backbone.__dict__["encode"]
        if handle is not None:
            handle.remove()


class _NotingAttention(TorchFunctionMode):
    """Notes what torch's own attention is called with, which all families here end up in."""

    def __init__(self, found: list[Attention]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = "query", "key", "value"
            given = dict(zip(names, args, strict=False)) | kwargs
            self.found.append(Attention(*(given[name] for name in names)))
        return func(*args, **kwargs)


@contextmanager
def _noting_blocks(backbone: Backbone, found: list[Tensor]) -> Iterator[None]:
    """Note hidden states in the order in which blocks are called, some maybe several times."""
    blocks = backbone.blocks()[1:]
    if not blocks:
        raise ValueError(
            f"model.losses: a {type(backbone).__name__} has a stem and no blocks, of which a loss "
            "asks for hidden states."
        )

    def before(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        if not found:
            found.append(_first_tensor([*args, *kwargs.values()]))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        found.append(_first_tensor([output]))

    handles = [_runs(blocks[0], 0).register_forward_pre_hook(before, with_kwargs=True)]
    handles += [_runs(block, -1).register_forward_hook(after) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _runs(block: nn.Module, place: int) -> nn.Module:
    """Return the part of a block that is called first (0) or last (-1): a list never is."""
    while isinstance(block, nn.ModuleList):
        block = block[place]
    return block


def _first_tensor(values: Any) -> Tensor:
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (list, tuple)):
            return _first_tensor(value)
    raise ValueError("model.losses: a block of this network takes or returns no tensor.")
