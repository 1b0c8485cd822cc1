"""Data modules: files in, dictionaries of tensors out."""

from lit_foundry.data.base import DataModule
from lit_foundry.data.batch import ImageBatch, TextBatch
from lit_foundry.data.corpus.corpus import Corpus
from lit_foundry.data.corpus.row_batches import BatchWarmup
from lit_foundry.data.files.text_tables import DataError, DatasetNotFoundError
from lit_foundry.data.image.labelled import ImageData
from lit_foundry.data.sets.cifar10 import CIFAR10
from lit_foundry.data.sets.cifar100 import CIFAR100
from lit_foundry.data.sets.digits import Digits
from lit_foundry.data.sets.docstrings import Docstrings
from lit_foundry.data.sets.image_files import ImageFiles
from lit_foundry.data.sets.image_folder import ImageFolder
from lit_foundry.data.sets.imdb import IMDb
from lit_foundry.data.sets.text_files import TextFiles
from lit_foundry.data.text.labelled import TextData
from lit_foundry.data.text.tokenizer_training import TrainTokenizer

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
