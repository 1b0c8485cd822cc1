"""Channels of convolutions that go together, by the dependency graph of ``torch-pruning``.

Source: Fang et al., DepGraph: Towards Any Structural Pruning, 2023,
    https://arxiv.org/abs/2301.12900
"""

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lit_foundry.nn.narrowing import axes
from lit_foundry.nn.pruning.groups import Group, Part


def channels(backbone: Any, batch: Mapping[str, Tensor]) -> list[Group]:
    """Return the channels between the convolutions of a network, but for those of its features.

    Args:
        backbone: Network in eval mode, all of whose parameters have gradients.
        batch: Some samples.

    Raises:
        ModuleNotFoundError: If there are convolutions, and torch-pruning is not installed.
    """
    if sum(isinstance(module, _ConvNd) for module in backbone.modules()) < 2:
        return []
    if find_spec("torch_pruning") is None:
        raise ModuleNotFoundError(
            "Pruning of channels needs torch-pruning: pip install 'lit-foundry[prune]', or leave "
            "channels out of Pruning.parts."
        )
    import torch_pruning

    probed = _Probed(copy.deepcopy(backbone), batch)
    graph = torch_pruning.DependencyGraph()
    try:
        with torch.enable_grad():
            graph.build_dependency(probed, batch, lambda m, b: m(b), verbose=False)
        roots = list(graph.get_all_groups(root_module_types=(_ConvNd,)))
    except Exception:  # whatever it throws at a network that it cannot trace
        return []
    names = {module: name for name, module in probed.backbone.named_modules()}
    order = {name: number for number, name in enumerate(names.values())}
    found = [_group(graph, root, names, order) for root in roots]
    return [group for group in found if group and group.count > 1]


class _Probed(nn.Module):
    """A backbone whose features layers read, by which a group is known to hold them."""

    def __init__(self, backbone: Any, batch: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            features = backbone.encode(batch)
        self.probes = nn.ModuleList(
            nn.Linear(each.shape[-1], 1, device=each.device, dtype=each.dtype) for each in features
        )

    def forward(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        features = self.backbone.encode(batch)
        return [probe(each) for probe, each in zip(self.probes, features, strict=True)]


def _group(graph: Any, root: Any, names: Mapping[Any, str], order: dict[str, int]) -> Group | None:
    """Return a group as ours; None of the network's features, or of layers that cannot be cut."""
    parts: dict[tuple[str, str], Part] = {}
    for item in root:
        module, outputs = item.dep.target.module, graph.is_out_channel_pruning_fn(item.dep.handler)
        if not isinstance(module, nn.Module | nn.Parameter) or type(module).__module__.startswith(
            "torch_pruning"
        ):
            continue  # what has no weights
        name = names.get(module)
        size = _size(module, outputs)
        if name is None or size is None:
            return None
        units = torch.full((getattr(module, size),), -1)
        units[torch.tensor(item.idxs)] = torch.tensor(item.root_idxs)
        parts[name, size] = Part(name, size, units)
    ordered = sorted(parts.values(), key=lambda each: (order[each.module], each.size))
    computing = [each.module for each in ordered if each.size == "out_channels"]
    reads = any(each.reads for each in ordered)
    return Group(computing[0], "channels", tuple(ordered)) if computing and reads else None


def _size(module: Any, outputs: bool) -> str | None:
    kinds = ("groups", "out_channels", "out_features", "num_features")
    names = kinds if outputs else ("in_channels", "in_features", "groups", "num_features")
    if isinstance(module, nn.Parameter):
        return None
    return next((name for name in names if axes(module, name) is not None), None)
