"""Distances to success: the fewest observed moves from each state to the end of a successful trajectory, for all tasks at once."""

import torch
from torch import Tensor

from .. import backend, native_memory
from ..segments import segment_max
from .transitions import Transitions


def success_distances(edges: Transitions) -> Tensor:  # (S,) float64
    """How many moves a row's task still needs after the row: 0 where it ended with success.

    The same, slowly: a breadth-first search backwards from success over the graph of the task, read at where each row leads.

    Where no observed path leads to success it is one more than the largest distance of a state in the task; NaN in a task without any
    success and in rows that are no edges. One search for all tasks, over every edge once. On a GPU it waits once for each move of the
    longest distance.
    """
    known = edges.taken & ~edges.success & (edges.next_state >= 0)
    goals = edges.state[edges.taken & edges.success]
    found = shortest_paths(edges.state[known], edges.next_state[known], goals, 2 * edges.state.shape[0])
    after = torch.where(known, found[edges.next_state.clamp(min=0)], -1)
    after = torch.where(edges.success, 0, after)
    reached = torch.where(edges.taken, torch.maximum(after, found[edges.state]), -1)
    farthest = segment_max(reached, edges.group, -1)[edges.group]
    distance = torch.where(after < 0, farthest + 1, after).to(torch.float64)
    return torch.where(edges.taken & (farthest >= 0), distance, float("nan"))


def shortest_paths(source: Tensor, target: Tensor, goals: Tensor, size: int) -> Tensor:
    """(size,) int64: moves from each state to success, given edges source -> target (E,) and the states one move away; -1: no path."""
    if backend.choose(source.device) == "native":
        return native_memory.call("success_distances", torch.ops.gigpo_fast_C.graph_distances, source, target, goals, size)
    order = torch.argsort(target, stable=True)
    starts = torch.searchsorted(target[order], torch.arange(size + 1, device=target.device))
    distance = torch.full((size,), -1, dtype=torch.int64, device=target.device)
    frontier, length = goals.unique(), 1
    while frontier.numel():
        distance[frontier] = length
        first, count = starts[frontier], starts[frontier + 1] - starts[frontier]
        place = torch.arange(int(count.sum()), device=target.device) - (count.cumsum(0) - count).repeat_interleave(count)
        before = source[order[first.repeat_interleave(count) + place]]
        frontier, length = before[distance[before] < 0].unique(), length + 1
    return distance
