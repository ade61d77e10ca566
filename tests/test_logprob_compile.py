"""The log-prob functions inside torch.compile: one graph, new lengths without a new graph, the same numbers, and the ops' contracts."""

import os
import shutil

import pytest
import torch

from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, linear_token_statistics, token_log_probs, token_statistics
from tests.compile_helpers import Counting, fresh_compiler  # noqa: F401 - a fixture
from tests.loss_helpers import make_batch
from tests.tolerance import assert_same_bits, error

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler for CPU tensors: apt-get install g++"
)
NAMES = ("hidden", "weight", "bias")


def from_logits(hidden, weight, bias, ids, temperature):
    logits = hidden @ weight.T + bias
    found = token_log_probs(logits, ids, temperature=temperature, softcap=5.0, vocab_size=20)
    return found.log_probs, found.entropy, token_statistics(logits, ids, temperature=temperature, softcap=5.0, vocab_size=20)[2]


def from_hidden(hidden, weight, bias, ids, temperature):
    head = Head(weight, bias, softcap=5.0, vocab_size=20)
    found = linear_token_log_probs(hidden, head, ids, temperature=temperature)
    return found.log_probs, found.entropy, linear_token_statistics(hidden, head, ids, temperature=temperature)[2]


FUNCTIONS = pytest.mark.parametrize("function", [from_logits, from_hidden], ids=["logits", "hidden"])


def step(function, shape, *, upstream="both", per_token=False, seed=0):
    """Results and gradients of one call on a batch of `shape`."""
    b = make_batch(shape, seed=seed)
    b.token_ids.clamp_(max=19)
    leaves = [getattr(b, name).clone().requires_grad_() for name in NAMES]
    temperature = 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(seed)) if per_token else 0.7
    log_probs, entropy, squares = function(*leaves, b.token_ids, temperature)
    loss = {"both": (log_probs * b.advantages).sum() + entropy.mean(), "log-probs": log_probs.sum(), "entropy": entropy.square().mean()}[
        upstream
    ]
    loss.backward()
    return [value.detach() for value in (log_probs, entropy, squares)], [leaf.grad for leaf in leaves]


@FUNCTIONS
@pytest.mark.parametrize(
    "backend, upstream",
    [("aot_eager", "both"), ("aot_eager", "log-probs"), ("aot_eager", "entropy")]
    + [pytest.param("inductor", "both", marks=[needs_compiler, pytest.mark.slow])],
)
def test_one_graph_and_new_lengths_without_a_new_one(backend, upstream, function):
    counting, first = Counting(backend), 0
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=counting)
    for number, shape in enumerate([(3, 6), (4, 9), (5, 7)]):
        got, want = (step(call, shape, upstream=upstream, seed=number) for call in (compiled, function))
        for ours, theirs in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
            assert ours.dtype == theirs.dtype and error(ours, theirs) <= 2e-6 * max(1.0, float(theirs.abs().max()))
        first = first or counting.graphs
        assert counting.graphs == first


@FUNCTIONS
def test_a_temperature_a_token(function):
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    got, want = (step(call, (3, 6), per_token=True) for call in (compiled, function))
    for ours, theirs in zip((*got[0], *got[1]), (*want[0], *want[1]), strict=True):
        assert_same_bits("compiled", ours, theirs)


@FUNCTIONS
def test_without_gradient(function):
    """Under no_grad, and with a frozen weight: traced without a backward, or with one for the others only."""
    b = make_batch((3, 6))
    b.token_ids.clamp_(max=19)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        got, want = (call(b.hidden, b.weight, b.bias, b.token_ids, 0.7) for call in (compiled, function))
    for ours, theirs in zip(got, want, strict=True):
        assert_same_bits("no_grad", ours, theirs)
    grown = []
    for call in (compiled, function):
        hidden = b.hidden.clone().requires_grad_()
        call(hidden, b.weight, b.bias, b.token_ids, 0.7)[0].sum().backward()
        grown.append(hidden.grad)
    assert_same_bits("d_hidden", *grown)


OPS = torch.ops.gigpo_fast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_contract_of_the_logits_op(dtype):
    """Every column, a slice of wider rows, a row stride that is no multiple of anything."""
    ids, scale = torch.randint(23, (18,)), torch.ones(18, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for logits in (torch.randn(18, 23), torch.randn(18, 31)[:, 3:26], torch.randn(23, 18).T, torch.randn(36, 23)[::2]):
        torch.library.opcheck(OPS.token_log_probs.default, (logits.to(dtype).requires_grad_(), ids, scale, 0.2))


@pytest.mark.parametrize("need", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)])
def test_contract_of_the_hidden_op(need):
    b = make_batch((18,))
    leaves = [getattr(b, name).clone().requires_grad_(needed) for name, needed in zip(NAMES, need, strict=True)]
    for invariant in (False, True):
        torch.library.opcheck(OPS.linear_token_log_probs.default, (*leaves, b.token_ids, torch.ones(18), 0.25, 1 << 20, invariant, "", []))
