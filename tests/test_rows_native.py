"""The C++ rows against float64 formulas written here, at every instruction set of this machine.

A result is right when its error is at most 2x (backward 3x) that of plain torch in float32 plus a floor: one unit in the last
place of the largest result (two for the sum of squares, where every relative error of p counts twice).
Half-precision logits are judged against torch on the same logits upcast.
"""

import functools

import pytest
import torch

from gigpo_fast import backend

REASON = backend.why_not_native(torch.device("cpu"))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
if REASON is None:
    from gigpo_fast.ops import rows_native

    OPS = rows_native._ops()
    LEVELS = range(OPS.rows_isa() + 1)
else:
    LEVELS = range(1)

EPS = torch.finfo(torch.float32).eps
VOCABULARIES = (1, 7, 16, 17, 1000, 50257)
isa = pytest.mark.parametrize("isa", LEVELS, ids=lambda level: ("baseline", "avx2", "avx512")[level])


def case(n, vocabulary, dtype=torch.float32, *, spread=3.0, offset=0.0):
    """Logits, ids, scale, and upstream gradients of one call."""
    logits = (torch.randn(n, vocabulary) * spread + offset).to(dtype)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    scale, c, e = torch.rand(n).to(compute) + 0.5, torch.randn(n).to(compute), torch.randn(n).to(compute) * 0.1
    return logits, torch.randint(vocabulary, (n,)), scale, c, e


def formula(logits, ids, scale, tanh_in, c, e, dtype=torch.float64):
    """[log_probs, lse (its two columns), entropy, gradient, sum of p^2] in plain torch at `dtype`."""
    x = logits.detach().to(dtype, copy=True).requires_grad_()
    z = scale.to(dtype)[:, None] * (torch.tanh(tanh_in * x) if tanh_in else x)
    log_p = torch.log_softmax(z, 1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0)).sum(1)
    log_probs = log_p.gather(1, ids[:, None])[:, 0]
    (gradient,) = torch.autograd.grad((c.to(dtype) * log_probs + e.to(dtype) * entropy).sum(), x)
    largest = z.amax(1, keepdim=True)
    lse = torch.cat([largest, (z - largest).exp().sum(1, keepdim=True).log()], 1)
    return [t.detach() for t in (log_probs, lse, entropy, gradient, log_p.exp().square().sum(1))]


def run(logits, ids, scale, tanh_in, c, e, isa=-1, out=None, source_rows=None):
    """[log_probs, lse, entropy, gradient, sum of p^2] of the product at one instruction set."""
    log_probs, lse, entropy, squared = OPS.rows_forward(logits, ids, scale, tanh_in, isa)
    out = torch.full_like(logits, torch.nan) if out is None else out
    OPS.rows_backward(logits, ids, scale, tanh_in, lse, entropy, c, e, source_rows, out, isa)
    return [log_probs, lse, entropy, out, squared]


def assert_right(name, mine, plain, truth, factor):
    floor = (2 if name == "squared" else 1) * EPS * truth.abs().max()
    error, allowed = (mine - truth).abs().max(), factor * (plain - truth).abs().max() + floor
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def check(logits, ids, scale, tanh_in, c, e, isa):
    got = run(logits, ids, scale, tanh_in, c, e, isa, out=torch.full(logits.shape, torch.nan, dtype=scale.dtype))
    exact = formula(logits, ids, scale, tanh_in, c, e)
    if logits.dtype == torch.float64:
        for mine, truth in zip(got, exact):
            torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-13)
        return
    plain = formula(logits, ids, scale, tanh_in, c, e, torch.float32)
    rules = (("log_probs", 2), ("largest", 2), ("log_sum", 2), ("entropy", 2), ("gradient", 3), ("squared", 2))
    results = ([log_probs, *lse.unbind(1), *rest] for log_probs, lse, *rest in (got, plain, exact))
    for (name, factor), mine, torchs, truth in zip(rules, *results):
        assert_right(name, mine, torchs, truth, factor)
    assert (got[0] <= 0).all() and (got[1][:, 1] >= 0).all() and (got[2] >= 0).all() and (got[4] > 0).all() and (got[4] <= 1).all()


@isa
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
@pytest.mark.parametrize("softcap", (None, 5.0))
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_against_float64(vocabulary, softcap, dtype, isa):
    logits, ids, scale, c, e = case(6 if vocabulary < 10_000 else 3, vocabulary, dtype)
    check(logits, ids, scale * (softcap or 1.0), 1 / softcap if softcap else 0.0, c, e, isa)


@isa
def test_large_vocabulary(isa):
    check(*case(4, 151936)[:3], 0.0, *case(4, 1)[3:], isa)


@isa
@pytest.mark.parametrize("kind", ("offset", "negative", "peaked", "rising", "wide"))
def test_hard_rows(kind, isa):
    logits, ids, scale, c, e = case(6, 5000)
    if kind == "offset":
        logits, scale = logits + 1e4, torch.ones(6)
    elif kind == "negative":
        logits = -logits.abs() - 200
    elif kind == "peaked":
        logits.scatter_(1, ids[:, None], 30.0)
    elif kind == "rising":  # the maximum moves in every block
        logits = logits + torch.linspace(0, 300, 5000)
    else:  # most exponentials vanish
        logits = logits * 100
    check(logits, ids, scale, 0.0, c, e, isa)


@isa
@pytest.mark.parametrize("kind", ("offset", "certain"))
def test_the_gradient_keeps_its_digits_where_the_log_sum_exp_is_large(kind, isa):
    """As one float32 number, the log-sum-exp would be off by 5e-4 (around 1e4) or 1e-6 (around 30): seen here to break the rule."""
    logits, ids, _, c, e = case(16, 200, spread=1.0, offset=1e4 if kind == "offset" else 0.0)
    if kind == "certain":  # p is 0.98, with one rival: were it nearer to 1, the rounded number would be exact
        logits.scatter_(1, torch.stack([ids, (ids + 1) % 200], 1), torch.tensor([30.0, 26.0]) + torch.rand(16, 2))
    arguments = logits, ids, torch.ones(16), 0.0, c, e
    check(*arguments, isa)
    _, lse, entropy, _ = OPS.rows_forward(*arguments[:4], isa)
    one_number, out = torch.stack([lse.sum(1), torch.zeros(16)], 1), torch.empty_like(logits)
    OPS.rows_backward(*arguments[:4], one_number, entropy, c, e, None, out, isa)
    with pytest.raises(AssertionError, match="gradient: error"):
        assert_right("gradient", out, formula(*arguments, torch.float32)[3], formula(*arguments)[3], 3)


@isa
def test_target_entry_keeps_its_digits_where_p_is_near_one(isa):
    logits, ids, one, zero = torch.tensor([[0.0, -12.0]]), torch.tensor([0]), torch.ones(1), torch.zeros(1)
    tail = torch.tensor([-12.0]).double().exp()
    lse, out = torch.stack([zero, torch.log1p(tail).float()], 1), torch.empty_like(logits)
    OPS.rows_backward(logits, ids, one, 0.0, lse, zero, one, zero, None, out, isa)
    torch.testing.assert_close(out[0, 0].double(), (tail / (1 + tail))[0], rtol=4 * EPS, atol=0)  # 1 - p would be off by 1 %


@isa
@pytest.mark.parametrize("target_dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
def test_output_dtypes_are_one_rounding_away(dtype, target_dtype, isa):
    arguments = case(3, 2100, dtype)
    compute = arguments[2].dtype
    exact = run(*arguments[:3], 0.0, *arguments[3:], isa, out=torch.empty(3, 2100, dtype=compute))[3]
    got = run(*arguments[:3], 0.0, *arguments[3:], isa, out=torch.empty(3, 2100, dtype=target_dtype))[3]
    assert torch.equal(got, exact.to(target_dtype))


@isa
def test_exponential(isa):
    """p = e^z where lse = 0: at most 1.5 units in the last place, exactly 0 below the smallest normal number."""
    z = torch.cat([torch.linspace(-104, 0, 200_000), torch.tensor([-torch.inf, -1e38, -0.0])])[None]
    out, row = torch.empty_like(z), torch.zeros(1)
    OPS.rows_backward(z, torch.tensor([-1]), torch.ones(1), 0.0, torch.zeros(1, 2), row, -torch.ones(1), row, None, out, isa)
    exact = z.double().exp()
    normal = z >= -87.3365
    assert ((out - exact).abs() <= 1.5 * EPS / 2 * 2 ** exact.log2().ceil())[normal].all()
    assert (out[z < -87.3366] == 0).all()


@isa
def test_tanh_and_its_derivative(isa):
    """Where V = 1 the largest z is tanh(x) and the log of the sum is 0; p is then 1, and the derivative is what reaches x."""
    x = torch.cat([torch.linspace(-12, 12, 40_001), torch.logspace(-38, 0, 5_000), torch.tensor([0.0, torch.inf, -torch.inf])])[:, None]
    n, one = x.shape[0], torch.ones(x.shape[0])
    lse = OPS.rows_forward(x, torch.zeros(n, dtype=torch.int64), one, 1.0, isa)[1]
    exact = x[:, 0].double().tanh()
    assert ((lse[:, 0] - exact).abs() <= 2 * EPS * exact.abs()).all() and (lse[:, 1] == 0).all()
    out = torch.empty_like(x)
    OPS.rows_backward(x, torch.full((n,), -1), one, 1.0, lse, one * 0, -one, one * 0, None, out, isa)
    exact = 1 / x[:, 0].double().cosh().square()
    normal = exact > 1e-30
    assert ((out[:, 0] - exact).abs() <= 8 * EPS * exact)[normal].all()


@isa
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("width", (1, 64))
def test_conversions_are_exact(dtype, width, isa):
    """Every half-precision number widens exactly; every kind of float32 narrows as torch narrows it."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).reshape(-1, 1)
    finite = every[every[:, 0].isfinite()]
    n = finite.shape[0]
    lse = OPS.rows_forward(finite, torch.zeros(n, dtype=torch.int64), torch.ones(n), 0.0, isa)[1]
    assert torch.equal(lse[:, 0], finite[:, 0].float()) and (lse[:, 1] == 0).all()

    step = EPS * torch.tensor([-1.0, 0.0, 1.0])
    middles = (finite[:, 0].float() + torch.nextafter(finite[:, 0], torch.tensor(torch.inf, dtype=dtype)).float()) / 2
    extremes = torch.tensor([65519.9, 65520.0, 3.4e38, torch.nan])
    values = torch.cat([(middles[:, None] * (1 + step)).flatten(), torch.randn(1000) * 1e-40, extremes])
    m = values.shape[0]
    out, zero, lse = torch.empty(m, width, dtype=dtype), torch.zeros(m), torch.zeros(m, 2)
    OPS.rows_backward(torch.zeros(m, width), torch.full((m,), -1), zero + 1, 0.0, lse, zero, -values, zero, None, out, isa)
    assert torch.equal(out.nan_to_num(7.0), values[:, None].to(dtype).expand(m, width).nan_to_num(7.0))
    assert out[-1].isnan().all()


@isa
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("vocabulary", (1, 17, 5000))
def test_strided_in_place_and_compacting(vocabulary, dtype, isa):
    n = 9
    logits, ids, scale, c, e = case(n, vocabulary, dtype)
    want = run(logits, ids, scale, 0.0, c, e, isa)
    buffer = torch.full((2 * n, vocabulary + 5), 99.0, dtype=dtype)
    view = buffer[::2, 3 : 3 + vocabulary]
    view.copy_(logits)
    got = run(view, ids, scale, 0.0, c, e, isa, out=view)
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert (buffer[1::2] == 99).all() and (buffer[:, :3] == 99).all() and (buffer[:, 3 + vocabulary :] == 99).all()

    rows = torch.tensor([0, 2, 3, 7, 8])
    view.copy_(logits)
    per_row = [t[rows] for t in (ids, scale, want[1], want[2], c, e)]
    OPS.rows_backward(view, *per_row[:2], 0.0, *per_row[2:], rows, view[: len(rows)], isa)
    assert torch.equal(view[: len(rows)], want[3][rows])
    assert torch.equal(view[len(rows) :], logits[len(rows) :])


def test_the_number_of_threads_changes_nothing():
    logits, ids, scale, c, e = case(37, 20011)
    rows = torch.arange(1, 37, 3)
    per_row = [t[rows] for t in (ids, scale, c, e)]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            whole = run(logits, ids, scale, 0.0, c, e)
            place = logits.clone()
            OPS.rows_backward(place, *per_row[:2], 0.0, whole[1][rows], whole[2][rows], *per_row[2:], rows, place[: len(rows)])
            results.append([*whole, place[: len(rows)]])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))
    alone = run(*(t[5:6] for t in (logits, ids, scale)), 0.0, c[5:6], e[5:6])
    assert all(torch.equal(a, b[5:6]) for a, b in zip(alone, results[0]))


@isa
def test_slabs_of_the_vocabulary(isa):
    """A target outside the columns at hand leaves them without one; slabs of one buffer may be read and written side by side."""
    logits, ids, scale, c, e = case(8, 3000)
    _, lse, entropy, want, _ = run(logits, ids, scale, 0.0, c, e, isa)
    out = torch.empty(8, 3000)
    for left, right in ((0, 1100), (1100, 3000)):
        OPS.rows_backward(logits[:, left:right], ids - left, scale, 0.0, lse, entropy, c, e, None, out[:, left:right], isa)
    assert torch.equal(out, want)
    pair = torch.cat([logits, torch.empty_like(logits)], 1)
    OPS.rows_backward(pair[:, :3000], ids, scale, 0.0, lse, entropy, c, e, None, pair[:, 3000:], isa)
    assert torch.equal(pair[:, 3000:], want) and torch.equal(pair[:, :3000], logits)


@isa
@pytest.mark.parametrize("vocabulary", (40, 5000))
def test_infinite_and_missing_values(vocabulary, isa):
    logits, ids, scale, c, e = case(8, vocabulary)
    inf, nan = torch.inf, torch.nan
    logits[0, 1::2] = -inf  # legal
    ids[0] = 0
    logits[1, :-1] = -inf  # one survivor
    ids[1] = vocabulary - 1
    logits[2] = -inf
    logits[3, vocabulary - 3] = nan
    logits[4, 5] = inf
    logits[5, : vocabulary // 2] = -inf
    logits[5, 3] = nan  # beside -inf only
    ids[6] = vocabulary
    ids[7] = -5
    log_probs, lse, entropy, gradient, squared = run(logits, ids, scale, 0.0, c, e, isa)
    exact = formula(logits[:2], ids[:2], scale[:2], 0.0, c[:2], e[:2])
    for mine, truth in zip((log_probs, lse, entropy, gradient, squared), exact):
        torch.testing.assert_close(mine[:2], truth.float(), rtol=2e-5, atol=2e-6)
    assert (gradient[0, 1::2] == 0).all() and log_probs[1] == 0 and entropy[1] == 0 and squared[1] == 1
    assert squared[2:6].isnan().all() and squared[6:].isfinite().all()
    assert log_probs[2:].isnan().all()
    assert (lse[2] == -inf).all() and lse[3:6, 1].isnan().all() and lse[6:].isfinite().all() and entropy[6:].isfinite().all()
    assert gradient[2:6].isnan().all() and gradient[6:].isfinite().all()
    no_target = formula(logits[6:], torch.zeros(2, dtype=torch.int64), scale[6:], 0.0, c[6:], e[6:])[3]
    no_target[:, 0] -= (c * scale)[6:]
    torch.testing.assert_close(gradient[6:], no_target.float(), rtol=2e-5, atol=2e-6)

    zero = torch.zeros(8)
    for out_dtype in (torch.float32, torch.float16):
        out = torch.full(logits.shape, nan, dtype=out_dtype)
        OPS.rows_backward(logits, ids, scale, 0.0, lse, entropy, zero, zero, None, out, isa)
        assert (out == 0).all()
    nothing, out = torch.full((8,), nan), torch.empty_like(logits)  # an entropy nobody asks for is not read
    OPS.rows_backward(logits, ids, scale, 0.0, lse, nothing, c, zero, None, out, isa)
    assert out[6:].isfinite().all()


@isa
def test_softcap_bounds_infinities(isa):
    logits = torch.tensor([[-torch.inf, 0.0, torch.inf, 2.0]])
    ids, scale, one = torch.tensor([3]), torch.tensor([5.0]), torch.ones(1)
    got = run(logits, ids, scale, 0.2, one, 0.1 * one, isa)
    exact = formula(logits, ids, scale, 0.2, one, 0.1 * one)
    for mine, truth in zip(got, exact):
        torch.testing.assert_close(mine, truth.float(), rtol=1e-5, atol=1e-6)


def test_no_rows():
    logits = torch.empty(0, 7)
    empty, ids = torch.empty(0), torch.empty(0, dtype=torch.int64)
    lse = torch.empty(0, 2)
    assert [t.shape for t in rows_native.rows_forward(logits, ids, empty, 0.0)] == [(0,), (0, 2), (0,), (0,)]
    rows_native.rows_backward(logits, ids, empty, 0.0, lse, empty, empty, empty, logits)
    rows_native.rows_backward(torch.randn(4, 7), ids, empty, 0.0, lse, empty, empty, empty, logits, ids)


def test_the_launcher_runs_the_best_level_and_accepts_expanded_rows():
    logits, ids, _, c, e = case(5, 100)
    scale = torch.tensor(0.5).expand(5)
    want = run(logits, ids, scale.contiguous(), 0.0, c, e, OPS.rows_isa())
    got = rows_native.rows_forward(logits, ids, scale, 0.0)
    out = torch.empty_like(logits)
    lse = got[1].T.contiguous().T  # any strides
    rows_native.rows_backward(logits, ids, scale, 0.0, lse, got[2], c, e, out)
    assert all(torch.equal(a, b) for a, b in zip((*got[:3], out, got[3]), want))


def test_operators_are_well_formed():
    logits, ids, scale, c, e = case(3, 20)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(OPS.rows_forward.default, (logits, ids, scale, 0.0), test_utils=checks)
    lse, entropy = OPS.rows_forward(logits, ids, scale, 0.0)[1:3]
    arguments = (logits, ids, scale, 0.0, lse, entropy, c, e, None, torch.empty_like(logits))
    torch.library.opcheck(OPS.rows_backward.default, arguments, test_utils=checks)


def test_messages():
    logits, ids, scale, c, e = case(4, 10)
    lse, forward = torch.ones(4, 2), rows_native.rows_forward
    backward = functools.partial(rows_native.rows_backward, logits, ids, scale, 0.0, lse, e, c, e)
    with pytest.raises(ValueError, match=r"rows_forward: logits must be of stride 1 .*, got \(1, 4\); call \.contiguous\(\)"):
        forward(torch.randn(10, 4).T, ids, scale, 0.0)
    with pytest.raises(ValueError, match=r"rows_forward: logits must be \(rows, V\) with V >= 1, got \(4, 0\)"):
        forward(logits[:, :0], ids, scale, 0.0)
    with pytest.raises(ValueError, match=r"rows_forward: token_ids must be \(4,\) int64, got \(3,\) int64"):
        forward(logits, ids[:3], scale, 0.0)
    with pytest.raises(TypeError, match=r"rows_forward: scale must be \(4,\) float32, got \(4,\) float64; .* only with float64 logits"):
        forward(logits, ids, scale.double(), 0.0)
    with pytest.raises(ValueError, match=r"rows_backward: out must be \(4, 10\), a row for each row .* got \(3, 10\)"):
        backward(torch.empty(3, 10))
    for wrong, got in ((c, r"\(4,\)"), (lse[:3], r"\(3, 2\)"), (lse.T, r"\(2, 4\)")):
        with pytest.raises(ValueError, match=rf"rows_backward: lse must be \(4, 2\) float32, got {got} float32; pass what rows_forward"):
            rows_native.rows_backward(logits, ids, scale, 0.0, wrong, e, c, e, torch.empty(4, 10))
        with pytest.raises(RuntimeError, match=r"lse must be \(rows, 2\)"):
            OPS.rows_backward(logits, ids, scale, 0.0, wrong, e, c, e, None, torch.empty(4, 10))
    with pytest.raises(TypeError, match=r"rows_backward: lse must be \(4, 2\) float32, got \(4, 2\) float64"):
        rows_native.rows_backward(logits, ids, scale, 0.0, lse.double(), e, c, e, torch.empty(4, 10))
    for wrong, message in ((lse.double(), "lse has the wrong dtype"), (torch.ones(2, 4).T, "lse must be contiguous")):
        with pytest.raises(RuntimeError, match=message):
            OPS.rows_backward(logits, ids, scale, 0.0, wrong, e, c, e, None, torch.empty(4, 10))
    with pytest.raises(RuntimeError, match="out overlaps logits"):
        backward(logits.view(torch.bfloat16)[:, :10])
    with pytest.raises(RuntimeError, match="rows of out must not overlap each other"):
        backward(torch.empty(1, 10).expand(4, 10))
    for rows in ([0, 0, 1, 2], [0, 1, 2, 4], [-1, 1, 2, 3], [3, 2, 1, 0]):
        with pytest.raises(RuntimeError, match="source_rows must be strictly increasing rows of logits"):
            backward(torch.empty(4, 10), torch.tensor(rows))
    with pytest.raises(RuntimeError, match="lacks the instruction set"):
        OPS.rows_forward(logits, ids, scale, 0.0, 99)
