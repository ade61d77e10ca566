"""GiGPO's two levels: the whole trajectory among those of its task, and the step among those taken in the same state."""

import dataclasses

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_ids, segment_sum, sort_rows, to_rows
from ..types import GiGPOAdvantages
from . import arguments
from .group import check_not_swapped, trajectory_scores
from .moments import moments, standardise
from .returns import Timeline, first_rows, returns_to_go, time_order, trajectory_sums
from .statistics import CORRECTED, GroupStatistics, check_options


def gigpo_advantages(
    rewards: Tensor,  # (S,) float, int or bool, reward of each step
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) int64 or a list of str or int, task of each step
    anchor: Tensor | list,  # (S,) int64 or a list of str or int, state of each step; -1 = none
    *,
    gamma: float,
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
    episode_scores: Tensor | None = None,  # (S,) float, used in place of the trajectory's sum of rewards
    step_returns: Tensor | None = None,  # (S,) float, used in place of the discounted returns
    step_weight: float = 1.0,
    scale: str | None = None,
    statistics: GroupStatistics = CORRECTED,
    min_trajectories: int = 1,
    first_visit: bool = False,
) -> GiGPOAdvantages:  # four of (S,) float32, float64 if rewards, episode_scores or step_returns are
    """How much better a trajectory was than the others of its task, plus how much better a step was than others from its state.

    The same, slowly:

        total = torch.stack([rewards[(trajectory == i) & (group == g)].sum() for i, g in zip(trajectory, group)])
        returns = discounted_returns(rewards, trajectory, group=group, gamma=gamma)
        episode = group_advantages(total, group, trajectory=trajectory)
        pair = torch.stack([group, anchor], 1).unique(dim=0, return_inverse=True)[1]
        step = group_advantages(returns, pair)
        advantages = episode + step_weight * step

    Trajectories are (group, trajectory): labels may start again for every task. Step groups never cross tasks, even where `anchor`
    repeats a label; a state visited twice in a trajectory counts twice; a
    state seen once gives 0. Anchor -1, as `anchor.group_states` gives rows that are not valid, is no state: such a step gets 0
    at the step level (an error where values are checked, if valid). `episode_scores` and `step_returns` are used as they are, per
    row, and may carry penalties; the mean score of a trajectory's rows is then its score in the group's statistics. Rows that
    are not valid are outside every statistic, returns skip them, and all four results are 0 there.
    `min_trajectories`: a state that fewer different trajectories visited gives 0; 2 leaves out the groups in which one trajectory
    is compared with itself. `first_visit`: of the visits of a trajectory to a state only the first in time enters the mean and
    the deviation, as in first-visit Monte Carlo estimates of the value of a state; later visits are compared with the same two
    numbers, because a baseline belongs to the state and their actions were taken in it.
    Sums, means and deviations in float64, each result rounded once; the order of the rows changes no bit if `step` is given
    (without it rows must keep the time order of their trajectory). Carries no gradient. Waits for no GPU if labels are tensors.
    Raises for float labels, gamma outside [0, 1], step_weight < 0, min_trajectories < 1; where values are checked also for scores
    that are not finite, a repeated (trajectory, step), and trajectory and group that are evidently swapped.
    Source: Eq. 3, 5, 7, 8 of GiGPO (arXiv 2505.10978).
    """
    function = "gigpo_advantages"
    gamma = arguments.discount(function, gamma)
    check_options(function, scale, statistics)
    step_weight = checks.number(function, "step_weight", step_weight, at_least=0.0, fix="1.0 is usual, 0.0 turns the step level off")
    fix = "1 counts every group, 2 leaves out those of one trajectory"
    min_trajectories = checks.integer(function, "min_trajectories", min_trajectories, at_least=1, fix=fix)
    counted = arguments.validity(function, valid, "rewards", rewards)
    dtype = arguments.result_dtype(rewards, episode_scores, step_returns)
    values = arguments.scores(function, "rewards", rewards, counted)
    own, task, state = (
        arguments.labels(function, name, label, counted)
        for name, label in (("trajectory", trajectory), ("group", group), ("anchor", anchor))
    )
    if state.shape[0] and checks.values_wanted(state, counted) and state.amin().item() <= -1:
        arguments.fail_at(
            function,
            "anchor",
            counted & (state == -1),
            "the id of a state in valid rows",
            "-1 (no state)",
            "pass the same `valid` to group_states and here",
        )
    timeline = time_order(function, own, arguments.steps(function, step, counted), counted, all_valid=valid is None, group=task)
    first_of_all = first_rows(timeline)

    if step_returns is None:
        # Rounded before they are compared, so that what is returned is what was compared.
        returns = returns_to_go(values, timeline, gamma).to(dtype).to(torch.float64)
    else:
        returns = arguments.scores(function, "step_returns", step_returns, counted)
    if episode_scores is None:
        scores = trajectory_sums(values, timeline).to(dtype).to(torch.float64)
    else:
        scores = arguments.scores(function, "episode_scores", episode_scores, counted)

    unit, units = scores, counted
    if statistics.count == "trajectory" and episode_scores is None:
        units = first_of_all  # the rows of a trajectory share one score: any of them stands for it
    elif statistics.count == "trajectory":
        unit, units = trajectory_scores(scores, counted, own, task)
    of_task = moments(unit, units, task, ddof=statistics.ddof)
    trajectories = of_task.count if statistics.count == "trajectory" else None
    check_not_swapped(function, own, task, counted, lambda: first_of_all, count=trajectories)
    episode = standardise(scores, of_task, scale, statistics)
    episode = torch.where(counted, episode, 0.0)

    met = counted & (state != -1)
    among_steps = dataclasses.replace(statistics, singleton="zero")
    first = _first_visits(timeline, met, state, task, own) if first_visit or min_trajectories > 1 else met
    of_state = moments(returns, first if first_visit else met, state, task, ddof=statistics.ddof)
    if min_trajectories > 1:
        visitors = segment_sum(first.to(torch.float64), of_state.segment, first.shape[0]).index_select(0, of_state.segment)
        met = met & (visitors >= min_trajectories)
    micro = torch.where(met, standardise(returns, of_state, scale, among_steps), 0.0)
    return GiGPOAdvantages(*(result.to(dtype) for result in (episode + step_weight * micro, episode, micro, returns)))


def _first_visits(timeline: Timeline, met: Tensor, *labels: Tensor) -> Tensor:
    """(S,) bool: of the rows in `met` with equal labels, the first in time."""
    in_time = timeline.order
    order = in_time.index_select(0, sort_rows(*(key.index_select(0, in_time) for key in (~met, *labels))))
    segment = segment_ids(order, *labels)
    first = met.index_select(0, order)
    first[1:] &= segment[1:] != segment[:-1]
    return to_rows(first, order)
