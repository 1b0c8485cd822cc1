"""Networks compiled by ``torch.compile``, whose parameters keep their names."""

import os
import shutil
import sys

import torch
from torch import nn


def compile_in_place(module: nn.Module, device: torch.device) -> None:
    """Let the calls of a network be compiled.

    Raises:
        ValueError: If torch does not find what it compiles with for a CPU.
    """
    name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(name) is None:
        raise ValueError(
            f"model.compile needs a C++ compiler, and {name} is not installed: install it, name "
            "another one in CXX, or set model.compile to false."
        )
    module.compile()
