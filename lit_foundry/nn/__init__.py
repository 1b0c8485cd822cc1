"""Networks in plain torch: backbones, heads and the contract between them."""

import logging

from lit_foundry.nn.backbone import Backbone, restoring
from lit_foundry.nn.features import Features
from lit_foundry.nn.heads import DenseHead, LinearHead
from lit_foundry.nn.image.backbone import ImageBackbone
from lit_foundry.nn.image.networks.airbench import Airbench
from lit_foundry.nn.image.networks.encoder import ImageEncoder
from lit_foundry.nn.image.networks.mlp import MLP
from lit_foundry.nn.image.networks.resnet9 import ResNet9
from lit_foundry.nn.image.networks.timm_encoder import TimmEncoder
from lit_foundry.nn.image.networks.torchvision_encoder import TorchvisionEncoder
from lit_foundry.nn.network import Network
from lit_foundry.nn.text.decoder import TextDecoder
from lit_foundry.nn.text.encoder import TextEncoder
from lit_foundry.nn.text.language_head import LanguageHead

# transformers imports torchao where it is installed, which has torch log at each start what it will
# no longer take one day: nothing to us.
logging.getLogger("torch.utils._pytree").addFilter(
    lambda record: "register_constant() on Enum" not in record.getMessage()
)

__all__ = [
    "MLP",
    "Airbench",
    "Backbone",
    "DenseHead",
    "Features",
    "ImageBackbone",
    "ImageEncoder",
    "LanguageHead",
    "LinearHead",
    "Network",
    "ResNet9",
    "TextDecoder",
    "TextEncoder",
    "TimmEncoder",
    "TorchvisionEncoder",
    "restoring",
]
