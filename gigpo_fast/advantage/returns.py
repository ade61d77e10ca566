"""Discounted returns to go, of all trajectories at once.

Rows are brought into time order by one stable sort, then summed backwards by doubling: after the pass with stride d every row
holds the discounted sum of its next 2d rewards. The order of additions depends on the rewards that follow a row alone, so two
rows with the same future get the same bits, wherever they stand in the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_ids, segment_max, sort_rows, to_rows
from . import arguments


class Timeline(NamedTuple):
    """Rows sorted by trajectory and time; within a trajectory the valid rows stand first."""

    order: Tensor  # (S,) int64, the row at each place
    trajectory: Tensor  # (S,) int64, dense number of the trajectory at each place
    remaining: Tensor  # (S,) int64, how many valid rows follow in the same trajectory; negative where the row is not valid
    first: Tensor  # (S,) bool, the first valid row of each trajectory


def discounted_returns(
    rewards: Tensor,  # (S,) float, int or bool, reward of each step
    trajectory: Tensor | list,  # (S,) int64 or a list of str or int, unique over all tasks
    *,
    gamma: float,
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 rewards
    """The discounted sum of the rewards from each step to the end of its trajectory.

    The same, slowly:

        for t in reversed(range(S)):                       # rows of a trajectory stand in time order
            returns[t] = rewards[t] + gamma * following.get(trajectory[t], 0.0)
            following[trajectory[t]] = returns[t]

    Without `step` the rows of a trajectory must stand in time order, other trajectories may stand in between; with it, any
    order will do. Rows that are not valid are skipped: they return 0 and the step before them is followed by the step after.
    Accumulated in float64 and rounded once. Carries no gradient. Raises for gamma outside [0, 1]; under full validation also
    for rewards that are not finite and for a step that occurs twice in a trajectory.
    Source: Eq. 5 of GiGPO (arXiv 2505.10978).
    """
    function = "discounted_returns"
    gamma = arguments.discount(function, gamma)
    counted = arguments.validity(function, valid, "rewards", rewards)
    values = arguments.scores(function, "rewards", rewards, counted)
    timeline = time_order(
        function,
        arguments.labels(function, "trajectory", trajectory, counted),
        arguments.steps(function, step, counted),
        counted,
        all_valid=valid is None,
    )
    return returns_to_go(values, timeline, gamma).to(arguments.result_dtype(rewards))


def time_order(function: str, trajectory: Tensor, step: Tensor | None, valid: Tensor, *, all_valid: bool) -> Timeline:
    """Sort rows by trajectory and time."""
    keys = [key for key in (step, None if all_valid else ~valid) if key is not None]
    order = sort_rows(*keys, trajectory)
    segment = segment_ids(order, trajectory)
    counted = valid.index_select(0, order)
    if step is not None and checks.full_validation():
        _check_steps(function, order, segment, step, counted)
    place = torch.arange(order.shape[0], device=order.device)
    last = segment_max(torch.where(counted, place, -1), segment, -1)
    first = counted.clone()
    first[1:] &= segment[1:] != segment[:-1]
    return Timeline(order, segment, last.index_select(0, segment) - place, first)


def returns_to_go(rewards: Tensor, timeline: Timeline, gamma: float) -> Tensor:
    """(S,) float64 discounted returns of float64 rewards that are 0 where not valid."""
    returns = rewards.index_select(0, timeline.order)
    stride, reach = 1, _longest(timeline.remaining)
    while stride <= reach and gamma**stride > 0.0:  # also ends at once for gamma = 0, which keeps 0 * inf out
        # Multiplied and added by two kernels: a fused one rounds differently in its vector body and in its tail.
        following = torch.where(timeline.remaining[:-stride] >= stride, returns[stride:], 0.0)
        returns[:-stride].add_(following.mul_(gamma**stride))
        stride *= 2
    return to_rows(returns, timeline.order)


def _longest(remaining: Tensor) -> int:
    # On a GPU the exact bound would make the host wait; passes beyond it add zeros.
    bound = remaining.shape[0] - 1
    return int(remaining.max()) if remaining.device.type == "cpu" and bound > 0 else bound


def _check_steps(function: str, order: Tensor, segment: Tensor, step: Tensor, counted: Tensor) -> None:
    ordered = step.index_select(0, order)
    repeats = (segment[1:] == segment[:-1]) & (ordered[1:] == ordered[:-1]) & counted[1:] & counted[:-1]
    wrong = torch.zeros_like(counted)
    wrong[1:] |= repeats
    wrong[:-1] |= repeats
    arguments.fail_at(
        function,
        "step",
        to_rows(wrong, order),
        "different in all valid rows of a trajectory",
        "the same (trajectory, step)",
        "number steps from 0 in every trajectory, give every trajectory an id of its own, and set valid=False in copies of a row",
    )
