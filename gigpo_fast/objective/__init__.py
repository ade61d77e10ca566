"""The blocks of a policy objective, one idea a file; compose them with `PolicyObjective`.

To add one: subclass the block's base as a frozen dataclass and write its formula in torch on (n,) tensors.
"""

from .aggregation import Aggregation, SequenceMeanTokenMean, SequenceMeanTokenSum, SequenceMeanTokenSumNorm, TokenMean, TokenSum
from .batch import Sequences, TokenBatch
from .block import Block, Scope
from .divergence import K1, K2, K3, AbsoluteKL, Estimator, KLPenalty, StraightThrough
from .entropy import EntropyBonus
from .policy import PolicyObjective
from .ratio import NoRatio, Ratio, SequenceRatio, TokenRatio
from .surrogate import Clip, Clipped, Reinforce, Surrogate
from .weighting import TokenWeights, Weighting

__all__ = [
    "AbsoluteKL",
    "Aggregation",
    "Block",
    "Clip",
    "Clipped",
    "EntropyBonus",
    "Estimator",
    "K1",
    "K2",
    "K3",
    "KLPenalty",
    "NoRatio",
    "PolicyObjective",
    "Ratio",
    "Reinforce",
    "Scope",
    "SequenceMeanTokenMean",
    "SequenceMeanTokenSum",
    "SequenceMeanTokenSumNorm",
    "SequenceRatio",
    "Sequences",
    "StraightThrough",
    "Surrogate",
    "TokenBatch",
    "TokenMean",
    "TokenRatio",
    "TokenSum",
    "TokenWeights",
    "Weighting",
]
