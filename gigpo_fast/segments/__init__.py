"""Segments: rows with equal labels, brought together by sorting, and what is computed of each: sums, mean, deviation.

`sort_segments`, `discounted_sums`, `segment_totals` and `segment_moments` have a path in C++, in Triton and in torch behind one
signature. All three give the same bits, for any number of threads and any order of programs: discounted sums are taken in one fixed
order that depends on the rows that follow alone, and the sums behind totals, means and deviations are sums of integers, which have no
order. (The one exception: torch's own float64 root, which is off by one unit in the last place on some CPUs.)
"""

from types import ModuleType

import torch
from torch import Tensor

from .. import backend
from .rows import dense_labels, running_sums, segment_ids, segment_max, segment_min, segment_sum, sort_rows, to_rows

__all__ = [
    "dense_labels",
    "discount_powers",
    "discounted_sums",
    "running_sums",
    "segment_ids",
    "segment_max",
    "segment_min",
    "segment_moments",
    "segment_sum",
    "segment_totals",
    "sort_compared",
    "sort_rows",
    "sort_segments",
    "to_rows",
]


def sort_segments(labels: list[Tensor], within: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Bring rows with equal `labels` (S,) int64 together, sorted by the keys `within` (S,) int64 inside a segment; ties keep their order.

    Returns the row at each place and the dense number of its segment, both (S,) int64. In both lists the last key counts most.
    """
    return _path(labels[0].device).sort_segments(labels, within)


def sort_compared(labels: list[Tensor], within: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
    """`sort_segments`, and whether two rows have all keys equal, a 0-dim bool; None on a path that would need another pass to tell."""
    return _path(labels[0].device).sort_compared(labels, within)


def discounted_sums(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor, gamma: float) -> Tensor:
    """(S,) float64 in the order of the rows: the sum of gamma^k times the value k places later in the same segment.

        for place in reversed(range(S)):
            row, after = order[place], order[place + 1] if segment[place + 1] == segment[place] else None
            sums[row] = values[row] + gamma * (sums[after] if after is not None and counted[after] else 0.0)

    `values` (S,) float64 and `counted` (S,) bool are by row; within a segment the counted rows come first, the others keep their value.
    Adding by doubling (the sums of 2d terms from those of d) instead of one by one keeps the error at a logarithm of the length.
    """
    return _path(values.device).discounted_sums(values, counted, order, segment, discount_powers(gamma, values.shape[0]))


def segment_totals(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor) -> Tensor:
    """(S,) float64: for each row the sum of the counted values of its segment, 0 without any.

    `values` (S,) float64 and `counted` (S,) bool are by row. Precision as in `segment_moments`.
    """
    return _path(values.device).segment_totals(values, counted, order, segment)


def segment_moments(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor, ddof: int) -> tuple[Tensor, ...]:
    """For each row the count, mean and standard deviation of its segment's counted values, whether all are equal, and its number.

        own = values[(number == number[row]) & counted]
        count[row], mean[row], std[row], flat[row] = len(own), own.mean(), own.std(correction=ddof), own.min() == own.max()

    `values` (S,) float64 and `counted` (S,) bool are by row; so are the results, (S,) float64, float64, float64, bool, int64. Segments
    without a counted row have 0, 0, 0, False. Mean and deviation are exact where all values are equal; elsewhere a value is rounded
    to 2^-63 of the segment's largest, once, and the sum of these integers is exact. The deviation is taken around the mean, in a
    second pass.
    """
    return _path(values.device).segment_moments(values, counted, order, segment, ddof)


def discount_powers(gamma: float, rows: int) -> list[float]:
    """gamma^1, gamma^2, gamma^4, ... for the doubling passes that `rows` rows need; ends where the powers vanish."""
    powers, stride = [], 1
    while stride < rows and gamma**stride > 0.0:  # also ends at once for gamma = 0, which keeps 0 * inf out
        powers.append(gamma**stride)
        stride *= 2
    return powers


def _path(device: torch.device) -> ModuleType:
    name = backend.choose(device)
    if name == "native":
        from . import segments_native

        return segments_native
    if name == "triton":
        from . import segments_triton

        return segments_triton
    from . import segments_torch

    return segments_torch
