"""How often the head runs: one pass wherever coefficients are known in time, batch invariance, d_weight into a caller's buffer, no waiting."""

import contextlib
import dataclasses
from unittest import mock

import pytest
import torch
from torch._library.custom_ops import OPDEFS
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gigpo_fast import validation
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs
from gigpo_fast.loss import linear_policy_loss, plan_tokens
from gigpo_fast.objective import (
    Clip,
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceRatio,
    Surrogate,
    TokenWeights,
)
from gigpo_fast.ops import gemm, passes, rows_torch, scaling
from tests.loss_helpers import change, keywords_of, make_batch, run_linear, smallest_chunk
from tests.tolerance import assert_same_bits, error

PLAIN = PolicyObjective()
SEQUENCE = PolicyObjective(
    SequenceRatio(), Clip(0.1, 0.3, dual=2.0), KLPenalty(0.1), TokenWeights(), EntropyBonus(0.02), SequenceMeanTokenMean()
)
NAMES = ("hidden", "weight", "bias")


@dataclasses.dataclass(frozen=True)
class LogProbTimesRatio(Surrogate):
    """Not known on-policy: what a token adds to dL/dratio is its own log-prob."""

    def loss(self, batch, log_ratio):
        return -batch.advantages * batch.log_probs * torch.exp(log_ratio)


def long_batch(dtype=torch.float64):
    """Two sequences of 40 and 60 tokens; the smallest chunk holds 16."""
    b = make_batch((100,), dtype=dtype, trained=0.9)
    b.sequence_ids = (torch.arange(100) >= 40).long()
    return b


@contextlib.contextmanager
def logits_rows():
    """A list of how many rows of logits each product made."""
    seen, exact = [], gemm.head_logits
    counting = lambda hidden, *rest: seen.append(hidden.shape[0]) or exact(hidden, *rest)  # noqa: E731
    with mock.patch.object(passes, "head_logits", counting):
        yield seen


OBJECTIVES = [SEQUENCE, PolicyObjective(SequenceRatio(stop_gradient_mean=True)), PolicyObjective(SequenceRatio(), Reinforce())]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["full", "token variant", "reinforce"])
def test_on_policy_sequences_that_do_not_fit_take_one_pass(objective):
    b = long_batch()
    want = run_linear(b, objective, on_policy=True)  # everything fits
    with logits_rows() as rows:
        got = run_linear(b, objective, on_policy=True, chunk_bytes=smallest_chunk(b))
    assert sum(rows) == int(b.mask.sum()) and max(rows) <= 16
    assert error(got.loss, want.loss) < 1e-14
    for name in NAMES:
        assert error(getattr(got, name), getattr(want, name)) < 1e-14
    measured, expected = got.output.metrics_as_floats(), want.output.metrics_as_floats()
    assert measured == pytest.approx(expected, rel=1e-6, abs=1e-7) and measured["two_pass_fraction"] == 0


def test_off_policy_sequences_that_do_not_fit_say_that_they_take_two():
    b = long_batch()
    b.sequence_ids = torch.tensor([0] * 10 + [1] * 90)
    n = int(b.mask.sum())
    with logits_rows() as rows:
        got = run_linear(b, SEQUENCE, chunk_bytes=smallest_chunk(b))
    long = int(b.mask[10:].sum())
    assert sum(rows) == n + long
    assert got.output.metrics_as_floats()["two_pass_fraction"] == pytest.approx(long / n)
    assert run_linear(b, SEQUENCE).output.metrics_as_floats()["two_pass_fraction"] == 0


@pytest.mark.parametrize(
    "objective",
    [
        PolicyObjective(SequenceRatio(), LogProbTimesRatio()),
        PolicyObjective(SequenceRatio(), divergence=KLPenalty(0.1, importance_weighted=True)),
    ],
    ids=["surrogate", "divergence"],
)
def test_one_pass_only_where_every_block_is_known_on_policy(objective):
    """Each of these puts a log-prob into dL/dratio: a chunk alone cannot know the others'."""
    b = long_batch()
    want, got = (run_linear(b, objective, on_policy=True, chunk_bytes=chunk) for chunk in (None, smallest_chunk(b)))
    assert got.output.metrics_as_floats()["two_pass_fraction"] == 1
    assert error(got.hidden, want.hidden) < 1e-14
    chunk = smallest_chunk(b)
    object.__setattr__(objective, "known_on_policy", True)
    with mock.patch("gigpo_fast.ops.fused_loss.objective_from", lambda *_: objective):
        wrong = run_linear(b, objective, on_policy=True, chunk_bytes=chunk)
    object.__setattr__(objective, "known_on_policy", False)
    assert error(wrong.hidden, want.hidden) > 1e-6


def test_after_a_sequence_in_two_passes_the_logits_share_memory_again():
    b = long_batch()
    b.sequence_ids = torch.arange(100) // 25  # four sequences, all too long
    made = []
    with mock.patch("gigpo_fast.ops.fused_loss.logits_buffer", lambda *arguments: made.append(1) or gemm.logits_buffer(*arguments)):
        run_linear(b, SEQUENCE, chunk_bytes=smallest_chunk(b))
    assert len(made) == 4


# ---- batch invariance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("chunk_bytes", [None, 3 << 20], ids=["one chunk", "many chunks"])
def test_invariant_log_probs_and_d_hidden_do_not_depend_on_other_rows(dtype, chunk_bytes):
    """One row alone, some rows, all in another order: the same bits. Without `invariant` some of these differ (the control)."""
    n, hidden, vocabulary = 300, 40, 1003
    g = torch.Generator().manual_seed(0)
    h, w = torch.randn(n, hidden, generator=g).to(dtype), torch.randn(vocabulary, hidden, generator=g).to(dtype)
    ids, c, e = torch.randint(vocabulary, (n,), generator=g), torch.randn(n, generator=g), torch.randn(n, generator=g)

    def results(rows, invariant):
        x, weight = h[rows].clone().requires_grad_(), w.clone().requires_grad_()
        found = linear_token_log_probs(x, weight, ids[rows], invariant=invariant, chunk_bytes=chunk_bytes)
        ((found.log_probs * c[rows]).sum() + (found.entropy * e[rows]).sum()).backward()
        return found.log_probs.detach(), found.entropy.detach(), x.grad

    parts = [torch.arange(1), torch.arange(7, 60), torch.randperm(n, generator=g), torch.arange(n - 1, -1, -1)[:222]]
    whole = results(torch.arange(n), True)
    for rows in parts:
        for name, got, want in zip(("log_probs", "entropy", "d_hidden"), results(rows, True), whole):
            assert_same_bits(name, got, want[rows])
    if dtype == torch.float64:  # low precision may hide the difference in its rounding
        plain = results(torch.arange(n), False)
        assert any(not torch.equal(got, want[rows]) for rows in parts for got, want in zip(results(rows, False), plain))


def test_invariant_loss_is_the_same_loss():
    b = long_batch(torch.float32)
    for objective in (PolicyObjective(), SEQUENCE):
        want = run_linear(b, objective)
        for chunk in (None, 2 * smallest_chunk(b)):
            got = run_linear(b, objective, invariant=True, chunk_bytes=chunk)
            assert error(got.loss, want.loss) < 1e-6
            for name in NAMES:
                assert error(getattr(got, name), getattr(want, name)) < 1e-6, name


@pytest.mark.parametrize("keywords", [{}, {"on_policy": True}, {"invariant": True}], ids=str)
def test_chunks_in_one_graph(keywords):
    """Two passes, one pass on-policy and fixed rows are one node of a compiled graph."""
    b, on_policy = long_batch(torch.float32), keywords.pop("on_policy", False)
    keywords |= keywords_of(b, SEQUENCE, on_policy=on_policy) | {"objective": SEQUENCE, "chunk_bytes": 2 * smallest_chunk(b)}

    def step(hidden, weight):
        return linear_policy_loss(hidden, weight, b.token_ids, b.advantages, b.mask, **keywords).loss

    results = []
    for function in (step, torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)):
        hidden, weight = b.hidden.clone().requires_grad_(), b.weight.clone().requires_grad_()
        loss = function(hidden, weight)
        loss.backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    for want, got in zip(*results):
        assert error(got, want) <= 1e-6 * max(1.0, float(want.abs().max()))


def test_invariant_d_hidden_of_the_fused_loss():
    b = make_batch((200,), dtype=torch.float64, trained=1.1)
    want = run_linear(b, PolicyObjective(), denominator=200.0, invariant=True)
    few = {name: value[40:47] for name, value in vars(b).items() if value.shape[:1] == (200,)}
    got = run_linear(change(b, **few), PolicyObjective(), denominator=200.0, invariant=True)
    assert_same_bits("hidden", got.hidden, want.hidden[40:47])


def test_invariant_needs_twice_the_memory_and_says_so():
    b = long_batch()
    with pytest.raises(ValueError, match=rf"chunk_bytes must be at least {2 * smallest_chunk(b)} bytes for 16 rows"):
        run_linear(b, PolicyObjective(), invariant=True, chunk_bytes=smallest_chunk(b))


# ---- d_weight into the caller's buffer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_weight_grad_out_receives_the_unrounded_gradient(dtype):
    b = make_batch((4, 9), dtype=dtype)
    out = torch.full_like(b.weight, 2.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    hidden, weight, bias = (value.clone().requires_grad_() for value in (b.hidden, b.weight, b.bias))
    keywords = keywords_of(b, SEQUENCE) | {"objective": SEQUENCE, "weight_grad_out": out}
    for _ in range(2):  # two micro-batches, forwards first: the second backward adds to the first's
        loss = linear_policy_loss(hidden, Head(weight, bias), b.token_ids, b.advantages, b.mask, **keywords).loss
        (3 * loss).backward(retain_graph=True)
    assert weight.grad is None and hidden.grad is not None and bias.grad is not None
    exact = run_linear(change(b, **{name: value.double() for name, value in vars(b).items() if value.is_floating_point()}), SEQUENCE)
    rounded = run_linear(b, SEQUENCE)
    assert error((out - 2) / 6, exact.weight) <= (1e-6 if dtype != torch.float64 else 1e-14)
    if dtype == torch.bfloat16:
        assert error((out - 2) / 6, exact.weight) < 0.1 * error(rounded.weight, exact.weight)
    assert_same_bits("hidden of one backward", run_linear(b, SEQUENCE, upstream=3.0).hidden * 2, hidden.grad)


def test_weight_grad_out_of_a_padded_head_leaves_the_padding_alone():
    b = make_batch((4, 9))
    weight, out = b.weight.clone().requires_grad_(), torch.zeros(23, 8)
    linear_policy_loss(
        b.hidden, Head(weight, vocab_size=19), b.token_ids % 19, b.advantages, b.mask, objective=PolicyObjective(), weight_grad_out=out
    ).loss.backward()
    assert weight.grad is None and torch.count_nonzero(out[:19]) > 0 and torch.count_nonzero(out[19:]) == 0


def plain_call(b, weight, out, hidden=None):
    return linear_policy_loss(
        b.hidden if hidden is None else hidden, weight, b.token_ids, b.advantages, b.mask, objective=PLAIN, weight_grad_out=out
    )


def test_a_tied_weight_is_refused_in_the_backward():
    b = make_batch((4, 9))
    weight, out = b.weight.clone().requires_grad_(), torch.zeros_like(b.weight)
    output = plain_call(b, weight, out, hidden=weight[b.token_ids])
    with pytest.raises(RuntimeError, match="head.weight must have no other use in the graph .* tied embedding"):
        output.loss.backward()
    weight.grad = None
    plain_call(b, weight, out).loss.backward()
    weight.sum().backward()  # a later graph may use it as it likes
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.mark.parametrize(
    "weight, out, message",
    [
        ("frozen", lambda w: torch.zeros_like(w), "head.weight must be a parameter that requires a gradient .* got one that is frozen"),
        ("computed", lambda w: torch.zeros_like(w), "head.weight must be a parameter .* got one computed from others"),
        ("leaf", lambda w: torch.zeros(8, 23), r"weight_grad_out must be \(23, 8\) float32, got \(8, 23\) float32"),
        ("leaf", lambda w: torch.zeros_like(w).bfloat16(), r"weight_grad_out must be \(23, 8\) float32, got \(23, 8\) bfloat16"),
        ("leaf", lambda w: torch.zeros_like(w).requires_grad_(), "weight_grad_out must be a buffer without gradient"),
    ],
)
def test_weight_grad_out_is_checked(weight, out, message):
    b = make_batch((4, 9))
    leaf = b.weight.clone().requires_grad_(weight != "frozen")
    with pytest.raises((ValueError, TypeError), match=message):
        plain_call(b, leaf * 1 if weight == "computed" else leaf, out(b.weight))


def test_weight_grad_out_of_a_reduced_parameter_is_refused(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        b = make_batch((4, 9))
        head = torch.nn.Linear(8, 23, bias=False)
        free = torch.nn.Linear(8, 23, bias=False)
        wrapped = DistributedDataParallel(head)
        with pytest.raises(ValueError, match="a parameter that no wrapper reduces, got one inside DistributedDataParallel"):
            plain_call(b, wrapped.module.weight, torch.zeros(23, 8))
        plain_call(b, free.weight, torch.zeros(23, 8)).loss.backward()
    finally:
        torch.distributed.destroy_process_group()


def test_weight_grad_out_under_compile_is_refused():
    b = make_batch((4, 9))
    weight = b.weight.clone().requires_grad_()
    with pytest.raises(Exception, match="weight_grad_out must be None under torch.compile"):
        torch.compile(lambda out: plain_call(b, weight, out), backend="eager", fullgraph=True)(torch.zeros_like(weight))


# ---- nothing waits for the device


class NoValueIsRead(TorchDispatchMode):
    """Raises where an operation would make a GPU's results known to the host: that waits, and a CUDA graph cannot hold it."""

    READS = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        masks = [leaf for leaf in tree_leaves(arguments[1:]) if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bool]
        if any(function._schema.name.startswith(f"aten::{name}") for name in self.READS) or (
            function._schema.name == "aten::index" and masks
        ):
            raise RuntimeError(f"{function} reads values")
        definition = OPDEFS.get(function.name())
        if definition is None:
            return function(*arguments, **(keywords or {}))
        with self:  # a custom op in Python: its body too
            return definition._init_fn(*arguments, **(keywords or {}))


@pytest.mark.parametrize("objective", [PolicyObjective(), SEQUENCE], ids=["token", "sequence"])
@pytest.mark.parametrize("on_policy", [False, True])
def test_with_a_plan_nothing_waits_for_a_gpu(objective, on_policy, monkeypatch):
    """Forward and backward of the path that Triton serves, in chunks; without a plan one read is needed (the control)."""
    monkeypatch.setattr(passes, "rows_for", lambda device: rows_torch)
    monkeypatch.setattr("gigpo_fast.ops.fused_loss.scores_on_gpu_kernels", lambda device: True)
    monkeypatch.setattr("gigpo_fast.ops.fused_loss.twin_options", lambda objective: None)
    monkeypatch.setattr("gigpo_fast.ops.linear_policy_loss.scale_", scaling.in_blocks_)  # a GPU's kernel reads the scalar itself
    b = make_batch((3, 40), trained=0.9)
    hidden, weight = b.hidden.requires_grad_(), b.weight.requires_grad_()
    keywords = keywords_of(b, objective, on_policy=on_policy) | {"objective": objective, "chunk_bytes": smallest_chunk(b)}
    plan = plan_tokens(b.mask, b.advantages, objective=objective)
    run = lambda plan: linear_policy_loss(hidden, weight, b.token_ids, b.advantages, b.mask, plan=plan, **keywords).loss  # noqa: E731
    want = run(None).detach()
    with validation("metadata"), NoValueIsRead():
        loss = run(plan)
        loss.backward()
        with pytest.raises(RuntimeError, match="reads values"):
            run(None)
    assert_same_bits("loss", loss.detach(), want)
