"""Count, mean and standard deviation of the scores of each group, seen from every row.

The sums of a group are sums of integers (see `segments`), so the result does not depend on the order of the rows, to the last bit.
Variance is taken around the mean in a second pass: E[x^2] - E[x]^2 loses all digits of small spreads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..segments import segment_moments, sort_segments
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
    order, segment = sort_segments(list(labels), [])
    return Moments(*segment_moments(values, counted, order, segment, ddof))


def standardise(scores: Tensor, group: Moments, scale: str | None, statistics: GroupStatistics) -> Tensor:
    """(S,) float64: scores minus the mean of their group, over its standard deviation if asked; the rules for odd groups applied."""
    centred = scores - group.mean
    if scale == "std":
        centred /= group.std + statistics.eps
        if statistics.zero_variance == "zero":
            # Rows of one trajectory may differ where the counted means do not; over a deviation of 0 they would explode.
            centred.masked_fill_(group.flat, 0.0)
    if statistics.singleton == "zero":
        return centred.masked_fill_(group.count <= 1.0, 0.0)
    alone = scores / (1.0 + statistics.eps) if scale == "std" else scores
    return torch.where(group.count > 1.0, centred, alone)
