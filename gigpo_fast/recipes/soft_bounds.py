"""Bounds on the weight instead of the loss: no token loses its gradient at a hard edge."""

import math

from ..objective import CISPO, SAPO, VESPO, CISPOAbsolute, PolicyObjective, SequenceMeanTokenMean, SequenceProductRatio, TokenRatio
from .base import Parts, register
from .common import group_relative


@register("MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention (arXiv 2506.13585)")
def cispo(*, low: float | None = None, high: float = 0.28, unified_mask: bool = False) -> Parts:
    """CISPO: -sg(clip(rho, 1 - low, 1 + high)) A log_prob, a token mean.

    The paper sets no lower bound and does not print its upper one; 0.28 is DAPO's, as verl, slime and ROLL have it relative to 1. For TRL's
    absolute bound see cispo_absolute. `unified_mask` also zeroes what PPO would clip, the paper's unified form.
    """
    return Parts(PolicyObjective(TokenRatio(), CISPO(low, high, unified_mask)), group_relative())


@register("The Art of Scaling Reinforcement Learning Compute for LLMs (arXiv 2510.13786)")
def cispo_absolute(*, maximum: float = 5.0) -> Parts:
    """CISPO with an absolute bound: -sg(min(rho, maximum)) A log_prob, as TRL and ScaleRL have it. 5 is what TRL recommends."""
    return Parts(PolicyObjective(TokenRatio(None), CISPOAbsolute(maximum)), group_relative())


@register("Soft Adaptive Policy Optimization (arXiv 2511.20347)")
def sapo(*, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Parts:
    """SAPO: -(4 / tau) sigmoid(tau (rho - 1)) A, tau by the sign of A, averaged over tokens, then responses.

    1.0 and 1.05: the paper's setting, and the default of TRL and verl.
    """
    return Parts(PolicyObjective(TokenRatio(), SAPO(tau_positive, tau_negative), aggregation=SequenceMeanTokenMean()), group_relative())


@register("VESPO: Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training (arXiv 2602.10693)")
def vespo(*, k_positive: float = 2.0, lambda_positive: float = 3.0, k_negative: float = 3.0, lambda_negative: float = 2.0) -> Parts:
    """VESPO: -sg(exp(lambda + k log w - lambda w)) A log_prob, w the ratio of the whole response.

    Exponents 2, 3 for good and 3, 2 for bad actions: TRL's defaults. log w is kept in [log 1e-8, 20], each token's share in [-20, 20].
    """
    ratio = SequenceProductRatio((math.log(1e-8), 20.0), token_clip=20.0)
    return Parts(PolicyObjective(ratio, VESPO(k_positive, lambda_positive, k_negative, lambda_negative)), group_relative())
