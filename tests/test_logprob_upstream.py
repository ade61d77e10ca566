"""Gradients of the log-prob functions: any upstream gradient, rows that need none, where digits may be rounded, and heads with a life of their own."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.ops import passes
from gigpo_fast.reference import logprob as reference
from tests.loss_helpers import make_batch, smallest_chunk
from tests.memory import counted
from tests.tolerance import assert_same_bits, error

N, H, V = 12, 7, 29


def upstream(kind):
    """(which outputs, their gradients) of a backward: 0 log_probs, 1 entropy."""
    g = torch.Generator().manual_seed(3)
    numbers = torch.randn(2, 2 * N, generator=g, dtype=torch.float64)
    return {
        "expanded": ([0, 1], [torch.tensor(0.7).double().expand(N), torch.tensor(-0.2).double().expand(N)]),
        "non-uniform": ([0, 1], list(numbers[:, :N])),
        "strided": ([0, 1], list(numbers[:, ::2])),
        "only log-probs": ([0], [numbers[0, :N]]),
        "only entropy": ([1], [numbers[1, :N]]),
        "bfloat16": ([0, 1], [value.bfloat16() for value in numbers[:, :N]]),
        "all zero": ([0, 1], [torch.zeros(N).double(), torch.zeros(N).double()]),
        "one token": ([0, 1], [torch.eye(N).double()[4], torch.zeros(N).double()]),
    }[kind]


def gradients(out, kind, leaves, dtype):
    which, values = upstream(kind)
    values = [value if value.dtype == torch.bfloat16 and dtype != torch.float64 else value.to(dtype) for value in values]
    return torch.autograd.grad([out[at] for at in which], leaves, values)


@pytest.mark.parametrize(
    "kind", ["expanded", "non-uniform", "strided", "only log-probs", "only entropy", "bfloat16", "all zero", "one token"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_any_upstream_gradient(dtype, kind):
    """Values against the float64 reference under the same numbers. Bound: 1e-13, float32 16 roundings of the largest entry."""
    b = make_batch((N,), hidden=H, vocabulary=V, dtype=dtype)
    logits = (b.hidden.double() @ b.weight.double().T).to(dtype)
    for function, exact, inputs in (
        (token_log_probs, reference.token_log_probs, [logits]),
        (linear_token_log_probs, reference.linear_token_log_probs, [b.hidden, b.weight]),
    ):
        mine = [value.clone().requires_grad_() for value in inputs]
        truth = [value.double().requires_grad_() for value in inputs]
        got = gradients(function(*mine, b.token_ids), kind, mine, dtype)
        want = gradients(exact(*truth, b.token_ids), kind, truth, torch.float64)
        for ours, theirs in zip(got, want, strict=True):
            bound = 1e-13 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
            assert ours.dtype == dtype and error(ours, theirs) <= bound * float(theirs.abs().max())


def rows_of_products():
    """A patch of the three products of a head, and a list of how many rows entered each."""
    seen = SimpleNamespace(logits=[], d_hidden=[], d_weight=[])
    logits, d_hidden, d_weight = passes.head_logits, passes.d_hidden_of, passes.add_d_weight
    patch = mock.patch.multiple(
        passes,
        head_logits=lambda hidden, *rest: seen.logits.append(hidden.shape[0]) or logits(hidden, *rest),
        d_hidden_of=lambda d_logits, *rest: seen.d_hidden.append(d_logits.shape[0]) or d_hidden(d_logits, *rest),
        add_d_weight=lambda total, d_logits, *rest: seen.d_weight.append(d_logits.shape[0]) or d_weight(total, d_logits, *rest),
    )
    return seen, patch


def test_rows_without_gradient_enter_no_product_of_the_backward():
    """Zero in both coefficients, whatever the row holds: forward over all rows, backward over the others, gradients exactly 0."""
    b = make_batch((40,), hidden=H, vocabulary=V, dtype=torch.float64)
    b.hidden[3] = torch.nan
    c, e = torch.randn(2, 40, dtype=torch.float64)
    c[:30], e[:20], e[25:30] = 0, 0, 0
    c[3] = -0.0
    wanted = (c != 0) | (e != 0)
    assert int(wanted.sum()) == 15
    hidden, weight = b.hidden.clone().requires_grad_(), b.weight.clone().requires_grad_()
    out = linear_token_log_probs(hidden, weight, b.token_ids)
    seen, patch = rows_of_products()
    with patch:
        d_hidden, d_weight = torch.autograd.grad([out.log_probs, out.entropy], [hidden, weight], [c, e])
    assert seen == SimpleNamespace(logits=[15], d_hidden=[15], d_weight=[15])
    assert torch.count_nonzero(d_hidden[~wanted]) == 0

    kept, same = b.hidden[wanted].clone().requires_grad_(), b.weight.clone().requires_grad_()
    alone = reference.linear_token_log_probs(kept, same, b.token_ids[wanted])
    want = torch.autograd.grad(list(alone), [kept, same], [c[wanted], e[wanted]])
    assert error(d_hidden[wanted], want[0]) < 1e-13 and error(d_weight, want[1]) < 1e-13


def test_no_gradient_at_all_runs_no_product():
    b = make_batch((N,))
    hidden, weight = b.hidden.clone().requires_grad_(), b.weight.clone().requires_grad_()
    out = linear_token_log_probs(hidden, weight, b.token_ids)
    seen, patch = rows_of_products()
    with patch:
        (0.0 * out.log_probs.sum()).backward()
    assert seen == SimpleNamespace(logits=[], d_hidden=[], d_weight=[])
    assert torch.count_nonzero(hidden.grad) == torch.count_nonzero(weight.grad) == 0


def test_a_coefficient_of_nan_is_no_zero():
    b = make_batch((N,))
    hidden = b.hidden.clone().requires_grad_()
    c = torch.zeros(N)
    c[5] = torch.nan
    (d_hidden,) = torch.autograd.grad(linear_token_log_probs(hidden, b.weight, b.token_ids).log_probs, hidden, c)
    assert d_hidden[5].isnan().all() and torch.count_nonzero(d_hidden[torch.arange(N) != 5]) == 0


def in_slabs():
    """bfloat16 operands whose backward runs in several slabs of the vocabulary and several blocks of rows; (gradients, exact gradients)."""
    b = make_batch((300,), hidden=16, vocabulary=2000, dtype=torch.bfloat16)
    c = torch.randn(300)
    leaves = [value.clone().requires_grad_() for value in (b.hidden, b.weight, b.bias)]
    truth = [value.double().requires_grad_() for value in (b.hidden, b.weight, b.bias)]
    seen, patch = rows_of_products()
    with patch, mock.patch.object(passes, "_slab_shape", lambda weight, budget: (256, 32)):
        got = torch.autograd.grad(
            linear_token_log_probs(leaves[0], Head(*leaves[1:]), b.token_ids, chunk_bytes=smallest_chunk(b)).log_probs, leaves, c
        )
    assert len(seen.d_weight) == len(seen.d_hidden) == 8 * 10
    exact = reference.linear_token_log_probs(truth[0], truth[1], b.token_ids, bias=truth[2])[0]
    return got, torch.autograd.grad(exact, truth, c.double())


def assert_rounded_once():
    """Entry by entry: half a unit of bfloat16 from the exact gradient, and 32 roundings in float32 of the largest."""
    for name, ours, exact in zip(("d_hidden", "d_weight", "d_bias"), *in_slabs(), strict=True):
        assert ours.dtype == torch.bfloat16
        off = (ours.double() - exact).abs() - exact.abs() * 2.0**-8 / (1 + 2.0**-8)
        assert float(off.max()) <= 32 * 2.0**-24 * float(exact.abs().max()), f"{name}: rounded more than once, {float(off.max()):.3g}"


def test_low_precision_gradients_are_rounded_once():
    assert_rounded_once()


@pytest.mark.parametrize("name", ["d_hidden", "d_weight"])
def test_a_rounding_a_slab_is_seen(name, monkeypatch):
    """The mutation that the test above must catch: sums over slabs or blocks that pass through bfloat16."""
    product = {"d_hidden": "d_hidden_of", "d_weight": "add_d_weight"}[name]
    exact = getattr(passes, product)
    monkeypatch.setattr(passes, product, lambda *arguments: exact(*arguments).bfloat16().float())
    with pytest.raises(AssertionError, match=f"{name}: rounded more than once"):
        assert_rounded_once()


def test_padding_of_the_vocabulary_can_hold_anything():
    b = make_batch((N,), hidden=H, vocabulary=V, dtype=torch.float64)
    b.token_ids.clamp_(max=19)
    weight, bias = b.weight.clone(), b.bias.clone()
    weight[20:], bias[20:] = torch.nan, torch.inf
    leaves = [value.clone().requires_grad_() for value in (b.hidden, weight, bias)]
    out = linear_token_log_probs(leaves[0], Head(*leaves[1:], vocab_size=20), b.token_ids)
    got = torch.autograd.grad(out.log_probs.sum() + out.entropy.sum(), leaves)
    truth = [value.clone().requires_grad_() for value in (b.hidden, b.weight[:20], b.bias[:20])]
    exact = reference.linear_token_log_probs(truth[0], truth[1], b.token_ids, bias=truth[2])
    want = torch.autograd.grad(exact[0].sum() + exact[1].sum(), truth)
    assert got[1].shape == weight.shape and torch.count_nonzero(got[1][20:]) == torch.count_nonzero(got[2][20:]) == 0
    for ours, theirs in zip((got[0], got[1][:20], got[2][:20]), want, strict=True):
        assert error(ours, theirs) < 1e-13


@pytest.mark.parametrize("again", [False, True], ids=["once", "over two backwards"])
def test_tied_embeddings(again):
    """One parameter is the embedding and the head: both gradients add up in it, and over micro-batches."""
    g = torch.Generator().manual_seed(0)
    table = torch.randn(V, H, generator=g, dtype=torch.float64)
    inputs, ids = torch.randint(V, (2, 3, N), generator=g)

    def grown(function):
        shared = torch.nn.Parameter(table.clone())
        for _ in range(1 + again):
            hidden = torch.tanh(torch.nn.functional.embedding(inputs, shared))
            log_probs, entropy = function(hidden, shared, ids)
            (log_probs.sum() + 0.1 * entropy.sum()).backward()
        return shared.grad

    assert error(grown(linear_token_log_probs), grown(reference.linear_token_log_probs)) < 1e-12


@pytest.mark.parametrize("function", [token_log_probs, linear_token_log_probs])
def test_a_second_backward_over_a_retained_graph(function):
    """The same bits again, also through the other output and after the first gradient was overwritten."""
    b = make_batch((N,), hidden=H, vocabulary=V)
    inputs = [b.hidden @ b.weight.T] if function is token_log_probs else [b.hidden, b.weight]
    leaves = [value.clone().requires_grad_() for value in inputs]
    out = function(*leaves, b.token_ids)
    first = torch.autograd.grad(out.log_probs.sum() + out.entropy.sum(), leaves, retain_graph=True)
    kept = [value.clone() for value in first]
    for value in first:
        value.fill_(torch.nan)
    torch.autograd.grad(out.entropy.sum(), leaves, retain_graph=True)
    for ours, theirs in zip(torch.autograd.grad(out.log_probs.sum() + out.entropy.sum(), leaves), kept, strict=True):
        assert_same_bits("second backward", ours, theirs)


@pytest.mark.parametrize(
    "need", [(True, False, False), (False, True, False), (False, False, True), (True, False, True), (True, True, True)]
)
def test_what_needs_no_gradient_costs_none(need):
    """No product and no buffer for a frozen weight or frozen hidden states, and the others get what they got."""
    b = make_batch((64,), hidden=32, vocabulary=500)
    leaves = [value.clone().requires_grad_(needed) for value, needed in zip((b.hidden, b.weight, b.bias), need)]
    every = [value.clone().requires_grad_() for value in (b.hidden, b.weight, b.bias)]
    chunk = smallest_chunk(b)  # logits of 16 rows: far below the weight
    linear_token_log_probs(every[0], Head(*every[1:]), b.token_ids, chunk_bytes=chunk).log_probs.sum().backward()
    seen, patch = rows_of_products()
    with patch, counted() as memory:
        linear_token_log_probs(leaves[0], Head(*leaves[1:]), b.token_ids, chunk_bytes=chunk).log_probs.sum().backward()
    assert (bool(seen.d_hidden), bool(seen.d_weight)) == need[:2]
    assert (memory.largest >= b.weight.numel()) == need[1]
    for ours, theirs, needed in zip(leaves, every, need, strict=True):
        assert_same_bits("gradient", ours.grad, theirs.grad if needed else None)
