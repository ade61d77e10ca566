"""Discounted returns to go, of all trajectories at once.

Rows are brought into time order by one stable sort, then summed by doubling (see `segments`). The order of additions depends on the
rewards that follow a row alone, so two rows with the same future get the same bits, wherever they stand in the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..segments import discounted_sums, segment_totals, sort_compared, to_rows
from . import arguments


class Timeline(NamedTuple):
    """Rows sorted by trajectory and time; within a trajectory the valid rows stand first."""

    order: Tensor  # (S,) int64, the row at each place
    trajectory: Tensor  # (S,) int64, dense number of the trajectory at each place
    valid: Tensor  # (S,) bool, of each row


def discounted_returns(
    rewards: Tensor,  # (S,) float, int or bool, reward of each step
    trajectory: Tensor | list,  # (S,) labels, compared within their group; without `group` unique over all tasks
    *,
    gamma: float,
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
    group: Tensor | list | None = None,  # (S,) labels, task of each step: for trajectories that are numbered anew in each
) -> Tensor:  # (S,) float32, float64 for float64 rewards
    """The discounted sum of the rewards from each step to the end of its trajectory.

    The same, slowly:

        for t in reversed(range(S)):                       # rows of a trajectory stand in time order
            returns[t] = rewards[t] + gamma * following.get(trajectory[t], 0.0)
            following[trajectory[t]] = returns[t]

    Without `step` the rows of a trajectory must stand in time order, other trajectories may stand in between; with it, any
    order will do. Rows that are not valid are skipped: they return 0 and the step before them is followed by the step after.
    Accumulated in float64 and rounded once. Carries no gradient. Raises for gamma outside [0, 1]; where values are checked also
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
        group=None if group is None else arguments.labels(function, "group", group, counted),
    )
    return returns_to_go(values, timeline, gamma).to(arguments.result_dtype(rewards))


def time_order(
    function: str, trajectory: Tensor, step: Tensor | None, valid: Tensor, *, all_valid: bool, group: Tensor | None = None
) -> Timeline:
    """Sort rows by trajectory, which is compared within its group, and time."""
    keys = [key for key in (step, None if all_valid else (~valid).to(torch.int64)) if key is not None]
    order, segment, repeated = sort_compared([trajectory] if group is None else [trajectory, group], keys)
    if step is not None and checks.values_wanted(step, valid) and (repeated is None or repeated.item()):
        _check_steps(function, order, segment, step, valid.index_select(0, order))
    return Timeline(order, segment, valid)


def returns_to_go(rewards: Tensor, timeline: Timeline, gamma: float) -> Tensor:
    """(S,) float64 discounted returns of float64 rewards that are 0 where not valid."""
    return discounted_sums(rewards, timeline.valid, timeline.order, timeline.trajectory, gamma)


def trajectory_sums(rewards: Tensor, timeline: Timeline) -> Tensor:
    """(S,) float64, the sum of the rewards of each row's trajectory."""
    return segment_totals(rewards, timeline.valid, timeline.order, timeline.trajectory)


def first_rows(timeline: Timeline) -> Tensor:
    """(S,) bool, the first valid row of each trajectory."""
    first = torch.ones_like(timeline.valid)
    first[1:] = timeline.trajectory[1:] != timeline.trajectory[:-1]
    return to_rows(first, timeline.order) & timeline.valid


def _check_steps(function: str, order: Tensor, segment: Tensor, step: Tensor, counted: Tensor) -> None:
    ordered = step.index_select(0, order)
    repeats = ordered[1:] == ordered[:-1]
    repeats &= segment[1:] == segment[:-1]
    if not bool(repeats.any()):
        return
    repeats &= counted[1:] & counted[:-1]
    wrong = torch.zeros_like(counted)
    wrong[1:] |= repeats
    wrong[:-1] |= repeats
    arguments.fail_at(
        function,
        "step",
        to_rows(wrong, order),
        "different in all valid rows of a trajectory",
        "the same (trajectory, step)",
        "number steps from 0 in every trajectory, pass group or give every trajectory an id of its own, and set valid=False in copies",
    )
