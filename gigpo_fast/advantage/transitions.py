"""Transitions: what each step did, as an edge from the state it was taken in to the state it led to, in the graph of its task."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_max, sort_segments, to_rows
from . import arguments
from .group import check_not_swapped
from .returns import Timeline, first_rows, time_order


class Transitions(NamedTuple):
    """The steps of a batch as edges. States are numbered over all tasks; the states of two tasks are never the same."""

    state: Tensor  # (S,) int64, the state of the step
    next_state: Tensor  # (S,) int64, the state it led to; -1 where nobody knows
    following: Tensor  # (S,) int64, the row of the next step of the trajectory; -1 at the last
    success: Tensor  # (S,) bool, the step ended its trajectory with success
    taken: Tensor  # (S,) bool, valid rows that were taken in a state; the others are no edges
    group: Tensor  # (S,) int64, dense number of the task
    timeline: Timeline


def transitions(
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) labels, task of each step
    anchor: Tensor | list,  # (S,) labels, state of each step; -1 = none
    *,
    success: Tensor | None = None,  # (S,) bool, True in any row of a trajectory: it ended with success
    next_anchor: Tensor | list | None = None,  # (S,) labels like anchor's, the state after each step; -1 = the next step's, or unknown
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
) -> Transitions:
    """The edges that the trajectories of each task walked.

    The same, slowly:

        for row in rows_of_a_trajectory_in_time_order:
            edges.append(((group[row], anchor[row]), (group[row], anchor[row + 1])))     # the last one: next_anchor, or nobody knows

    Without `next_anchor` a step leads to the state of the next step of its trajectory, and where the last one leads is unknown. With it,
    the two come from one numbering: group_states of the observations before and after, in one call. Rows that are not valid, or in no
    state, are skipped: the step before them leads to the step after. Any order of rows with `step`, else the time order of a trajectory.
    Waits for no GPU. Raises for labels that are floats; where values are checked also for a repeated (trajectory, step).
    """
    return read_transitions("transitions", trajectory, group, anchor, success, next_anchor, step, valid)


def read_transitions(
    function: str,
    trajectory: Tensor | list,
    group: Tensor | list,
    anchor: Tensor | list,
    success: Tensor | None,
    next_anchor: Tensor | list | None,
    step: Tensor | list | None,
    valid: Tensor | None,
    *,
    alone: bool = False,
) -> Transitions:
    """`transitions` for the function whose name the messages carry; with `alone` a valid row in no state is a state of its own."""
    like = next((value for value in (anchor, group, trajectory, valid) if isinstance(value, Tensor)), None)
    device = torch.device("cpu") if like is None else like.device
    rows = torch.ones(arguments.rows_of_labels(function, "anchor", anchor), dtype=torch.bool, device=device)
    counted = arguments.validity(function, valid, "anchor", rows)
    own, task = (arguments.labels(function, name, label, counted) for name, label in (("trajectory", trajectory), ("group", group)))
    given = None if next_anchor is None else arguments.labels(function, "next_anchor", next_anchor, counted, as_numbers=True)
    state = arguments.labels(function, "anchor", anchor, counted, as_numbers=given is not None)
    task, lone = numbered(task), state == -1
    taken = counted & (alone | ~lone)
    timeline = in_time(function, own, task, step, taken)
    following = following_rows(timeline)
    ended = torch.zeros_like(counted)
    if success is not None:
        flagged = checks.mask(function, success, tuple(counted.shape), counted.device, name="success")
        ended = taken & (following < 0) & anywhere(flagged & counted, timeline)

    after = torch.where(following >= 0, state[following.clamp(min=0)], -1)
    if given is not None:
        after = torch.where(given != -1, given, after)
    # One numbering for the states before and after; a row that leads nowhere known stands for its own state meanwhile.
    keys = [torch.cat([task, task]), torch.cat([state, torch.where(after != -1, after, state)])]
    if alone:
        place = torch.where(lone, torch.arange(lone.shape[0], device=lone.device), -1)
        keys.append(torch.cat([place, torch.where(after != -1, -1, place)]))
    both = numbered(*keys)
    before, reached = both[: state.shape[0]], both[state.shape[0] :]
    return Transitions(before, torch.where(taken & (after != -1), reached, -1), following, ended, taken, task, timeline)


def in_time(function: str, trajectory: Tensor, group: Tensor, step: Tensor | list | None, counted: Tensor) -> Timeline:
    """The counted rows in time order, trajectories compared within their group; refuses labels that are evidently swapped."""
    times = arguments.steps(function, step, counted)
    timeline = time_order(function, trajectory, times, counted, all_valid=False, group=group)
    check_not_swapped(function, trajectory, group, counted, lambda: first_rows(timeline))
    return timeline


def numbered(*labels: Tensor) -> Tensor:
    """(S,) int64, dense numbers for the combinations of labels."""
    order, number = sort_segments(list(labels), [])
    return to_rows(number, order)


def following_rows(timeline: Timeline) -> Tensor:
    """(S,) int64, for each counted row the next counted row of its trajectory, -1 at the last and for rows that do not count."""
    order, segment = timeline.order, timeline.trajectory
    counted = timeline.valid[order]
    following = torch.full_like(order, -1)
    linked = (segment[1:] == segment[:-1]) & counted[1:] & counted[:-1]
    following[:-1] = torch.where(linked, order[1:], -1)
    return to_rows(following, order)


def anywhere(flag: Tensor, timeline: Timeline) -> Tensor:
    """(S,) bool, whether any row of the row's trajectory is flagged."""
    flagged = flag[timeline.order].to(torch.int64)
    return to_rows(segment_max(flagged, timeline.trajectory, 0)[timeline.trajectory] > 0, timeline.order)
