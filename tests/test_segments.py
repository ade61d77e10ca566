"""Segments: every path against exact arithmetic and against the others, whatever the sizes of the segments and the number of threads."""

import contextlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import advantage, backend, segments, validation
from gigpo_fast.advantage import ROLL, VERL_AGENT
from gigpo_fast.reference import advantage as reference
from tests.segments_helpers import KINDS, assert_exact, assert_same, batch, numbers, uneven

needs_native = pytest.mark.skipif(
    backend.why_not_native(torch.device("cpu")) is not None, reason=str(backend.why_not_native(torch.device("cpu")))
)
PATHS = [pytest.param("native", marks=needs_native), "torch"]
FAR = [-(2**63), 2**63 - 1, -1, 0, 1, 2**31, -(2**40)]


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def moments(path, given, ddof=1):
    with backend.use(path):
        return segments.segment_moments(*given, ddof)


def totals(path, given):
    with backend.use(path):
        return segments.segment_totals(*given)


def sums(path, given, gamma):
    with backend.use(path):
        return segments.discounted_sums(*given, gamma)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "labels"), [(1, 1), (300, 1), (300, 20), (300, 300)])
def test_moments_are_exact_but_for_the_last_roundings(path, kind, rows, labels):
    for ddof in (0, 1):
        given = batch(kind, rows, labels)
        assert_exact(*given, ddof, moments(path, given, ddof), totals(path, given))


def test_moments_by_hand():
    # Segments 7: 1, 2, 6 (the 100 is not counted); 3: 0.1, 0.1; 9: nothing counted.
    label, values = torch.tensor([7, 3, 7, 9, 3, 7, 7]), torch.tensor([1.0, 0.1, 2.0, 5.0, 0.1, 100.0, 6.0], dtype=torch.float64)
    counted = torch.tensor([True, True, True, False, True, False, True])
    order, segment = segments.sort_segments([label], [])
    assert order.tolist() == [1, 4, 0, 2, 5, 6, 3] and segment.tolist() == [0, 0, 1, 1, 1, 1, 2]
    count, mean, std, flat, number = segments.segment_moments(values, counted, order, segment, 1)
    assert number.tolist() == [1, 0, 1, 2, 0, 1, 1] and count.tolist() == [3, 2, 3, 0, 2, 3, 3]
    assert mean.tolist() == [3.0, 0.1, 3.0, 0.0, 0.1, 3.0, 3.0] and flat.tolist() == [False, True, False, False, True, False, False]
    assert std.tolist() == [math.sqrt(7.0), 0.0, math.sqrt(7.0), 0.0, 0.0, math.sqrt(7.0), math.sqrt(7.0)]
    assert segments.segment_totals(values, counted, order, segment).tolist() == [9.0, 0.2, 9.0, 0.0, 0.2, 9.0, 9.0]


@needs_native
@given(st.sampled_from(KINDS), st.integers(0, 400), st.integers(1, 60), st.integers(0, 2**31), st.integers(0, 1))
def test_the_paths_give_the_same_moments(kind, rows, labels, seed, ddof):
    given = batch(kind, rows, labels, seed)
    assert_same(moments("native", given, ddof), moments("torch", given, ddof))
    one, other = (totals(path, given) for path in ("native", "torch"))
    assert torch.equal(one.nan_to_num(nan=0.5), other.nan_to_num(nan=0.5)) and torch.equal(one.isnan(), other.isnan())


@needs_native
@given(
    st.sampled_from(KINDS), st.integers(0, 400), st.integers(1, 60), st.integers(0, 2**31), st.sampled_from([0.0, 1e-200, 0.5, 0.95, 1.0])
)
def test_the_paths_give_the_same_sums(kind, rows, labels, seed, gamma):
    given = batch(kind, rows, labels, seed)
    one, other = (sums(path, given, gamma) for path in ("native", "torch"))
    assert torch.equal(one.nan_to_num(nan=0.5), other.nan_to_num(nan=0.5)) and torch.equal(one.isnan(), other.isnan())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("labels", [1, 3, 200])
def test_sums_against_the_reference(path, gamma, labels):
    values, counted, order, segment = given = batch("ordinary", 700, labels)
    label = segments.to_rows(segment, order)
    used = torch.where(counted, values, 0.0)  # what an uncounted row keeps is its own
    exact = torch.where(
        counted, reference.discounted_returns(used[order], label[order], gamma=gamma, valid=counted[order])[order.argsort()], values
    )
    floor = 1e-13 * values.abs().sum()  # float64, 700 terms, added in two different orders
    assert (sums(path, given, gamma) - exact).abs().max() <= floor


@pytest.mark.parametrize("path", PATHS)
def test_without_a_future_infinity_stays_where_it_is(path):
    values, counted, order, segment = batch("not finite", 300, 3)
    assert torch.equal(sums(path, (values, counted, order, segment), 0.0).nan_to_num(nan=0.5), values.nan_to_num(nan=0.5))


@pytest.mark.parametrize("path", PATHS)
@given(st.lists(st.tuples(st.sampled_from(FAR), st.integers(-2, 2), st.sampled_from(FAR), st.booleans()), min_size=1, max_size=40))
def test_sorting_against_python(path, rows):
    columns = [torch.tensor(column) for column in zip(*rows, strict=True)]
    inner, outer = [columns[3].long(), columns[2]], columns[:2]
    with backend.use(path):
        order, segment = segments.sort_segments(outer, inner)
    expected = sorted(range(len(rows)), key=lambda row: (rows[row][1], rows[row][0], rows[row][2], rows[row][3]))
    assert order.tolist() == expected
    names = [rows[row][:2] for row in expected]
    assert segment.tolist() == [sum(a != b for a, b in zip(names[: i + 1], names[1 : i + 1])) for i in range(len(names))]
    with backend.use(path):
        *again, repeated = segments.sort_compared(outer, inner)
    assert [key.tolist() for key in again] == [order.tolist(), segment.tolist()]
    assert repeated is None if path == "torch" else bool(repeated) == (len(set(rows)) < len(rows))


@needs_native
@pytest.mark.parametrize("bits", [1, 20, 50, 64])
def test_a_large_sort_is_the_stable_one(bits):
    """Wide keys need several rounds of the radix sort, and several threads share each pass."""
    generator = torch.Generator().manual_seed(bits)
    label = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1 if bits == 64 else 2 ** (bits - 1), (700_000,), generator=generator)
    label[::3] = label[1]
    within = torch.randint(-5, 5, (700_000,), generator=generator)
    with backend.use("torch"):
        expected = segments.sort_segments([label], [within])
    for count in (1, 2, 5):
        with threads(count), backend.use("native"):
            assert all(torch.equal(a, b) for a, b in zip(segments.sort_segments([label], [within]), expected, strict=True))


@needs_native
def test_one_segment_of_a_million_rows_among_a_hundred_thousand_of_one():
    values, label = uneven(1_000_000, 100_000)
    given = values, torch.ones_like(label, dtype=torch.bool)
    with backend.use("torch"):
        places = segments.sort_segments([label], [])
    expected, returns = moments("torch", (*given, *places)), sums("torch", (*given, *places), 0.999)
    for count in (1, 2, 3):
        with threads(count):
            with backend.use("native"):
                assert all(torch.equal(a, b) for a, b in zip(segments.sort_segments([label], []), places, strict=True))
            assert_same(moments("native", (*given, *places)), expected)
            assert torch.equal(sums("native", (*given, *places), 0.999), returns)
    assert sorted(expected[0].unique().tolist()) == [1.0, 1_000_000.0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["wide", "offset"])
def test_the_order_of_rows_changes_no_bit(path, kind):
    values, counted, order, segment = batch(kind, 500, 6)
    expected = moments(path, (values, counted, order, segment))
    whole = totals(path, (values, counted, order, segment))
    for seed in range(3):
        shuffle = torch.randperm(500, generator=torch.Generator().manual_seed(seed))
        with backend.use(path):
            places = segments.sort_segments([segments.to_rows(segment, order)[shuffle]], [])
        again = moments(path, (values[shuffle], counted[shuffle], *places))
        assert all(torch.equal(a[shuffle], b) for a, b in zip(expected, again, strict=True))
        assert torch.equal(whole[shuffle], totals(path, (values[shuffle], counted[shuffle], *places)))


@pytest.mark.parametrize("path", PATHS)
def test_a_segment_does_not_depend_on_where_it_stands(path):
    """The same numbers as segments of their own at many places, as far as threads and vectors are concerned."""
    values = numbers("wide", 37, torch.Generator().manual_seed(0))
    filler = torch.randn(100_000, dtype=torch.float64)
    expected = None
    for before in (0, 1, 2, 3, 1000, 99_999):
        all_values = torch.cat([filler[:before], values, filler[before:]])
        label = torch.cat([torch.arange(before), torch.full((37,), before), torch.arange(100_000 - before) + before + 1])
        given = all_values, torch.ones_like(label, dtype=torch.bool), torch.arange(len(label)), label
        found = (
            [result[before].item() for result in moments(path, given)[:4]],
            totals(path, given)[before].item(),
            sums(path, given, 0.97)[before : before + 37].tolist(),
        )
        expected = expected or found
        assert found == expected


@pytest.mark.parametrize("path", PATHS)
def test_what_is_not_counted_cannot_matter(path):
    values, counted, order, segment = batch("ordinary", 300, 10)
    expected, returns = moments(path, (values, counted, order, segment)), sums(path, (values, counted, order, segment), 0.9)
    for poison in (math.nan, math.inf, 1e308):
        poisoned = torch.where(counted, values, poison)
        assert all(torch.equal(a, b) for a, b in zip(expected, moments(path, (poisoned, counted, order, segment)), strict=True))
        assert torch.equal(returns[counted], sums(path, (poisoned, counted, order, segment), 0.9)[counted])
        assert torch.equal(totals(path, (values, counted, order, segment)), totals(path, (poisoned, counted, order, segment)))


@pytest.mark.parametrize("path", PATHS)
def test_no_rows(path):
    none = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)
    with backend.use(path):
        places = segments.sort_segments([torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)])
    assert [
        part.shape
        for part in (*places, *moments(path, (*none, *places)), sums(path, (*none, *places), 0.9), totals(path, (*none, *places)))
    ] == [(0,)] * 9


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("statistics", [advantage.CORRECTED, VERL_AGENT, ROLL], ids=["corrected", "verl_agent", "roll"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_gigpo_on_every_path_and_dtype(path, statistics, dtype):
    generator = torch.Generator().manual_seed(1)
    trajectory, step = torch.randint(0, 40, (500,), generator=generator), torch.randperm(500, generator=generator)
    given = (
        (10 * torch.randn(500, generator=generator)).to(dtype),
        trajectory,
        trajectory % 7,
        torch.randint(-1, 9, (500,), generator=generator),
    )
    options = {"gamma": 0.95, "step": step, "valid": torch.rand(500, generator=generator) < 0.9, "scale": "std", "statistics": statistics}
    with backend.use(path), validation("metadata"):
        result = advantage.gigpo_advantages(*given, **options)
    exact = reference.gigpo_advantages(given[0].double(), *given[1:], **options)
    # float64 results are only as near as two ways of adding 500 numbers of size 10 in float64, over deviations of about 1
    floor = 1e-11 if dtype == torch.float64 else 1e-6
    for ours, wanted in zip(result, exact, strict=True):
        assert ours.dtype == (dtype if dtype == torch.float64 else torch.float32)
        assert ((ours.double() - wanted).abs() <= 2.0**-22 * wanted.abs() + floor).all()


@pytest.mark.parametrize("name", ["native", "torch"])
def test_the_backend_decides(name, monkeypatch):
    from gigpo_fast.segments import segments_native, segments_torch

    called = []
    for module in (segments_native, segments_torch):
        monkeypatch.setattr(module, "sort_segments", lambda labels, within, module=module: called.append(module))
    monkeypatch.setattr(backend, "why_not_native", lambda device: None)
    with backend.use(name):
        segments.sort_segments([torch.zeros(3, dtype=torch.int64)], [])
    assert called == [segments_native if name == "native" else segments_torch]


@needs_native
def test_the_operators_refuse_what_would_reach_other_memory():
    values, counted, order, segment = batch("ordinary", 6, 2)
    wrong = ((order + 1, segment), (order - 1, segment), (order, segment + 1), (order, segment * 2), (order, segment.flip(0)))
    for places in wrong:
        for run in (
            lambda given: sums("native", given, 0.9),
            lambda given: moments("native", given),
            lambda given: totals("native", given),
        ):
            with pytest.raises(RuntimeError, match="order and segment must be what segments_sort returned"):
                run((values, counted, *places))
    for pair in ((values[:5], counted), (values.float(), counted), (values, counted[:5]), (values, counted.long())):
        with pytest.raises(RuntimeError, match="contiguous 1-d CPU tensor of its dtype, all equally long"):
            moments("native", (*pair, order, segment))
    with pytest.raises(RuntimeError, match="at least one label"):
        torch.ops.gigpo_fast_C.segments_sort([], [order])


@needs_native
def test_the_operators_have_shapes_without_values():
    values, counted, order, segment = batch("ordinary", 50, 5)
    powers, tests = torch.tensor([0.5, 0.25], dtype=torch.float64), ("test_schema", "test_faketensor")
    moments("native", (values, counted, order, segment))  # loads the library
    torch.library.opcheck(torch.ops.gigpo_fast_C.segments_sort, ([order], [segment]), test_utils=tests)
    torch.library.opcheck(torch.ops.gigpo_fast_C.segments_discounted_sums, (values, counted, order, segment, powers), test_utils=tests)
    torch.library.opcheck(torch.ops.gigpo_fast_C.segments_totals, (values, counted, order, segment), test_utils=tests)
    torch.library.opcheck(torch.ops.gigpo_fast_C.segments_moments, (values, counted, order, segment, 1), test_utils=tests)
