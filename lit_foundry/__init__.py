"""Modular PyTorch Lightning paradigms for the whole life of a foundation model."""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Airbench": "lit_foundry.nn",
    "Autoencoder": "lit_foundry.tasks",
    "Augment": "lit_foundry.nn.image.augment",
    "Backbone": "lit_foundry.nn",
    "BatchWarmup": "lit_foundry.data",
    "Bernoulli": "lit_foundry.nn.likelihoods",
    "CIFAR10": "lit_foundry.data",
    "CIFAR100": "lit_foundry.data",
    "CausalLM": "lit_foundry.tasks",
    "Classification": "lit_foundry.tasks",
    "Contrastive": "lit_foundry.tasks",
    "ConvDecoder": "lit_foundry.nn.decoders",
    "Corpus": "lit_foundry.data",
    "DataModule": "lit_foundry.data",
    "Digits": "lit_foundry.data",
    "DenoisingText": "lit_foundry.tasks",
    "Distillation": "lit_foundry.tasks",
    "DiscretizedLogistic": "lit_foundry.nn.likelihoods",
    "Docstrings": "lit_foundry.data",
    "FiniteScalar": "lit_foundry.nn.codebooks",
    "Finetune": "lit_foundry.tasks",
    "Gaussian": "lit_foundry.nn.likelihoods",
    "IMDb": "lit_foundry.data",
    "ImageData": "lit_foundry.data",
    "ImageFiles": "lit_foundry.data",
    "ImageFolder": "lit_foundry.data",
    "ImageBackbone": "lit_foundry.nn",
    "ImageEncoder": "lit_foundry.nn",
    "Lora": "lit_foundry.tasks",
    "MLP": "lit_foundry.nn",
    "MLPDecoder": "lit_foundry.nn.decoders",
    "MaskedAutoencoder": "lit_foundry.tasks",
    "MaskedLM": "lit_foundry.tasks",
    "Masking": "lit_foundry.nn.text.masking",
    "Mixing": "lit_foundry.nn.image.mixing",
    "MultiLabelClassification": "lit_foundry.tasks",
    "OptimConfig": "lit_foundry.training.optim",
    "Predictor": "lit_foundry.export.inference",
    "QuantizedAutoencoder": "lit_foundry.tasks",
    "Regression": "lit_foundry.tasks",
    "ResNet9": "lit_foundry.nn",
    "RunFolder": "lit_foundry.runs.folder",
    "Task": "lit_foundry.tasks",
    "TextDecoder": "lit_foundry.nn",
    "TextEncoder": "lit_foundry.nn",
    "TextFiles": "lit_foundry.data",
    "TimmEncoder": "lit_foundry.nn",
    "TokenClassification": "lit_foundry.tasks",
    "TorchvisionEncoder": "lit_foundry.nn",
    "TrainTokenizer": "lit_foundry.data",
    "VariationalAutoencoder": "lit_foundry.tasks",
    "VectorQuantizer": "lit_foundry.nn.codebooks",
    "WandbTracker": "lit_foundry.runs.tracking",
    "load": "lit_foundry.export.inference",
    "load_data": "lit_foundry.checkpoints.files",
    "load_task": "lit_foundry.checkpoints.files",
    "main": "lit_foundry.cli.main",
    "run_callbacks": "lit_foundry.callbacks",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that ``import lit_foundry`` costs nothing."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
