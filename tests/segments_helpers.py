"""Segments that break sums, what exact arithmetic says of them, and how near a result has to be."""

import contextlib
import math
from decimal import Decimal, getcontext
from fractions import Fraction

import torch

from gigpo_fast import backend, segments

getcontext().prec = 60
KINDS = ("ordinary", "wide", "counts", "offset", "cancelling", "largest", "smallest", "not finite")
RESULTS = ("count", "mean", "std", "flat", "number")


def numbers(kind, rows, generator):
    """(rows,) float64 of one kind."""
    values = torch.randn(rows, dtype=torch.float64, generator=generator)
    if kind == "wide":  # 24 orders of magnitude in one segment
        values *= 10.0 ** torch.randint(-12, 12, (rows,), generator=generator)
    elif kind == "counts":
        values = torch.randint(0, 3, (rows,), generator=generator).double()
    elif kind == "offset":  # a spread of 1e-6 around 1e6
        values = 1e6 + 1e-6 * values
    elif kind == "cancelling":  # what remains of large numbers shows the last bits of the integers
        values = torch.where(torch.rand(rows, generator=generator) < 0.5, values.sign(), 2.0**-35 * values)
    elif kind == "largest":  # the sum of two of them is infinite
        values = 1.7e308 * torch.rand(rows, dtype=torch.float64, generator=generator)
    elif kind == "smallest":  # most are subnormal
        values *= 1e-308
    elif kind == "not finite":
        for number in (math.inf, -math.inf, math.nan):
            values[torch.rand(rows, generator=generator) < 0.04] = number
    return values


def batch(kind, rows, labels, seed=0):
    """(values, counted, order, segment) of `rows` rows in at most `labels` segments, in any order; uncounted rows last in each."""
    generator = torch.Generator().manual_seed(seed)
    values = numbers(kind, rows, generator)
    label, counted = torch.randint(0, labels, (rows,), generator=generator), torch.rand(rows, generator=generator) < 0.8
    with backend.use("torch"):
        order, segment = segments.sort_segments([label], [(~counted).long()])
    return values, counted, order, segment


def uneven(long, alone, seed=0):
    """One segment of `long` rows among `alone` segments of one row."""
    generator = torch.Generator().manual_seed(seed)
    rows = long + alone
    label = torch.cat([torch.full((long,), alone // 3), torch.arange(alone) + (torch.arange(alone) >= alone // 3)])
    shuffle = torch.randperm(rows, generator=generator)
    return numbers("wide", rows, generator), label[shuffle]


def assert_exact(values, counted, order, segment, ddof, found, totals):
    """Count, mean, std, flat and total of every row's segment against rational arithmetic.

    Allowed: three roundings of the mean (of the integer sum, of adding its parts, of the division), and 2^-62 of the largest value,
    which is what the integers leave out. The deviation: eight roundings, and what the mean is off.
    """
    rows_of = {}
    for row, number in zip(order.tolist(), segment.tolist(), strict=True):
        rows_of.setdefault(number, []).append(row)
    for number, rows in rows_of.items():
        of = [values[row].item() for row in rows if counted[row]]
        assert all(len(result[rows].unique()) == 1 or result[rows].isnan().all() for result in (*found, totals))  # NaN is not unique
        count, mean, std, flat, own, total = (result[rows[0]].item() for result in (*found, totals))
        assert (count, own) == (len(of), number)
        if not all(map(math.isfinite, of)):
            assert (mean == total == sum(of)) or (math.isnan(mean) and math.isnan(total) and math.isnan(sum(of)))
        elif not of:
            assert (mean, std, flat, total) == (0.0, 0.0, False, 0.0)
        else:
            _assert_exact_segment(of, ddof, mean, std, flat, total)


def _assert_exact_segment(of, ddof, mean, std, flat, total):
    exact = sum(map(Fraction, of))
    off = 3 * 2.0**-53 * abs(float(exact / len(of))) + 2.0**-62 * max(map(abs, of)) + 5e-324
    assert math.isinf(total) if abs(exact) >= 2**1024 else abs(Fraction(total) - exact) <= off * len(of)
    exact /= len(of)
    assert flat == (min(of) == max(of))
    if flat:
        assert (mean, std) == (of[0], 0.0)
        return
    squares = sum((Fraction(x) - exact) ** 2 for x in of) / max(len(of) - ddof, 1)
    deviation = float((Decimal(squares.numerator) / Decimal(squares.denominator)).sqrt())
    assert abs(Fraction(mean) - exact) <= off, (mean, float(exact))
    assert abs(std - deviation) <= 8 * 2.0**-53 * deviation + off, (std, deviation)


def assert_same(one, other):
    """The same bits, but for the last one of std: torch's float64 root is not an IEEE root on every CPU. NaN equals NaN."""
    for name, left, right in zip(RESULTS, one, other, strict=True):
        assert left.dtype == right.dtype
        slack = 2.0**-52 * left.abs() + 5e-324 if name == "std" else 0.0
        same = (left == right) | ((left - right).abs() <= slack if name == "std" else False) | ((left != left) & (right != right))
        assert same.all(), (name, left[~same][:4], right[~same][:4])


@contextlib.contextmanager
def program_order(permutation):
    """Run the interpreter's programs in the order permutation(n) of a grid of n."""
    from triton.runtime.interpreter import interpreter_builder as builder

    set_dim, set_idx, order = builder.set_grid_dim, builder.set_grid_idx, []

    def remember(n, *others):
        order[:] = permutation(n)
        set_dim(n, *others)

    builder.set_grid_dim, builder.set_grid_idx = remember, lambda x, y, z: set_idx(order[x], y, z)
    try:
        yield
    finally:
        builder.set_grid_dim, builder.set_grid_idx = set_dim, set_idx
