"""GRPO and GiGPO: one clipped objective, two ways to compute advantages.

loss = mean over trained tokens of max(-rho A, -clip(rho, 1 - clip_low, 1 + clip_high) A) + kl_coefficient k3 - entropy_coefficient H
"""

import functools
from collections.abc import Callable

from ..objective import Clip, EntropyBonus, KLPenalty, PolicyObjective, TokenMean, TokenRatio
from .base import Recipe

# Clip 0.2 is PPO's. Both papers add a k3 penalty to a reference policy (0.04 in GRPO's, 0.01 in GiGPO's); here it is off unless asked for.
_LOSS_DEFAULTS = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None, "kl_coefficient": 0.0, "entropy_coefficient": 0.0}


def grpo(overrides: dict) -> Recipe:
    """Group Relative Policy Optimization (arXiv 2402.03300): A = (score - group mean) / group std.

    Overrides: clip_low, clip_high (0.2), dual_clip (None), kl_coefficient (0), entropy_coefficient (0). The aggregation is
    the token mean (DAPO); the paper's own is SequenceMeanTokenMean.
    """
    settings = _settings("grpo", _LOSS_DEFAULTS, overrides)

    def advantages(*arguments, **keywords):
        from .. import advantage

        return advantage.group_advantages(*arguments, **{"scale": "std", **keywords})

    return Recipe("grpo", "DeepSeekMath: Pushing the Limits of Mathematical Reasoning (arXiv 2402.03300)", _objective(settings), advantages)


def gigpo(overrides: dict) -> Recipe:
    """Group-in-Group Policy Optimization (arXiv 2505.10978): A = episode advantage + step_weight * step advantage (equation 8).

    Overrides: those of grpo, and gamma (0.95), step_weight (1.0): the settings of the paper's appendix E.1.
    """
    settings = _settings("gigpo", {**_LOSS_DEFAULTS, "gamma": 0.95, "step_weight": 1.0}, overrides)

    def advantages(*arguments, **keywords):
        from .. import advantage

        own = {"gamma": settings["gamma"], "step_weight": settings["step_weight"]}
        return advantage.gigpo_advantages(*arguments, **{**own, **keywords})

    return Recipe("gigpo", "Group-in-Group Policy Optimization for LLM Agent Training (arXiv 2505.10978)", _objective(settings), advantages)


RECIPES: dict[str, Callable[[dict], Recipe]] = {"grpo": grpo, "gigpo": gigpo}


def _settings(name: str, defaults: dict, overrides: dict) -> dict:
    unknown = sorted(set(overrides) - set(defaults))
    if unknown:
        raise TypeError(
            f"recipe: {name!r} takes the settings {sorted(defaults)}, got {unknown}; compose a PolicyObjective for anything else"
        )
    return {**defaults, **overrides}


def _objective(settings: dict) -> PolicyObjective:
    return _compose(*(settings[name] for name in _LOSS_DEFAULTS))


@functools.lru_cache(maxsize=64)
def _compose(
    clip_low: float, clip_high: float, dual_clip: float | None, kl_coefficient: float, entropy_coefficient: float
) -> PolicyObjective:
    return PolicyObjective(
        ratio=TokenRatio(),
        surrogate=Clip(clip_low, clip_high, dual_clip),
        divergence=KLPenalty(kl_coefficient) if kl_coefficient else None,
        entropy_bonus=EntropyBonus(entropy_coefficient) if entropy_coefficient else None,
        aggregation=TokenMean(),
    )
