"""The fused clipped loss in Triton's interpreter, against its formulas in float64 torch with autograd, for every combination of options.

Runs in a process of its own (test_kernels_spawn.py starts it).
"""

import itertools
import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 before triton is imported; test_kernels_spawn.py runs it so", allow_module_level=True)
pytest.importorskip("triton")

import torch
import triton
import triton.language as tl

from gigpo_fast.kernels import clip_loss
from gigpo_fast.kernels.clip_loss import clip_rows_forward
from gigpo_fast.kernels.configs import Config
from gigpo_fast.kernels.rows_backward import rows_backward
from tests.interpreter_helpers import apart, assert_as_exact_as_torch, plain_gradient, plain_rows, program_order

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
SMALL, INF, NAN = Config(8, 1, 1), float("inf"), float("nan")
# Powers of two, so that float32 options lose nothing beside float64 logits.
DEFAULTS = {"low": 0.25, "high": 0.375, "dual": None, "ceiling": None, "log_ratio_low": None, "log_ratio_high": None}
DEFAULTS |= {"kl_coefficient": 0.0, "kl_input_clip": None, "kl_output_clip": None, "entropy_coefficient": 0.0}


def formula(
    lp, H, A, old, ref, w, *,
    low, high, dual, ceiling, log_ratio_low, log_ratio_high, kl_coefficient, kl_input_clip, kl_output_clip, entropy_coefficient,
):  # fmt: skip
    """The loss of each token, as the papers write it."""
    log_ratio = lp - (lp.detach() if old is None else old)
    if log_ratio_low is not None:
        log_ratio = log_ratio.clamp(log_ratio_low, log_ratio_high)
    r = log_ratio.exp()
    if ceiling is not None:
        r = r.clamp(max=ceiling)
    loss = torch.maximum(-A * r, -A * r.clamp(1 - low, 1 + high))
    if dual is not None:
        loss = torch.where(A < 0, torch.minimum(loss, -dual * A), loss)
    if kl_coefficient:
        x = ref - lp
        if kl_input_clip is not None:
            x = x.clamp(-kl_input_clip, kl_input_clip)
        kl = x.exp() - x - 1
        loss = loss + kl_coefficient * (kl if kl_output_clip is None else kl.clamp(-kl_output_clip, kl_output_clip))
    return w * (loss - entropy_coefficient * H)


def expected(lp, H, A, old, ref, w, **options):
    """(losses, d losses / d log_prob, d losses / d entropy) by autograd."""
    lp, H = lp.detach().clone().requires_grad_(), H.detach().clone().requires_grad_()
    losses = formula(lp, H, A, old, ref, w, **options)
    c, e = torch.autograd.grad(losses.sum(), (lp, H), allow_unused=True)
    return losses.detach(), c, torch.zeros_like(H) if e is None else e


def batch(dtype=torch.float64):
    """27 tokens: every log-ratio from far below to far above each bound, with advantages of both signs and 0."""
    log_ratio = torch.tensor([-40, -2, -0.5, -0.125, 0, 0.125, 0.4375, 2, 40], dtype=torch.float64).repeat_interleave(3)
    A = torch.tensor([1.5, -0.75, 0.0], dtype=torch.float64).repeat(9)
    n = len(A)
    logits, ids, scale = 2 * torch.randn(n, 5, dtype=torch.float64), torch.randint(5, (n,)), torch.full((n,), 0.75, dtype=torch.float64)
    lp = plain_rows(logits, ids, scale, 0.0)[0]
    ref = lp + torch.tensor([-9.0, -0.3, 0.0, 3.0, 9.0], dtype=torch.float64).repeat(6)[:n]
    w = torch.rand(n, dtype=torch.float64) + 0.1
    return [value.to(dtype) if value.is_floating_point() else value for value in (logits, ids, scale, A, lp - log_ratio, ref, w)]


LOG_RATIO_CLIPS = [{}, {"log_ratio_low": -0.625, "log_ratio_high": 0.75}, {"log_ratio_low": -20.0, "log_ratio_high": 20.0}]
KLS = [{}, {"kl_coefficient": 0.125}, {"kl_coefficient": 0.125, "kl_input_clip": 0.5}]
KLS += [{"kl_coefficient": 0.5, "kl_input_clip": 4.0, "kl_output_clip": 8.0}]


@triton.jit
def tokens_kernel(
    lp, H, A, old, ref, w, losses, c, e, flags, n,
    lower, upper, dual, ceiling, log_ratio_low, log_ratio_high, kl_coefficient, kl_input_clip, kl_output_clip, entropy_coefficient,
    HAS_REF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The device function on a block of tokens at once: what the row kernel does for one."""
    at = tl.arange(0, BLOCK)
    inside = at < n
    values = (tl.load(lp + at, mask=inside, other=0.0), tl.load(H + at, mask=inside, other=0.0), tl.load(A + at, mask=inside, other=0.0))
    others = (tl.load(old + at, mask=inside, other=0.0), tl.load(ref + at, mask=inside, other=0.0), tl.load(w + at, mask=inside, other=0.0))
    loss, d_lp, d_H, flag = clip_loss.clip_token(
        values[0], values[1], values[2], others[0], others[1], others[2],
        lower, upper, dual, ceiling, log_ratio_low, log_ratio_high, kl_coefficient, kl_input_clip, kl_output_clip, entropy_coefficient,
        HAS_REF,
    )  # fmt: skip
    tl.store(losses + at, loss, mask=inside)
    tl.store(c + at, d_lp, mask=inside)
    tl.store(e + at, d_H, mask=inside)
    tl.store(flags + at, flag, mask=inside)


@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize("ceiling", [None, 2.0])
@pytest.mark.parametrize("log_ratio_clip", LOG_RATIO_CLIPS)
def test_every_combination_of_options(dual, ceiling, log_ratio_clip):
    logits, ids, scale, A, old, ref, w = batch()
    lp, _, _, H, _ = plain_rows(logits, ids, scale, 0.0)
    for kl, eta, on_policy in itertools.product(KLS, (0.0, 0.0625), (False, True)):
        options = {**DEFAULTS, "dual": dual, "ceiling": ceiling, **log_ratio_clip, **kl, "entropy_coefficient": eta}
        numbers = clip_loss.kernel_numbers(**options)
        got = [torch.empty_like(lp) for _ in range(3)]
        inputs = lp, H, A, lp if on_policy else old, ref, w
        tokens_kernel[(1,)](*inputs, *got, torch.empty(27, dtype=torch.int32), 27, *numbers, HAS_REF=bool(kl), BLOCK=32)
        exact = expected(lp, H, A, None if on_policy else old, ref, w, **options)
        for name, value, by_autograd in zip(("losses", "c", "e"), got, exact, strict=True):
            assert torch.allclose(value, by_autograd, rtol=1e-11, atol=1e-11), (name, options, value, by_autograd)


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("options", [KLS[0], {**KLS[3], **LOG_RATIO_CLIPS[1], "dual": 3.0, "ceiling": 2.0, "entropy_coefficient": 0.0625}])
def test_the_row_kernel_gives_the_formula_its_arguments(options, on_policy):
    logits, ids, scale, A, old, ref, w = batch()
    lp, largest, log_sum, H, _ = plain_rows(logits, ids, scale, 0.0)
    old = None if on_policy else old
    got = clip_rows_forward(logits, ids, scale, 0.0, A, old, ref, w, **DEFAULTS | options, config=SMALL)
    by_formula = lp, largest, log_sum, H, *expected(lp, H, A, old, ref, w, **DEFAULTS | options)
    names = "log_probs", "largest", "log_sum", "entropy", "losses", "d_log_probs", "d_entropy"
    for name, value, exact in zip(names, apart(*got[:-1]), by_formula, strict=True):
        assert torch.allclose(value, exact, rtol=1e-11, atol=1e-11), name


@pytest.mark.parametrize("options", [{"ceiling": 1.0}, {"low": 0.0, "high": 0.0}, {"dual": 1.0}, {"ceiling": 1.0, "dual": 1.0}])
def test_ties_share_the_gradient_as_in_torch(options):
    """On-policy the ratio is exactly 1, so these bounds are hit exactly."""
    logits, ids, scale, A, _, ref, w = batch()
    lp, _, _, H, _ = plain_rows(logits, ids, scale, 0.0)
    got = clip_rows_forward(logits, ids, scale, 0.0, A, None, None, w, **DEFAULTS | options, config=SMALL)
    losses, c, _ = expected(lp, H, A, None, None, w, **DEFAULTS | options)
    assert torch.allclose(got.losses, losses, atol=1e-14) and torch.allclose(got.d_log_probs, c, atol=1e-14)


@pytest.mark.parametrize("tanh_in", [0.0, 1 / 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_precision_is_as_exact_as_torch(dtype, tanh_in):
    logits, ids, scale, A, old, ref, w = batch(torch.float32)
    logits = logits.to(dtype)
    options = DEFAULTS | {"dual": 3.0, "log_ratio_low": -1.0, "log_ratio_high": 1.0, **KLS[2], "entropy_coefficient": 0.25}
    got = clip_rows_forward(logits, ids, scale, tanh_in, A, old, ref, w, **options, config=Config(32, 1, 1))
    plain, exact = [], []
    both = (plain, torch.float32), (exact, torch.float64)
    for results, wide in both:
        lp, largest, log_sum, H, _ = plain_rows(logits.to(wide), ids, scale.to(wide), tanh_in)
        results += [lp, largest, log_sum, H, *expected(lp, H, *(value.to(wide) for value in (A, old, ref, w)), **options)]
    for value, by_torch, by_double in zip(apart(*got[:-1]), plain, exact, strict=True):
        assert_as_exact_as_torch(value, by_torch, by_double, factor=2)

    out = torch.empty_like(logits, dtype=torch.float32)
    rows_backward(logits, ids, scale, tanh_in, got.lse, got.entropy, got.d_log_probs, got.d_entropy, out, config=SMALL)
    gradients = [plain_gradient(logits.to(wide), ids, scale.to(wide), tanh_in, *results[5:7]) for results, wide in both]
    assert_as_exact_as_torch(out, *gradients, factor=3)


def test_the_on_policy_ratio_is_exactly_one():
    logits, ids, scale, A, _, _, w = batch(torch.float32)
    got = clip_rows_forward(logits, ids, scale, 0.0, A, None, None, w, **DEFAULTS, config=SMALL)
    assert torch.equal(got.losses, -A * w) and torch.equal(got.d_log_probs, -A * w) and not got.flags.any() and not got.d_entropy.any()


def test_impossible_tokens_drop_out_of_the_policy_term_and_nan_shows():
    logits = torch.zeros(6, 4)
    logits[0, 1] = -INF  # log-prob -inf
    logits[4, 2] = NAN
    ids, one = torch.tensor([1, 0, 0, 0, 0, 9]), torch.ones(6)
    old = torch.tensor([-1.0, -INF, INF, NAN, -1.0, -1.0])
    got = clip_rows_forward(logits, ids, one, 0.0, one, old, None, one, **DEFAULTS | {"entropy_coefficient": 0.5}, config=SMALL)
    entropy = torch.tensor([3.0, 4.0, 4.0]).log()
    assert torch.allclose(got.losses[:3], -0.5 * entropy) and torch.equal(got.d_log_probs[:3], torch.zeros(3))
    assert (got.flags[:3] == clip_loss.DROPPED).all() and (got.flags[3:] & clip_loss.NONFINITE == clip_loss.NONFINITE).all()
    assert got.losses[3:].isnan().all() and got.d_log_probs[3:].isnan().all() and torch.equal(got.d_entropy, -0.5 * one)
    on_policy = clip_rows_forward(logits, ids, one, 0.0, one, None, None, one, **DEFAULTS, config=SMALL)
    assert on_policy.losses[0] == 0 and on_policy.losses[4:].isnan().all()


def test_the_kl_term_stays_where_the_policy_term_is_dropped():
    logits, ids, one = torch.zeros(1, 4), torch.tensor([0]), torch.ones(1)
    ref = torch.tensor([-2.0])
    got = clip_rows_forward(logits, ids, one, 0.0, one, torch.tensor([-INF]), ref, one, **DEFAULTS | {"kl_coefficient": 0.5}, config=SMALL)
    x = ref + torch.tensor([4.0]).log()
    assert torch.allclose(got.losses, 0.5 * (x.exp() - x - 1)) and torch.allclose(got.d_log_probs, -0.5 * (x.exp() - 1))


def test_a_weight_of_zero_hides_whatever_the_row_holds():
    nan, zero = torch.full((2,), NAN), torch.zeros(2)
    options = DEFAULTS | {"kl_coefficient": 0.5, "entropy_coefficient": 0.5}
    got = clip_rows_forward(
        torch.full((2, 5), NAN), torch.zeros(2).long(), torch.ones(2), 0.0, nan, nan, nan, zero, **options, config=SMALL
    )
    assert all(torch.equal(value, torch.zeros_like(value)) for value in got[3:])


def test_flags():
    ratios = torch.tensor([0.5, 0.5, 1.0, 1.5, 1.5, 4.0, 4.0])
    A = torch.tensor([-1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0])
    names = [clip_loss.CLIPPED_LOW, 0, 0, clip_loss.CLIPPED_HIGH, 0, clip_loss.DUAL_CLIPPED, clip_loss.CLIPPED_HIGH]
    clamped = torch.tensor([0, 0, 0, 0, 0, clip_loss.RATIO_CLAMPED, clip_loss.RATIO_CLAMPED], dtype=torch.int32)
    logits, ids, one = torch.zeros(7, 2), torch.zeros(7).long(), torch.ones(7)
    old = torch.tensor(0.5).log() - ratios.log()
    options = DEFAULTS | {"dual": 3.0, "log_ratio_low": -1.25, "log_ratio_high": 1.25}
    got = clip_rows_forward(logits, ids, one, 0.0, A, old, None, one, **options, config=SMALL)
    assert torch.equal(got.flags, torch.tensor(names, dtype=torch.int32) + clamped)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_programs_changes_nothing(seed):
    inputs, options = batch(torch.float32), DEFAULTS | {"dual": 3.0, **KLS[2], "entropy_coefficient": 0.25}

    def run():
        return clip_rows_forward(*inputs[:3], 0.0, *inputs[3:], **options, config=SMALL)

    first, n = run(), len(inputs[0])
    order = list(range(n))[::-1] if seed == 0 else torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    with program_order(order):
        assert all(torch.equal(a, b) for a, b in zip(run(), first, strict=True))


def test_wrong_arguments_say_what_is_wrong():
    logits, ids, scale, A, old, _, w = batch(torch.float32)
    with pytest.raises(ValueError, match="clip_rows_forward: ref_log_probs must be a tensor where kl_coefficient is not 0, got None"):
        clip_rows_forward(logits, ids, scale, 0.0, A, old, None, w, low=0.2, high=0.2, kl_coefficient=0.1)
    with pytest.raises(ValueError, match=r"clip_rows_forward: old_log_probs must be \(27,\)"):
        clip_rows_forward(logits, ids, scale, 0.0, A, old[:3], None, w, low=0.2, high=0.2)
