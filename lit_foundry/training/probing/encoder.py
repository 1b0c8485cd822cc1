"""Features of samples, from a task with one backbone.

Shapes: B batch, N samples, D feature width.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_foundry.nn.text.encoder import masked_mean
from lit_foundry.signals import leave_signals_to_main

Pooling = Literal["default", "mean", "first"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
ROWS, TOKENS = 64, 8192  # of a batch, at most; tokens with padding


class Encoder:
    """The backbone of a task in use: from a batch to one vector a sample, always in eval mode.

    Images are seen as in an evaluation, cut to the size that was trained on, and once: test-time
    augmentation is for outputs.

    Args:
        task: Any module with one backbone.
        pooling: As the backbone pools (``default``), the ``mean`` of its tokens or places (of
            texts without padding), or the ``first`` token of a text.

    Attributes:
        backbone: The backbone.

    Raises:
        ValueError: If there is not one backbone, or the pooling means nothing to it.
    """

    def __init__(self, task: Any, pooling: Pooling = "default") -> None:
        found = getattr(task, "backbones", {})
        if len(found) != 1:
            names = f": {', '.join(found)}" if found else ""
            raise ValueError(
                f"{type(task).__name__} has {len(found) or 'no'} backbones{names}. Features are "
                "those of a task that has one."
            )
        [self.backbone] = found.values()
        self.pooling, self._views = pooling, getattr(task, "views", None)
        causal = getattr(self.backbone, "is_causal", True)  # of images, the first place is a corner
        if pooling == "first" and causal:
            raise ValueError(
                f"pooling first is for texts whose first token sees the others, and not for "
                f"{type(self.backbone).__name__} here: take default or mean."
            )

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the features of a batch, shape (B, D) float32."""
        if self._views is not None:
            batch = self._views.evaluation(batch)[0][1]
        with evaluating(self.backbone):
            tokens, pooled = self.backbone.encode(batch)
        if self.pooling == "first":
            pooled = tokens[:, 0]
        elif self.pooling == "mean":
            mask = batch.get("attention_mask")
            pooled = tokens.mean(1) if mask is None else masked_mean(tokens, mask)
        found: Tensor = pooled.float()
        return found


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Have a network in eval mode; what was in training mode is so again afterwards."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def batches_of(
    lengths: NDArray[np.int64], rows: Sequence[int], most: int = ROWS, tokens: int = TOKENS
) -> list[list[int]]:
    """Cut rows of a split into batches of similar length, the longest first.

    Args:
        lengths: Tokens of each sample of the split, shape (N,); 1 of images.
        rows: Those that are taken.
        most: Samples of a batch, at most.
        tokens: Its tokens with padding, at most, unless one sample has more.
    """
    order = np.asarray(rows)[np.argsort(-lengths[rows], kind="stable")]
    found = []
    while len(order):
        size = max(1, min(most, tokens // max(1, int(lengths[order[0]]))))
        found.append(order[:size].tolist())
        order = order[size:]
    return found


def loader_of(dataset: Any, batches: Sequence[Sequence[int]], workers: int = 0) -> DataLoader[Any]:
    """Load batches of a split as an evaluation sees it, also of the training split.

    Args:
        dataset: Split of a data module.
        batches: Rows of each batch.
        workers: Processes that load.
    """
    if getattr(dataset, "transform", None) is not None:  # a random one, of training images
        dataset = copy.copy(dataset)
        dataset.transform = None
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=leave_signals_to_main,
        generator=torch.Generator().manual_seed(0),  # else it draws from that of the training
    )


def _as_is(batch: Any) -> Any:
    return batch


def check_finite(features: Tensor, of: str) -> None:
    """Raise ValueError if some features are NaN or infinite.

    Args:
        features: Shape (N, D).
        of: Whose they are, for the message.
    """
    wrong = (~features.isfinite().all(1)).nonzero()
    if len(wrong):
        raise ValueError(
            f"The features of {len(wrong)} of {len(features)} samples of {of} are not finite, the "
            f"first is number {int(wrong[0])}: look at the sample and at the weights, or leave 16 "
            "bits."
        )


def device_of(name: str | None) -> torch.device:
    """Return the device of a name; of None a GPU if there is one.

    Raises:
        ValueError: If there is none of this name.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {name}: {str(error).splitlines()[0]} Take cpu, or cuda on a machine with a "
            "GPU."
        ) from None
    return device
