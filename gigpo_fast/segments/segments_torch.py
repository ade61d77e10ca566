"""Segments in plain torch: for any device, and for machines without a compiler. Nothing reads a value back from a GPU."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .rows import segment_ids, segment_max, segment_sum, sort_rows, to_rows

_BLOCK = 1 << 15  # rows


def sort_segments(labels: list[Tensor], within: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(order, segment), both (S,) int64."""
    order = sort_rows(*within, *labels)
    return order, segment_ids(order, *labels)


def sort_compared(labels: list[Tensor], within: list[Tensor]) -> tuple[Tensor, Tensor, None]:
    """(order, segment, None): nothing here tells at no cost whether two rows are equal."""
    return *sort_segments(labels, within), None


def discounted_sums(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor, powers: list[float]) -> Tensor:
    """(S,) float64 by row: after the pass with stride d every row holds the discounted sum of its next 2d values."""
    sums, remaining = values.index_select(0, order), rows_after(counted, order, segment)
    stride, reach = 1, _longest(remaining)
    for power in powers:
        if stride > reach:
            break
        # Multiplied and added by two kernels: a fused one rounds differently in its vector body and in its tail.
        following = torch.where(remaining[:-stride] >= stride, sums[stride:], 0.0)
        sums[:-stride].add_(following.mul_(power))
        stride *= 2
    return to_rows(sums, order)


def segment_totals(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor) -> Tensor:
    """(S,) float64 by row."""
    found = _scaled_sums(*_sorted(values, counted, order), segment)
    return (found.sum * found.unscale).index_select(0, to_rows(segment, order))


def segment_moments(values: Tensor, counted: Tensor, order: Tensor, segment: Tensor, ddof: int) -> tuple[Tensor, ...]:
    """(count, mean, std, flat, number), each (S,) by row."""
    values, counted = _sorted(values, counted, order)
    found = _scaled_sums(values, counted, segment)
    flat, some = found.low == found.high, found.count > 0.0
    mean = torch.where(flat, found.low, found.sum / found.count.clamp(min=1.0) * found.unscale)

    spread = torch.maximum(found.high - mean, mean - found.low)
    scale, unscale = _unit_scale(spread)

    def squares(rows: slice, own: Tensor) -> Tensor:
        deviation = (values[rows] - mean.index_select(0, own)).mul_(scale.index_select(0, own))
        return deviation.square_()

    variance = _exact_sums(squares, counted, segment, mean.shape[0]) / (found.count - ddof).clamp(min=1.0)
    std = torch.where(spread.isfinite(), variance.sqrt() * unscale, float("nan"))
    number = to_rows(segment, order)
    tables = found.count, torch.where(some, mean, 0.0), torch.where(flat | ~some, 0.0, std), flat
    return *(table.index_select(0, number) for table in tables), number


def rows_after(counted: Tensor, order: Tensor, segment: Tensor) -> Tensor:
    """(S,) int64, how many counted rows follow each place in its segment; negative where the row is not counted."""
    place = torch.arange(order.shape[0], device=order.device)
    last = segment_max(torch.where(counted.index_select(0, order), place, -1), segment, -1)
    return last.index_select(0, segment) - place


class _ScaledSums(NamedTuple):
    """Of each segment, (G,) float64: bounds, count, and the sum as it is before it is multiplied by `unscale`."""

    low: Tensor
    high: Tensor
    count: Tensor
    sum: Tensor
    unscale: Tensor


def _sorted(values: Tensor, counted: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    return values.index_select(0, order), counted.index_select(0, order)


def _scaled_sums(values: Tensor, counted: Tensor, segment: Tensor) -> _ScaledSums:
    size, infinity = _number_of_segments(segment), float("inf")
    count = segment_sum(counted.to(torch.int64), segment, size).to(torch.float64)
    low = values.new_full((size,), infinity).scatter_reduce_(0, segment, torch.where(counted, values, infinity), "amin")
    high = values.new_full((size,), -infinity).scatter_reduce_(0, segment, torch.where(counted, values, -infinity), "amax")
    finite = low.isfinite() & high.isfinite()
    scale, unscale = _unit_scale(torch.maximum(low.abs(), high.abs()))
    exact = _exact_sums(lambda rows, own: values[rows] * scale.index_select(0, own), counted, segment, size)
    # Where a value is not finite, low + high is what the sum would be: infinite, or NaN.
    total = torch.where(finite | (count == 0.0), exact, low + high)
    return _ScaledSums(low, high, count, total, torch.where(finite, unscale, 1.0))


def _exact_sums(of_rows: Callable[[slice, Tensor], Tensor], counted: Tensor, segment: Tensor, size: int) -> Tensor:
    """(size,) sums by segment of numbers below 4: two integers of 31 and 32 bits stand for each, and sums of integers have no order.

    of_rows(rows, segment[rows]) gives the numbers of some rows; on a CPU in blocks, whose temporaries stay in its cache.
    """
    like = of_rows(slice(0, 0), segment[:0]).to(torch.int64)  # under vmap the numbers are batched though the labels are not
    high, low = like.new_zeros(size), like.new_zeros(size)
    step = _BLOCK if segment.device.type == "cpu" else max(segment.shape[0], 1)
    for start in range(0, segment.shape[0], step):
        rows = slice(start, start + step)
        own = segment[rows]
        scaled = torch.where(counted[rows], of_rows(rows, own), 0.0).mul_(2.0**31)
        whole = scaled.round()
        high.index_add_(0, own, whole.to(torch.int64))
        low.index_add_(0, own, scaled.sub_(whole).mul_(2.0**32).round_().to(torch.int64))
    return (high.to(torch.float64) + low.to(torch.float64) * 2.0**-32) * 2.0**-31


def _unit_scale(size: Tensor) -> tuple[Tensor, Tensor]:
    """The power of two that brings numbers up to `size` below 1 (the largest floats below 4), and its inverse; both exact."""
    exponent = (size.view(torch.int64) >> 52).clamp(1, 2044)  # of which scale and inverse are both normal numbers
    return ((2045 - exponent) << 52).view(torch.float64), ((exponent + 1) << 52).view(torch.float64)


# On a GPU the two numbers below would make the host wait; what is beyond them is empty and adds zeros.


def _longest(remaining: Tensor) -> int:
    bound = remaining.shape[0] - 1
    return int(remaining.max()) if remaining.device.type == "cpu" and bound > 0 else bound


def _number_of_segments(segment: Tensor) -> int:
    rows = segment.shape[0]
    return int(segment[-1]) + 1 if segment.device.type == "cpu" and rows > 0 else rows
