"""Networks in plain torch: backbones, heads and the contract between them."""

from lit_foundry.nn.airbench import Airbench
from lit_foundry.nn.backbone import Backbone, restoring
from lit_foundry.nn.features import Features
from lit_foundry.nn.heads import DenseHead, LinearHead
from lit_foundry.nn.image import ImageBackbone
from lit_foundry.nn.image_encoder import ImageEncoder
from lit_foundry.nn.language_head import LanguageHead
from lit_foundry.nn.resnet9 import ResNet9
from lit_foundry.nn.text import TextEncoder
from lit_foundry.nn.text_decoder import TextDecoder
from lit_foundry.nn.timm_encoder import TimmEncoder
from lit_foundry.nn.torchvision_encoder import TorchvisionEncoder

__all__ = [
    "Airbench",
    "Backbone",
    "DenseHead",
    "Features",
    "ImageBackbone",
    "ImageEncoder",
    "LanguageHead",
    "LinearHead",
    "ResNet9",
    "TextDecoder",
    "TextEncoder",
    "TimmEncoder",
    "TorchvisionEncoder",
    "restoring",
]
