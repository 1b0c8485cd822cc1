"""Decoders of latents, with places and without."""

from typing import Any

import pytest
import torch

from lit_foundry.nn.decoders import ConvDecoder, Decoder, MLPDecoder


@pytest.mark.parametrize("decoder", [ConvDecoder(width=8, most=16), MLPDecoder((12,))])
@pytest.mark.parametrize(("edge", "size"), [(None, 8), (None, 28), (None, 5), (4, 32), (4, 4)])
def test_images_have_the_size_that_is_asked_for(
    decoder: Decoder, edge: int | None, size: int
) -> None:
    network = decoder.build(6, edge, 3, size)
    latents = torch.randn(2, 6) if edge is None else torch.randn(2, 6, edge, edge)
    images = network(latents)
    assert images.shape == (2, 3, size, size)
    assert (images[0] != images[1]).any()
    alone = network.eval()(latents[:1])
    torch.testing.assert_close(alone, images[:1], atol=1e-5, rtol=1e-4)  # no norm over a batch


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ConvDecoder().build(8, 3, 3, 32), "3 x 3 latents becomes no image of 32 pixels"),
        (lambda: ConvDecoder(width=12), "model.decoder.width is a multiple of 8"),
        (lambda: ConvDecoder(width=64, most=32), "model.decoder.most"),
        (lambda: MLPDecoder((0,)), "model.decoder.hidden are widths"),
    ],
)
def test_what_cannot_be_built_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
