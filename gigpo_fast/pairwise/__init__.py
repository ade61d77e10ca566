"""Preference losses: one linear form, link(sum of coefficients times sequence log-probs), from log-probs or from hidden states.

    S = sequence_log_probs(log_probs, mask).log_probs              # (S,), the reference's and the previous policy's likewise
    h = beta * (score(S[chosen]) - rejected * score(S[rejected])) - margin     # score(S) = S - reference * S_ref - previous * S_previous
    loss = (weights * link(h)).sum() / denominator

A method is a `PairwiseObjective`: DPO, IPO, SimPO, CPL, INPO and the others differ in the link and in a few coefficients.
"""

from ..arrays import take_arrays
from .links import Hinge, LabelKL, Linear, Link, Logistic, LogisticSigmoidMix, PairClip, Robust, Sigmoid, SoftLabel, Square
from .loss import linear_pairwise_loss, pairwise_loss, response_loss
from .metrics import PairwiseOutput
from .objective import NegativeLogLikelihood, PairwiseObjective
from .pairs import all_pairs, halves
from .score import (
    AlphaDivergence,
    ChiSquare,
    ForwardKL,
    JensenShannon,
    LogOdds,
    ReverseChiSquare,
    ReverseKL,
    Score,
    TotalVariation,
    Transform,
    pseudo_rewards,
)
from .sequences import SequenceLogProbs, linear_sequence_log_probs, sequence_log_probs
from .sorted import sorted_scores

__all__ = [
    "AlphaDivergence",
    "ChiSquare",
    "ForwardKL",
    "Hinge",
    "JensenShannon",
    "LabelKL",
    "Linear",
    "Link",
    "LogOdds",
    "Logistic",
    "LogisticSigmoidMix",
    "NegativeLogLikelihood",
    "PairClip",
    "PairwiseObjective",
    "PairwiseOutput",
    "ReverseChiSquare",
    "ReverseKL",
    "Robust",
    "Score",
    "SequenceLogProbs",
    "Sigmoid",
    "SoftLabel",
    "Square",
    "TotalVariation",
    "Transform",
    "all_pairs",
    "halves",
    "linear_pairwise_loss",
    "linear_sequence_log_probs",
    "pairwise_loss",
    "pseudo_rewards",
    "response_loss",
    "sequence_log_probs",
    "sorted_scores",
]

take_arrays(globals())
