"""Row kernels at the edges of size and process: offsets past 2^31 elements, more rows than a grid axis holds, forked children."""

import os
import subprocess
import sys

import pytest
import torch

from gigpo_fast import backend
from gigpo_fast.logprob import token_log_probs
from gigpo_fast.ops import rows_torch
from tests.tolerance import assert_same_bits, error

NATIVE = backend.why_not_native(torch.device("cpu")) is None
PATHS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason="the C++ rows are not built"))]
STRIDE = (1 << 30) + 24  # elements: the third row starts past 2^31, and a stride still fits into 31 bits


def rows_of(path):
    if path == "torch":
        return rows_torch
    from gigpo_fast.ops import rows_native

    return rows_native


def far_rows(vocabulary):
    """(3, V) bfloat16 rows over 4 GiB of which only the touched pages exist."""
    try:
        return torch.empty(2 * STRIDE + vocabulary, dtype=torch.bfloat16).as_strided((3, vocabulary), (STRIDE, 1))
    except RuntimeError as error:
        pytest.skip(f"no 4 GiB of address space: {error}")


def upstream(n):
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, n, generator=g)


@pytest.mark.parametrize("path", PATHS)
def test_offsets_past_two_to_the_31_elements(path):
    """Read and written there: out of place, into far rows, in place, and from the last row alone."""
    rows, V = rows_of(path), 5000
    near, ids, scale = torch.randn(3, V).bfloat16(), torch.tensor([0, V - 1, 77]), torch.tensor([1.0, 0.7, 2.0])
    far, out = far_rows(V), far_rows(V)
    far.copy_(near)
    want, got = (rows.rows_forward(value, ids, scale, 0.0) for value in (near, far))
    for ours, theirs in zip(got, want, strict=True):
        assert_same_bits("forward", ours, theirs)
    _, lse, entropy, _ = want
    per_row, wanted = (ids, scale, 0.0, lse, entropy, *upstream(3)), torch.empty_like(near)
    rows.rows_backward(near, *per_row, wanted)
    last = [value[2:] if isinstance(value, torch.Tensor) else value for value in per_row]
    alone = torch.empty(1, V, dtype=torch.bfloat16)
    rows.rows_backward(far, *last, alone, torch.tensor([2]))
    assert_same_bits("from the last row", alone, wanted[2:])
    rows.rows_backward(far, *per_row, out)
    assert_same_bits("into far rows", out, wanted)
    rows.rows_backward(far, *per_row, far)
    assert_same_bits("in place", far, wanted)


@pytest.mark.parametrize("path", PATHS)
def test_far_rows_through_the_public_function(path):
    near, ids = torch.randn(3, 300).bfloat16(), torch.tensor([0, 299, 7], dtype=torch.int32)
    far = far_rows(300)
    far.copy_(near)
    with backend.use(path):
        for ours, theirs in zip(token_log_probs(far, ids), token_log_probs(near, ids), strict=True):
            assert_same_bits("far", ours, theirs)


@pytest.mark.parametrize("path", PATHS)
def test_more_rows_than_a_grid_axis_holds(path):
    """70,000 rows, past 65,535: every row gets its own result and its own gradient."""
    n, V = 70_000, 5
    logits, ids = torch.randn(n, V), torch.randint(V, (n,))
    with backend.use(path):
        x = logits.clone().requires_grad_()
        out = token_log_probs(x, ids)
        (gradient,) = torch.autograd.grad(list(out), x, list(upstream(n)))
    y = logits.double().requires_grad_()
    log_p = torch.log_softmax(y, 1)
    exact = log_p.gather(1, ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)
    (exact_gradient,) = torch.autograd.grad(list(exact), y, [value.double() for value in upstream(n)])
    for ours, theirs in zip((*out, gradient), (*exact, exact_gradient), strict=True):
        assert error(ours, theirs) < 3e-6


FORKED = """
import os, signal, sys
import torch
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_grpo_loss

torch.set_num_threads(2)
logits, ids = torch.randn(64, 20000), torch.zeros(64, dtype=torch.int64)
hidden, weight = torch.randn(64, 2000) / 50, torch.randn(20000, 2000)
trained = torch.ones(64, dtype=torch.bool)
call = {
    "logits": lambda: token_log_probs(logits, ids),
    "hidden": lambda: linear_token_log_probs(hidden, weight, ids),
    "loss": lambda: linear_grpo_loss(hidden.requires_grad_(), weight, ids, torch.ones(64), trained)[:1],
}[sys.argv[1]]
want = call()
pid = os.fork()
if pid == 0:
    signal.alarm(20)  # a child that hangs is killed
    try:
        call()
        os._exit(3)
    except RuntimeError as error:
        print(error, flush=True)
    torch.set_num_threads(1)
    os._exit(0 if all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(want, call())) else 4)
print("child ended with", os.waitpid(pid, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("call", ["logits", "hidden", "loss"])
def test_a_forked_child_says_why_not_or_is_right(call):
    """torch's own threads hang after a fork: with more than one the call raises before it touches them, with one it works."""
    environment = {**os.environ, "GIGPO_FAST_VALIDATE": "metadata", "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", FORKED, call], capture_output=True, text=True, timeout=120, env=environment)
    assert ran.stdout.endswith("child ended with 0\n"), ran.stdout + ran.stderr
    assert "call torch.set_num_threads(1) in the child" in ran.stdout
