"""The part files of backbones build the networks that they are named after."""

from pathlib import Path

import pytest
import torch
import yaml

from lit_foundry import nn
from tests.conftest import REPO

# Millions of parameters, embeddings included, as their authors count them.
SIZES = {
    "bert_base": (108, 110),
    "bert_mini": (11, 11.5),
    "gpt2_small": (124, 125),
    "llama_tiny": (0.8, 0.9),
    "modernbert_base": (148, 150),
}


@pytest.mark.parametrize("path", sorted((REPO / "configs/backbone").glob("*.yaml")), ids=str)
def test_preset_has_the_size_of_its_name(path: Path) -> None:
    part = yaml.safe_load(path.read_text())
    args = part["init_args"]
    if path.stem == "llama_tiny":  # of the data's characters
        args["vocab_size"] = 70
    with torch.device("meta"):
        backbone = getattr(nn, part["class_path"])(**args)
    low, high = SIZES[path.stem]
    assert low * 1e6 < sum(p.numel() for p in backbone.parameters()) < high * 1e6
