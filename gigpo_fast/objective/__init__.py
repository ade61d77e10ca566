"""The blocks of a policy objective, one idea a file; compose them with `PolicyObjective`.

To add one: subclass the block's base as a frozen dataclass, write its formula in torch on (n,) tensors, and import it below.
"""


from .aggregation import Aggregation, SequenceMeanTokenMean, SequenceMeanTokenSum, SequenceMeanTokenSumNorm, TokenMean, TokenSum
from .averaged_ratio import AveragedRatio
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
from .entropy_clip import ClipB, ClipV
from .future_kl import FutureKL
from .gmpo import GMPO
from .levels import Level, SegmentMean, SequenceMax, SequenceMean, SequenceSum, TokenLevel
from .likelihood_weights import AdvantageWeight, UncertainTokens
from .nft import NFT
from .nll import AdvantageWeightedNLL, NegativeLogLikelihood
from .penalty import HingeKL, KLPenalty, Penalty
from .policy import PolicyObjective
from .proximal import proximal_log_probs
from .ratio import NoRatio, Ratio, RolloutRatio, SegmentRatio, SequenceProductRatio, SequenceRatio, TokenRatio
from .ratio_region import RatioRegion, RatioWeight
from .reward_labels import RewardLabels
from .rollout import Rejection, RolloutCorrection
from .sapo import SAPO
from .schedule import Constant, Linear, Piecewise, Scheduled, StepAnneal, WarmupCosine, with_value
from .selection import CovarianceBand, CovarianceStatistics, CovarianceTop, TopEntropy
from .surrogate import Clip, Clipped, Reinforce, Surrogate
from .token_clip import TokenClip
from .token_masks import MixedGroups, OldProbability, PositiveScores, RandomFraction
from .topr import TOPR
from .unclipped import NoSurrogate, Unclipped
from .vespo import VESPO
from .weighted import SurrogateSum, Weighted
from .weighting import Normalized, Product, TokenWeights, Weighting

__all__ = [
    "AbsoluteKL", "AdvantageWeight", "AdvantageWeightedNLL", "Aggregation", "AveragedRatio", "BinaryKL", "Block", "CISPO",
    "CISPOAbsolute", "Clip", "ClipB", "ClipV", "Clipped", "Constant", "CovarianceBand", "CovarianceStatistics", "CovarianceTop",
    "DPPOKL", "DPPOTV", "DRO", "Detached", "EntropyBonus", "EntropyTarget", "EntropyTerm", "Estimator", "FutureKL", "GMPO",
    "GroupContrast", "HingeKL", "K1", "K2", "K3", "KLPenalty", "Kimi15", "Level", "Linear", "MixedGroups", "NFT",
    "NegativeLogLikelihood", "NoRatio", "NoSurrogate", "Normalized", "OffPolicySequenceMask", "OldProbability", "Penalty", "Piecewise",
    "PolicyObjective", "PositiveScores", "ProbabilityDifference", "Product", "RandomFraction", "Ratio", "RatioGuard", "RatioRegion",
    "RatioWeight", "Reinforce", "Rejection", "Reversed", "RewardLabels", "RolloutCorrection", "RolloutRatio", "SAPO", "Scheduled",
    "Scope", "SecondMoment", "SegmentMean", "SegmentRatio", "SequenceMax", "SequenceMean", "SequenceMeanTokenMean",
    "SequenceMeanTokenSum", "SequenceMeanTokenSumNorm", "SequenceProductRatio", "SequenceRatio", "SequenceSum", "Sequences",
    "StepAnneal", "StraightThrough", "Surrogate", "SurrogateSum", "TOPR", "TokenBatch", "TokenClip", "TokenLevel", "TokenMean",
    "TokenRatio", "TokenSum", "TokenWeights", "TopEntropy", "TotalVariation", "UncertainTokens", "Unclipped", "VESPO", "WarmupCosine",
    "Weighted", "Weighting", "proximal_log_probs", "with_value",
]  # fmt: skip
