"""`token_log_probs` and `linear_token_log_probs` against float64, and the relations a softmax obeys."""

import math
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import gigpo_fast
from gigpo_fast import backend
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.ops import passes
from gigpo_fast.reference import logprob as reference
from gigpo_fast.testing.losses import RoundGradient
from tests.logprob_helpers import DTYPES, HEADS, PATHS, compute
from tests.loss_helpers import make_batch, smallest_chunk
from tests.tolerance import GRADIENT, VALUE, assert_no_worse_than, assert_same_bits, error, roundings


def pulled(outputs, leaves, seed=0):
    """Values, and gradients for one random upstream gradient of both outputs, 0 and negative ones among them."""
    g = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(outputs[0].shape, generator=g, dtype=torch.float64) for _ in range(2)]
    upstream[0].view(-1)[::4], upstream[1].view(-1)[::2] = 0, 0
    gradients = torch.autograd.grad(list(outputs), leaves, [value.to(outputs[0].dtype) for value in upstream])
    return [output.detach() for output in outputs], gradients


def check(got, oracle, plain, dtype, *, transformed=0.0):
    """The rule for log_probs, entropy and every gradient. Floors: 8 roundings (float64: 512) of the largest entry (entropy: at least of 1, since
    a sum of probabilities is rounded at 1), and the rounding of the output itself. `transformed` is the largest |z| where z is not the
    logit itself: two roundings of it, which decide where two huge logits are nearly equal, fall in every order of the operations as they like."""
    count = 512 if dtype == torch.float64 else 8
    huge = torch.finfo(compute(dtype)).eps * transformed
    for label, ours, exact, own in zip(("log_probs", "entropy"), got[0], oracle[0], plain[0]):
        assert ours.dtype == compute(dtype)
        scale = exact.abs().clamp(min=1.0) if label == "entropy" else exact
        assert_no_worse_than(label, ours, exact, own, factor=VALUE, floor=roundings(scale, compute(dtype), count) + huge)
    for at, (ours, exact, own) in enumerate(zip(got[1], oracle[1], plain[1])):
        assert ours.dtype == dtype
        floor = roundings(exact, compute(dtype), count) + (roundings(exact, dtype, 1) if dtype != compute(dtype) else 0.0)
        assert_no_worse_than(f"gradient {at}", ours, exact, own, factor=GRADIENT, floor=floor + huge)


def leaf(value, dtype):
    return value.detach().to(dtype).clone().requires_grad_()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [0.01, 5.0, 160.0])
def test_from_logits(size, head, dtype, path):
    """Three scales of logits, three leading dimensions."""
    logits = (size * torch.randn(2, 5, 8, 37)).to(dtype)
    ids = torch.randint(31, (2, 5, 8))
    mine, exact, own = leaf(logits, dtype), leaf(logits, torch.float64), leaf(logits, dtype)
    with backend.use(path):
        got = pulled(token_log_probs(mine, ids, **HEADS[head]), [mine])
    oracle = pulled(reference.token_log_probs(exact, ids, **HEADS[head]), [exact])
    plain = pulled(reference.token_log_probs(own.to(compute(dtype)), ids, **HEADS[head]), [own])
    check(got, oracle, plain, dtype, transformed=float(logits.abs().max()) * 1.7 / 0.6 if head == "scaled" else 0.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("small", [False, True], ids=["one chunk", "small chunks"])
def test_from_hidden_states(head, small, dtype, path):
    b = make_batch((3, 12), vocabulary=37, dtype=dtype)
    given = dict(HEADS[head])
    b.token_ids.clamp_(max=30)
    chunk = {"chunk_bytes": smallest_chunk(b)} if small else {}

    def leaves(kind):
        return [leaf(value, kind) for value in (b.hidden, b.weight, b.bias)]

    def plain(kind, rounded):
        own = leaves(kind)
        precision = compute(kind)
        logits = own[0].to(precision) @ own[1].to(precision).T + own[2].to(precision)
        logits = RoundGradient.apply(logits, kind) if rounded and kind != precision else logits
        return pulled(reference.token_log_probs(logits, b.token_ids, **given), own)

    mine = leaves(dtype)
    features = {name: given[name] for name in ("logit_scale", "softcap", "vocab_size") if name in given}
    with backend.use(path):
        got = pulled(
            linear_token_log_probs(mine[0], Head(*mine[1:], **features), b.token_ids, temperature=given.get("temperature", 1.0), **chunk),
            mine,
        )
    check(got, plain(torch.float64, False) if dtype == torch.float64 else exact_of(b, given), plain(dtype, True), dtype)


@pytest.mark.parametrize("path", PATHS)
def test_slabs_of_the_vocabulary(path):
    """A backward that recomputes the logits in pieces of 512 columns and a few dozen rows, targets in all of them."""
    b = make_batch((2, 100), vocabulary=1500, dtype=torch.float64)
    assert len(b.token_ids.div(512, rounding_mode="floor").unique()) == 3

    def run(**keywords):
        leaves = [leaf(value, torch.float64) for value in (b.hidden, b.weight, b.bias)]
        return pulled(linear_token_log_probs(leaves[0], Head(*leaves[1:], softcap=5.0), b.token_ids, temperature=0.7, **keywords), leaves)

    with backend.use(path):
        got = run(chunk_bytes=smallest_chunk(b))
    want = exact_of(b, {"softcap": 5.0, "temperature": 0.7})
    for ours, theirs in zip((*got[0], *got[1]), (*want[0], *want[1])):
        assert error(ours, theirs) <= 1e-13 * max(1.0, float(theirs.abs().max()))


def exact_of(b, given):
    own = [leaf(value, torch.float64) for value in (b.hidden, b.weight, b.bias)]
    features = {name: value for name, value in given.items()}
    return pulled(reference.linear_token_log_probs(own[0], own[1], b.token_ids, bias=own[2], **features), own)


def test_rounded_logits_are_caught(monkeypatch):
    exact = passes.head_logits
    monkeypatch.setattr(passes, "head_logits", lambda hidden, weight, bias, *_: exact(hidden, weight, bias).to(weight.dtype).float())
    with pytest.raises(AssertionError, match="log_probs: error"):
        test_from_hidden_states("plain", False, torch.bfloat16, "torch")


def tokens(n=6, vocabulary=19, seed=0):
    g = torch.Generator().manual_seed(seed)
    # Multiples of 2^-9 below 8: adding 1e4 is exact in float32, so that only the function can lose digits.
    logits = torch.randint(-4096, 4096, (n, vocabulary), generator=g).float() / 512
    return SimpleNamespace(logits=logits, ids=torch.randint(vocabulary, (n,), generator=g), g=g)


def both(logits, ids, **keywords):
    x = logits.detach().clone().requires_grad_()
    return pulled(token_log_probs(x, ids, **keywords), [x])


@pytest.mark.parametrize("path", PATHS)
@given(seed=st.integers(0, 10**6), shift=st.sampled_from([-1e4, -16.0, 1e4]))
def test_a_common_offset_changes_nothing(path, seed, shift):
    """Logits that are all negative or all huge: the running maximum must start at -inf, the maximum leave before the log."""
    t = tokens(seed=seed)
    with backend.use(path):
        (log_probs, entropy), (gradient,) = both(t.logits, t.ids)
        (moved, moved_entropy), (moved_gradient,) = both(t.logits + shift, t.ids)
    assert bool((log_probs <= 0).all()) and bool((entropy >= 0).all()) and bool((entropy <= math.log(19) + 1e-6).all())
    assert_same_bits("log_probs", moved, log_probs)
    tolerance = 8 * torch.finfo(torch.float32).eps
    assert error(moved_entropy, entropy) <= tolerance * math.log(19)
    assert error(moved_gradient, gradient) <= tolerance * float(gradient.abs().max())


@pytest.mark.parametrize("path", PATHS)
@given(seed=st.integers(0, 10**6))
def test_vocabulary_order_and_padding_do_not_matter(path, seed):
    t = tokens(seed=seed)
    logits, order = t.logits.double(), torch.randperm(19, generator=t.g)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(19))
    with backend.use(path):
        want = both(logits, t.ids)
        permuted = both(logits[:, order], place[t.ids])
        padded = both(torch.cat([logits, torch.full((6, 5), -math.inf)], 1), t.ids)
        cut = both(torch.cat([logits, torch.full((6, 5), math.nan)], 1), t.ids, vocab_size=19)
    for found, columns in ((permuted, place), (padded, slice(19)), (cut, slice(19))):
        for got, ours in zip(found[0], want[0]):
            assert error(got, ours) < 1e-14
        assert error(found[1][0][:, columns], want[1][0]) < 1e-14
    assert torch.count_nonzero(padded[1][0][:, 19:]) == torch.count_nonzero(cut[1][0][:, 19:]) == 0


@pytest.mark.parametrize("path", PATHS)
def test_rows_are_independent(path):
    """A row's log-prob, entropy and gradient do not depend on the other rows, to the bit."""
    t = tokens(9)
    with backend.use(path):
        want = both(t.logits, t.ids)
        x = t.logits[3:5].clone().requires_grad_()
        log_probs, entropy = token_log_probs(x, t.ids[3:5])
        g = torch.Generator().manual_seed(0)
        upstream = [torch.randn(9, generator=g, dtype=torch.float64) for _ in range(2)]
        upstream[0][::4], upstream[1][::2] = 0, 0
        (gradient,) = torch.autograd.grad([log_probs, entropy], x, [value[3:5].float() for value in upstream])
    assert_same_bits("log_probs", log_probs.detach(), want[0][0][3:5])
    assert_same_bits("entropy", entropy.detach(), want[0][1][3:5])
    assert_same_bits("gradient", gradient, want[1][0][3:5])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", ["row slice", "column slice", "transposed", "offset"])
def test_any_strides(layout, path):
    t = tokens(8, 16)
    logits, ids = {
        "row slice": lambda: (t.logits.repeat_interleave(3, 0)[::3], t.ids.repeat_interleave(2)[::2]),
        "column slice": lambda: (torch.nn.functional.pad(t.logits, (3, 5))[:, 3:-5], t.ids),
        "transposed": lambda: (t.logits.t().contiguous().t(), t.ids),
        "offset": lambda: (torch.nn.functional.pad(t.logits, (0, 0, 2, 1))[2:-1], torch.nn.functional.pad(t.ids, (1, 0))[1:]),
    }[layout]()
    assert not logits.is_contiguous() or layout == "offset"
    with backend.use(path):
        want = both(t.logits, t.ids)
        x = logits.detach().requires_grad_()
        got = pulled(token_log_probs(x, ids), [x])
    for ours, theirs in zip((*got[0], *got[1]), (*want[0], *want[1])):
        assert_same_bits(layout, ours, theirs)


def test_upstream_gradients_of_any_strides():
    """`.sum()` sends an expanded gradient back, a slice a strided one."""
    t = tokens(8)
    for pick in (
        lambda log_probs, entropy: log_probs.sum() + 2 * entropy.sum(),
        lambda log_probs, entropy: (log_probs[::2] * 3).sum() + entropy[3],
    ):
        x, y = (t.logits.double().requires_grad_() for _ in range(2))
        pick(*token_log_probs(x, t.ids)).backward()
        pick(*reference.token_log_probs(y, t.ids)).backward()
        assert error(x.grad, y.grad) < 1e-14
        hidden, weight = torch.randn(8, 5, dtype=torch.float64), torch.randn(19, 5, dtype=torch.float64)
        x, y = (hidden.clone().requires_grad_() for _ in range(2))
        pick(*linear_token_log_probs(x, weight, t.ids)).backward()
        pick(*reference.linear_token_log_probs(y, weight, t.ids)).backward()
        assert error(x.grad, y.grad) < 1e-14


@pytest.mark.parametrize("path", PATHS)
def test_a_nearly_certain_token_keeps_its_gradient(path):
    """1 - p where p is within 1e-2 to 1e-5 of 1: relative error against plain torch's, no floor."""
    logits = torch.stack([torch.linspace(5, 12, 64), torch.zeros(64)], 1)
    ids = torch.zeros(64, dtype=torch.int64)

    def gradient(function, value):
        x = value.clone().requires_grad_()
        return torch.autograd.grad(function(x, ids)[0].sum(), x)[0][:, 0].double()

    exact = gradient(reference.token_log_probs, logits.double())
    plain = gradient(lambda x, y: torch.log_softmax(x, -1).gather(-1, y[:, None]).T, logits)
    with backend.use(path):
        got = gradient(token_log_probs, logits)
    assert_no_worse_than("1 - p", got / exact, torch.ones(64), plain / exact, factor=GRADIENT)


@pytest.mark.parametrize("path", PATHS)
def test_impossible_tokens(path):
    """-inf logits have probability 0 and gradient 0; an impossible target has log-prob -inf; a row of only -inf is NaN."""
    logits = torch.tensor([[0.0, -math.inf, 0.0], [0.0, -math.inf, 0.0], [-math.inf] * 3]).requires_grad_()
    with backend.use(path):
        log_probs, entropy = token_log_probs(logits, torch.tensor([0, 1, 0]))
        (gradient,) = torch.autograd.grad(log_probs[0] + entropy[0], logits)
    assert log_probs[0].item() == pytest.approx(-math.log(2)) and entropy[0].item() == pytest.approx(math.log(2))
    assert log_probs[1].item() == -math.inf and math.isnan(log_probs[2].item())
    assert gradient[0].tolist() == pytest.approx([0.5, 0.0, -0.5]) and torch.count_nonzero(gradient[1:]) == 0


@pytest.mark.parametrize("how", ["backward", "torch.func", "batched gradients"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wrong", [-100, -1, 7, 2**40])
def test_a_token_that_is_none_makes_its_own_gradient_nan_unless_it_is_masked(wrong, path, how):
    logits, hidden, weight = torch.randn(3, 7), torch.randn(3, 5), torch.randn(7, 5)
    ids = torch.tensor([2, wrong, wrong])
    used = torch.tensor([True, True, False])

    def loss(function, *tensors):
        return torch.where(used, function(*tensors, ids).log_probs, 0).sum()

    def gradient(function, *tensors):
        if how == "torch.func":
            return torch.func.grad(lambda x: loss(function, x, *tensors[1:]))(tensors[0])
        x = tensors[0].clone().requires_grad_()
        if how == "backward":
            return torch.autograd.grad(loss(function, x, *tensors[1:]), x)[0]
        value = function(x, *tensors[1:], ids).log_probs
        return torch.autograd.grad(value, x, used.float().expand(2, 3), is_grads_batched=True)[0][1]

    with backend.use(path), gigpo_fast.validation("metadata"):
        for function, *tensors in ((token_log_probs, logits), (linear_token_log_probs, hidden, weight)):
            found = gradient(function, *tensors)
            assert bool(found[0].isfinite().all()) and bool(found[1].isnan().any()) and torch.count_nonzero(found[2]) == 0


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_no_tokens(shape):
    logits, hidden, weight = (
        torch.randn(*shape, 7, requires_grad=True),
        torch.randn(*shape, 5, requires_grad=True),
        torch.randn(7, 5, requires_grad=True),
    )
    ids = torch.zeros(shape, dtype=torch.int64)
    for out in (token_log_probs(logits, ids), linear_token_log_probs(hidden, weight, ids)):
        assert out.log_probs.shape == out.entropy.shape == shape
        (out.log_probs.sum() + out.entropy.sum()).backward()
    assert logits.grad.shape == logits.shape and hidden.grad.shape == hidden.shape and torch.count_nonzero(weight.grad) == 0


def test_int32_token_ids_and_repeatability():
    t = tokens()
    want = both(t.logits, t.ids)
    for ids in (t.ids, t.ids.int()):
        for ours, theirs in zip((*both(t.logits, ids)[0], *both(t.logits, ids)[1]), (*want[0], *want[1])):
            assert_same_bits("again", ours, theirs)
