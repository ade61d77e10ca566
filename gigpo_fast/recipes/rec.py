"""REC: REINFORCE with a clip that drops tokens, and with or without importance weights."""

from ..objective import (
    K2,
    KLPenalty,
    NegativeLogLikelihood,
    NoRatio,
    PolicyObjective,
    Product,
    RatioRegion,
    RatioWeight,
    Reinforce,
    SequenceMean,
    SequenceMeanTokenMean,
    SurrogateSum,
    TokenMean,
    Weighted,
    Weighting,
)
from .base import Parts, register
from .common import group_centred

_PAPER = (
    "Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm: Demystifying Some Myths About GRPO and Its Friends (arXiv 2509.24203)"
)


def _parts(weighting: Weighting, kl_coefficient: float, nll_coefficient: float, aggregation=TokenMean()) -> Parts:  # noqa: B008
    surrogate = Weighted(Reinforce(), weighting)
    if nll_coefficient:
        surrogate = SurrogateSum((surrogate, NegativeLogLikelihood()), (1.0, nll_coefficient))
    penalty = KLPenalty(2 * kl_coefficient, K2(), anchor="old") if kl_coefficient else None
    return Parts(PolicyObjective(NoRatio(), surrogate, penalty, aggregation=aggregation), group_centred())


def _weighted(region: RatioRegion, importance: bool) -> Weighting:
    return Product((region, RatioWeight(level=region.level))) if importance else region


@register(_PAPER)
def rec_one_side(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    importance: bool = False,
    kl_coefficient: float = 0.0,
    nll_coefficient: float = 0.0,
) -> Parts:
    """REC-OneSide: -w A log_prob of the tokens to which PPO's clip would leave a gradient; w is 1, or with `importance` the ratio.

        loss = -w A log_prob [not (A > 0 and rho > 1 + clip_high), not (A < 0 and rho < 1 - clip_low)] + kl_coefficient (log_prob - old)^2

    w is a constant; with importance the gradient is grpo's. `nll_coefficient` adds the likelihood of all tokens (Trinity-RFT's
    "forward-kl"). A = score - group mean; a group of one gives 0, where Trinity-RFT's code raises. 0.2: its defaults.
    """
    return _parts(_weighted(RatioRegion(clip_low, clip_high, one_sided=True), importance), kl_coefficient, nll_coefficient)


@register(_PAPER)
def rec_two_side(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    importance: bool = False,
    kl_coefficient: float = 0.0,
    nll_coefficient: float = 0.0,
) -> Parts:
    """REC-TwoSide: every token whose ratio leaves [1 - clip_low, 1 + clip_high] is dropped, whatever its advantage; as rec_one_side."""
    return _parts(_weighted(RatioRegion(clip_low, clip_high), importance), kl_coefficient, nll_coefficient)


@register(_PAPER)
def rec_ring(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    outer_low: float = 0.6,
    outer_high: float = 2.0,
    importance: bool = False,
    kl_coefficient: float = 0.0,
    nll_coefficient: float = 0.0,
) -> Parts:
    """REC-Ring: rec_two_side, and far outside tokens count again where they move back: A >= 0 with rho <= 0.4, A <= 0 with rho >= 3.

    0.2, 0.6 and 2: Trinity-RFT's defaults.
    """
    region = RatioRegion(clip_low, clip_high, outer_low=outer_low, outer_high=outer_high)
    return _parts(_weighted(region, importance), kl_coefficient, nll_coefficient)


@register(_PAPER)
def rec_sequence(
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    importance: bool = False,
    kl_coefficient: float = 0.0,
    nll_coefficient: float = 0.0,
) -> Parts:
    """REC-OneSide by GSPO's ratio: the geometric mean over the response says whether all its tokens are dropped, and is their weight.

    Mean over a response's tokens, then over responses; otherwise rec_one_side.
    """
    region = RatioRegion(clip_low, clip_high, one_sided=True, level=SequenceMean())
    return _parts(_weighted(region, importance), kl_coefficient, nll_coefficient, SequenceMeanTokenMean())
