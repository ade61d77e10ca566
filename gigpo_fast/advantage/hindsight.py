"""Hindsight: a step's return weighed by how much likelier its action looks to the policy once it knows how the episode ended."""

import dataclasses

import torch
from torch import Tensor

from .. import checks
from ..types import GiGPOAdvantages
from . import arguments
from .group import group_advantages, whole_trajectories
from .moments import moments, standardise
from .returns import returns_to_go, trajectory_sums
from .statistics import CORRECTED, GroupStatistics, check_options
from .transitions import following_rows, in_time


def hindsight_advantages(
    rewards: Tensor,  # (S,) float, int or bool, reward of each step
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) labels, task of each step
    hindsight: Tensor,  # (S,) float in (0, 1], probability of each action per token, scored with the outcome in the prompt
    *,
    gamma: float = 0.95,
    bounds: tuple[float, float] = (0.8, 1.2),
    smoothing: float = 0.0,
    spare_successes: bool = True,
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
    episode_scores: Tensor | None = None,  # (S,) float, used in place of the trajectory's sum of rewards
    step_weight: float = 1.0,
    statistics: GroupStatistics = CORRECTED,
) -> GiGPOAdvantages:  # four of (S,) float32, float64 if rewards or episode_scores are
    """The episode's advantage plus that of the score weighed by hindsight, standardised over all steps of the task.

    The same, slowly:

        rho = (hindsight / mean of hindsight over the trajectory).clamp(*bounds)
        Q[t] = rho[t] * gamma ** (T - 1 - t) * score                       # the last step of T: rho * score
        Q[t] = (1 - smoothing) * Q[t] + smoothing * Q[t + 1]               # the last step keeps its own
        micro = group_advantages(Q, group, scale="std")                    # over step rows
        micro = micro.clamp(min=0) where score > 0 and spare_successes
        advantages = group_advantages(score, group, trajectory=trajectory, scale="std") + step_weight * micro

    `hindsight` is exp(mean over the action's tokens of log_prob / temperature), temperature 5 in the paper. `step_returns` is Q.
    Assumed, where the paper as restated is silent: statistics over all rows of the task, n - 1, eps 1e-6, and the last step's smoothing.
    Sums, means and deviations in float64, each result rounded once; the order of the rows changes no bit if `step` is given. Carries no
    gradient. Waits for no GPU. Raises as `gigpo_advantages` does; where values are checked also for probabilities outside (0, 1].
    Source: HCAPO (arXiv 2603.08754), Eq. 5 to 8.
    """
    function = "hindsight_advantages"
    check_options(function, None, statistics)
    gamma, smoothing = arguments.discount(function, gamma), arguments.discount(function, smoothing, "smoothing")
    step_weight = checks.number(function, "step_weight", step_weight, at_least=0.0, fix="1.0 is usual, 0.0 turns the step level off")
    low, high = _bounds(function, bounds)
    counted = arguments.validity(function, valid, "rewards", rewards)
    values = arguments.scores(function, "rewards", rewards, counted)
    likely = arguments.scores(function, "hindsight", hindsight, counted)
    own, task = (arguments.labels(function, name, label, counted) for name, label in (("trajectory", trajectory), ("group", group)))
    timeline = in_time(function, own, task, step, counted)
    after = following_rows(timeline)
    if episode_scores is None:
        scores = trajectory_sums(values, timeline)
    else:
        scores = arguments.scores(function, "episode_scores", episode_scores, counted)

    ratio = likely / moments(likely, counted, own, task, ddof=1).mean
    at_end = torch.where(counted & (after < 0), scores, 0.0)
    weighed = torch.where(counted, ratio.clamp(low, high) * returns_to_go(at_end, timeline, gamma), 0.0)
    later = torch.where(after >= 0, weighed[after.clamp(min=0)], weighed)
    weighed = (1.0 - smoothing) * weighed + smoothing * later
    among = dataclasses.replace(statistics, singleton="zero", zero_variance="zero")
    micro = standardise(weighed, moments(weighed, counted, task, ddof=statistics.ddof), "std", among)
    if spare_successes:
        micro = torch.where(scores > 0.0, micro.clamp(min=0.0), micro)
    micro = torch.where(counted, micro, 0.0)
    if episode_scores is None:
        episode = whole_trajectories(scores, task, own, "std", statistics, counted)
    else:
        episode = group_advantages(scores, task, scale="std", statistics=statistics, trajectory=own, valid=counted)
    dtype = arguments.result_dtype(rewards, episode_scores)
    return GiGPOAdvantages(*(result.to(dtype) for result in (episode + step_weight * micro, episode, micro, weighed)))


def _bounds(function: str, bounds: tuple[float, float]) -> tuple[float, float]:
    fix = "(0.8, 1.2) is the paper's"
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        checks.fail(function, "bounds", "a pair (low, high)", bounds, fix, error=TypeError)
    low = checks.number(function, "bounds[0]", bounds[0], at_least=0.0, fix=fix)
    return low, checks.number(function, "bounds[1]", bounds[1], at_least=low, fix=fix)
