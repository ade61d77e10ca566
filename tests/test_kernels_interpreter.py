"""The Triton row kernels in Triton's interpreter, against float64 torch. Runs in a process of its own (test_kernels_spawn.py starts it).

The interpreter shows program logic, masks and index arithmetic. It says nothing of the GPU's roundings, layouts or races.
"""

import math
import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported; test_kernels_spawn.py runs it so", allow_module_level=True)
pytest.importorskip("triton")

import torch
import triton
import triton.language as tl

from gigpo_fast.kernels import autotune, configs
from gigpo_fast.kernels.common import expm1, tanh_and_slope
from gigpo_fast.kernels.configs import Config
from gigpo_fast.kernels.rows_backward import rows_backward
from gigpo_fast.kernels.rows_forward import rows_forward
from tests.interpreter_helpers import apart, assert_as_exact_as_torch, plain_gradient, plain_rows, program_order
from tests.tolerance import assert_same_bits

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of every NaN and infinity on the way
SMALL, INF = Config(32, 1, 1), float("inf")


def rows(kind, n, V):
    """Logits of one kind: the ordinary, and those that break row kernels."""
    x = 3 * torch.randn(n, V, dtype=torch.float64)
    if kind == "offset":
        x = x + 1e4
    elif kind == "huge":
        x = 1e4 * x
    elif kind == "peaked":  # the target holds nearly all the probability
        x[:, 0] += 25
    elif kind == "holes":
        x[:, 1::2] = -INF
    elif kind == "first tile empty":
        x[:, : V // 2] = -INF
    elif kind == "finfo.min":
        x[:, 1::3] = torch.finfo(torch.float32).min
    return x.float()


def assert_rows(logits, ids, scale, tanh_in, *, config=SMALL, out=None):
    """Forward and backward of one batch by the rule."""
    exact_inputs = logits.double(), ids, scale.double(), tanh_in
    plain_inputs = logits.to(scale.dtype), ids, scale, tanh_in
    got = rows_forward(logits, ids, scale, tanh_in, config=config)
    *same, none = rows_forward(logits, ids, scale, tanh_in, squares=False, config=config)
    assert none is None
    for value, again in zip(got[:3], same, strict=True):
        assert_same_bits("without squares", again, value)
    for value, plain, exact in zip(apart(*got), plain_rows(*plain_inputs), plain_rows(*exact_inputs), strict=True):
        assert value.dtype == scale.dtype
        assert_as_exact_as_torch(value, plain, exact, factor=2)

    c, e = torch.randn(2, len(ids), dtype=scale.dtype)
    c[1:2], e[-1:] = 0, 0
    exact, plain = plain_gradient(*exact_inputs, c.double(), e.double()), plain_gradient(*plain_inputs, c, e)
    out = torch.full(logits.shape, 7, dtype=scale.dtype) if out is None else out
    rows_backward(logits, ids, scale, tanh_in, got[1], got[2], c, e, out, config=config)
    assert_as_exact_as_torch(out, plain, exact, factor=3)


@pytest.mark.parametrize("tanh_in", [0.0, 1 / 5])
@pytest.mark.parametrize("V", [1, 7, 32, 33, 1000])
def test_every_shape_of_row(V, tanh_in):
    config = Config(128, 1, 1) if V > 99 else SMALL
    assert_rows(rows("ordinary", 3, V), torch.randint(V, (3,)), torch.tensor([1.0, 0.7, 6.0]), tanh_in, config=config)


@pytest.mark.parametrize("kind", ["ordinary", "offset", "huge", "peaked", "holes", "first tile empty", "finfo.min"])
def test_every_kind_of_row(kind):
    logits, ids = rows(kind, 4, 112), torch.tensor([0, 60, 111, 98])
    ids = ids - ids % 2 if kind == "holes" else ids.clamp(min=57) if kind == "first tile empty" else ids - ids % 3
    assert_rows(logits, ids, torch.ones(4), 0.0)


@pytest.mark.parametrize("kind", ["offset", "certain"])
def test_the_gradient_keeps_its_digits_where_the_log_sum_exp_is_large(kind):
    """As one float32 number, the log-sum-exp would be off by 5e-4 (around 1e4) or 1e-6 (around 30): seen here to break the rule."""
    logits, ids, one = torch.randn(8, 200) + (1e4 if kind == "offset" else 0.0), torch.randint(200, (8,)), torch.ones(8)
    if kind == "certain":  # p is 0.98, with one rival: were it nearer to 1, the rounded number would be exact
        logits.scatter_(1, torch.stack([ids, (ids + 1) % 200], 1), torch.tensor([30.0, 26.0]) + torch.rand(8, 2))
    assert_rows(logits, ids, one, 0.0)
    _, lse, entropy, _ = rows_forward(logits, ids, one, 0.0, config=SMALL)
    one_number, out = torch.stack([lse.sum(1), torch.zeros(8)], 1), torch.empty(8, 200)
    c, e = torch.randn(2, 8)
    rows_backward(logits, ids, one, 0.0, one_number, entropy, c, e, out, config=SMALL)
    plain = plain_gradient(logits, ids, one, 0.0, c, e)
    exact = plain_gradient(logits.double(), ids, one.double(), 0.0, c.double(), e.double())
    with pytest.raises(AssertionError, match="error .* above"):
        assert_as_exact_as_torch(out, plain, exact, factor=3)


def test_an_offset_common_to_the_row_costs_the_log_prob_nothing():
    logits, ids = torch.randint(-64, 64, (4, 100)) / 16, torch.tensor([0, 1, 50, 99])
    near, far = (rows_forward(logits + offset, ids, torch.ones(4), 0.0, config=SMALL) for offset in (0.0, 2.0**14))
    assert (
        torch.equal(near[0], far[0])
        and torch.equal(near[1] + torch.tensor([2.0**14, 0]), far[1])
        and all(torch.equal(a, b) for a, b in zip(near[2:], far[2:]))
    )


def test_a_certain_token_keeps_its_gradient():
    """1 - p is 0 in float32 at a log-prob of -4e-9; -expm1(log p) is not."""
    logits, one = torch.tensor([[0.0, -20.0, -20.0]]), torch.ones(1)
    lse = torch.tensor([[0.0, 2 * math.exp(-20.0)]])  # the maximum, and log(1 + 2 e^-20)
    out = torch.empty(1, 3)
    rows_backward(logits, torch.tensor([0]), one, 0.0, lse, one, one, 0 * one, out, config=SMALL)
    assert torch.allclose(out[0, 0], -torch.expm1(-lse[0, 1]), rtol=1e-6, atol=0) and out[0, 0] > 4e-9


@pytest.mark.parametrize("tanh_in", [0.0, 1 / 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_dtype(dtype, tanh_in):
    scale = torch.tensor([1.0, 0.5, 3.0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    assert_rows(rows("ordinary", 3, 70).to(dtype), torch.tensor([0, 69, 33]), scale, tanh_in)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_gradient_is_the_float32_gradient_rounded_once(dtype):
    logits, ids, one = rows("ordinary", 3, 70), torch.tensor([0, 69, 33]), torch.ones(3)
    _, lse, entropy, _ = rows_forward(logits, ids, one, 0.0, config=SMALL)
    low, full = torch.empty(3, 70, dtype=dtype), torch.empty(3, 70)
    for out in (low, full):
        rows_backward(logits, ids, one, 0.0, lse, entropy, one, one, out, config=SMALL)
    # The interpreter rounds to bfloat16 towards zero, the GPU to nearest.
    expected = (full.view(torch.int32) >> 16 << 16).view(torch.float32) if dtype == torch.bfloat16 else full.half().float()
    assert torch.equal(low.float(), expected)


def test_strided_rows_leave_their_neighbours_alone():
    store, into = rows("ordinary", 4, 50), torch.full((4, 60), 7.0)
    assert_rows(store[:, 3:40], torch.tensor([0, 36, 5, 6]), torch.ones(4), 0.0, out=into[:, 10:47])
    assert (into[:, :10] == 7).all() and (into[:, 47:] == 7).all()


def test_in_place_equals_out_of_place():
    logits, ids, scale = rows("peaked", 4, 100), torch.tensor([0, 99, 31, 32]), torch.full((4,), 0.9)
    _, lse, entropy, _ = rows_forward(logits, ids, scale, 0.0, config=SMALL)
    c, e, out = torch.randn(4), torch.randn(4), torch.empty(4, 100)
    rows_backward(logits, ids, scale, 0.0, lse, entropy, c, e, out, config=SMALL)
    rows_backward(logits, ids, scale, 0.0, lse, entropy, c, e, logits, config=SMALL)
    assert torch.equal(logits, out)


@pytest.mark.parametrize("token", [-1, -100, 40, 2**40])
def test_a_token_outside_the_vocabulary(token):
    """NaN log-prob and no read; in the backward: no target in these columns."""
    logits, one = rows("ordinary", 1, 40), torch.ones(1)
    log_probs, lse, entropy, squared = rows_forward(logits, torch.tensor([token]), one, 0.0, config=SMALL)
    _, largest, log_sum, exact_entropy, exact_squared = plain_rows(logits, torch.tensor([0]), one, 0.0)
    assert log_probs.isnan().all() and torch.equal(lse[:, 0], largest)
    assert torch.allclose(lse[:, 1], log_sum) and torch.allclose(entropy, exact_entropy) and torch.allclose(squared, exact_squared)
    out = torch.empty(1, 40)
    rows_backward(logits, torch.tensor([token]), one, 0.0, lse, entropy, one, 0 * one, out, config=SMALL)
    assert torch.allclose(out, -logits.softmax(-1), atol=1e-6)


def test_slabs_of_the_vocabulary_share_one_log_sum_exp():
    """A target outside the columns at hand leaves them without one. The pairs may have any strides."""
    logits, ids, one, c, e = rows("offset", 4, 96), torch.tensor([0, 31, 32, 95]), torch.ones(4), torch.randn(4), torch.randn(4)
    _, lse, entropy, _ = rows_forward(logits, ids, one, 0.0, config=SMALL)
    whole, slabs = torch.empty(4, 96), torch.empty(4, 96)
    rows_backward(logits, ids, one, 0.0, lse, entropy, c, e, whole, config=SMALL)
    for columns in (slice(0, 32), slice(32, 96)):
        given = logits[:, columns], ids - columns.start, one, 0.0, lse.T.contiguous().T, entropy, c, e
        rows_backward(*given, slabs[:, columns], config=SMALL)
    assert torch.equal(slabs, whole)


@pytest.mark.parametrize("position", [0, 31, 32, 63, 64, 69])
@pytest.mark.parametrize("value", [float("nan"), INF])
def test_nan_and_infinity_show_wherever_they_stand(value, position):
    logits = rows("ordinary", 2, 70)
    logits[0, position] = value
    ids, one = torch.tensor([5, 5]), torch.ones(2)
    got = rows_forward(logits, ids, one, 0.0, config=SMALL)
    assert all(result[0].isnan() for result in (got[0], got[1][:, 1], *got[2:])) and all(result[1].isfinite().all() for result in got)
    out = torch.empty(2, 70)
    rows_backward(logits, ids, one, 0.0, got[1], got[2], one, one, out, config=SMALL)
    assert out[0].isnan().any() and out[1].isfinite().all()


def test_a_row_without_any_possible_token_is_nan():
    logits, one = torch.full((1, 70), -INF), torch.ones(1)
    log_probs, lse, entropy, squared = rows_forward(logits, torch.tensor([3]), one, 0.0, config=SMALL)
    assert log_probs.isnan() and entropy.isnan() and squared.isnan() and (lse == -INF).all()
    out = torch.empty(1, 70)
    rows_backward(logits, torch.tensor([3]), one, 0.0, lse, entropy, one, 0 * one, out, config=SMALL)
    assert out.isnan().all()


def test_a_row_without_gradient_gives_exact_zeros_whatever_it_holds():
    logits = torch.full((2, 70), float("nan"))
    one, nan, lse = torch.ones(2), torch.full((2,), float("nan")), torch.full((2, 2), float("nan"))
    out = torch.full((2, 70), 7.0)
    rows_backward(logits, torch.tensor([3, 69]), one, 0.0, lse, nan, torch.tensor([0.0, -0.0]), torch.zeros(2), out, config=SMALL)
    assert torch.equal(out, torch.zeros(2, 70))
    rows_backward(logits, torch.tensor([3, 69]), one, 0.0, lse, nan, nan, torch.zeros(2), out, config=SMALL)
    assert out.isnan().all()  # a NaN coefficient is a fault to show, not a zero


@pytest.mark.parametrize("tanh_in", [0.0, 1 / 5])
def test_source_rows_gather(tanh_in):
    logits, picked = rows("ordinary", 6, 70), torch.tensor([0, 2, 5])
    ids, scale, c, e = torch.tensor([0, 69, 40]), torch.tensor([1.0, 0.5, 2.0]), torch.randn(3), torch.randn(3)
    _, lse, entropy, _ = rows_forward(logits[picked], ids, scale, tanh_in, config=SMALL)
    gathered, direct = torch.empty(3, 70), torch.empty(3, 70)
    rows_backward(logits, ids, scale, tanh_in, lse, entropy, c, e, gathered, picked, config=SMALL)
    rows_backward(logits[picked], ids, scale, tanh_in, lse, entropy, c, e, direct, config=SMALL)
    assert torch.equal(gathered, direct)


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [2, 0, 3, 1]])
def test_the_order_of_programs_changes_nothing(order):
    logits, ids, one = rows("ordinary", 4, 70), torch.tensor([0, 69, 31, 32]), torch.ones(4)

    def run():
        got = rows_forward(logits, ids, one, 0.0, config=SMALL)
        gradient = logits.clone()
        rows_backward(gradient, ids, one, 0.0, got[1], got[2], one, one, gradient, config=SMALL)
        return *got, gradient

    expected = run()
    with program_order(order):
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))


def test_the_shipped_configuration_runs_too():
    assert_rows(rows("ordinary", 2, 5000), torch.tensor([0, 4999]), torch.ones(2), 0.0, config=None)
    assert_rows(rows("ordinary", 2, 4112), torch.tensor([4096, 4095]), torch.ones(2), 1 / 5, config=None)


@pytest.mark.parametrize("store", [0, 3], ids=["aligned", "anywhere"])
def test_offsets_past_two_to_the_31_elements(store):
    """Three rows of bfloat16, 2^30 elements and a bit apart: the third starts past 2^31. Pages that nobody touches cost nothing."""
    near, ids, scale = rows("ordinary", 3, 70).bfloat16(), torch.tensor([0, 69, 40], dtype=torch.int32), torch.tensor([1.0, 0.5, 2.0])
    try:
        logits, out = (far_rows(3, 70, (1 << 30) + 16 + store, store) for _ in range(2))
    except RuntimeError as error:
        pytest.skip(f"no 4 GiB of address space: {error}")
    logits.copy_(near)
    assert logits.stride(0) < 2**31 < 2 * logits.stride(0)
    got, want = (rows_forward(value, ids, scale, 0.0, config=SMALL) for value in (logits, near))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    given, c, e = (ids, scale, 0.0, *want[1:3]), *torch.randn(2, 3)
    wanted, gathered = torch.empty_like(near), torch.empty(1, 70, dtype=torch.bfloat16)
    rows_backward(near, *given, c, e, wanted, config=SMALL)
    rows_backward(logits, *given, c, e, out, config=SMALL)
    last = [value[2:] for value in (ids, scale, want[1], want[2], c, e)]
    rows_backward(logits, *last[:2], 0.0, *last[2:], gathered, torch.tensor([2]), config=SMALL)
    assert torch.equal(out, wanted) and torch.equal(gathered, wanted[2:]) and torch.equal(logits, near)


def far_rows(n, V, stride, start):
    """(n, V) bfloat16 rows `stride` elements apart."""
    return torch.empty(start + (n - 1) * stride + V, dtype=torch.bfloat16)[start:].as_strided((n, V), (stride, 1), start)


def test_trials_of_the_autotuner_run_and_touch_nothing(monkeypatch):
    """Every candidate of every kernel, really launched, on memory of its own."""
    monkeypatch.setattr(autotune, "SCRATCH_BYTES", 2 * 4 * 70)
    logits = rows("ordinary", 3, 70)
    before = logits.clone()
    for kernel in configs.TABLE["sm_90"]:
        times = iter(range(9, 0, -1))
        chosen = autotune.best(kernel, logits, measure=lambda launch, times=times: (launch(), next(times))[1])
        assert chosen == configs.candidates(kernel, logits)[-1] and torch.equal(logits, before)


def test_no_rows():
    empty, none = torch.empty(0, 9), torch.empty(0)
    assert [result.shape for result in rows_forward(empty, none.long(), none, 0.0)] == [(0,), (0, 2), (0,), (0,)]
    rows_backward(empty, none.long(), none, 0.0, torch.empty(0, 2), none, none, none, empty)


def test_wrong_arguments_say_what_is_wrong():
    logits, ids, one = torch.zeros(3, 8), torch.zeros(3, dtype=torch.int64), torch.ones(3)
    backward = ids, one, 0.0, torch.ones(3, 2), one, one, one
    with pytest.raises(ValueError, match=r"rows_backward: lse must be \(3, 2\) on cpu, got \(3,\) float32 on cpu; pass what rows_forward"):
        rows_backward(logits, ids, one, 0.0, one, one, one, one, torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"rows_backward: out must be logits itself without source_rows.*overlapping"):
        rows_backward(logits, *backward, logits, torch.arange(3))
    with pytest.raises(ValueError, match="rows_backward: out must be logits itself"):
        rows_backward(logits[:, :4], *backward, logits[:, 2:6])
    with pytest.raises(ValueError, match=r"rows_backward: out must be \(3, 8\)"):
        rows_backward(logits, *backward, torch.zeros(2, 8))
    with pytest.raises(ValueError, match="rows_forward: logits must be contiguous along the vocabulary"):
        rows_forward(torch.zeros(8, 3).T, ids, one, 0.0)
    with pytest.raises(ValueError, match=r"rows_forward: logits must be an \(n, V\).*got \(3, 2, 8\) float32"):
        rows_forward(torch.zeros(3, 2, 8), ids, one, 0.0)
    with pytest.raises(ValueError, match=r"rows_forward: scale must be \(3,\)"):
        rows_forward(logits, ids, torch.ones(1), 0.0)


@triton.jit
def functions_kernel(x, grown, tanh, slope, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    value = tl.load(x + at)
    tl.store(grown + at, expm1(value))
    t, s = tanh_and_slope(value)
    tl.store(tanh + at, t)
    tl.store(slope + at, s)


@pytest.mark.parametrize(("dtype", "ulps"), [(torch.float32, 8), (torch.float64, 32)])
def test_expm1_and_tanh_keep_their_relative_precision(dtype, ulps):
    size = torch.logspace(-18, 1.3, 200, dtype=torch.float64)
    vanishing = torch.linspace(-110, -20, 100, dtype=torch.float64)  # exp is subnormal in float32 from -87.3 on
    x = torch.cat([size, -size, vanishing, torch.tensor([0.0, 0.5999, 0.6001, -0.6, 90.0, -INF])]).to(dtype)
    results = [torch.empty(512, dtype=dtype) for _ in range(3)]
    functions_kernel[(1,)](torch.nn.functional.pad(x, (0, 512 - len(x))), *results, BLOCK=512)
    got = [value[: len(x)] for value in results]
    wide = x.double()
    exact = torch.expm1(wide), torch.tanh(wide), 1 / torch.cosh(wide) ** 2
    for name, value, expected in zip(("expm1", "tanh", "slope"), got, exact, strict=True):
        fits = expected.abs() < torch.finfo(dtype).max
        error = ((value.double() - expected).abs() / expected.abs().clamp(min=torch.finfo(dtype).tiny))[fits & (expected != 0)].max()
        assert error <= ulps * torch.finfo(dtype).eps, f"{name}: {error / torch.finfo(dtype).eps:.1f} ulp"
        assert torch.equal(value[expected == 0], expected[expected == 0].to(dtype))
