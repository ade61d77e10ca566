"""Losses that are weighted likelihoods."""

import math

from ..objective import (
    NFT,
    AdvantageWeightedNLL,
    NegativeLogLikelihood,
    NoRatio,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceProductRatio,
    TokenRatio,
    TokenSum,
    TokenWeights,
    Weighted,
)
from .base import Parts, register
from .common import advantages

_NFT = "Bridging Supervised Learning and Reinforcement Learning in Math Reasoning (arXiv 2505.18116)"
_STUDY = "Preference Fine-Tuning of LLMs Should Leverage Suboptimal, On-Policy Data (arXiv 2404.14367)"


@register(_NFT)
def nft(*, negative_weight: float = 1.0, floor_positive: float = 0.0, floor_negative: float = 1.0, normalize: int = 1) -> Parts:
    """NFT: likelihood of right answers, and of wrong ones under the policy that would give only them.

        right: -log max(rho, floor_positive);  wrong: -negative_weight log max((1 - p rho) / (1 - p), floor_negative);  times 1 - p
        (normalize 1)

    p is the group's share of right answers, advantage.group_moments(correct, group).mean. The floors leave gradients alone. A token sum,
    which the authors' code divides by 1000: pass denominator=1000. Weight 1, floors 0 and 1, normalize 1: their 7B script (its yaml falls
    back to DAPO).
    """
    surrogate = NFT(negative_weight, floor_positive, floor_negative, normalize)
    return Parts(PolicyObjective(TokenRatio((-math.inf, 10.0)), surrogate, aggregation=TokenSum()), advantages("group_moments"))


@register(_NFT)
def nft_sequence(*, negative_weight: float = 1.0, floor_positive: float = 0.0, floor_negative: float = 1.0, normalize: int = 0) -> Parts:
    """NFT with the ratio of whole responses. The authors' code runs it with normalize 0 alone, which is the default here; 1 and 2 work
    here.
    """
    ratio = SequenceProductRatio((-math.inf, 10.0))
    surrogate = NFT(negative_weight, floor_positive, floor_negative, normalize)
    return Parts(PolicyObjective(ratio, surrogate, aggregation=SequenceMeanTokenMean()), advantages("group_moments"))


@register("Advantage-Weighted Regression: Simple and Scalable Off-Policy Reinforcement Learning (arXiv 1910.00177)")
def awr(*, temperature: float = 1.0, maximum: float | None = None) -> Parts:
    """AWR and RWR: -exp(A / temperature) log_prob. The study of arXiv 2404.14367 passes rewards as A, with temperature beta."""
    return Parts(PolicyObjective(NoRatio(), AdvantageWeightedNLL(temperature, maximum)))


@register(_STUDY)
def best_of_n() -> Parts:
    """Likelihood of the best of N, minus a share of the others': pass A = 1 for the best and -beta / (N - 1), or -beta, or 0, for the
    others.

    Mean over the groups' summed log-probs: pass denominator=number of groups. beta 0.1 and the average over the others are the study's
    negative gradient.
    """
    return Parts(PolicyObjective(NoRatio(), Reinforce(), aggregation=SequenceMeanTokenSum()))


@register(_STUDY)
def pref_ft() -> Parts:
    """Pref-FT: likelihood of the preferred responses alone, a token mean; also PPO-max's pretraining term and any SFT loss."""
    return Parts(PolicyObjective(NoRatio(), NegativeLogLikelihood()))


@register("Two-Stage Constrained Actor-Critic for Short Video Recommendation (arXiv 2302.01680)")
def tscac() -> Parts:
    """TSCAC: weighted likelihood, the weights pulling towards several anchor policies at once.

        weights = exp(A / L + sum_i (l_i / L) log pi_i - log pi_behaviour), L = sum_i l_i;  loss = -weights log_prob, a token mean

    Reads extras weights, without gradient. The display is re-derived from notes of the paper; the released code has one anchor, no
    behaviour policy in the weight, and a softmax over the batch: pass such weights for it.
    """
    return Parts(PolicyObjective(NoRatio(), Weighted(NegativeLogLikelihood(), TokenWeights())))
