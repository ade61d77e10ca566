"""The pieces that many recipes share: the clipped objective, and the estimators by the conventions of their frameworks."""

from ..objective import (
    K3,
    Aggregation,
    Clip,
    EntropyBonus,
    Estimator,
    KLPenalty,
    PolicyObjective,
    Ratio,
    TokenMean,
    TokenRatio,
)
from .base import Use


def clipped(
    low: float,
    high: float,
    dual: float | None = None,
    *,
    kl: float = 0.0,
    entropy: float = 0.0,
    ratio: Ratio = TokenRatio(),  # noqa: B008 - a frozen value
    estimator: Estimator = K3(),  # noqa: B008
    aggregation: Aggregation = TokenMean(),  # noqa: B008
) -> PolicyObjective:
    """Clip on a ratio, with a penalty to the reference and an entropy bonus where their coefficients are not 0."""
    return PolicyObjective(
        ratio=ratio,
        surrogate=Clip(low, high, dual),
        divergence=KLPenalty(kl, estimator) if kl else None,
        entropy_bonus=EntropyBonus(entropy) if entropy else None,
        aggregation=aggregation,
    )


def group_relative(**settings) -> Use:
    """(score - group mean) / group standard deviation, with overrides."""
    return Use("advantage", "group_advantages", {"scale": "std", **settings})


def group_centred(**settings) -> Use:
    """score - group mean."""
    return Use("advantage", "group_advantages", {"scale": None, **settings})


def advantages(function: str, **settings) -> Use:
    """An estimator of gigpo_fast.advantage."""
    return Use("advantage", function, settings)


def rewards(function: str, **settings) -> Use:
    """A function of gigpo_fast.reward."""
    return Use("reward", function, settings)
