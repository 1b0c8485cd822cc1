"""Whether data have what a judge of features needs: a class for each sample."""

from lit_foundry.datamodule import Data

REMEDY = {
    None: "name data with labels",
    "none": "set data.target to class where the files have labels, or name other data",
}


def check_classes(data: Data | None, who: str) -> None:
    """Raise ValueError unless each sample has a class.

    Args:
        data: A data module; None of a plain one of Lightning.
        who: Who needs that, for the message.
    """
    name, kind = type(data).__name__ if data else "a plain data module", None
    if data is not None and (kind := data.target_kind) is None:
        label = data.load("val")[[0]].get("label")
        if label is not None and label.ndim == 1 and not label.is_floating_point():
            return
    if kind != "class":
        has = "no labels" if kind in REMEDY else f"labels of the kind {kind}"
        remedy = REMEDY.get(kind, "name data with classes")
        raise ValueError(f"{who} needs a class for each sample, and {name} has {has}: {remedy}.")
