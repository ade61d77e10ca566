"""Advantages within a task's group of trajectories: GRPO's and leave-one-out."""

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_ids, segment_max, segment_min, sort_rows, to_rows
from . import arguments
from .moments import moments, standardise
from .statistics import CORRECTED, GroupStatistics, check_options


def group_advantages(
    scores: Tensor,  # (S,) float, int or bool, score of each row
    group: Tensor | list,  # (S,) int64 or a list of str or int, task of each row
    *,
    scale: str | None = None,
    statistics: GroupStatistics = CORRECTED,
    trajectory: Tensor | list | None = None,  # (S,) int64 or a list of str or int; None: every row is a trajectory
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores
    """Scores relative to the mean of their group, over its standard deviation with scale="std".

    The same, slowly (one row a trajectory):

        for g in set(group):
            of_group = scores[group == g]
            advantages[group == g] = (of_group - of_group.mean()) / (of_group.std() + eps if scale == "std" else 1.0)

    With `trajectory` and statistics.count "trajectory", the mean and the deviation are those of the trajectories' mean scores,
    and each row's own score is compared with them: rows of one trajectory may differ, by a penalty say. Groups of one and
    constant groups: see GroupStatistics. Rows that are not valid are outside every statistic and get 0.
    Statistics in float64, two passes, result rounded once; the order of the rows changes no bit. Carries no gradient.
    Raises for float labels; under full validation also for scores that are not finite and a trajectory in two groups.
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
    trajectory: Tensor | list | None = None,  # (S,) int64 or a list of str or int; None: every row is a trajectory
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
    place = torch.arange(valid.shape[0], device=valid.device)
    first = segment_min(torch.where(valid, place, valid.shape[0]), of_trajectory.segment, valid.shape[0])
    return of_trajectory.mean, first.index_select(0, of_trajectory.segment) == place


def check_one_group(function: str, trajectory: Tensor, group: Tensor, valid: Tensor) -> None:
    """Under full validation: every trajectory belongs to one group."""
    if valid.shape[0] == 0 or not checks.values_wanted(trajectory, group, valid):
        return
    order = sort_rows(trajectory)
    segment = segment_ids(order, trajectory)
    tasks, used, bounds = group.index_select(0, order), valid.index_select(0, order), torch.iinfo(torch.int64)
    low = segment_min(torch.where(used, tasks, bounds.max), segment, bounds.max)
    high = segment_max(torch.where(used, tasks, bounds.min), segment, bounds.min)
    arguments.fail_at(
        function,
        "trajectory",
        to_rows((low < high).index_select(0, segment) & used, order),
        "in one group only",
        "one that spans several",
        "give every trajectory an id of its own, for example group * trajectories_per_group + index",
    )


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
    check_one_group(function, own, task, valid)
    if statistics.count == "row":
        return values, values, valid, task, valid
    return values, *trajectory_scores(values, valid, own, task), task, valid
