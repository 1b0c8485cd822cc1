"""What a student learns from a teacher: a file for each family of losses."""

from lit_foundry.nn.distillation.attentions import AttentionRelations, Attentions
from lit_foundry.nn.distillation.feature_maps import AttentionTransfer, FitNets
from lit_foundry.nn.distillation.hidden_states import RKD, HiddenStates
from lit_foundry.nn.distillation.logits import DIST, DKD, KD, LogitMSE
from lit_foundry.nn.distillation.loss import DistillationLoss
from lit_foundry.nn.distillation.outputs import Attention, Outputs, Seen, watched

__all__ = [
    "DIST",
    "DKD",
    "KD",
    "RKD",
    "Attention",
    "AttentionRelations",
    "AttentionTransfer",
    "Attentions",
    "DistillationLoss",
    "FitNets",
    "HiddenStates",
    "LogitMSE",
    "Outputs",
    "Seen",
    "watched",
]
