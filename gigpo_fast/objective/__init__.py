"""The blocks of a policy objective, one idea a file; compose them with `PolicyObjective`.

To add one: subclass the block's base as a frozen dataclass, write its formula in torch on (n,) tensors, and import it below.
"""
# ruff: noqa: F401 - what is imported here is what the package offers

from .aggregation import Aggregation, SequenceMeanTokenMean, SequenceMeanTokenSum, SequenceMeanTokenSumNorm, TokenMean, TokenSum
from .batch import Sequences, TokenBatch
from .batch_masks import OffPolicySequenceMask, RatioGuard, SecondMoment
from .block import Block, Scope
from .cispo import CISPO, CISPOAbsolute
from .contrast import GroupContrast
from .divergence import (
    K1,
    K2,
    K3,
    AbsoluteKL,
    BinaryKL,
    Detached,
    Estimator,
    ProbabilityDifference,
    Reversed,
    StraightThrough,
    TotalVariation,
)
from .dppo import DPPOKL, DPPOTV
from .dro import DRO, Kimi15
from .entropy import EntropyBonus, EntropyTarget, EntropyTerm
from .gmpo import GMPO
from .levels import Level, SegmentMean, SequenceMax, SequenceMean, SequenceSum, TokenLevel
from .nft import NFT
from .nll import AdvantageWeightedNLL, NegativeLogLikelihood
from .penalty import HingeKL, KLPenalty, Penalty
from .policy import PolicyObjective
from .ratio import NoRatio, Ratio, RolloutRatio, SegmentRatio, SequenceProductRatio, SequenceRatio, TokenRatio
from .rollout import Rejection, RolloutCorrection
from .sapo import SAPO
from .schedule import Constant, Linear, Piecewise, Scheduled, StepAnneal, with_value
from .selection import CovarianceBand, CovarianceStatistics, CovarianceTop, TopEntropy
from .surrogate import Clip, Clipped, Reinforce, Surrogate
from .token_clip import TokenClip
from .token_masks import MixedGroups, OldProbability, PositiveScores, RandomFraction
from .topr import TOPR
from .unclipped import NoSurrogate, Unclipped
from .vespo import VESPO
from .weighted import SurrogateSum, Weighted
from .weighting import Normalized, Product, TokenWeights, Weighting

__all__ = sorted(name for name in dir() if name[0].isupper() or name == "with_value")
