"""Rewards for what changed between one trial and the next."""

import torch
from torch import Tensor

from ..advantage import arguments as labels_of
from ..segments import sort_rows
from . import arguments


def return_difference(
    returns: Tensor,  # (S,) float, int or bool, return of each trial
    task: Tensor | list,  # (S,) int64 or a list of str or int
    *,
    trial: Tensor | list | None = None,  # (S,) int64, order of the trials of a task; None: the rows stand in order
    valid: Tensor | None = None,  # (S,) bool
) -> Tensor:  # (S,) float32, float64 for float64 returns; 0 at the last trial of a task
    """The return of the next trial at the same task minus that of this one: the reward of the reflection between them.

    The same, slowly: `returns[i + 1] - returns[i]` for the trials of one task in order.

    Source: Retroformer (arXiv 2308.02151); its released code trains on a rating of this difference instead.
    """
    function = "return_difference"
    counted, values = arguments.rows(function, valid, returns=returns)
    own = labels_of.labels(function, "task", task, counted)
    place = labels_of.steps(function, trial, counted)
    rank = torch.arange(values.shape[0], device=values.device) if place is None else place
    order = sort_rows(rank, ~counted, own)
    ordered, label, used = values.index_select(0, order), own.index_select(0, order), counted.index_select(0, order)
    change = torch.zeros_like(ordered)
    change[:-1] = torch.where((label[1:] == label[:-1]) & used[1:], ordered[1:] - ordered[:-1], 0.0)
    return arguments.result(torch.empty_like(change).scatter_(0, order, change), counted, returns)
