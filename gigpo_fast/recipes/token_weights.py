"""Losses that weigh or drop single tokens by what they do to the rest of the response or to the entropy."""

from ..objective import Clip, ClipB, ClipV, FutureKL, PolicyObjective, TokenRatio, Weighted
from .base import Parts, register
from .common import clipped, group_relative

_DYNAMICS = "On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models (arXiv 2602.03392)"


@register("FIPO: Eliciting Deep Reasoning with Future-KL Influenced Policy Optimization (arXiv 2603.19835)")
def fipo(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    ceiling: float | None = None,
    half_life: int = 32,
    weight_clip: float | None = 0.2,
    both_sides: bool = False,
    safety: float | None = 4.0,
) -> Parts:
    """FIPO: dapo's loss, a token weighted by exp of the discounted log-ratios of itself and all that follows, clipped to [1, 1.2].

    Reads extras position_ids, since the distance counts untrained tokens too. Only the upper side by default: a future that fell does not
    weigh less. `ceiling` bounds the ratio of the loss, and tokens beyond it are left out of the futures (10 in the authors' 32B script).
    Half-life 32, 0.2 and safety 4: ms-swift's defaults; clip 0.2 / 0.28 are DAPO's.
    """
    weighting = FutureKL(half_life, weight_clip, both_sides, safety, ratio_limit=ceiling)
    return Parts(PolicyObjective(TokenRatio(), Weighted(Clip(clip_low, clip_high, ceiling=ceiling), weighting)), group_relative())


@register(_DYNAMICS)
def clip_b(*, clip_low: float = 0.2, clip_high: float = 0.2, mu: float = 2.5) -> Parts:
    """Clip_B: grpo without the bad tokens whose punishment lowers the entropy most: S = p (H + log p) below mean - mu std of the batch.

    The deviation is the population's, over all trained tokens; mu 2.5 is Trinity-RFT's default. Needs the entropy.
    """
    objective = clipped(clip_low, clip_high)
    return Parts(PolicyObjective(objective.ratio, Weighted(objective.surrogate, ClipB(mu))), group_relative())


@register(_DYNAMICS)
def clip_v(*, clip_low: float = 0.2, clip_high: float = 0.2, mu: float = 8.5, max_fraction: float = 1e-4) -> Parts:
    """Clip_V: as clip_b, by the distance of S from its mean over the vocabulary; drops A = 0 too, and at most a fraction of all tokens.

    Reads extras expected_discriminator, sum over the vocabulary of p S. mu 8.5 and 1e-4 are Trinity-RFT's defaults.
    """
    objective = clipped(clip_low, clip_high)
    return Parts(PolicyObjective(objective.ratio, Weighted(objective.surrogate, ClipV(mu, max_fraction))), group_relative())
