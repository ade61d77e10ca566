"""Credit of an action: the mean return of those who did the same in a state against the mean of all who were there."""

import torch
from torch import Tensor

from .. import checks
from ..types import GiGPOAdvantages
from . import arguments
from .graph import episode_advantages
from .moments import moments
from .returns import returns_to_go
from .statistics import CORRECTED, GroupStatistics, check_options
from .transitions import numbered, read_transitions


def action_advantages(
    rewards: Tensor,  # (S,) float, int or bool, reward of each step
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) labels, task of each step
    anchor: Tensor | list,  # (S,) labels, state of each step; -1 = none
    action: Tensor | list,  # (S,) labels, what was done in the state
    *,
    gamma: float = 0.95,
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
    episode_scores: Tensor | None = None,  # (S,) float, used in place of the trajectory's sum of rewards
    shrinkage: float = 0.0,
    gate: float | None = None,
    step_weight: float = 1.0,
    scale: str | None = None,
    statistics: GroupStatistics = CORRECTED,
) -> GiGPOAdvantages:  # four of (S,) float32, float64 if rewards or episode_scores are
    """The episode's advantage plus that of the action among the actions tried in the same state, Q - V of the observed returns.

    The same, slowly:

        Q = mean of the returns of rows with this (state, action);  V = mean of the returns of rows in this state
        micro = n / (n + shrinkage) * (Q - V)                            # n rows of this (state, action)
        micro *= tanh(n_state / gate) * between / (between + within)     # with `gate`: variances of the returns in the state
        advantages = group_advantages(total, group, trajectory=trajectory, scale=scale) + step_weight * micro

    All rows of one action in one state share it; a state met once, or with one action tried, gives 0. With scale="std" micro is divided by
    the deviation of the returns in the state (of `statistics`, eps beside it), so that shrinkage keeps its effect. Labels of actions are
    whatever counts as the same action: the parsed command, or its first tokens; invalid ones may share a label.
    Sums, means and deviations in float64, each result rounded once; the order of the rows changes no bit if `step` is given. Carries no
    gradient. Waits for no GPU. Raises as `gigpo_advantages` does, for shrinkage < 0 and gate <= 0.
    Source: the action part of BiPACE (arXiv 2606.25556), its q_style, by the authors' README; shrinkage and gate are the idea of ECPO
    (arXiv 2606.05885), whose constants and deviation are not known. Assumed: gamma 0.95, step_weight 1, no deviation.
    """
    function = "action_advantages"
    check_options(function, scale, statistics)
    gamma = arguments.discount(function, gamma)
    shrinkage = checks.number(function, "shrinkage", shrinkage, at_least=0.0, fix="0.0 trusts every mean, 2.0 pulls lone rows to V")
    step_weight = checks.number(function, "step_weight", step_weight, at_least=0.0, fix="1.0 is usual, 0.0 turns the action level off")
    if gate is not None:
        gate = checks.number(function, "gate", gate, above=0.0, fix="the number of visits at which a state is trusted, or None")
    counted = arguments.validity(function, valid, "rewards", rewards)
    values = arguments.scores(function, "rewards", rewards, counted)
    edges = read_transitions(function, trajectory, group, anchor, None, None, step, counted)
    done = arguments.labels(function, "action", action, counted)
    dtype = arguments.result_dtype(rewards, episode_scores)
    returns = returns_to_go(values, edges.timeline, gamma).to(dtype).to(torch.float64)

    here = moments(returns, edges.taken, edges.state, ddof=statistics.ddof)
    same = moments(returns, edges.taken, numbered(edges.state, done), ddof=statistics.ddof)
    micro = torch.where(same.count < here.count, same.mean - here.mean, 0.0) * same.count / (same.count + shrinkage).clamp(min=1.0)
    if scale == "std":
        micro = torch.where(here.flat, 0.0, micro / (here.std + statistics.eps))
    if gate is not None:
        micro = micro * torch.tanh(here.count / gate) * _share_between(returns, edges.taken, edges.state, here.mean, same.mean)
    micro = torch.where(edges.taken, micro, 0.0)
    episode = episode_advantages(function, values, episode_scores, counted, edges, scale, statistics, dtype)
    returns = torch.where(counted, returns, 0.0)
    return GiGPOAdvantages(*(result.to(dtype) for result in (episode + step_weight * micro, episode, micro, returns)))


def _share_between(returns: Tensor, taken: Tensor, state: Tensor, value: Tensor, action_value: Tensor) -> Tensor:
    """(S,) the share of the variance of a state's returns that lies between its actions; 0 where the returns are all equal."""
    between = moments((action_value - value).square(), taken, state, ddof=0).mean
    within = moments((returns - action_value).square(), taken, state, ddof=0).mean
    whole = between + within
    return torch.where(whole > 0.0, between / torch.where(whole > 0.0, whole, 1.0), 0.0)
