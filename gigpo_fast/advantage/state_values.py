"""GAE without a critic: the value of a state is the mean return of its visits, and errors are summed along each trajectory."""

import torch
from torch import Tensor

from . import arguments
from .moments import moments, standardise
from .returns import returns_to_go
from .statistics import ROLL, GroupStatistics, check_options
from .transitions import read_transitions


def state_gae_advantages(
    rewards: Tensor,  # (S,) float, int or bool, reward of each step
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) labels, task of each step
    anchor: Tensor | list,  # (S,) labels, state of each step; -1 = none
    *,
    gamma: float = 0.95,
    lam: float = 0.8,
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
    scale: str | None = "std",
    statistics: GroupStatistics = ROLL,
) -> Tensor:  # (S,) float32, float64 for float64 rewards; 0 where not valid
    """Generalised advantage estimation over anchor states, normalised over the steps of a task; no episode level.

    The same, slowly:

        value = mean over visits of a state of discounted_returns(rewards, trajectory, gamma=gamma)
        delta[t] = rewards[t] + gamma * value[t + 1] - value[t]                      # value after the last step: 0
        raw[t] = delta[t] + gamma * lam * raw[t + 1]
        advantages = group_advantages(raw, group, scale=scale)                       # over step rows

    A state met once has its own return as value, so its step gets only what follows. A valid step in no state (anchor -1) is a state of
    its own.
    Assumed, since the paper's text was read in a restatement only: lam 0.8, the deviation with n - 1 beside eps 1e-6, and 0 for a task
    whose values are all equal. Sums, means and deviations in float64, result rounded once; the order of the rows changes no bit if
    `step` is given. Carries no gradient. Waits for no GPU. Raises as `gigpo_advantages` does, and for lam outside [0, 1].
    Source: GAGPO (arXiv 2605.13217).
    """
    function = "state_gae_advantages"
    check_options(function, scale, statistics)
    gamma, lam = arguments.discount(function, gamma), arguments.discount(function, lam, "lam")
    counted = arguments.validity(function, valid, "rewards", rewards)
    values = arguments.scores(function, "rewards", rewards, counted)
    edges = read_transitions(function, trajectory, group, anchor, None, None, step, counted, alone=True)
    value = moments(returns_to_go(values, edges.timeline, gamma), counted, edges.state, ddof=1).mean
    after = torch.where(edges.following >= 0, value[edges.following.clamp(min=0)], 0.0)
    error = torch.where(counted, values + gamma * after - value, 0.0)
    raw = returns_to_go(error, edges.timeline, gamma * lam)
    advantages = standardise(raw, moments(raw, counted, edges.group, ddof=statistics.ddof), scale, statistics)
    return torch.where(counted, advantages, 0.0).to(arguments.result_dtype(rewards))
