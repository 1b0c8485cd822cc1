"""Compiled backbones are compiled anew as often as a run needs it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from lit_foundry.nn import Backbone, ImageEncoder, ResNet9, TorchvisionEncoder
from lit_foundry.nn.features import Features
from lit_foundry.tasks import Finetune
from lit_foundry.training.compiling import compile_in_place


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """Begin with torch's limit, and leave that of others as it was."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield
    torch._dynamo.reset()


class Deep(Backbone):
    """Twelve blocks that have something to do in training."""

    inputs = ("x",)
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)) for _ in range(12)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Features:
        """Compute features of (B, 4) numbers."""
        for layer in self.layers:
            x = layer(x)
        return Features(x[:, None], x)

    def blocks(self) -> list[nn.Module]:
        """Return the layers."""
        return list(self.layers)


@pytest.mark.parametrize("backbone", [ResNet9(4), TorchvisionEncoder("resnet18")])
def test_every_block_that_joins_may_have_a_graph(backbone: Backbone) -> None:
    compile_in_place(backbone, torch.device("meta"))
    assert torch._dynamo.config.recompile_limit >= 2 * (len(backbone.blocks()) + 1)


def test_gradual_unfreezing_is_compiled_to_the_last_block() -> None:
    backbone, counter, finetune = Deep(), CompileCounter(), Finetune(unfreeze=0.05)
    compile_in_place(backbone, torch.device("meta"))
    backbone.compile(backend=counter)  # in place of code for a device
    for frozen in range(12, -1, -1):
        for depth, block in enumerate(backbone.blocks()):
            block.requires_grad_(depth >= frozen)
        backbone.train()
        finetune.settle(backbone, frozen)
        backbone(torch.ones(2, 4))
        assert counter.frame_count == 13 - frozen


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, on itself
def test_compiled_gradients_of_sharp_attention_are_those_of_float32() -> None:
    config = {"model_type": "vit", "hidden_size": 192, "num_attention_heads": 3, "patch_size": 4}
    config |= {"num_hidden_layers": 3, "intermediate_size": 384}
    torch.manual_seed(0)
    backbone: Any = ImageEncoder(config=config, image_size=32).cuda()
    for weight in backbone.parameters():
        weight.data.mul_(3 if weight.ndim == 2 else 1)
    images = backbone.example(64, 32)["pixel_values"].cuda()

    def gradient(half: bool) -> Tensor:
        backbone.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss = backbone(images).pooled.float().logsumexp(-1).mean()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in backbone.parameters()])

    exact, eager = gradient(half=False), gradient(half=True)
    compile_in_place(backbone, torch.device("cuda"))
    for found in (eager, gradient(half=True)):
        assert (found - exact).norm() < 0.1 * exact.norm()
