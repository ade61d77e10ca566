"""Rewards as numbers: combined, shaped by length or cost, gated by their group, penalised. Reading text is the caller's part."""

from ..advantage import normalised_sum
from ..arrays import take_arrays
from .combine import weighted_sum
from .cost import cost_penalty, fewest_calls, tool_cost
from .difference import return_difference
from .ensemble import ensemble_mean, ensemble_uncertainty, ensemble_worst, worst_population
from .gates import all_of_group, any_of_group, gated_bonus
from .kl import AdaptiveCoefficient, kl_rewards, score_at_last_token
from .length import cosine_length, dast_length, group_length, remaining_length, soft_length, soft_overlong
from .penalty import invalid_action_penalty
from .running import RunningMoments, running_scale
from .uncertainty import difficulty_budget, top_two_uncertainty

__all__ = [
    "AdaptiveCoefficient",
    "RunningMoments",
    "all_of_group",
    "any_of_group",
    "cosine_length",
    "cost_penalty",
    "dast_length",
    "difficulty_budget",
    "ensemble_mean",
    "ensemble_uncertainty",
    "ensemble_worst",
    "fewest_calls",
    "gated_bonus",
    "group_length",
    "invalid_action_penalty",
    "kl_rewards",
    "normalised_sum",
    "remaining_length",
    "return_difference",
    "running_scale",
    "score_at_last_token",
    "soft_length",
    "soft_overlong",
    "tool_cost",
    "top_two_uncertainty",
    "weighted_sum",
    "worst_population",
]

take_arrays(globals())
