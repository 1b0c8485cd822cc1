"""Compiled backbones are compiled anew as often as a run needs it."""

import pytest
import torch
import torch._dynamo

from lit_foundry.nn import Backbone, ResNet9, TorchvisionEncoder
from lit_foundry.tasks.compiling import compile_in_place


@pytest.mark.parametrize("backbone", [ResNet9(4), TorchvisionEncoder("resnet18")])
def test_every_block_that_joins_may_have_a_graph(backbone: Backbone) -> None:
    with torch._dynamo.config.patch(recompile_limit=8):
        compile_in_place(backbone, torch.device("meta"))
        assert torch._dynamo.config.recompile_limit >= 2 * (len(backbone.blocks()) + 1)
