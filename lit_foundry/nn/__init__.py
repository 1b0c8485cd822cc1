"""Networks in plain torch: backbones, heads and the contract between them."""

from lit_foundry.nn.backbone import Backbone, Features, restoring
from lit_foundry.nn.heads import DenseHead, LinearHead
from lit_foundry.nn.text import TextEncoder

__all__ = ["Backbone", "DenseHead", "Features", "LinearHead", "TextEncoder", "restoring"]
