"""Peak memory within the formulas that the docstrings state, measured by counting every tensor that is alive at once."""

import pytest
import torch

from gigpo_fast import backend
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_policy_loss
from gigpo_fast.objective import KLPenalty, PolicyObjective, SequenceRatio
from gigpo_fast.ops import passes, rows_torch
from tests.memory import counted

NATIVE = backend.why_not_native(torch.device("cpu")) is None
needs_native = pytest.mark.skipif(not NATIVE, reason="the C++ rows are not built")
PATHS = ["torch", pytest.param("native", marks=needs_native)]
EACH = pytest.mark.parametrize(
    "size, dtype, path",
    [(size, torch.float32, "torch") for size in ("many tokens", "wide hidden states")]
    + [pytest.param(size, dtype, "native", marks=needs_native) for size in ("many tokens", "wide hidden states", "many columns")
       for dtype in (torch.float32, torch.bfloat16, torch.float64)],
    ids=str,
)  # fmt: skip
SIZES = {"many tokens": (1024, 32, 3000), "wide hidden states": (96, 512, 3000), "many columns": (64, 32, 40000)}
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """The torch rows' temporaries, far below the sizes here."""
    monkeypatch.setattr(rows_torch, "_BLOCK_ELEMENTS", 1 << 15)


def rows_temporaries(path, dtype):
    """Row kernels in torch work through blocks and hold a few of them; in C++ they need none."""
    return 8 * rows_torch._BLOCK_ELEMENTS * max(4, dtype.itemsize) if path == "torch" else 0


def small_change(n):
    """Numbers per token: log-probs, ids, weights, coefficients, indices, what the autograd of the formula keeps."""
    return 128 * 8 * n + 64 * 1024


def batch(size, dtype):
    n, hidden, vocabulary = SIZES[size]
    g = torch.Generator().manual_seed(0)
    h, w = (torch.randn(*shape, generator=g).mul(0.2).to(dtype).requires_grad_() for shape in ((n, hidden), (vocabulary, hidden)))
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    ids, A = torch.randint(vocabulary, (n,), generator=g), torch.randn(n, generator=g).to(compute)
    chunk = 8192 * hidden * 4 + 4 * MIB if dtype.itemsize == 2 else 6 * MIB if dtype.itemsize == 8 else 4 * MIB
    return h, w, ids, A, torch.ones(n, dtype=torch.bool), chunk, compute.itemsize


def test_the_counter_counts():
    with counted() as seen:
        a = torch.zeros(1000)
        b = a + 1
        del a
        b.view(10, 100).mul_(2)
        del b
        c = torch.empty(500, dtype=torch.float64)
    assert (seen.peak, seen.now, seen.largest) == (8000, c.nbytes, 1000)


@EACH
@pytest.mark.parametrize(
    "objective", [PolicyObjective(divergence=KLPenalty(0.1)), PolicyObjective(SequenceRatio())], ids=["one pass", "two passes"]
)
def test_linear_policy_loss(objective, size, dtype, path):
    """chunk_bytes + N x H of d_hidden + V x H x 4 of d_weight (and the rounded copy); a backward adds the gradients it returns."""
    h, w, ids, A, mask, chunk, wide = batch(size, dtype)
    keywords = {"ref_log_probs": torch.full_like(A, -1.0)} if objective.needs_reference else {"sequence_ids": torch.zeros_like(ids)}
    rounded = w.numel() * dtype.itemsize if dtype.itemsize < 4 else 0
    formula = chunk + h.numel() * dtype.itemsize + w.numel() * wide + rounded
    formula += h.numel() * (wide + dtype.itemsize) if objective.needs_sequences else 0  # one sequence, in two passes
    with backend.use(path), counted() as seen:
        out = linear_policy_loss(h, w, ids, A, mask, old_log_probs=torch.zeros_like(A), objective=objective, chunk_bytes=chunk, **keywords)
        assert seen.peak <= formula + rows_temporaries(path, dtype) + small_change(len(ids)), f"forward: {seen.peak} of {formula}"
        out.loss.backward()
    after = 2 * (h.numel() + w.numel()) * dtype.itemsize
    assert seen.peak <= max(formula, after) + rows_temporaries(path, dtype) + small_change(len(ids)), f"backward: {seen.peak} of {formula}"
    del out
    assert seen.now <= (h.numel() + w.numel()) * dtype.itemsize + small_change(len(ids))


@EACH
def test_linear_token_log_probs(size, dtype, path):
    """chunk_bytes + N x H x 4 while d_hidden is summed, beside the results."""
    h, w, ids, _, _, chunk, wide = batch(size, dtype)
    formula = chunk + h.numel() * wide
    slack = rows_temporaries(path, dtype) + small_change(len(ids))
    with backend.use(path), counted() as seen:
        out = linear_token_log_probs(h, w, ids, chunk_bytes=chunk)
        assert seen.peak <= chunk + slack, f"forward: {seen.peak} of {chunk}"
        out.log_probs.sum().backward()
    results = (h.numel() + w.numel()) * dtype.itemsize
    assert seen.peak <= formula + results + slack, f"backward: {seen.peak} of {formula} + {results}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_last_backward_copies_nothing(dtype):
    """The gradients are there since the forward: a backward that frees the graph hands them over and fills no zeros beside them."""
    h, w, ids, A, mask, chunk, _ = batch("wide hidden states", dtype)
    with counted() as seen:
        out = linear_policy_loss(h, w, ids, A, mask, objective=PolicyObjective(), chunk_bytes=chunk)
        before = seen.peak = seen.now
        out.loss.backward()
    assert seen.peak - before <= small_change(len(ids))


@pytest.mark.parametrize("path", PATHS)
def test_token_log_probs_adds_only_the_gradient(path):
    logits, ids = torch.randn(400, 5000, requires_grad=True), torch.randint(5000, (400,))
    with backend.use(path), counted() as seen:
        out = token_log_probs(logits, ids)
        forward = seen.peak
        (out.log_probs.sum() + out.entropy.sum()).backward()
    slack = rows_temporaries(path, logits.dtype) + small_change(400)
    assert forward <= slack and seen.peak <= logits.nbytes + slack


def test_a_frozen_head_needs_no_buffer_and_no_grad_none_at_all():
    h, w, ids, A, mask, chunk, _ = batch("wide hidden states", torch.float32)
    path = "native" if NATIVE else "torch"
    slack = rows_temporaries(path, h.dtype) + small_change(len(ids))
    with backend.use(path), counted() as seen:
        linear_policy_loss(h, w.detach(), ids, A, mask, objective=PolicyObjective(), chunk_bytes=chunk).loss.backward()
    assert seen.peak <= chunk + 2 * h.nbytes + slack
    with backend.use(path), counted() as seen, torch.no_grad():
        linear_policy_loss(h, w, ids, A, mask, objective=PolicyObjective(), chunk_bytes=chunk)
    assert seen.peak <= chunk + slack


def test_a_chunk_that_is_too_large_is_caught(monkeypatch):
    """The measurement can fail: four times the rows a chunk may have are seen."""
    exact = passes.chunk_rows
    monkeypatch.setattr(passes, "chunk_rows", lambda *arguments, **keywords: 4 * exact(*arguments, **keywords))
    with pytest.raises(AssertionError, match="forward: .* of"):
        test_linear_policy_loss(PolicyObjective(divergence=KLPenalty(0.1)), "many tokens", torch.float32, "native" if NATIVE else "torch")
