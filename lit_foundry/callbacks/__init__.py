"""Callbacks: what a run does around its training."""

from lit_foundry.callbacks.averaging import EMA, Averaging
from lit_foundry.callbacks.best import Best
from lit_foundry.callbacks.compatibility import Compatibility
from lit_foundry.callbacks.early_stop import EarlyStop
from lit_foundry.callbacks.evaluation_record import EvaluationRecord
from lit_foundry.callbacks.low_rank import LowRank
from lit_foundry.callbacks.predictions import PredictionWriter
from lit_foundry.callbacks.probing.knn import KNN
from lit_foundry.callbacks.progress_bar import ProgressBar
from lit_foundry.callbacks.pruning import Pruning
from lit_foundry.callbacks.quantization_aware import QuantizationAware
from lit_foundry.callbacks.recovery import Recovery
from lit_foundry.callbacks.run_record import RunRecord
from lit_foundry.callbacks.samples import Samples
from lit_foundry.callbacks.score_record import ScoreRecord
from lit_foundry.callbacks.standard import run_callbacks
from lit_foundry.callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "KNN",
    "Averaging",
    "Best",
    "Compatibility",
    "EarlyStop",
    "EvaluationRecord",
    "LowRank",
    "PredictionWriter",
    "ProgressBar",
    "Pruning",
    "QuantizationAware",
    "Recovery",
    "RunRecord",
    "Samples",
    "ScoreRecord",
    "Throughput",
    "run_callbacks",
]
