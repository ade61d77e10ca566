"""Count, mean and standard deviation of the scores of each group, seen from every row.

The scores of a group are summed in an order of their own (by their bits), so the result does not depend on the order of the
rows, to the last bit. Variance is taken around the mean in a second pass: E[x^2] - E[x]^2 loses all digits of small spreads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..segments import segment_ids, segment_max, segment_min, segment_sum, sort_rows, to_rows
from .statistics import GroupStatistics


class Moments(NamedTuple):
    """Statistics of the counted scores of each row's group."""

    count: Tensor  # (S,) float64
    mean: Tensor  # (S,) float64; exactly the common score where all are equal
    std: Tensor  # (S,) float64; exactly 0 where all scores are equal
    flat: Tensor  # (S,) bool, all counted scores are equal
    segment: Tensor  # (S,) int64, dense number of the group


def moments(
    values: Tensor,  # (S,) float64
    counted: Tensor,  # (S,) bool
    *labels: Tensor,  # (S,) int64 each; a group is one combination of labels
    ddof: int,
) -> Moments:
    """The statistics of every group of rows."""
    infinity = float("inf")
    values = torch.where(counted, values, 0.0)
    order = sort_rows(values.view(torch.int64), *labels)  # bits, because integers sort by radix; any fixed order will do
    segment = segment_ids(order, *labels)
    values, counted = values.index_select(0, order), counted.index_select(0, order)

    size = values.shape[0]
    count = segment_sum(counted.to(torch.float64), segment, size)
    low = segment_min(torch.where(counted, values, infinity), segment, infinity)
    high = segment_max(torch.where(counted, values, -infinity), segment, -infinity)
    flat = low == high
    mean = torch.where(flat, low, segment_sum(values, segment, size) / count.clamp(min=1.0))
    deviation = torch.where(counted, values - mean.index_select(0, segment), 0.0)
    variance = segment_sum(deviation * deviation, segment, size) / (count - ddof).clamp(min=1.0)
    std = variance.rsqrt().reciprocal()  # sqrt is split over threads from 2,048 values on, where waking one costs more than all of this

    own = to_rows(segment, order)
    return Moments(*(statistic.index_select(0, own) for statistic in (count, mean, std, flat)), own)


def standardise(scores: Tensor, group: Moments, scale: str | None, statistics: GroupStatistics) -> Tensor:
    """(S,) float64: scores minus the mean of their group, over its standard deviation if asked; the rules for odd groups applied."""
    centred = scores - group.mean
    alone = scores if statistics.singleton == "raw" else torch.zeros_like(scores)
    if scale == "std":
        centred = centred / (group.std + statistics.eps)
        alone = alone / (1.0 + statistics.eps)
        if statistics.zero_variance == "zero":
            # Rows of one trajectory may differ where the counted means do not; over a deviation of 0 they would explode.
            centred = torch.where(group.flat, 0.0, centred)
    return torch.where(group.count > 1.0, centred, alone)
