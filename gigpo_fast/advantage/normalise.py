"""Mean and deviation each over the group, over the batch or not at all: the reward normalisers of AReaL, ROLL and TRL."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .moments import moments
from .statistics import CORRECTED, GroupStatistics, check_options
from .whitening import batch_moments

_LEVELS = (None, "group", "batch")


class GroupMoments(NamedTuple):
    """Statistics of each row's group, seen from the row."""

    count: Tensor  # (S,) float64, valid rows
    mean: Tensor  # (S,) float64
    std: Tensor  # (S,) float64, 0 for a group of one or a constant one


def group_moments(
    scores: Tensor,  # (S,) float, int or bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    ddof: int = 1,
    valid: Tensor | None = None,  # (S,) bool
) -> GroupMoments:  # three of (S,) float64, 0 where not valid
    """Count, mean and standard deviation of each row's group.

    The same, slowly: `scores[group == group[i]].mean()` for every row i. Of 0/1 scores the mean is the group's success rate.
    Constant groups have exactly their score as mean and a deviation of exactly 0.
    """
    function = "group_moments"
    counted = arguments.validity(function, valid, "scores", scores)
    if checks.whole(ddof) not in (0, 1):
        checks.fail(function, "ddof", "0 or 1", ddof, "1 divides the sum of squares by n - 1, 0 by n")
    values = arguments.scores(function, "scores", scores, counted)
    found = moments(values, counted, arguments.labels(function, "group", group, counted), ddof=ddof)
    return GroupMoments(*(torch.where(counted, part, 0.0) for part in (found.count, found.mean, found.std)))


def normalise(
    scores: Tensor,  # (S,) float, int or bool
    group: Tensor | list | None = None,  # (S,) int64 or a list of str or int; needed where a level is "group"
    *,
    mean_over: str | None = "group",
    std_over: str | None = "group",
    leave_one_out: bool = False,
    around_mean: bool = False,
    statistics: GroupStatistics = CORRECTED,
    valid: Tensor | None = None,  # (S,) bool
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """Scores minus a mean, over a standard deviation, each of them over the group, over the batch, or left out (None).

    The same, slowly, for mean_over="group", std_over="batch":

        centred = scores - torch.stack([scores[group == g].mean() for g in group])
        advantages = centred / (scores.std() + eps)

    leave_one_out: the mean is that of the other rows. around_mean: the deviation is taken around the means that were subtracted,
    sqrt(sum centred^2 / (n - ddof)), as AReaL does; without it around the mean of its own level, as TRL and ROLL do.
    `statistics` gives eps, ddof and what groups of one and constant ones get; every row counts once. A batch of one is a group of
    one. "batch" spans the ranks of process_group; groups never span ranks here.
    Statistics in float64, result rounded once. Carries no gradient. Where values are checked raises for scores that are not finite.
    Source: TRL's scale_rewards, ROLL's reward_norm, AReaL's NormConfig, OpenRLHF's flash_reinforce (mean_over="batch", std_over=None).
    """
    function = "normalise"
    check_options(function, None, statistics)
    for name, level in (("mean_over", mean_over), ("std_over", std_over)):
        if level not in _LEVELS:
            checks.fail(function, name, "'group', 'batch' or None", level, "None leaves that part out")
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    labels = None
    if "group" in (mean_over, std_over):
        if group is None:
            checks.fail(function, "group", "the group of each row for a level of 'group'", None, "pass group, or 'batch' levels")
        labels = arguments.labels(function, "group", group, counted)

    def level(name: str, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Count, mean, variance."""
        if name == "group":
            found = moments(numbers, counted, labels, ddof=statistics.ddof)
            return found.count, found.mean, torch.where(found.flat, 0.0, found.std.square())
        return batch_moments(numbers, counted, ddof=statistics.ddof, process_group=process_group)

    centred, count = values, torch.full_like(values, 2.0)
    if mean_over is not None:
        count, mean, _ = level(mean_over, values)
        centred = values - mean
        if leave_one_out:
            centred = centred * (count / (count - 1.0).clamp(min=1.0))
    result, alone = centred, values
    if std_over is not None:
        size, mean, variance = level(std_over, centred if around_mean else values)
        if around_mean:
            variance = variance + mean.square() * size / (size - statistics.ddof).clamp(min=1.0)
        result, alone = centred / (variance.sqrt() + statistics.eps), values / (1.0 + statistics.eps)
        if statistics.zero_variance == "zero":
            result = torch.where(variance == 0.0, 0.0, result)
        count = torch.minimum(count, size) if mean_over is not None else size
    if statistics.singleton == "zero":
        alone = torch.zeros_like(values)
    return torch.where(counted, torch.where(count > 1.0, result, alone), 0.0).to(arguments.result_dtype(scores))
