"""Turn-level credit: returns and gains compared between the turns of the same number of a task's trajectories."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..segments import segment_max, segment_totals, sort_segments, to_rows
from . import arguments
from .moments import moments, standardise
from .returns import Timeline, first_rows, returns_to_go
from .statistics import CORRECTED, GroupStatistics, check_options
from .transitions import in_time


class TurnGains(NamedTuple):
    """What the gains of a trajectory's turns say of each turn; one value a step."""

    advantages: Tensor  # (S,) the gains from the turn on, over the root of their number
    clip_factors: Tensor  # (S,) by which the turn's clip bounds are multiplied


def turn_baseline_advantages(
    rewards: Tensor,  # (S,) float, int or bool, reward of each turn
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) labels, task of each turn
    *,
    gamma: float = 1.0,
    leave_one_out: bool = True,
    step: Tensor | list | None = None,  # (S,) int64, time of each turn in its trajectory
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 rewards; 0 where not valid
    """The return to go of a turn minus what the group's other trajectories still got from that turn on: an unbiased baseline.

    The same, slowly (n trajectories in the group):

        R[i, t] = discounted return of trajectory i from turn t on, 0 where it has ended before
        advantages[i, t] = R[i, t] - (R[:, t].sum() - R[i, t]) / (n - 1)

    Without `leave_one_out` the mean over all n is subtracted, which is the same gradient times (n - 1) / n. A group of one gives 0.
    Returns are summed first and centred then, with finished trajectories as zeros: centring each turn's reward over the trajectories
    that have that turn, and summing then, subtracts as many terms as the policy chooses turns, and is biased.
    Accumulated in float64 and rounded once; the order of the rows changes no bit if `step` is given. Carries no gradient. Waits for no
    GPU. Raises for gamma outside [0, 1]; where values are checked also for rewards that are not finite and a repeated (trajectory, step).
    Source: the policy gradient theorem with a baseline that depends on the turn's number alone (Williams 1992).
    """
    function = "turn_baseline_advantages"
    gamma = arguments.discount(function, gamma)
    if not isinstance(leave_one_out, bool):
        checks.fail(function, "leave_one_out", "True or False", leave_one_out, "True is unbiased", error=TypeError)
    counted = arguments.validity(function, valid, "rewards", rewards)
    values = arguments.scores(function, "rewards", rewards, counted)
    task, timeline = _turns_in_time(function, trajectory, group, step, counted)
    returns = returns_to_go(values, timeline, gamma)
    still = segment_totals(returns, counted, *sort_segments([task, _turn_numbers(timeline)], []))
    size = segment_totals(first_rows(timeline).to(torch.float64), counted, *sort_segments([task], []))
    others = (still - returns) / (size - 1.0).clamp(min=1.0)
    baseline = others if leave_one_out else still / size.clamp(min=1.0)
    return torch.where(counted & (size > 1.0), returns - baseline, 0.0).to(arguments.result_dtype(rewards))


def turn_gain_advantages(
    gains: Tensor,  # (S,) float, what each turn added: the change of the probability of the right answer, say
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) labels, task of each turn
    *,
    gamma: float = 1.0,
    clip_range: float = 0.3,
    step: Tensor | list | None = None,  # (S,) int64, time of each turn in its trajectory
    valid: Tensor | None = None,  # (S,) bool
    scale: str | None = "std",
    statistics: GroupStatistics = CORRECTED,
) -> TurnGains:  # two of (S,) float32, float64 for float64 gains
    """Gains compared among the turns of the same number, summed from each turn on over the root of how many they are.

    The same, slowly:

        z = group_advantages(gains, (group, turn number), scale=scale)
        advantages[t] = sum of gamma ** (j - t) * z[j] for j >= t, / sqrt(number of terms)
        clip_factors = 1 + clip_range * (2 * sigmoid(z) - 1)

    The method adds 0.3 of it to the episode's advantage, with one ratio a turn. A turn that no other trajectory has gives z 0. Centring by
    turn number before summing is biased if the gains themselves are to be maximised (see `turn_baseline_advantages`); here they shape.
    Assumed: eps 1e-6, n - 1. Precision and errors as in `turn_baseline_advantages`.
    Source: A2TGPO (arXiv 2605.06200), as restated; its code also gives 0 to lone turns.
    """
    function = "turn_gain_advantages"
    check_options(function, scale, statistics)
    gamma = arguments.discount(function, gamma)
    clip_range = checks.number(function, "clip_range", clip_range, at_least=0.0, fix="0.3 is the paper's, 0.0 changes no bound")
    counted = arguments.validity(function, valid, "gains", gains)
    values = arguments.scores(function, "gains", gains, counted)
    task, timeline = _turns_in_time(function, trajectory, group, step, counted)
    among = dataclasses.replace(statistics, singleton="zero")
    z = standardise(values, moments(values, counted, task, _turn_numbers(timeline), ddof=statistics.ddof), scale, among)
    z = torch.where(counted, z, 0.0)
    terms = returns_to_go(counted.to(torch.float64), timeline, 1.0).clamp(min=1.0)
    summed = returns_to_go(z, timeline, gamma) / terms.sqrt()
    factors = 1.0 + clip_range * (2.0 * torch.sigmoid(z) - 1.0)
    dtype = arguments.result_dtype(gains)
    return TurnGains(torch.where(counted, summed, 0.0).to(dtype), torch.where(counted, factors, 1.0).to(dtype))


def _turns_in_time(function: str, trajectory, group, step, counted: Tensor) -> tuple[Tensor, Timeline]:
    own, task = (arguments.labels(function, name, label, counted) for name, label in (("trajectory", trajectory), ("group", group)))
    return task, in_time(function, own, task, step, counted)


def _turn_numbers(timeline: Timeline) -> Tensor:
    """(S,) int64, the number of each counted row in its trajectory, from 0."""
    place = torch.arange(timeline.order.shape[0], device=timeline.order.device)
    start = -segment_max(-place, timeline.trajectory, -place.shape[0])[timeline.trajectory]
    return to_rows(place - start, timeline.order)
