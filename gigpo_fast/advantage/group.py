"""Advantages within a task's group of trajectories: GRPO's and leave-one-out."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_min
from . import arguments
from .moments import Moments, moments, standardise
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
    values, _, whole, valid = _read(function, scores, group, statistics, trajectory, valid, statistics.ddof)
    advantages = standardise(values, whole, scale, statistics)
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
    values, unit, whole, valid = _read(function, scores, group, statistics, trajectory, valid, 1)
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


def whole_trajectories(
    scores: Tensor, group: Tensor, trajectory: Tensor, scale: str | None, statistics: GroupStatistics, valid: Tensor
) -> Tensor:
    """`group_advantages` of float64 scores and labels that were checked already, (S,) float64."""
    unit, counted = trajectory_scores(scores, valid, trajectory, group) if statistics.count == "trajectory" else (scores, valid)
    advantages = standardise(scores, moments(unit, counted, group, ddof=statistics.ddof), scale, statistics)
    return torch.where(valid, advantages, 0.0)


def check_not_swapped(
    function: str, trajectory: Tensor, group: Tensor, valid: Tensor, first: Callable[[], Tensor], *, count: Tensor | None = None
) -> None:
    """Where values are checked: refuse one trajectory in every group while a trajectory's label spans several.

    `first` gives one valid row of each trajectory, (S,) bool; it is asked for only where a sample of the rows shows no group of several.
    `count`, (S,), how many trajectories the group of a row has, saves the sample.
    """
    size = valid.shape[0]
    if size == 0 or not checks.values_wanted(trajectory, group, valid):
        return
    if count is not None and count[0].item() > 1:
        return
    some = slice(0, max(size // 16, 32), max(size // 512, 1))
    pairs = {(g, t) for g, t, used in zip(group[some].tolist(), trajectory[some].tolist(), valid[some].tolist()) if used}
    if len({g for g, _ in pairs}) < len(pairs):
        return
    rows = first()
    if not _repeats(group[rows]) and _repeats(trajectory[rows]):
        fix = "swap trajectory and group, or, if every task has one trajectory, number trajectories over the whole batch"
        got = "one trajectory in every group, and a label of trajectories in several groups"
        checks.fail(function, "trajectory", "a label within its group, where trajectories are compared", got, fix)


def _repeats(labels: Tensor) -> bool:
    ordered = labels.sort().values
    return bool((ordered[1:] == ordered[:-1]).any())


def _read(
    function: str,
    scores: Tensor,
    group: Tensor | list,
    statistics: GroupStatistics,
    trajectory: Tensor | list | None,
    valid: Tensor | None,
    ddof: int,
) -> tuple[Tensor, Tensor, Moments, Tensor]:
    """Scores, the score that stands for each row's trajectory, the statistics of its group, which rows are valid."""
    valid = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, valid)
    task = arguments.labels(function, "group", group, valid)
    if trajectory is None:
        return values, values, moments(values, valid, task, ddof=ddof), valid
    own = arguments.labels(function, "trajectory", trajectory, valid)
    of_trajectory = moments(values, valid, own, task, ddof=1)
    unit, first = of_trajectory.mean, first_of(of_trajectory.segment, valid)
    if statistics.count == "row":
        check_not_swapped(function, own, task, valid, lambda: first)
        return values, values, moments(values, valid, task, ddof=ddof), valid
    whole = moments(unit, first, task, ddof=ddof)
    check_not_swapped(function, own, task, valid, lambda: first, count=whole.count)
    settled = not checks.values_wanted(values, valid) or torch.count_nonzero(of_trajectory.flat).item() == values.shape[0]
    if not settled and not torch.equal(torch.where(valid, unit, 0), values):
        warnings.warn(
            f"{function}: scores differ within a trajectory, so each row's own score is compared with the trajectories' means. To compare "
            "whole trajectories give all rows of one its total (gigpo_advantages(...).episode does); a penalty on single rows may stay.",
            stacklevel=4,
        )
    return values, unit, whole, valid
