"""GraphGPO: credit of a step by how near to success it led, among the steps taken in the same state."""

import dataclasses

import torch
from torch import Tensor

from .. import checks
from ..segments import to_rows
from ..types import GiGPOAdvantages
from . import arguments
from .distances import success_distances
from .group import group_advantages, whole_trajectories
from .moments import moments, standardise
from .returns import trajectory_sums
from .statistics import CORRECTED, GroupStatistics, check_options
from .transitions import Transitions, read_transitions


def graph_advantages(
    rewards: Tensor,  # (S,) float, int or bool, reward of each step
    trajectory: Tensor | list,  # (S,) labels, compared within their group
    group: Tensor | list,  # (S,) labels, task of each step
    anchor: Tensor | list,  # (S,) labels, state of each step; -1 = none
    *,
    success: Tensor,  # (S,) bool, True in any row of a trajectory: it ended with success
    next_anchor: Tensor | list | None = None,  # (S,) labels, the state after each step; see `transitions`
    edges_only: Tensor | None = None,  # (S,) bool, rows of earlier batches: searched, outside every statistic, advantage 0
    step: Tensor | list | None = None,  # (S,) int64, time of each step in its trajectory
    valid: Tensor | None = None,  # (S,) bool
    episode_scores: Tensor | None = None,  # (S,) float, used in place of the trajectory's sum of rewards
    decay: float = 0.1,
    credit: float = 10.0,
    step_weight: float = 1.0,
    scale: str | None = "std",
    statistics: GroupStatistics = CORRECTED,
) -> GiGPOAdvantages:  # four of (S,) float32, float64 if rewards or episode_scores are
    """The episode's advantage plus that of where the step led, by its distance to success in the graph of the task.

    The same, slowly:

        distance = success_distances(transitions(trajectory, group, anchor, success=success))
        raw = credit * decay ** distance                                        # `step_returns` of the result
        graph = group_advantages(raw, (group, anchor), scale=scale)
        advantages = group_advantages(total, group, trajectory=trajectory, scale=scale) + step_weight * graph

    A state met once gives 0, as does a task without success. The deviation's eps is a horizon: two moves that end 8 and 9 moves from
    success differ by less than it and get next to nothing, so another eps in `statistics` is another method. `statistics` is that of
    the episode level; of it the graph takes eps, ddof and zero_variance. VERL_AGENT is the port's "reference_cross_steps".
    Sums, means and deviations in float64, each result rounded once; the order of the rows changes no bit if `step` is given. Carries no
    gradient. Raises for decay outside [0, 1] and step_weight < 0; otherwise as `gigpo_advantages` does.
    Source: GraphGPO (arXiv 2605.26684) as a public port runs it; its equation 4 has decay^(distance + 1), the same after dividing by the
    deviation but for eps. Rewards there are 10 success - 0.1 (invalid actions).
    `edges_only`: the graph that TIGPO (arXiv 2609.03383) keeps over updates.
    """
    function = "graph_advantages"
    check_options(function, scale, statistics)
    decay = arguments.discount(function, decay, name="decay")
    credit = checks.number(function, "credit", credit, above=0.0, fix="10.0 is usual")
    step_weight = checks.number(function, "step_weight", step_weight, at_least=0.0, fix="1.0 is usual, 0.0 turns the graph off")
    walked = arguments.validity(function, valid, "rewards", rewards)
    edges = read_transitions(function, trajectory, group, anchor, success, next_anchor, step, walked)
    counted = walked
    if edges_only is not None:
        counted = walked & ~checks.mask(function, edges_only, tuple(walked.shape), walked.device, name="edges_only")
    values = arguments.scores(function, "rewards", rewards, counted)
    distance = success_distances(edges)
    known = counted & distance.isfinite()
    raw = torch.where(known, credit * decay ** torch.where(known, distance, 0.0), 0.0)
    of_state = moments(raw, known, edges.state, ddof=statistics.ddof)
    graph = torch.where(known, standardise(raw, of_state, scale, dataclasses.replace(statistics, singleton="zero")), 0.0)

    dtype = arguments.result_dtype(rewards, episode_scores)
    episode = episode_advantages(function, values, episode_scores, counted, edges, scale, statistics, dtype)
    return GiGPOAdvantages(*(result.to(dtype) for result in (episode + step_weight * graph, episode, graph, raw)))


def episode_advantages(
    function: str,
    rewards: Tensor,  # (S,) float64, 0 where not counted
    episode_scores: Tensor | None,
    counted: Tensor,
    edges: Transitions,
    scale: str | None,
    statistics: GroupStatistics,
    dtype: torch.dtype,
) -> Tensor:
    """(S,) float64, the episode level of every estimator over transitions: of the given scores, or of the sums of the rewards."""
    names = to_rows(edges.timeline.trajectory, edges.timeline.order)
    if episode_scores is None:
        scores = trajectory_sums(rewards, edges.timeline._replace(valid=counted)).to(dtype).to(torch.float64)
        return whole_trajectories(scores, edges.group, names, scale, statistics, counted)
    scores = arguments.scores(function, "episode_scores", episode_scores, counted)
    return group_advantages(scores, edges.group, scale=scale, statistics=statistics, trajectory=names, valid=counted)
