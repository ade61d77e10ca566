"""The segment kernels in Triton's interpreter: the same bits as plain torch, in any order of programs.

Runs in a process of its own (test_kernels_spawn.py starts it). The interpreter shows program logic, masks, atomics and index arithmetic.
"""

import os
import random

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported; test_kernels_spawn.py runs it so", allow_module_level=True)
pytest.importorskip("triton")

import torch

from gigpo_fast import advantage, backend, segments, validation
from gigpo_fast.advantage import CORRECTED, ROLL, VERL_AGENT
from gigpo_fast.kernels.segments_moments import segment_moments, segment_totals
from gigpo_fast.kernels.segments_scan import discounted_sums
from gigpo_fast.segments import segments_torch
from tests.segments_helpers import KINDS, assert_exact, assert_same, batch, program_order, uneven

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of every NaN and infinity on the way
ORDERS = {
    "forward": lambda n: range(n),
    "reverse": lambda n: range(n - 1, -1, -1),
    "random": lambda n: random.Random(n).sample(range(n), n),
}


def sums(given, gamma, **options):
    values, counted, order, segment = given
    remaining, powers = segments_torch.rows_after(counted, order, segment), segments.discount_powers(gamma, len(values))
    return segments.to_rows(discounted_sums(values[order], remaining, powers, **options), order)


def plain_sums(given, gamma):
    return segments_torch.discounted_sums(*given, segments.discount_powers(gamma, len(given[0])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "labels"), [(0, 1), (1, 1), (2, 2), (100, 1), (100, 12)])
def test_moments(kind, rows, labels):
    given = batch(kind, rows, labels)
    for ddof in (0, 1):
        found = segment_moments(*given, ddof, block=16)
        assert_same(found, segments_torch.segment_moments(*given, ddof))
        totals = segment_totals(*given, block=16)
        assert torch.equal(totals.nan_to_num(nan=0.5), segments_torch.segment_totals(*given).nan_to_num(nan=0.5))
        assert_exact(*given, ddof, found, totals)


@pytest.mark.parametrize("kind", ["ordinary", "wide", "not finite"])
@pytest.mark.parametrize("gamma", [0.0, 1e-200, 0.5, 0.95, 1.0])
@pytest.mark.parametrize(("rows", "labels"), [(0, 1), (1, 1), (17, 1), (300, 1), (300, 40)])
def test_sums(kind, gamma, rows, labels):
    given = batch(kind, rows, labels)
    found, plain = sums(given, gamma, block=16), plain_sums(given, gamma)
    assert torch.equal(found.nan_to_num(nan=0.5), plain.nan_to_num(nan=0.5)) and torch.equal(found.isnan(), plain.isnan())


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_programs_and_the_size_of_tiles_change_nothing(order):
    """A long segment over many tiles, beside many of one row: its integers are added by 25 programs, or by 7."""
    values, label = uneven(320, 80)
    with backend.use("torch"):
        given = values, torch.ones_like(label, dtype=torch.bool), *segments.sort_segments([label], [])
    with program_order(ORDERS[order]):
        found, returns = (
            [segment_moments(*given, 1, block=block) for block in (16, 64)],
            [sums(given, 0.99, block=block) for block in (16, 64)],
        )
    for one, other in zip(found, returns, strict=True):
        assert_same(one, segments_torch.segment_moments(*given, 1))
        assert torch.equal(other, plain_sums(given, 0.99))


def test_masked_rows_are_never_read():
    values, counted, order, segment = batch("ordinary", 100, 8)
    expected = segment_moments(values, counted, order, segment, 1, block=16)
    again = segment_moments(torch.where(counted, values, float("nan")), counted, order, segment, 1, block=16)
    totals = [segment_totals(x, counted, order, segment, block=16) for x in (values, torch.where(counted, values, float("inf")))]
    assert torch.equal(*totals)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


@pytest.mark.parametrize("statistics", [CORRECTED, VERL_AGENT, ROLL], ids=["corrected", "verl_agent", "roll"])
def test_gigpo_on_the_triton_path(statistics):
    generator = torch.Generator().manual_seed(1)
    trajectory, step = torch.randint(0, 12, (90,), generator=generator), torch.randperm(90, generator=generator)
    given = (
        torch.randn(90, dtype=torch.float64, generator=generator),
        trajectory,
        trajectory % 3,
        torch.randint(-1, 5, (90,), generator=generator),
    )
    options = {"gamma": 0.95, "step": step, "valid": torch.rand(90, generator=generator) < 0.9, "scale": "std", "statistics": statistics}
    results = []
    for path in ("triton", "torch"):
        with backend.use(path), validation("metadata"):
            results.append(advantage.gigpo_advantages(*given, **options))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-15, atol=1e-15)  # std may differ in its last bit
    assert torch.equal(results[0].step_returns, results[1].step_returns)


def test_wrong_arguments_say_what_is_wrong():
    values, counted, order, segment = batch("ordinary", 6, 2)
    with pytest.raises(
        ValueError, match=r"segment_moments: values must be \(S,\) float64, got \(6,\) float32 on cpu; accumulate in float64"
    ):
        segment_moments(values.float(), counted, order, segment, 1)
    with pytest.raises(ValueError, match=r"segment_moments: counted must be \(6,\), one value a row, got \(5,\) bool"):
        segment_moments(values, counted[:5], order, segment, 1)
    with pytest.raises(ValueError, match=r"discounted_sums: values must be \(S,\) float64, got \(6, 1\) float64"):
        discounted_sums(values[:, None], order, [0.5])
    with pytest.raises(ValueError, match=r"discounted_sums: remaining must be \(6,\)"):
        discounted_sums(values, order[:5], [0.5])
