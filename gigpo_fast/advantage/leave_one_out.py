"""Leave-one-out with a deviation: score against the mean and the standard deviation of the others, as NeMo-RL's GRPO does by default."""

import torch
from torch import Tensor

from .. import checks
from . import arguments
from .moments import moments
from .normalise import GroupMoments


def scaled_leave_one_out_advantages(
    scores: Tensor,  # (S,) float, int or bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    eps: float = 1e-6,
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 scores; 0 where not valid
    """How many standard deviations of the others a score lies above the mean of the others.

    The same, slowly:

        others = scores[(group == group[i]) & (torch.arange(S) != i)]
        advantages[i] = (scores[i] - others.mean()) / (others.std() + eps)

    Where the others are all equal, or only one, the difference is not divided. A group of one gives 0.
    Statistics in float64, result rounded once; the order of the rows changes no bit. Carries no gradient.
    Where values are checked raises for scores that are not finite.
    Source: NeMo-RL's GRPO (use_leave_one_out_baseline and normalize_rewards, its defaults).
    """
    function = "scaled_leave_one_out_advantages"
    eps = checks.number(function, "eps", eps, at_least=0.0, fix="1e-6 is usual")
    counted, values, apart, others = _others(function, scores, group, valid)
    result = torch.where(others.std > 0.0, apart / (others.std + eps), apart)
    return torch.where(counted & (others.count > 0.0), result, 0.0).to(arguments.result_dtype(scores))


def leave_one_out_moments(
    scores: Tensor,  # (S,) float, int or bool
    group: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    valid: Tensor | None = None,  # (S,) bool
) -> GroupMoments:  # three of (S,) float64
    """Count, mean and standard deviation (n - 1) of the other rows of each row's group.

    The same, slowly: `others.mean()` and `others.std()` with `others` as in `scaled_leave_one_out_advantages`.

    A deviation of 0 is exact: others that are equal, or only one. A row without others has itself as mean.
    """
    function = "leave_one_out_moments"
    counted, values, apart, others = _others(function, scores, group, valid)
    return GroupMoments(*(torch.where(counted, part, 0.0) for part in others))


def _others(function: str, scores: Tensor, group: Tensor | list, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor, GroupMoments]:
    """Which rows count, their scores, how far each lies above the mean of the others, and the moments of the others."""
    counted = arguments.validity(function, valid, "scores", scores)
    values = arguments.scores(function, "scores", scores, counted)
    labels = arguments.labels(function, "group", group, counted)
    whole = moments(values, counted, labels, ddof=1)
    count, deviation = whole.count, values - whole.mean
    apart = deviation * count / (count - 1.0).clamp(min=1.0)
    squares = whole.std.square() * (count - 1.0) - apart * deviation
    std = (squares / (count - 2.0).clamp(min=1.0)).clamp(min=0.0).sqrt()
    # Whether the others are equal is decided by counting, because a difference of squares is never exactly 0.
    std = torch.where(_others_are_equal(values, counted, labels, whole.flat) | (count <= 2.0), 0.0, std)
    return counted, values, apart, GroupMoments((count - 1.0).clamp(min=0.0), values - apart, std)


def _others_are_equal(values: Tensor, counted: Tensor, labels: Tensor, flat: Tensor) -> Tensor:
    """(S,) bool: all other counted rows of the group have one value."""
    same = moments(torch.zeros_like(values), counted, labels, (values + 0.0).view(torch.int64), ddof=1).count  # rows of this value
    whole = moments(same, counted, labels, ddof=1)
    # All equal but this one: this value occurs once and the others' value n - 1 times, so the sum of `same` is 1 + (n - 1)^2.
    odd = (same == 1.0) & ((whole.mean * whole.count - (1.0 + (whole.count - 1.0).square())).abs() < 0.5)
    return flat | odd
