"""Two batches at once: reinforcement on the policy's own responses, likelihood of an expert's."""

from ..objective import (
    Clip,
    NegativeLogLikelihood,
    NoRatio,
    PolicyObjective,
    Surrogate,
    SurrogateSum,
    TokenRatio,
    UncertainTokens,
    WarmupCosine,
    Weighted,
)
from .base import Parts, register
from .common import group_relative

_TRINITY = "Trinity-RFT: A General-Purpose and Unified Framework for Reinforcement Fine-Tuning of Large Language Models (arXiv 2505.17826)"
_CHORD = (
    "On-Policy RL Meets Off-Policy Experts: Harmonizing Supervised Fine-Tuning and Reinforcement Learning via Dynamic Weighting "
    "(arXiv 2508.11408)"
)


def _parts(clip: float, mu: float, likelihood: Surrogate, schedules=None) -> Parts:
    own = PolicyObjective(TokenRatio(), SurrogateSum((Clip(clip, clip),), (1 - mu,)))
    expert = PolicyObjective(NoRatio(), SurrogateSum((likelihood,), (mu,)))
    return Parts(own, group_relative(), schedules=schedules or {}, second=expert)


@register(_TRINITY)
def mix(*, clip: float = 0.2, mu: float = 0.1) -> Parts:
    """MIX: (1 - mu) times grpo's loss of the policy's own responses + mu times the NLL of an expert's, each with its own token mean.

    second: the expert's batch. mu 0.1 is Trinity-RFT's default. The mean over parts of a batch is the caller's denominator, one for each.
    """
    return _parts(clip, mu, NegativeLogLikelihood())


@register(_CHORD)
def chord_mu(*, clip: float = 0.2, peak: float = 0.9, valley: float = 0.05, warmup: float = 0.0, decay: float = 200.0) -> Parts:
    """CHORD-mu: mix, whose mu rises to `peak` over `warmup` steps and falls to `valley` by a cosine over `decay` steps.

    schedules turn the first objective's 1 - mu; the second's mu is Scheduled(second, {"surrogate.coefficients.0": WarmupCosine(0, peak,
    valley, warmup, decay)}). Assumed: 0.9, 0.05 and 200 steps without warm-up, which are set per run.
    """
    schedule = WarmupCosine(1.0, 1 - peak, 1 - valley, warmup, decay)
    return _parts(clip, peak, NegativeLogLikelihood(), {"surrogate.coefficients.0": schedule})


@register(_CHORD)
def chord_phi(*, clip: float = 0.2, mu: float = 0.1) -> Parts:
    """CHORD-phi: mix, the expert's tokens weighted by p (1 - p) without gradient: what is known already or far off pulls little.

    mu 0.1 is constant, as Trinity-RFT's default. With chord_mu's schedules mu moves as well.
    """
    return _parts(clip, mu, Weighted(NegativeLogLikelihood(), UncertainTokens()))
