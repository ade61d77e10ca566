"""Which tokens carry the exploration: by entropy, and by the covariance of log-prob and advantage."""

from ..objective import (
    AbsoluteKL,
    Clip,
    CovarianceBand,
    CovarianceTop,
    KLPenalty,
    Normalized,
    PolicyObjective,
    TokenRatio,
    TopEntropy,
    Unclipped,
    Weighted,
)
from .base import Parts, register
from .common import group_relative, rewards

_RULE = "Beyond the 80/20 Rule: High-Entropy Minority Tokens Drive Effective Reinforcement Learning for LLM Reasoning (arXiv 2506.01939)"
_MECHANISM = "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models (arXiv 2505.22617)"


@register(_RULE)
def high_entropy_tokens(*, fraction: float = 0.2, clip_low: float = 0.2, clip_high: float = 0.28) -> Parts:
    """80/20: DAPO's loss on the fifth of the tokens with the highest entropy, divided by the number of tokens kept (equation 6).

    fraction 0.2 and clip 0.2 / 0.28: section 5.2. Exactly ceil(fraction N) tokens of a call are kept, as in the authors' code; the
    threshold of a whole batch can be given to TopEntropy. TRL keeps another number and divides by all tokens: high_entropy_tokens_trl.
    """
    kept = Normalized(TopEntropy(fraction, exact_count=True))
    return Parts(
        PolicyObjective(TokenRatio(), Weighted(Clip(clip_low, clip_high), kept)),
        group_relative(),
        rewards("soft_overlong", max_length=20480, buffer=4096),
    )


@register(_RULE)
def high_entropy_tokens_trl(*, fraction: float = 0.2, clip_low: float = 0.2, clip_high: float = 0.28) -> Parts:
    """80/20 as TRL's top_entropy_quantile has it: tokens at or above the interpolated quantile, divided by the number of all trained
    tokens.
    """
    return Parts(PolicyObjective(TokenRatio(), Weighted(Clip(clip_low, clip_high), TopEntropy(fraction))), group_relative())


@register(_MECHANISM)
def clip_cov(
    *, fraction: float = 2e-4, low: float = 1.0, high: float = 5.0, clip_low: float = 1.0, clip_high: float = 1.0, seed: int = 0
) -> Parts:
    """Clip-Cov: of the tokens whose covariance lies strictly between low and high, a random few lose their gradient.

    fraction 2e-4, band 1 to 5, and both clips 1: the authors' scripts. A token that the clip has already caught is no candidate. Statistics
    are the call's unless given to CovarianceBand; the draw is seeded and reads extras token_keys, so that it is the same under any split.
    """
    chosen = CovarianceBand(fraction, low, high, clip_low, clip_high, seed)
    return Parts(PolicyObjective(TokenRatio(), Weighted(Clip(clip_low, clip_high), chosen)), group_relative())


@register(_MECHANISM)
def kl_cov(*, fraction: float = 0.002, coefficient: float = 1.0) -> Parts:
    """KL-Cov: no clip, and a penalty |log_prob - old| on the tokens of highest covariance.

    fraction 0.002 (7B; 0.0002 for 32B) and coefficient 1: the authors' scripts, where k is a percent. The paper says KL; the code takes the
    absolute log-ratio, and so does this. On-policy the penalty has no gradient: it acts from the second step on a batch.
    """
    penalty = KLPenalty(coefficient, AbsoluteKL(), anchor="old", weighting=CovarianceTop(fraction))
    return Parts(PolicyObjective(TokenRatio(), Unclipped(), penalty), group_relative())
