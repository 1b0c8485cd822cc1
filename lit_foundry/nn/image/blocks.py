"""The parts of any image network in depth order."""

import re
from collections.abc import Iterator

from torch import nn

# Types that only hold parts, by name: those of torchvision, timm and transformers.
HOLDER = re.compile(r"(Model|Transformer|Encoder|Stage|DenseBlock|MaxVitBlock)$")
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def depth_blocks(network: nn.Module) -> list[nn.Module]:
    """Cut a network into its blocks in depth order, the stem first.

    A residual block is one, and so is a convolution or linear layer outside of them. Norms go with
    the part before. Every parameter is in one block.

    Args:
        network: Any network whose parts are registered in the order in which they run.
    """
    groups: list[list[nn.Module]] = []
    loose: list[nn.Parameter] = []
    for part in _parts(network, loose, expand=True):
        trains = next(part.parameters(), None) is not None
        follows = isinstance(part, NORMS) or type(part).__name__.endswith(("Norm", "Pooler"))
        if trains and not (groups and follows):
            groups.append([part])
        elif groups and (trains or hasattr(part, "p")):  # dropout is frozen with its block
            groups[-1].append(part)
    if loose:  # class tokens and positions belong to the stem
        groups[0].append(nn.ParameterList(loose))
    return [group[0] if len(group) == 1 else nn.ModuleList(group) for group in groups]


def _parts(module: nn.Module, loose: list[nn.Parameter], expand: bool) -> Iterator[nn.Module]:
    loose += module.parameters(recurse=False)
    for child in module.children():
        nested = any(True for part in child.children() for _ in part.children())
        plain = type(child) in (nn.Sequential, nn.ModuleList)
        if HOLDER.search(type(child).__name__) or (plain and (expand or nested)):
            yield from _parts(child, loose, expand=False)
        else:
            yield child
