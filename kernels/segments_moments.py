"""Sum, mean and standard deviation of each segment, by sums of integers: atomic additions in any order give the same bits.

A power of two brings a segment's values below 1, then two integers of 31 and 32 bits stand for each value. Programs take tiles of rows,
however long or short the segments are: a tile is scanned, and each segment's part of it is added by one atomic addition to the
segment's two integers. One launch finds bounds and counts, the next sums values, the next squares of deviations from the mean; the
last gives every row what was found of its segment.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import fail, on_device, vector

BLOCK = 256  # places a program; quotients and roots in float64 take many registers
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
LARGEST = 2**63 - 1


@triton.jit
def sortable(x):
    """The float64 as an int64 that compares alike, and back. NaN is beyond the infinities."""
    bits = x.to(tl.int64, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFFFFFFFFFF, bits)


@triton.jit
def unsortable(key):
    return tl.where(key < 0, key ^ 0x7FFFFFFFFFFFFFFF, key).to(tl.float64, bitcast=True)


@triton.jit
def unit_scale(size):
    """The power of two that brings numbers up to `size` below 1 (the largest floats below 4), and its inverse; both exact."""
    exponent = tl.minimum(tl.maximum(size.to(tl.int64, bitcast=True) >> 52, 1), 2044)
    return ((2045 - exponent) << 52).to(tl.float64, bitcast=True), ((exponent + 1) << 52).to(tl.float64, bitcast=True)


@triton.jit
def finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def as_integers(x):
    """round(2^31 x), and what that leaves out in units of 2^-63, for |x| < 4. Adding 1.5 * 2^52 and subtracting it rounds to an integer."""
    scaled = x * 2147483648.0
    first = (scaled + 6755399441055744.0) - 6755399441055744.0
    rest = ((scaled - first) * 4294967296.0 + 6755399441055744.0) - 6755399441055744.0
    return first.to(tl.int64), rest.to(tl.int64)


@triton.jit
def as_float(first, rest):
    return (first.to(tl.float64) + rest.to(tl.float64) * 2.3283064365386963e-10) * 4.656612873077393e-10


@triton.jit
def total_of(low, high, first, rest):
    """(sum, factor) of values from their bounds and the sum of their integers: the product of both is the total."""
    _, unscale = unit_scale(tl.maximum(tl.abs(low), tl.abs(high)))
    all_finite = finite(low) & finite(high)
    # Where a value is not finite, low + high is what the sum would be: infinite, or NaN.
    return tl.where(all_finite, as_float(first, rest), low + high), tl.where(all_finite, unscale, 1.0)


@triton.jit
def mean_of(low, high, first, rest, count):
    """The mean of `count` >= 1 values."""
    total, unscale = total_of(low, high, first, rest)
    return tl.where(low == high, low, total / count.to(tl.float64) * unscale)


@triton.jit
def spread_of(low, high, mean):
    return tl.maximum(high - mean, mean - low)


@triton.jit
def merge_bounds(own_a, low_a, high_a, count_a, own_b, low_b, high_b, count_b):
    same = own_a == own_b
    low = tl.where(same, tl.minimum(low_a, low_b), low_b)
    high = tl.where(same, tl.maximum(high_a, high_b), high_b)
    return own_b, low, high, tl.where(same, count_a + count_b, count_b)


@triton.jit
def merge_sums(own_a, first_a, rest_a, own_b, first_b, rest_b):
    same = own_a == own_b
    return own_b, tl.where(same, first_a + first_b, first_b), tl.where(same, rest_a + rest_b, rest_b)


@triton.jit
def places(order, segment, rows, BLOCK: tl.constexpr):
    """(row, segment, inside) of each place of the tile."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < rows
    return tl.load(order + at, mask=inside, other=0), tl.load(segment + at, mask=inside, other=-1), inside


@triton.jit
def tile(values, counted, order, segment, rows, BLOCK: tl.constexpr):
    """(value, used, segment, last of its segment in this tile) of each place of the tile; value 0 where not used."""
    row, own, inside = places(order, segment, rows, BLOCK)
    lane = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * BLOCK + lane
    following = tl.load(segment + (at + 1), mask=at + 1 < rows, other=-1)
    used = inside & (tl.load(counted + row, mask=inside, other=0) != 0)
    value = tl.load(values + row, mask=used, other=0.0)
    return value, used, own, inside & ((following != own) | (lane == BLOCK - 1))


@triton.jit(do_not_specialize=["rows"])
def bounds_kernel(values, counted, order, segment, low, high, count, rows: tl.int64, BLOCK: tl.constexpr):
    value, used, own, last = tile(values, counted, order, segment, rows, BLOCK)
    key = sortable(value)
    smallest, largest = tl.where(used, key, 0x7FFFFFFFFFFFFFFF), tl.where(used, key, -0x7FFFFFFFFFFFFFFF)
    _, smallest, largest, found = tl.associative_scan((own, smallest, largest, used.to(tl.int64)), 0, merge_bounds)
    tl.atomic_min(low + own, smallest, mask=last, sem="relaxed")
    tl.atomic_max(high + own, largest, mask=last, sem="relaxed")
    tl.atomic_add(count + own, found, mask=last, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def sums_kernel(
    values, counted, order, segment, low, high, count, first, rest, square_first, square_rest, rows: tl.int64,
    SQUARES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    value, used, own, last = tile(values, counted, order, segment, rows, BLOCK)
    least, most = unsortable(tl.load(low + own, mask=used, other=0)), unsortable(tl.load(high + own, mask=used, other=0))
    if SQUARES:
        have = tl.load(first + own, mask=used, other=0), tl.load(rest + own, mask=used, other=0)
        mean = mean_of(least, most, have[0], have[1], tl.load(count + own, mask=used, other=1))
        scale, _ = unit_scale(spread_of(least, most, mean))
        deviation = (value - mean) * scale
        x = deviation * deviation
    else:
        scale, _ = unit_scale(tl.maximum(tl.abs(least), tl.abs(most)))
        x = value * scale
    whole, part = as_integers(tl.where(used, x, 0.0))
    _, whole, part = tl.associative_scan((own, whole, part), 0, merge_sums)
    tl.atomic_add((square_first if SQUARES else first) + own, whole, mask=last, sem="relaxed")
    tl.atomic_add((square_rest if SQUARES else rest) + own, part, mask=last, sem="relaxed")


@triton.jit(do_not_specialize=["rows"])
def totals_kernel(order, segment, low, high, count, first, rest, totals, rows: tl.int64, BLOCK: tl.constexpr):
    row, own, inside = places(order, segment, rows, BLOCK)
    used = inside & (tl.load(count + own, mask=inside, other=0) > 0)
    least, most = unsortable(tl.load(low + own, mask=used, other=0)), unsortable(tl.load(high + own, mask=used, other=0))
    total, unscale = total_of(least, most, tl.load(first + own, mask=used, other=0), tl.load(rest + own, mask=used, other=0))
    tl.store(totals + row, tl.where(used, total * unscale, 0.0), mask=inside)


@triton.jit(do_not_specialize=["rows", "ddof"])
def moments_kernel(
    order, segment, low, high, count, first, rest, square_first, square_rest, counts, means, stds, flats, numbers,
    rows: tl.int64, ddof: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    row, own, inside = places(order, segment, rows, BLOCK)
    found = tl.load(count + own, mask=inside, other=0)
    used = found > 0
    least, most = unsortable(tl.load(low + own, mask=used, other=0)), unsortable(tl.load(high + own, mask=used, other=0))
    mean = mean_of(least, most, tl.load(first + own, mask=used, other=0), tl.load(rest + own, mask=used, other=0), tl.maximum(found, 1))
    spread = spread_of(least, most, mean)
    _, unscale = unit_scale(spread)
    squares = as_float(tl.load(square_first + own, mask=used, other=0), tl.load(square_rest + own, mask=used, other=0))
    std = tl.sqrt(squares / tl.maximum(found - ddof, 1).to(tl.float64)) * unscale
    flat = used & (least == most)
    tl.store(counts + row, found.to(tl.float64), mask=inside)
    tl.store(means + row, tl.where(used, mean, 0.0), mask=inside)
    tl.store(stds + row, tl.where(flat | ~used, 0.0, tl.where(finite(spread), std, float("nan"))), mask=inside)
    tl.store(flats + row, flat, mask=inside)
    tl.store(numbers + row, own, mask=inside)


class Tables(NamedTuple):
    """Of each segment, (S,) int64 each."""

    low: Tensor  # sortable bits of the smallest counted value
    high: Tensor
    count: Tensor
    first: Tensor  # the two integers of the sum of the values
    rest: Tensor
    square_first: Tensor  # and of the squares
    square_rest: Tensor


def segment_totals(
    values: Tensor,  # (S,) float64, by row
    counted: Tensor,  # (S,) bool, by row
    order: Tensor,  # (S,) int64, the row at each place
    segment: Tensor,  # (S,) int64, dense number of the segment at each place
    *,
    block: int = BLOCK,
) -> Tensor:  # (S,) float64, by row
    """For each row the sum of the counted values of its segment, 0 without any: values[(number == number[row]) & counted].sum()."""
    given, tables, rows = _prepared("segment_totals", values, counted, order, segment)
    totals = torch.empty_like(given[0])
    if rows:
        grid = (triton.cdiv(rows, block),)
        with on_device(values):
            bounds_kernel[grid](*given, *tables[:3], rows, BLOCK=block, **OPTIONS)
            sums_kernel[grid](*given, *tables, rows, SQUARES=False, BLOCK=block, **OPTIONS)
            totals_kernel[grid](*given[2:], *tables[:5], totals, rows, BLOCK=block, **OPTIONS)
    return totals


def segment_moments(
    values: Tensor,  # (S,) float64, by row
    counted: Tensor,  # (S,) bool, by row
    order: Tensor,  # (S,) int64, the row at each place
    segment: Tensor,  # (S,) int64, dense number of the segment at each place
    ddof: int,
    *,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # (S,) float64, float64, float64, bool, int64, by row
    """For each row the count, mean and standard deviation of its segment's counted values, whether all are equal, and its number.

        own = values[(number == number[row]) & counted]
        count[row], mean[row], std[row], flat[row] = len(own), own.mean(), own.std(correction=ddof), own.min() == own.max()

    Segments without a counted row have 0, 0, 0, False.
    """
    given, tables, rows = _prepared("segment_moments", values, counted, order, segment)
    results = *(torch.empty_like(given[0]) for _ in range(3)), torch.empty_like(given[1]), torch.empty_like(given[3])
    if rows:
        grid = (triton.cdiv(rows, block),)
        with on_device(values):
            bounds_kernel[grid](*given, *tables[:3], rows, BLOCK=block, **OPTIONS)
            sums_kernel[grid](*given, *tables, rows, SQUARES=False, BLOCK=block, **OPTIONS)
            sums_kernel[grid](*given, *tables, rows, SQUARES=True, BLOCK=block, **OPTIONS)
            moments_kernel[grid](*given[2:], *tables, *results, rows, ddof, BLOCK=block, **OPTIONS)
    return results


def _prepared(name: str, values: Tensor, counted: Tensor, order: Tensor, segment: Tensor) -> tuple[tuple[Tensor, ...], Tables, int]:
    if values.dim() != 1 or values.dtype != torch.float64:
        fail(name, "values", "(S,) float64", values, "accumulate in float64 and round the result once")
    rows, device = values.shape[0], values.device
    order, segment = (vector(name, key, value, rows, device, torch.int64) for key, value in (("order", order), ("segment", segment)))
    width = triton.cdiv(rows, 16) * 16  # every table is aligned, or the residue of each length would compile kernels of its own
    bounds = torch.full((2, width), LARGEST, dtype=torch.int64, device=device)[:, :rows]
    bounds[1].neg_()
    zeros = torch.zeros((5, width), dtype=torch.int64, device=device)[:, :rows]
    counted = vector(name, "counted", counted, rows, device, torch.bool)
    return (values.contiguous(), counted, order, segment), Tables(*bounds, *zeros), rows
