"""The row kernels on a GPU: real vocabularies, strides, more rows than a grid axis of 65,535, more than 2^31 logits, any stream."""

import pytest
import torch

from gigpo_fast.logprob import token_log_probs
from gigpo_fast.ops.rows import rows_for
from gigpo_fast.reference import logprob as reference
from tests import gpu
from tests.gpu import DEVICE, ON_GPU, randint, randn
from tests.tolerance import GRADIENT, VALUE, assert_no_worse_than, assert_same_bits, roundings

pytestmark = gpu.marks
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
VOCABULARIES = [128256, 151936, 50257] if ON_GPU else [4096, 5003]


def plain(logits, ids, c, e):
    """Torch in the dtype the kernels compute in."""
    leaf = logits.detach().to(torch.float64 if logits.dtype == torch.float64 else torch.float32).requires_grad_()
    log_p = torch.log_softmax(leaf, -1)
    log_probs, entropy = log_p.gather(-1, ids[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1)
    ((c * log_probs).sum() + (e * entropy).sum()).backward()
    return log_probs.detach(), entropy.detach(), leaf.grad


def ours(logits, ids, c, e):
    leaf = logits.detach().requires_grad_()
    found = token_log_probs(leaf, ids)
    ((c * found.log_probs).sum() + (e * found.entropy).sum()).backward()
    return found.log_probs.detach(), found.entropy.detach(), leaf.grad


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_values_and_gradients(vocabulary, dtype, scale):
    n = 48
    logits, ids = randn(n, vocabulary, dtype=dtype, scale=scale), randint(vocabulary, n)
    ids[::3] = logits[::3].argmax(-1)  # confident rows
    c, e = randn(n, seed=2), randn(n, seed=3)
    exact, same, got = plain(logits.double(), ids, c.double(), e.double()), plain(logits, ids, c, e), ours(logits, ids, c, e)
    for name, factor, value, oracle, torchs in zip(("log_probs", "entropy", "d logits"), (VALUE, VALUE, GRADIENT), got, exact, same):
        rounded = torchs.to(value.dtype)
        count = 2 if dtype != torch.float64 else 64  # in float64 torch is its own oracle and has no error to compare with
        assert_no_worse_than(name, value, oracle, rounded, factor=factor, floor=roundings(oracle, rounded.dtype, count))
    # The float64 specification says the same of a few rows.
    specified = reference.token_log_probs(logits[:2].double().cpu(), ids[:2].cpu())
    torch.testing.assert_close(exact[0][:2].cpu(), specified[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_strided_and_unaligned_rows(dtype):
    wide = randn(20, 7 + VOCABULARIES[0] + 5, dtype=dtype)
    ids, c, e = randint(VOCABULARIES[0], 20), randn(20, seed=2), randn(20, seed=3)
    view = wide[:, 7 : 7 + VOCABULARIES[0]]
    for got, want in zip(ours(view, ids, c, e), ours(view.contiguous(), ids, c, e)):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-6) if dtype == torch.float32 else torch.testing.assert_close(got, want)


def test_more_rows_than_one_grid_axis_may_have():
    n = 70_001
    logits, ids = randn(n, 33), randint(33, n)
    torch.testing.assert_close(token_log_probs(logits, ids).log_probs, plain(logits, ids, ids * 0.0, ids * 0.0)[0], rtol=1e-5, atol=1e-6)


@gpu.real_gpu
def test_more_than_two_to_the_31_logits():
    """The last rows lie past 2^31 elements: a 32-bit offset would read and write others."""
    n, vocabulary = 16384, 151936
    assert n * vocabulary > 2**31
    logits = torch.zeros(n, vocabulary, dtype=torch.bfloat16, device=DEVICE)
    tail, ids = randn(8, vocabulary, dtype=torch.bfloat16), randint(vocabulary, n)
    logits[-8:] = tail
    c, e = randn(n, seed=2), torch.zeros(n, device=DEVICE)
    log_probs, entropy, gradient = ours(logits, ids, c, e)
    wanted = ours(tail, ids[-8:], c[-8:], e[-8:])
    for got, want in zip((log_probs[-8:], entropy[-8:], gradient[-8:]), wanted):
        assert_same_bits("tail", got, want)


@gpu.real_gpu
def test_a_stream_of_ones_own():
    logits, ids = randn(64, VOCABULARIES[0]), randint(VOCABULARIES[0], 64)
    want, stream = token_log_probs(logits, ids).log_probs, torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        got = token_log_probs(logits, ids).log_probs
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits("log_probs", got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fifty_runs_give_the_same_bits(dtype):
    logits, ids, c, e = randn(16, VOCABULARIES[-1], dtype=dtype), randint(VOCABULARIES[-1], 16), randn(16, seed=2), randn(16, seed=3)
    first = ours(logits, ids, c, e)
    for _ in range(50):
        for got, want in zip(ours(logits, ids, c, e), first):
            assert_same_bits("repeat", got, want)


@gpu.real_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_tensors_on_another_device_than_the_current_one():
    logits, ids = randn(32, 4096).to("cuda:1"), randint(4096, 32).to("cuda:1")
    with torch.cuda.device(0):
        got = token_log_probs(logits, ids).log_probs
    assert got.device == logits.device
    torch.testing.assert_close(got.cpu(), token_log_probs(logits.cpu(), ids.cpu()).log_probs, rtol=1e-5, atol=1e-6)


@gpu.real_gpu
def test_a_gpu_runs_triton():
    assert rows_for(DEVICE).__name__.endswith("rows_triton")
