"""What a student begins with of its teacher's weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_foundry.checkpoints.files import CheckpointError, load_strictly
from lit_foundry.nn import Backbone


def begin_as(
    student: Any, teacher: Any, path: Path, layers: Sequence[int] | None, embeddings: bool
) -> None:
    """Let a task begin as its teacher, with some of its layers or the gist of its embeddings.

    Args:
        student: Task with a backbone and a head.
        teacher: Likewise; None of one that tells its logits alone.
        path: Where the teacher lies, for messages.
        layers: As :func:`inherit_layers` has it; the head comes along. None takes none.
        embeddings: Whether to begin with :func:`inherit_embeddings`.

    Raises:
        CheckpointError: If the teacher has no layers, or they do not fit.
    """
    if teacher is None and (layers is not None or embeddings):
        raise CheckpointError(
            f"model.teacher={path} tells its logits alone: model.init_layers and "
            "model.init_embeddings need a checkpoint, or an export as safetensors."
        )
    if layers is not None:
        inherit_layers(student.backbone, teacher.backbone, layers)
        load_strictly(student.head, teacher.head.state_dict(), "model.init_layers, the head")
    if embeddings:
        inherit_embeddings(student.backbone, teacher.backbone)


def inherit_layers(student: Backbone, teacher: Backbone, layers: Sequence[int]) -> None:
    """Copy the stem, some blocks, and what lies outside of blocks, from a network of equal widths.

    Args:
        student: Network whose blocks, after the stem, are as many as ``layers``.
        teacher: Network of the same kind.
        layers: Numbers of the teacher's blocks, the first after the stem being 1.

    Raises:
        CheckpointError: If they do not fit each other.

    Source: Sanh et al., DistilBERT, a distilled version of BERT, 2019.
        https://arxiv.org/abs/1910.01108
    """
    mine, theirs = student.blocks(), teacher.blocks()
    key = f"model.init_layers={list(layers)}"
    if len(layers) != len(mine) - 1:
        raise CheckpointError(
            f"{key} names {len(layers)} blocks, and the student has {len(mine) - 1} after its stem."
        )
    if wrong := [layer for layer in layers if not 1 <= layer < len(theirs)]:
        raise CheckpointError(
            f"{key}: the teacher has no block {wrong[0]}, but those from 1 to {len(theirs) - 1}."
        )
    chosen = [theirs[0], *(theirs[layer] for layer in layers)]
    for number, (block, source) in enumerate(zip(mine, chosen, strict=True)):
        load_strictly(block, source.state_dict(), f"{key}, block {number}")
    outside = [_outside(network) for network in (student, teacher)]
    for name, tensor in outside[0].items():
        if name not in outside[1] or outside[1][name].shape != tensor.shape:
            raise CheckpointError(f"{key}: the teacher has no {name} of the student's shape.")
        with torch.no_grad():
            tensor.copy_(outside[1][name])


def _outside(backbone: Backbone) -> dict[str, Tensor]:
    """Return the tensors of a network that lie in no block."""
    states = [block.state_dict(keep_vars=True) for block in backbone.blocks()]
    inside = {id(tensor) for state in states for tensor in state.values()}
    state = backbone.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if id(tensor) not in inside}


@torch.no_grad()
def inherit_embeddings(student: Backbone, teacher: Backbone) -> None:
    """Begin with the principal components of a teacher's token embeddings, in a narrower one.

    They are scaled to the spread that the student's have, of which its first norm makes the same.

    Raises:
        CheckpointError: If one of them has no token embeddings, or other tokens.
    """
    mine, theirs = _embedding(student, "student"), _embedding(teacher, "teacher")
    if len(mine) != len(theirs) or mine.shape[1] > theirs.shape[1]:
        raise CheckpointError(
            f"model.init_embeddings: the student's embeddings have the shape {tuple(mine.shape)}, "
            f"the teacher's {tuple(theirs.shape)}: it needs as many tokens, and no more width."
        )
    centred = theirs.double() - theirs.double().mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # in ascending order
    main = centred @ vectors[:, -mine.shape[1] :].flip(1)
    mine.copy_(main * (mine.double().std() / main.std()))


def _embedding(backbone: Backbone, whose: str) -> Tensor:
    found = [module.weight for module in backbone.modules() if isinstance(module, nn.Embedding)]
    if not found:
        raise CheckpointError(f"model.init_embeddings: the {whose} has no token embeddings.")
    return max(found, key=len)
