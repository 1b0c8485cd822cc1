"""Networks compiled by ``torch.compile``, whose parameters keep their names."""

import os
import shutil
import sys
from collections.abc import Sequence

import torch
from torch import nn

from lit_foundry.nn import Backbone


def compile_in_place(
    module: Backbone, device: torch.device, parts: Sequence[nn.Module] = ()
) -> None:
    """Let the calls of a network be compiled, anew for each block that joins in training.

    Args:
        module: Backbone.
        device: Where it runs.
        parts: What is compiled, each for itself, where that is not the backbone as a whole.

    Raises:
        ValueError: If torch does not find what it compiles with for a CPU.
    """
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(name) is None:
        raise ValueError(
            f"model.compile needs a C++ compiler, and {name} is not installed: install it, name "
            "another one in CXX, or set model.compile to false."
        )
    from torch._dynamo import config  # takes a second

    # A graph belongs to what learns and what is in eval mode; after so many, torch gives up and
    # runs the network as it is. Each block that joins needs one in training and one in
    # evaluation, and other sizes of batches and images some more.
    graphs = 2 * (len(module.blocks()) + 2) + 8
    config.recompile_limit = max(config.recompile_limit, graphs)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 2 * graphs)
    for part in parts or [module]:
        part.compile()
