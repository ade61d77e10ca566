"""Advantages within a task's group of trajectories: GRPO's and leave-one-out."""

import warnings

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_min
from . import arguments
from .moments import moments, standardise
from .statistics import CORRECTED, GroupStatistics, check_options


def group_advantages(
    scores: Tensor,  # (S,) float, int or bool, score of each row
    group: Tensor | list,  # (S,) int64 or a list of str or int, task of each row
    *,
    scale: str | None = None,
    statistics: GroupStatistics = CORRECTED,
    trajectory: Tensor | list | None = None,  # (S,) labels, compared within their group; None: every row is a trajectory
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores
    """Scores relative to the mean of their group, over its standard deviation with scale="std".

    The same, slowly (one row a trajectory):

        for g in set(group):
            of_group = scores[group == g]
            advantages[group == g] = (of_group - of_group.mean()) / (of_group.std() + eps if scale == "std" else 1.0)

    With `trajectory` and statistics.count "trajectory", the mean and the deviation are those of the trajectories' mean scores,
    and each row's own score is compared with them: rows of one trajectory may differ, by a penalty say. To compare whole trajectories
    (GRPO) give all rows of one its total, as `gigpo_advantages(...).episode` does, not the rewards of the single steps. Trajectories are
    (group, trajectory): labels may start again in every group. Groups of one and constant groups: see GroupStatistics. Rows that are
    not valid are outside every statistic and get 0.
    Statistics in float64, two passes, result rounded once; the order of the rows changes no bit. Carries no gradient.
    Raises for float labels; where values are checked also for scores that are not finite, and where trajectory and group
    are evidently swapped; a warning where scores differ within a trajectory, as rewards of single steps do.
    Source: GRPO (arXiv 2402.03300) with "std"; Dr. GRPO (arXiv 2503.20783) without; Eq. 3 of GiGPO (arXiv 2505.10978).
    """
    function = "group_advantages"
    check_options(function, scale, statistics)
    values, unit, counted, task, valid = _read(function, scores, group, statistics, trajectory, valid)
    advantages = standardise(values, moments(unit, counted, task, ddof=statistics.ddof), scale, statistics)
    return torch.where(valid, advantages, 0.0).to(arguments.result_dtype(scores))


def leave_one_out_advantages(
    scores: Tensor,  # (S,) float, int or bool, score of each row
    group: Tensor | list,  # (S,) int64 or a list of str or int, task of each row
    *,
    statistics: GroupStatistics = CORRECTED,
    trajectory: Tensor | list | None = None,  # (S,) labels, compared within their group; None: every row is a trajectory
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores
    """Scores relative to the mean of the *other* trajectories of their group (RLOO).

    The same, slowly (one row a trajectory):

        others = (group[:, None] == group) & ~torch.eye(S, dtype=torch.bool)
        advantages = scores - (others * scores).sum(1) / others.sum(1)

    Of `statistics` only `count` and `singleton` matter. Layout, validity, precision and errors as in `group_advantages`.
    Source: RLOO (arXiv 2402.14740); n / (n - 1) times `group_advantages` where rows of a trajectory share one score.
    """
    function = "leave_one_out_advantages"
    check_options(function, None, statistics)
    values, unit, counted, task, valid = _read(function, scores, group, statistics, trajectory, valid)
    whole = moments(unit, counted, task, ddof=1)
    # The mean of the others is mean - (own - mean) / (n - 1); in this form equal scores give exactly 0.
    compared = (values - whole.mean) + (unit - whole.mean) / (whole.count - 1.0).clamp(min=1.0)
    alone = values if statistics.singleton == "raw" else torch.zeros_like(values)
    advantages = torch.where(whole.count > 1.0, compared, alone)
    return torch.where(valid, advantages, 0.0).to(arguments.result_dtype(scores))


def trajectory_scores(scores: Tensor, valid: Tensor, trajectory: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """(S,) float64 mean score of each row's trajectory, and (S,) bool: one row of each trajectory, to be counted."""
    of_trajectory = moments(scores, valid, trajectory, group, ddof=1)
    return of_trajectory.mean, first_of(of_trajectory.segment, valid)


def first_of(segment: Tensor, valid: Tensor) -> Tensor:
    """(S,) bool, the first valid row of each segment."""
    place = torch.arange(valid.shape[0], device=valid.device)
    first = segment_min(torch.where(valid, place, valid.shape[0]), segment, valid.shape[0])
    return first[segment] == place


def check_not_swapped(function: str, trajectory: Tensor, group: Tensor, first: Tensor) -> None:
    """Where values are checked: refuse one trajectory in every group while a trajectory's label spans several; `first`: its first rows."""
    if first.shape[0] == 0 or not checks.values_wanted(trajectory, group, first):
        return
    tasks = group[first]  # one row a trajectory
    if any(_repeats(some) for some in (tasks[:64], tasks)):  # a group of several, which mostly shows at once
        return
    if _repeats(trajectory[first]):
        fix = "swap trajectory and group, or, if every task has one trajectory, number trajectories over the whole batch"
        got = "one trajectory in every group, and a label of trajectories in several groups"
        checks.fail(function, "trajectory", "a label within its group, where trajectories are compared", got, fix)


def _repeats(labels: Tensor) -> bool:
    return labels.unique().shape[0] < labels.shape[0]


def _read(
    function: str, scores: Tensor, group: Tensor | list, statistics: GroupStatistics, trajectory: Tensor | list | None, valid: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores, the score that stands for each row's trajectory, which rows are counted, the tasks, which rows are valid."""
    valid = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, valid)
    task = arguments.labels(function, "group", group, valid)
    if trajectory is None:
        return values, values, valid, task, valid
    own = arguments.labels(function, "trajectory", trajectory, valid)
    unit, first = trajectory_scores(values, valid, own, task)
    check_not_swapped(function, own, task, first)
    if statistics.count == "row":
        return values, values, valid, task, valid
    if checks.values_wanted(values, valid) and not torch.equal(torch.where(valid, unit, 0), values):
        warnings.warn(
            f"{function}: scores differ within a trajectory, so each row's own score is compared with the trajectories' means. To compare "
            "whole trajectories give all rows of one its total (gigpo_advantages(...).episode does); a penalty on single rows may stay.",
            stacklevel=3,
        )
    return values, unit, first, task, valid
