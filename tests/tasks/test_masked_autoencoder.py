"""Masked autoencoders see what they see, and are those of transformers."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_foundry.nn import ImageEncoder
from lit_foundry.nn.image.patches import images_of, patches_of, sine_cosine, visible_tokens
from lit_foundry.randomness import Moment
from lit_foundry.tasks import MaskedAutoencoder
from lit_foundry.tasks.autoencoders.masked import PatchDecoder

VIT = {"model_type": "vit", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT |= {"intermediate_size": 32, "patch_size": 4, "image_size": 16}


def encoder(**options: Any) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(config=VIT | options, in_channels=3)


def task_of(**options: Any) -> Any:
    task = MaskedAutoencoder(encoder(), decoder=PatchDecoder(16, 2, 4), image_size=16, **options)
    return task.eval()


@pytest.fixture
def batch() -> Mapping[str, Any]:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=random)
    return {"pixel_values": images, "index": torch.arange(5)}


def test_patches_are_put_back_where_they_were() -> None:
    images = torch.randn(2, 3, 16, 16)
    patches = patches_of(images, 4)
    assert patches.shape == (2, 16, 48)
    torch.testing.assert_close(patches[1, 6], images[1, :, 4:8, 8:12].permute(1, 2, 0).flatten())
    assert torch.equal(images_of(patches, 3), images)


def test_hidden_patches_change_nothing_that_is_seen(batch: Mapping[str, Any]) -> None:
    task, images = task_of(), batch["pixel_values"].float()
    order = task.order(batch, "val")
    with torch.no_grad():
        said = task(images, order)
        patches = patches_of(images, 4)
        hidden = order[:, task.kept :, None].expand(-1, -1, 48)
        other = images_of(patches.scatter(1, hidden, 255 - patches.gather(1, hidden)), 3)
        torch.testing.assert_close(task(other, order), said)
        seen = order[:, : task.kept, None].expand(-1, -1, 48)
        other = images_of(patches.scatter(1, seen, 255 - patches.gather(1, seen)), 3)
        assert (task(other, order) - said).abs().max() > 1e-3


def test_encoder_runs_on_visible_patches_alone(batch: Mapping[str, Any]) -> None:
    task: Any = task_of(masked=0.75)
    rows: list[int] = []
    task.backbone.encoder.layers[0].register_forward_pre_hook(
        lambda module, args: rows.append(args[0].shape[1])
    )
    task.step(batch, "train")
    assert rows == [1 + 4]


def test_features_of_all_patches_are_those_of_the_backbone(batch: Mapping[str, Any]) -> None:
    backbone = encoder().eval()
    with torch.no_grad():
        want = backbone(batch["pixel_values"]).tokens
        found = visible_tokens(backbone, batch["pixel_values"], torch.arange(16).expand(5, -1))
    torch.testing.assert_close(found, want)


def reference(task: Any, normalized: bool) -> Any:
    """Return the model of transformers, with the weights of a task."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        **{k: v for k, v in VIT.items() if k != "model_type"},
        num_channels=3,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        mask_ratio=0.75,
        norm_pix_loss=normalized,
        layer_norm_eps=task.backbone.encoder.config.layer_norm_eps,
    )
    model = ViTMAEForPreTraining(config).eval()
    # Their own decoder lacks positions until weights are loaded: they are set to 0 at the end.
    assert not model.decoder.decoder_pos_embed.any()
    encoder = {f"vit.{k}": v for k, v in task.backbone.encoder.state_dict().items()}
    decoder = {f"decoder.{k}": v for k, v in task.decoder.state_dict().items()}
    model.load_state_dict(encoder | decoder)
    return model


@pytest.mark.parametrize("normalized", [True, False])
def test_weights_of_transformers_predict_and_lose_the_same(
    normalized: bool, batch: Mapping[str, Any]
) -> None:
    task = task_of(normalized=normalized)
    model = reference(task, normalized)
    order = task.order(batch, "val")
    noise = order.argsort(1).float() / 16  # sorted, it gives the order again
    with torch.no_grad():
        want = model(task.backbone.normalize(batch["pixel_values"]), noise=noise)
        torch.testing.assert_close(
            task(batch["pixel_values"], order), want.logits, atol=1e-5, rtol=0
        )
        step = task.step(batch, "val")
    torch.testing.assert_close(step.loss, want.loss, atol=1e-5, rtol=0)
    assert int(want.mask.sum(1)[0]) == 16 - task.kept == 12


def test_positions_begin_as_the_published_ones_do() -> None:
    task = task_of()
    mine = task.backbone.encoder.embeddings.position_embeddings[0]
    assert not mine[0].any()
    torch.testing.assert_close(mine[1:], sine_cosine(4, 24))
    # The decoder's are of transformers, which built them in this layout.
    torch.testing.assert_close(task.decoder.decoder_pos_embed[0, 1:], sine_cosine(4, 16))


def test_each_sample_and_epoch_hides_other_patches_and_evaluation_the_same(
    batch: Mapping[str, Any],
) -> None:
    task = task_of()
    task.moment = Moment(1, 0)
    first, val = task.order(batch, "train"), task.order(batch, "val")
    assert (first.sort(1).values == torch.arange(16)).all()
    assert len({tuple(row.tolist()) for row in first}) == 5
    few = {name: field[2:4] for name, field in batch.items()}
    assert torch.equal(task.order(few, "train"), first[2:4])
    task.moment = Moment(1, 1)
    assert not torch.equal(task.order(batch, "train"), first)
    assert torch.equal(task.order(batch, "val"), val)


def test_every_patch_is_hidden_as_often_as_the_others() -> None:
    task = task_of()
    many = {"index": torch.arange(4000)}
    hidden = task.order(many, "train")[:, task.kept :].flatten().bincount() / 4000
    torch.testing.assert_close(hidden, torch.full((16,), 0.75), atol=0.03, rtol=0)


def shown(task: Any, batch: Mapping[str, Any]) -> Mapping[str, Tensor]:
    with torch.no_grad():
        found: Mapping[str, Tensor] = task.rebuilt(batch)
    return found


@pytest.mark.parametrize("normalized", [True, False])
def test_pictures_are_pixels_whatever_is_predicted(
    normalized: bool, batch: Mapping[str, Any]
) -> None:
    task = task_of(normalized=normalized)
    images, order = batch["pixel_values"].float(), task.order(batch, "val")
    target = task.target(batch["pixel_values"])[0]
    task.forward = lambda images, order: target  # what predicts all of it rightly
    found = shown(task, batch)
    torch.testing.assert_close(found["rebuilt"], images, atol=0.05, rtol=0)
    same = (patches_of(found["seen"], 4) - patches_of(images, 4)).abs().amax(-1) < 0.05
    assert same.gather(1, order[:, : task.kept]).all()
    assert not same.gather(1, order[:, task.kept :]).any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: task_of(masked=1.0), "model.masked is a share of the patches"),
        (lambda: task_of(masked=0.97), "0.97 of 16 patches leaves 0 to see"),
        (lambda: encoder(patch_size=5), "16 is no multiple of the patches'"),
        (lambda: PatchDecoder(width=18), "model.decoder.width is a multiple of 4"),
        (lambda: PatchDecoder(heads=0), "model.decoder"),
    ],
)
def test_bad_input_is_told_in_a_line(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as told:
        make()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_networks_that_see_no_patches_are_refused(family: str) -> None:
    config = {"model_type": family, "hidden_sizes": [4, 8], "depths": [1, 1]}
    config |= {"embedding_size": 4} if family == "resnet" else {"num_stages": 2}
    backbone = ImageEncoder(config=config, in_channels=3)
    with pytest.raises(ValueError, match=r"hides patches from its encoder.*model_type such as vit"):
        MaskedAutoencoder(backbone, image_size=32)


def test_a_token_more_before_the_patches_is_refused() -> None:
    backbone = ImageEncoder(config=VIT | {"model_type": "deit"}, in_channels=3)
    with pytest.raises(ValueError, match="hides patches from its encoder"):
        MaskedAutoencoder(backbone, image_size=16)


def test_layers_are_compiled_where_nothing_calls_the_backbone_as_a_whole() -> None:
    task: Any = task_of(compile=True)
    assert len(task.compiled_parts) == 2 + 2
    assert {type(part).__name__ for part in task.compiled_parts} == {"ViTLayer", "ViTMAELayer"}
