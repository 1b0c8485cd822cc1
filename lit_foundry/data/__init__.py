"""Data modules: files in, dictionaries of tensors out."""

from lit_foundry.data.base import DataModule
from lit_foundry.data.batch import ImageBatch, TextBatch
from lit_foundry.data.corpus import Corpus
from lit_foundry.data.docstrings import Docstrings
from lit_foundry.data.imdb import IMDb
from lit_foundry.data.readers import DataError, DatasetNotFoundError
from lit_foundry.data.row_batches import BatchWarmup
from lit_foundry.data.text import TextData
from lit_foundry.data.text_files import TextFiles
from lit_foundry.data.tokenizer_training import TrainTokenizer

__all__ = [
    "BatchWarmup",
    "Corpus",
    "DataError",
    "DataModule",
    "DatasetNotFoundError",
    "Docstrings",
    "IMDb",
    "ImageBatch",
    "TextBatch",
    "TextData",
    "TextFiles",
    "TrainTokenizer",
]
