"""An image encoder and its head as the model that ``transformers`` has for the same family."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from lit_foundry.nn.heads import LinearHead, folded
from lit_foundry.nn.image.backbone import ImageBackbone
from lit_foundry.nn.image.networks.encoder import ImageEncoder
from lit_foundry.nn.transformers_config import described

OTHERWISE = "Export with --format safetensors, onnx or torch."


def image_classifier(
    backbone: nn.Module,
    head: nn.Module,
    labels: Sequence[str],
    problem: str = "single_label_classification",
) -> Any:
    """Build the ``AutoModelForImageClassification`` that computes the same logits.

    Args:
        backbone: Encoder, whose weights are copied.
        head: A linear layer on it.
        labels: Names of the outputs, in their order.
        problem: What ``transformers`` calls their kind.

    Raises:
        ValueError: If ``transformers`` has no such model.
    """
    from transformers import AutoModelForImageClassification
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as FAMILIES,
    )

    if not isinstance(backbone, ImageEncoder):
        raise ValueError(
            f"transformers has no image classifier on a {type(backbone).__name__}. {OTHERWISE}"
        )
    config, head = copy.deepcopy(backbone.encoder.config), folded(head)
    family = config.model_type
    if backbone.pooling != "default" or not isinstance(head, LinearHead) or family not in FAMILIES:
        raise ValueError(
            f"transformers has no image classifier of model_type {family!r} with "
            f"model.backbone.pooling {backbone.pooling!r} and this head. {OTHERWISE}"
        )
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: i for i, name in enumerate(labels)}
    config.problem_type = problem
    config.architectures = []  # of several classifiers, take the first
    model = described(AutoModelForImageClassification, config, backbone.encoder)
    prefix, state = model.base_model_prefix, model.state_dict()
    known = {f"{prefix}.{key}": v for key, v in backbone.encoder.state_dict().items()}
    rest = [key for key in state if key not in known and not key.endswith("mask_token")]
    known |= {key: getattr(head.out, key.rpartition(".")[2], None) for key in rest}
    if any(known[key] is None or known[key].shape != state[key].shape for key in rest):
        raise ValueError(
            f"The image classifier of model_type {family!r} in transformers has another head than "
            f"a linear layer. {OTHERWISE}"
        )
    model.load_state_dict(state | known)
    return model.eval()


def image_processor(backbone: ImageBackbone, size: int, fit: str, crop: int) -> Any:
    """Build the processor of ``transformers`` that makes of an image what the network was fed.

    Args:
        backbone: Says how pixels are normalized.
        size: Edge that images are fitted to.
        fit: ``crop`` makes their shorter edge this long, anything else squashes them.
        crop: Edge of what is then cut out of the centre.

    Raises:
        ValueError: If it cannot cut where two cuts in a row do.
    """
    from PIL import Image
    from transformers import CLIPImageProcessor, ViTImageProcessor

    if fit == "crop" and (size - crop) % 2:
        raise ValueError(
            f"data.size {size} and model.augment.size {crop} differ by an odd number of pixels, so "
            f"that the one cut of transformers would lie beside the two of predict. {OTHERWISE}"
        )
    edges, cut = ({"height": edge, "width": edge} for edge in (size, crop))
    channels = backbone.in_channels
    options: dict[str, Any] = {
        "image_mean": backbone.mean.flatten().expand(channels).tolist(),
        "image_std": backbone.std.flatten().expand(channels).tolist(),
        "rescale_factor": 1 / 255,
        "resample": int(Image.Resampling.BICUBIC),
        # The pipeline has done so, and this would paint white what one shade marks as transparent.
        "do_convert_rgb": False,
    }
    if fit == "crop":
        return CLIPImageProcessor(size={"shortest_edge": size}, crop_size=cut, **options)
    if crop != size:
        return CLIPImageProcessor(size=edges, crop_size=cut, **options)
    return ViTImageProcessor(size=edges, **options)
