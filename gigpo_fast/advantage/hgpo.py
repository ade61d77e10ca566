"""HGPO: a step compared with steps from the same state, and the more so the more of their history they share."""

import torch
from torch import Tensor

from .. import checks
from ..segments import dense_labels, sort_rows
from ..types import GiGPOAdvantages
from . import arguments
from .group import check_not_swapped, first_of, group_advantages
from .moments import moments, standardise
from .returns import discounted_returns
from .statistics import ROLL, GroupStatistics, check_options
from .transitions import numbered

# The authors' code: the population's deviation, unlike GiGPO's; exact zeros where a group is constant or has one row.
HGPO = GroupStatistics(count="row", ddof=0)


def hgpo_advantages(
    rewards: Tensor,  # (S,) float, int or bool, reward of each step
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) int64 or a list of str or int, task of each step
    anchor: Tensor | list,  # (S,) int64 or a list of str or int, state of each step; -1 = none
    *,
    gamma: float,
    history: int = 2,
    length_exponent: float = 1.0,
    scale: str | None = None,
    statistics: GroupStatistics = HGPO,
    episode_statistics: GroupStatistics = ROLL,
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
    episode_scores: Tensor | None = None,  # (S,) float; given: the whole trajectory is one more comparison, of weight 1
) -> GiGPOAdvantages:  # four of (S,) float32, float64 for float64 rewards
    """The weighted mean of a step's advantages among steps that share its last 1, 2, ..., history + 1 states.

    The same, slowly:

        for k in range(1, history + 2):                 # steps of a task with the same last k states
            A[k] = group_advantages(returns, (group, last k states), scale=scale)      # 0 with fewer than k states behind
            w[k] = (k + 1) ** length_exponent * (A[k] != 0)
        advantages = sum(w * A) / (sum(w) + 1e-6)

    With episode_scores A[0] is `group_advantages(episode_scores, group, statistics=episode_statistics)` with weight 1: as the
    authors' code has it, every row counts, and its deviation divides by n - 1 where that of the steps divides by n. A comparison
    that gives exactly 0, as lone and constant groups do, drops out of the weights: then the rest is not watered down. With
    history=0 and no scores it is GiGPO's step level alone. A step that is not valid, or whose anchor is -1, breaks no history and
    belongs to none: the state before it is followed by the state after it. `episode` is A[0], `step` the weighted mean without it.
    In float64, rounded once. Carries no gradient. Waits for no GPU. Errors as in `gigpo_advantages`.
    Source: HGPO (arXiv 2602.22817), defaults history 2 and exponent 1 of the authors' code.
    """
    function = "hgpo_advantages"
    check_options(function, scale, statistics)
    check_options(function, scale, episode_statistics, "episode_statistics")
    history = checks.integer(function, "history", history, at_least=0, fix="2 compares up to three states")
    exponent = checks.number(function, "length_exponent", length_exponent, fix="1.0 is the authors'")
    counted = arguments.validity(function, valid, "rewards", rewards)
    own, task, state = (
        arguments.labels(function, name, label, counted)
        for name, label in (("trajectory", trajectory), ("group", group), ("anchor", anchor))
    )
    pair = numbered(own, task)
    check_not_swapped(function, own, task, counted, lambda: first_of(pair, counted))
    own = pair
    returns = discounted_returns(rewards, own, gamma=gamma, step=step, valid=valid)
    values = torch.where(counted, returns, 0).to(torch.float64)
    time = arguments.steps(function, step, counted)
    met = counted & (state != -1)

    total, weights = torch.zeros_like(values), torch.zeros_like(values)
    context, reaches, before = dense_labels(task, state), met, _predecessors(own, time, met)
    for length in range(1, history + 2):
        if length > 1:
            has = before >= 0
            parent = before.clamp(min=0)
            reaches = met & has & reaches.index_select(0, parent)
            context = dense_labels(context.index_select(0, parent), state, reaches.to(torch.int64))
        found = moments(values, reaches, context, reaches.to(torch.int64), ddof=statistics.ddof)
        compared = torch.where(reaches & (found.count > 1.0), standardise(values, found, scale, statistics), 0.0)
        weight = (compared != 0.0).to(torch.float64) * (length + 1) ** exponent
        total, weights = total + weight * compared, weights + weight
    micro = total / (weights + 1e-6)
    episode = torch.zeros_like(values)
    if episode_scores is not None:
        scores = arguments.scores(function, "episode_scores", episode_scores, counted)
        episode = group_advantages(scores, task, scale=scale, statistics=episode_statistics, trajectory=own, valid=counted)
        weight = (episode != 0.0).to(torch.float64)
        total, weights = total + weight * episode, weights + weight
    dtype = arguments.result_dtype(rewards, episode_scores)
    parts = (total / (weights + 1e-6), episode, micro)
    return GiGPOAdvantages(*(torch.where(counted, part, 0.0).to(dtype) for part in parts), returns.to(dtype))


def _predecessors(trajectory: Tensor, step: Tensor | None, met: Tensor) -> Tensor:
    """(S,) int64, the row of the step before in the same trajectory, -1 at the first; only steps that met a state."""
    place = torch.arange(met.shape[0], device=met.device)
    order = sort_rows(place if step is None else step, ~met, trajectory)
    before = torch.full_like(order, -1)
    ordered, used = trajectory.index_select(0, order), met.index_select(0, order)
    linked = (ordered[1:] == ordered[:-1]) & used[1:] & used[:-1]
    before[1:] = torch.where(linked, order[:-1], -1)
    return torch.empty_like(before).scatter_(0, order, before)
