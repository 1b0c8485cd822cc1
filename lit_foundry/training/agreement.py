"""What data and network must agree on before the first step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lit_foundry.checkpoints.files import CheckpointError, tokenizer_json
from lit_foundry.datamodule import Data, data_of
from lit_foundry.nn import Backbone

# A network may be built larger than the data needs; any other fact must be equal.
SETTINGS = {"pad_id": "config.pad_token_id"}  # where a fact's setting has another name
UPPER_BOUNDS = {
    "vocab_size": "data.tokenizer or model.backbone.vocab_size",
    "max_length": "data.max_length",
}


def check_fit(task: Any, backbones: Mapping[str, Backbone], data: Data) -> None:
    """Raise ValueError unless a task, and its backbones by name, agree with the data."""
    own: Mapping[str, int] = getattr(task, "own_facts", {})
    check_kind(task, data)
    check_inputs(task, data)
    facts = {name: value for name, value in data.facts.items() if name not in own}
    source = type(data).__name__
    check_facts(task, "model", facts, source)
    for name, backbone in backbones.items():
        check_facts(backbone, f"model.{name}", facts, source)
        check_facts(backbone, f"model.{name}", own, "model.augment")


def fit_to_data(backbones: Mapping[str, Backbone], data: Data | None) -> None:
    """Initialize what depends on the data, from training samples of all over the split."""
    for backbone in backbones.values():
        if backbone.fitted_rows and data is not None:
            samples = data.load("train")
            count = min(backbone.fitted_rows, len(samples.lengths))
            rows = [i * len(samples.lengths) // count for i in range(count)]
            backbone.fit_to(samples[rows])


def check_kind(task: Any, data: Data) -> None:
    """Raise ValueError unless samples are labelled with what a task predicts of them."""
    if task.predicts and data.target_kind and task.predicts != data.target_kind:
        raise ValueError(
            f"{type(task).__name__} predicts labels of the kind {task.predicts}, and "
            f"{type(data).__name__} has {data.target_kind}: take another task, or set data.target."
        )


def check_unlabelled(task: Any, data: Data) -> None:
    """Raise ValueError if a task that is fitted learns nothing of unlabelled samples."""
    if task.predicts and data.unlabelled and not task.takes_unlabelled:
        raise ValueError(
            f"data.transfer adds samples without a label, of which {type(task).__name__} learns "
            "nothing: take Distillation, or leave it out."
        )


def check_inputs(task: Any, data: Data) -> None:
    """Raise ValueError unless the batches of ``data`` hold what a task reads."""
    offered = list(data.batch_type.__annotations__)
    for reader, inputs in task.inputs.items():
        if not set(inputs) <= set(offered):
            raise ValueError(
                f"{reader} reads {list(inputs)}, but {type(data).__name__} yields {offered}."
            )


def check_facts(module: nn.Module, key: str, facts: Mapping[str, int], source: str) -> None:
    """Raise ValueError if ``module``, configured at ``key``, contradicts a fact of ``source``."""
    names = type(module).__name__, source
    for fact, value in facts.items():
        built = getattr(module, fact, None)
        if built is None or built == value:
            continue
        if fact not in UPPER_BOUNDS:
            raise ValueError(
                f"{names[0]} was built with {fact}={built}, but {names[1]} has {value}; "
                f"set {key}.{SETTINGS.get(fact, fact)}={value}, or leave it out."
            )
        if value > built:
            raise ValueError(
                f"{names[0]} takes {fact} up to {built}, but {names[1]} has {value}; "
                f"change {UPPER_BOUNDS[fact]}."
            )


def check_tokenizer(path: Path, data: Data | None, key: str = "model.init_from") -> None:
    """Raise CheckpointError if weights were trained with other tokens than ``data`` yields.

    Args:
        path: Checkpoint, or a folder of ``transformers``, that initializes a backbone or teaches.
        data: What is trained on now.
        key: Key that names it.
    """
    if _same_tokens(tokenizer_json(path), data):
        return
    raise CheckpointError(
        f"{key}={path} was trained with another tokenizer, so its embeddings stand for "
        f"other tokens: set data.tokenizer to {_tokenizer_of(path)}."
    )


def check_resumed(trainer: Any, saved: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a run would go on with other tokens or classes than it began with.

    Args:
        trainer: Resumes from a checkpoint.
        saved: State of the data that it holds.
    """
    path, data = Path(str(trainer.ckpt_path)), data_of(trainer)
    if not _same_tokens(saved.get("tokenizer", {}).get("tokenizer.json"), data):
        raise CheckpointError(
            f"{path} was trained with another tokenizer than the data have now, such as one of "
            "texts that have changed: to go on with them, set data.tokenizer to "
            f"{_tokenizer_of(path)}; to begin anew, leave out --resume."
        )
    old, new = saved.get("labels"), None if data is None else data.labels
    if old and new is not None and list(old) != list(new):
        raise CheckpointError(
            f"{path} was trained with the classes {old}, and the data have {new} now: restore "
            "them, or leave out --resume to begin anew."
        )


def _same_tokens(theirs: str | None, data: Data | None) -> bool:
    state = {} if data is None else data.state()
    ours = state.get("tokenizer", {}).get("tokenizer.json")
    return theirs is None or ours is None or _tokens(theirs) == _tokens(ours)


def _tokenizer_of(path: Path) -> Path | str:
    folder = path if path.is_dir() else path.parent.parent / "tokenizer"
    return folder if folder.is_dir() else "that of the run which wrote it"


def _tokens(tokenizer: str) -> Any:
    """Return which token has which id, of a tokenizer's JSON."""
    content = json.loads(tokenizer)
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    return content["model"]["vocab"], added
