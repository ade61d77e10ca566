"""Penalties for actions that the environment could not carry out."""

from torch import Tensor

from .. import checks
from . import arguments


def invalid_action_penalty(
    rewards: Tensor,  # (S,) float, int or bool: rewards, scores or returns of each step
    valid_action: Tensor,  # (S,) bool, the environment understood the action
    *,
    coefficient: float = 0.1,
) -> Tensor:  # (S,) float32, float64 for float64 rewards
    """Rewards less `coefficient` at steps whose action was not valid: `rewards - coefficient * ~valid_action`.

    Where it is applied decides what it does. On step rewards, before `discounted_returns`, earlier steps pay their discounted part.
    On returns and episode scores, through gigpo_advantages' step_returns and episode_scores, only the step itself pays: that is
    what verl-agent does.
    Source: GiGPO (arXiv 2505.10978), appendix E.1: 0.1 on ALFWorld and WebShop, 0.01 in search.
    """
    function = "invalid_action_penalty"
    factor = checks.number(function, "coefficient", coefficient, at_least=0.0, fix="0.1 is GiGPO's")
    counted, values = arguments.rows(function, None, rewards=rewards)
    good = arguments.flags(function, "valid_action", valid_action, counted)
    return arguments.result(values - factor * (~good).to(values.dtype), counted, rewards)
