"""G2PO: a step by the value of the state it led to, among steps from the same state and among all steps of the task."""

import dataclasses

import torch
from torch import Tensor

from .. import checks
from ..types import GiGPOAdvantages
from . import arguments
from .graph import episode_advantages
from .moments import moments, standardise
from .returns import returns_to_go, trajectory_sums
from .statistics import VERL_AGENT, GroupStatistics, check_options
from .transitions import read_transitions


def g2po_advantages(
    rewards: Tensor,  # (S,) float, int or bool, reward of each step
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) labels, task of each step
    anchor: Tensor | list,  # (S,) labels, state of each step; -1 = none
    *,
    gamma: float = 0.95,
    success: Tensor | None = None,  # (S,) bool, True in any row of a trajectory; None: its score is exactly `success_value`
    success_value: float = 10.0,
    step_penalties: Tensor | None = None,  # (S,) float, added to the value a step led to among steps of its state (-0.1 if invalid)
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
    episode_scores: Tensor | None = None,  # (S,) float, at the episode level used in place of the trajectory's sum of rewards
    step_weight: float = 1.0,
    scale: str | None = None,
    statistics: GroupStatistics = VERL_AGENT,
) -> GiGPOAdvantages:  # four of (S,) float32, float64 if rewards or episode_scores are
    """The episode's advantage plus that of the value a step led to: seen from its state, and as a gain over its state.

    The same, slowly:

        value = mean over visits of a state of gamma ** (steps left, this one included) * score of the trajectory
        reached = value[state of the next step], or success_value after the last step of a success, else 0
        node = group_advantages(reached + step_penalties, (group, anchor), scale=scale)
        edge = group_advantages(reached - value[state], group, scale=scale)
        advantages = group_advantages(score, group, scale=scale) + step_weight * (node + edge)

    So the last step of a success is worth gamma times its score, as in the authors' code. A state met once gives node 0, a task of one
    step edge 0, groups of equal values 0 (the authors' code gives NaN for a lone step with scale="std", and rounding residues over eps
    for equal ones). `step_returns` of the result is `reached`. `statistics` is that of the episode level, over step rows by default.
    Sums, means and deviations in float64, each result rounded once; the order of the rows changes no bit if `step` is given. Carries no
    gradient. Waits for no GPU. Raises as `gigpo_advantages` does.
    Source: the authors' code of G2PO (arXiv 2606.22995); scale=None is its mean_norm, "std" its mean_std_norm.
    """
    function = "g2po_advantages"
    check_options(function, scale, statistics)
    gamma = arguments.discount(function, gamma)
    step_weight = checks.number(function, "step_weight", step_weight, at_least=0.0, fix="1.0 is usual, 0.0 turns the step level off")
    success_value = checks.number(function, "success_value", success_value, fix="10.0 is what verl-agent's environments pay")
    counted = arguments.validity(function, valid, "rewards", rewards)
    values = arguments.scores(function, "rewards", rewards, counted)
    edges = read_transitions(function, trajectory, group, anchor, success, None, step, counted)
    taken, last = edges.taken, edges.taken & (edges.following < 0)
    scores = trajectory_sums(values, edges.timeline._replace(valid=counted))
    won = edges.success if success is not None else last & (scores == success_value)

    at_end = torch.where(last, scores * gamma, 0.0)
    value = moments(returns_to_go(at_end, edges.timeline, gamma), taken, edges.state, ddof=1).mean
    after = torch.where(edges.following >= 0, value[edges.following.clamp(min=0)], 0.0)
    reached = torch.where(won, success_value, torch.where(last, 0.0, after))
    own = reached
    if step_penalties is not None:
        own = reached + arguments.scores(function, "step_penalties", step_penalties, counted)
    among = dataclasses.replace(statistics, singleton="zero", zero_variance="zero")
    node = standardise(own, moments(own, taken, edges.state, ddof=statistics.ddof), scale, among)
    gain = reached - value
    edge = standardise(gain, moments(gain, taken, edges.group, ddof=statistics.ddof), scale, among)
    micro = torch.where(taken, node + edge, 0.0)

    dtype = arguments.result_dtype(rewards, episode_scores)
    episode = episode_advantages(function, values, episode_scores, counted, edges, scale, statistics, dtype)
    reached = torch.where(taken, reached, 0.0)
    return GiGPOAdvantages(*(result.to(dtype) for result in (episode + step_weight * micro, episode, micro, reached)))
