"""Data modules: files in, dictionaries of tensors out."""

from lit_foundry.data.base import DataModule
from lit_foundry.data.batch import ImageBatch, TextBatch
from lit_foundry.data.cifar10 import CIFAR10
from lit_foundry.data.cifar100 import CIFAR100
from lit_foundry.data.corpus import Corpus
from lit_foundry.data.digits import Digits
from lit_foundry.data.docstrings import Docstrings
from lit_foundry.data.image_data import ImageData
from lit_foundry.data.image_files import ImageFiles
from lit_foundry.data.image_folder import ImageFolder
from lit_foundry.data.imdb import IMDb
from lit_foundry.data.readers import DataError, DatasetNotFoundError
from lit_foundry.data.row_batches import BatchWarmup
from lit_foundry.data.text import TextData
from lit_foundry.data.text_files import TextFiles
from lit_foundry.data.tokenizer_training import TrainTokenizer

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "BatchWarmup",
    "Corpus",
    "DataError",
    "DataModule",
    "DatasetNotFoundError",
    "Digits",
    "Docstrings",
    "IMDb",
    "ImageBatch",
    "ImageData",
    "ImageFiles",
    "ImageFolder",
    "TextBatch",
    "TextData",
    "TextFiles",
    "TrainTokenizer",
]
