"""Advantages: from rewards and labels, one value a step, and from there to tokens. Computed once per rollout batch, from whole groups."""

from .gigpo import gigpo_advantages
from .group import group_advantages, leave_one_out_advantages
from .returns import discounted_returns
from .statistics import CORRECTED, ROLL, VERL_AGENT, GroupStatistics
from .tokens import step_ids, to_tokens

__all__ = [
    "CORRECTED",
    "ROLL",
    "VERL_AGENT",
    "GroupStatistics",
    "discounted_returns",
    "gigpo_advantages",
    "group_advantages",
    "leave_one_out_advantages",
    "step_ids",
    "to_tokens",
]
