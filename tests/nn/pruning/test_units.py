"""What is left of a network computes what it did with the removed units masked."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_foundry.nn import (
    Airbench,
    Backbone,
    ImageEncoder,
    ResNet9,
    TextDecoder,
    TextEncoder,
    TorchvisionEncoder,
)
from lit_foundry.nn.changes import narrow
from lit_foundry.nn.features import Features
from lit_foundry.nn.pruning.groups import Group, indices, mask, remove, shrunk
from lit_foundry.nn.pruning.trial import holds, tried
from lit_foundry.nn.pruning.units import groups

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 24}
KINDS = ("channels", "neurons", "heads")


def text(family: str, **config: Any) -> Callable[[], Backbone]:
    options = {"model_type": family, "max_position_embeddings": 64, "pad_token_id": 0}
    return lambda: TextEncoder(config=options | WIDE | config, vocab_size=50)


def image(family: str, **config: Any) -> Callable[[], Backbone]:
    options = {"model_type": family, "patch_size": 8}
    return lambda: ImageEncoder(config=options | WIDE | config, image_size=16)


def timm(name: str) -> Backbone:
    pytest.importorskip("timm")
    from lit_foundry.nn import TimmEncoder

    return TimmEncoder(name)


def distilbert() -> Backbone:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 24}
    return TextEncoder(config={"model_type": "distilbert", **sizes}, vocab_size=50)


def llama() -> Backbone:
    return TextDecoder(config={"model_type": "llama", **WIDE}, vocab_size=50)


TWO = {"heads": 2, "neurons": 2}
# By network, how many groups of each kind it has.
NETWORKS: dict[str, tuple[Callable[[], Backbone], dict[str, int]]] = {
    "bert": (text("bert"), TWO),
    "roberta": (text("roberta"), TWO),
    "electra": (text("electra", embedding_size=8), TWO),
    "modernbert": (text("modernbert"), TWO),
    "distilbert": (distilbert, TWO),
    "albert": (text("albert", embedding_size=8), {"heads": 1, "neurons": 1}),
    # Its heads have positions of their own, elsewhere.
    "mpnet": (text("mpnet"), {"neurons": 2}),
    "llama": (llama, TWO),
    "vit": (image("vit"), TWO),
    "deit": (image("deit"), TWO),
    "ResNet9": (lambda: ResNet9(width=4), {"channels": 5}),
    # The whitening layer does not learn.
    "Airbench": (lambda: Airbench((8, 12, 12), 3), {"channels": 5}),
    "resnet18": (lambda: TorchvisionEncoder("resnet18"), {"channels": 11}),
    "mobilenet_v3_small": (lambda: TorchvisionEncoder("mobilenet_v3_small"), {"channels": 25}),
    "squeezenet1_1": (lambda: TorchvisionEncoder("squeezenet1_1"), {"channels": 23}),
    "tf_efficientnet_lite0": (lambda: timm("tf_efficientnet_lite0"), {"channels": 23}),
    "test_vit": (lambda: timm("test_vit"), {"heads": 6, "neurons": 6}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_removal_is_masking(name: str) -> None:
    build, count = NETWORKS[name]
    if "channels" in count:
        pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    backbone = build()
    batch = backbone.example(2, getattr(backbone, "image_size", None) or 32)
    found = groups(backbone, batch, KINDS)
    kinds = [group.kind for group in found]
    assert {kind: kinds.count(kind) for kind in {*kinds}} == count
    assert [group.name for group in found] == [
        group.name for group in groups(backbone, batch, KINDS)
    ]
    network = tried(backbone).double()
    keep = [torch.rand(group.count) < 0.6 for group in found]
    for stays in keep:
        stays[0] = True
    masked = copy.deepcopy(network)
    mask(masked, found, keep)
    remove(network, indices(found, keep))
    with torch.no_grad():
        pairs = zip(network.encode(batch), masked.encode(batch), strict=True)
    for got, want in pairs:
        assert torch.allclose(got, want, atol=1e-4 * float(want.abs().max()))
    size = [sum(p.numel() for p in module.parameters()) for module in (network, masked)]
    assert size[0] < size[1]
    # Its recipe builds it anew.
    fresh = build().double().eval()
    for (module, size_name), index in indices(found, keep).items():
        narrow(fresh, module, **{size_name: len(index)})
    fresh.load_state_dict(network.state_dict())
    with torch.no_grad():
        again_got = fresh.encode(batch)
        assert all(map(torch.equal, again_got, network.encode(batch)))
    # What is found of the smaller network is what became of the groups.
    left = shrunk(found, keep)
    again = {group.name: group for group in groups(network.float(), batch, KINDS)}
    for group in left:
        if group.count > 1 and group.name in again:
            same_parts(group, again[group.name])


def same_parts(a: Group, b: Group) -> None:
    one, other = ({(p.module, p.size): p.units for p in group.parts} for group in (a, b))
    assert one.keys() == other.keys(), a.name
    for key, units in one.items():
        assert torch.equal(units, other[key]), (a.name, key)


class Odd(Backbone):
    """Looks like neurons between two layers, but reads them elsewhere too."""

    inputs = ("x",)
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head_dim = nn.Linear(4, 8), nn.Linear(8, 4), 4

    def blocks(self) -> list[nn.Module]:
        """Return both."""
        return [self.up, self.down]

    def forward(self, x: Tensor) -> Features:
        """Let half of the hidden width come back."""
        hidden = self.up(x).relu()
        tokens = self.down(hidden) + hidden[..., 4:]
        return Features(tokens, tokens[:, 0])


def test_what_is_read_elsewhere_or_frozen_or_shared_stays() -> None:
    batch: Mapping[str, Tensor] = {"x": torch.ones(2, 3, 4)}
    assert groups(Odd(), batch, KINDS) == []
    backbone = text("bert")()
    batch = backbone.example(2, 8)
    layers: Any = backbone.encoder.encoder.layer
    layers[0].requires_grad_(False)
    layers[1].intermediate.dense.weight = nn.Parameter(layers[1].intermediate.dense.weight)
    layers[1].extra = nn.Linear(24, 16)
    layers[1].extra.weight = layers[1].output.dense.weight
    assert [(g.name, g.kind) for g in groups(backbone, batch, KINDS)] == [
        ("encoder.encoder.layer.1.attention.self", "heads")
    ]
    assert groups(backbone, batch, ("neurons",)) == []


def test_the_width_of_heads_is_no_neurons() -> None:
    backbone = text("deberta-v2")()
    batch = backbone.example(2, 8)
    names = [group.name for group in groups(backbone, batch, ("neurons",))]
    assert names == [f"encoder.encoder.layer.{n}.intermediate.dense" for n in (0, 1)]


def test_a_wrong_group_does_not_hold() -> None:
    backbone = tried(text("bert")())
    batch = backbone.example(2, 8)
    right = groups(backbone, batch, ("neurons",))[0]
    parts = [copy.copy(part) for part in right.parts]
    parts[0] = type(parts[0])(parts[0].module, parts[0].size, parts[0].units.roll(1))
    assert holds(backbone, batch, [right])
    assert not holds(backbone, batch, [Group(right.name, right.kind, tuple(parts))])


def test_channels_need_torch_pruning_unless_they_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lit_foundry.nn.pruning.channels.find_spec", lambda _: None)
    backbone: Backbone = ResNet9(width=4)
    with pytest.raises(ModuleNotFoundError, match=r"lit-foundry\[prune\]"):
        groups(backbone, backbone.example(2, 16), KINDS)
    assert groups(backbone, backbone.example(2, 16), ("neurons",)) == []
    backbone = text("bert")()
    assert groups(backbone, backbone.example(2, 8), KINDS)
