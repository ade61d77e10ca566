"""Relations between calls of `linear_policy_loss`: micro-batches, masks, vocabulary order, strides, precision of operands, loss scaling."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from gigpo_fast.distributed import global_denominator
from gigpo_fast.head import Head
from gigpo_fast.loss import LossOutput, linear_policy_loss
from gigpo_fast.objective import (
    Clip,
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceRatio,
    TokenMean,
    TokenSum,
)
from tests.loss_helpers import change, keywords_of, make_batch, per_token, run_linear, smallest_chunk
from tests.tolerance import GRADIENT, assert_no_worse_than, assert_same_bits, error

PLAIN = PolicyObjective()
SEQUENCE = PolicyObjective(
    SequenceRatio(), Clip(0.1, 0.3, dual=2.0), KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02), aggregation=SequenceMeanTokenMean()
)
FULL = PolicyObjective(surrogate=Clip(0.1, 0.3, dual=2.0), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
GRADIENTS = ("hidden", "weight", "bias")
EACH = pytest.mark.parametrize("objective", [PLAIN, SEQUENCE, FULL], ids=["plain", "sequence", "full"])


@EACH
@given(seed=st.integers(0, 10**6), parts=st.integers(2, 4))
def test_micro_batches_add_up(objective, seed, parts):
    """1 against 2 to 4 micro-batches with the denominator given: loss, every gradient, merged metrics."""
    b = make_batch((5, 4), dtype=torch.float64, seed=seed)
    denominator = global_denominator(b.mask, objective=objective)
    whole = run_linear(b, objective, denominator=denominator)
    pieces = [
        run_linear(per_token(b, lambda value, r=rows: value[r]), objective, denominator=denominator)
        for rows in torch.arange(5).chunk(parts)
    ]
    assert error(sum(piece.loss for piece in pieces), whole.loss) < 1e-14
    assert error(torch.cat([piece.hidden for piece in pieces]), whole.hidden) < 1e-14
    for name in ("weight", "bias"):
        assert error(sum(getattr(piece, name) for piece in pieces), getattr(whole, name)) < 1e-14
    merged = LossOutput.merge([piece.output for piece in pieces])
    assert merged.metrics_as_floats() == pytest.approx(whole.output.metrics_as_floats(), rel=1e-6, abs=1e-6)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(data=st.data())
def test_untrained_tokens_change_no_bit(objective, dtype, data):
    """Whatever they hold, and however many more of them are appended: loss, metrics and gradients are the same bits."""
    b = make_batch((3, 5), dtype=dtype, seed=data.draw(st.integers(0, 10**6)))
    b.sequence_ids = torch.arange(3)[:, None].expand(3, 5).contiguous()
    want = run_linear(b, objective, denominator=3.0)
    values = data.draw(st.lists(st.sampled_from([float("nan"), float("inf"), float("-inf"), 3e38, -1.0]), min_size=1, max_size=5))
    pad = (0, 2, 0, 1) if data.draw(st.booleans()) else (0, 0, 0, 0)

    def spoil(value):
        padded = torch.nn.functional.pad(value, (0, 0, *pad) if value.dim() == 3 else pad)
        if value is b.mask:
            return padded
        hole = ~torch.nn.functional.pad(b.mask, pad)
        hole = hole.unsqueeze(-1) if value.dim() == 3 else hole
        if not value.is_floating_point():
            return padded if value.dtype == torch.bool else torch.where(hole, -100, padded)
        return torch.where(
            hole, torch.tensor(values, dtype=value.dtype).repeat(padded.numel())[: padded.numel()].view(padded.shape), padded
        )

    got = run_linear(per_token(b, spoil), objective, denominator=3.0)
    for name in ("loss", "metrics", "weight", "bias"):
        assert_same_bits(name, getattr(got, name), getattr(want, name))
    assert_same_bits("hidden", got.hidden[:3, :5], want.hidden)
    assert (
        torch.count_nonzero(got.hidden[3:])
        == torch.count_nonzero(got.hidden[:, 5:])
        == torch.count_nonzero(got.hidden[:3, :5][~b.mask])
        == 0
    )


@given(seed=st.integers(0, 10**6))
def test_vocabulary_order_and_padding_do_not_matter(seed):
    b = make_batch(dtype=torch.float64, seed=seed)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(seed))
    place = torch.empty_like(order).scatter_(0, order, torch.arange(23))
    want = run_linear(b, FULL)
    permuted = run_linear(change(b, weight=b.weight[order], bias=b.bias[order], token_ids=place[b.token_ids]), FULL)
    noise = torch.full((4, 8), float("nan"), dtype=torch.float64)
    padded = run_linear(change(b, weight=torch.cat([b.weight, noise]), bias=torch.cat([b.bias, noise[:, 0]])), FULL,
                        head=lambda weight, bias: Head(weight, bias, vocab_size=23))  # fmt: skip
    impossible = run_linear(
        change(b, weight=torch.cat([b.weight, torch.zeros_like(noise)]), bias=torch.cat([b.bias, noise[:, 0].fill_(-torch.inf)])), FULL
    )
    for got, rows in ((permuted, place), (padded, slice(23)), (impossible, slice(23))):
        assert error(got.loss, want.loss) < 1e-14 and error(got.hidden, want.hidden) < 1e-14
        assert error(got.weight[rows], want.weight) < 1e-14 and error(got.bias[rows], want.bias) < 1e-14
    assert (
        torch.count_nonzero(padded.weight[23:]) == torch.count_nonzero(padded.bias[23:]) == torch.count_nonzero(impossible.weight[23:]) == 0
    )


@EACH
def test_row_order_and_repetition(objective):
    b = make_batch((6, 4), dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    want, moved = run_linear(b, objective), run_linear(per_token(b, lambda value: value[order]), objective)
    assert (
        error(moved.loss, want.loss) < 1e-14
        and error(moved.hidden, want.hidden[order]) < 1e-14
        and error(moved.weight, want.weight) < 1e-14
    )
    again = run_linear(b, objective)
    for name in ("loss", "metrics", *GRADIENTS):
        assert_same_bits(name, getattr(again, name), getattr(want, name))


@EACH
@pytest.mark.parametrize("factor", [1.0, -0.25, 65536.0])
def test_upstream_gradients_are_linear(objective, factor):
    b = make_batch()
    once, more = run_linear(b, objective), run_linear(b, objective, upstream=factor)
    for name in GRADIENTS:
        assert_same_bits(name, getattr(more, name), factor * getattr(once, name))  # a power of two scales without rounding


def test_a_second_backward_repeats_the_first():
    b = make_batch(dtype=torch.bfloat16)
    leaves = [value.clone().requires_grad_() for value in (b.hidden, b.weight, b.bias)]
    out = linear_policy_loss(leaves[0], Head(*leaves[1:]), b.token_ids, b.advantages, b.mask, objective=FULL, **keywords_of(b, FULL))
    first = torch.autograd.grad(out.loss, leaves, retain_graph=True)
    second = torch.autograd.grad(3.0 * out.loss, leaves, retain_graph=True)
    third = torch.autograd.grad(out.loss, leaves)
    for one, two, three, like in zip(first, second, third, leaves):
        assert_same_bits("again", three, one)
        assert error(two, 3.0 * one.float()) <= 0.02 * float(one.abs().max()) and one.dtype == like.dtype


@pytest.mark.parametrize("layout", ["transposed", "offset", "expanded", "strided"])
@EACH
def test_any_strides(objective, layout):
    b = make_batch((4, 6))
    b.advantages, b.old = b.advantages[:, :1].expand(4, 6), b.old[:, :1].expand(4, 6)
    laid = {
        "transposed": lambda value: value.transpose(0, 1).contiguous().transpose(0, 1),
        "offset": lambda value: torch.cat([value[:1], value, value[:2]])[1:-2],
        "expanded": lambda value: value,
        "strided": lambda value: value.repeat_interleave(2, -1)[..., ::2],
    }[layout]
    names = ("hidden", "weight", "bias", "token_ids", "mask", "ref") + (() if layout == "expanded" else ("advantages", "old"))
    given = change(b, **{name: laid(getattr(b, name)) for name in names if getattr(b, name).dim() > 1 or layout != "transposed"})
    leaves = [value.detach().requires_grad_() for value in (given.hidden, given.weight, given.bias)]
    out = linear_policy_loss(
        leaves[0], Head(*leaves[1:]), given.token_ids, given.advantages, given.mask, objective=objective, **keywords_of(given, objective)
    )
    out.loss.backward()
    want = run_linear(change(b, advantages=b.advantages.contiguous(), old=b.old.contiguous()), objective)
    assert error(out.loss, want.loss) <= 1e-7
    for got, name in zip(leaves, GRADIENTS):  # a GEMM of a transposed operand may sum in another order
        assert error(got.grad, getattr(want, name)) <= 1e-6 * float(getattr(want, name).abs().max())


def test_no_inputs_are_changed():
    b = make_batch()
    before = {name: value.clone() for name, value in vars(b).items()}
    run_linear(b, SEQUENCE, chunk_bytes=smallest_chunk(b))
    for name, value in before.items():
        assert_same_bits(name, getattr(b, name), value)


@pytest.mark.parametrize("aggregation", [TokenMean(), TokenSum(), SequenceMeanTokenMean()], ids=str)
def test_on_policy_is_reinforce(aggregation):
    b = make_batch((4, 5))
    clipped = run_linear(b, PolicyObjective(aggregation=aggregation), on_policy=True)
    plain = run_linear(b, PolicyObjective(surrogate=Reinforce(), aggregation=aggregation), on_policy=True)
    found = clipped.output.metrics_as_floats()
    assert found["ratio_max"] == 1.0 and found["clip_fraction_low"] == found["clip_fraction_high"] == found["approx_kl"] == 0.0
    for name in GRADIENTS:
        assert_same_bits(name, getattr(clipped, name), getattr(plain, name))


@pytest.mark.parametrize("loss_scale, denominator", [(2.0**16, 2.0**20), (1.0, 2.0**20), (2.0**16, None)])
@EACH
def test_fp16_with_a_loss_scaler(objective, loss_scale, denominator):
    """At 2^16 and a denominator of 2^20 tokens, fp16 gradients agree with float64; without a scaler they are subnormal, as torch's own would be."""
    b = make_batch((4, 8), dtype=torch.float16, seed=2)
    exact = change(b, **{name: getattr(b, name).double() for name in ("hidden", "weight", "bias", "advantages", "old", "ref")})
    want = run_linear(exact, objective, upstream=loss_scale, denominator=denominator)
    got = run_linear(b, objective, upstream=loss_scale, denominator=denominator)
    assert error(got.loss, want.loss) <= 1e-6 * max(1.0, float(want.loss.abs()))
    smallest = 2.0**-25  # half the spacing of fp16's subnormal numbers
    for name in GRADIENTS:
        ours, oracle = getattr(got, name), getattr(want, name)
        assert ours.dtype == torch.float16
        if loss_scale > 1 and denominator is not None:
            assert bool((ours != 0).any()) and torch.isfinite(ours).all()
        finite = oracle.abs() < 65504
        once_rounded = oracle.to(torch.float16).double()
        assert_no_worse_than(name, ours[finite], oracle[finite], once_rounded[finite], factor=GRADIENT, floor=smallest)
        assert torch.equal(ours.isinf(), once_rounded.isinf())  # an overflow is for the scaler to see


def test_a_grad_scaler_trains():
    """torch.amp.GradScaler itself: scale, unscale, step."""
    b = make_batch((4, 8), dtype=torch.float16, seed=2)
    weight = torch.nn.Parameter(b.weight.float())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with torch.autocast("cpu", dtype=torch.float16):
        out = linear_policy_loss(
            b.hidden, weight, b.token_ids, b.advantages, b.mask, old_log_probs=b.old, objective=PLAIN, denominator=2.0**20
        )
    before = weight.detach().clone()
    scaler.scale(out.loss).backward()
    scaler.step(optimizer)
    exact = b.weight.double().requires_grad_()
    linear_policy_loss(b.hidden.double(), exact, b.token_ids, b.advantages.double(), b.mask, old_log_probs=b.old.double(), objective=PLAIN,
                       denominator=2.0**20).loss.backward()  # fmt: skip
    moved = (before - weight.detach()).double()
    assert error(moved, exact.grad) <= 2e-3 * float(exact.grad.abs().max()) + 2.0**-25 / 2.0**16 + 2.0**-24


@pytest.mark.parametrize("master", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(inputs, master):
    """bf16 autocast casts both operands as it does for nn.Linear; gradients arrive in the dtype of the parameters."""
    b = make_batch(dtype=torch.bfloat16)
    hidden, weight, bias = b.hidden.to(inputs).requires_grad_(), b.weight.to(master).requires_grad_(), b.bias.to(master).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = linear_policy_loss(hidden, Head(weight, bias), b.token_ids, b.advantages, b.mask, objective=FULL, **keywords_of(b, FULL))
    out.loss.backward()
    want = run_linear(b, FULL)
    assert_same_bits("loss", out.loss.detach(), want.loss)
    for leaf, name in ((hidden, "hidden"), (weight, "weight"), (bias, "bias")):
        assert leaf.grad.dtype == leaf.dtype
        assert_same_bits(name, leaf.grad.to(torch.bfloat16), getattr(want, name))


def test_the_error_does_not_grow_with_the_number_of_chunks():
    """d_weight of 64 chunks is as near to float64 as that of one: sums are in float32 and rounded once. Rounding every chunk is not (control)."""
    b = make_batch((1024,), dtype=torch.bfloat16, trained=1.1)
    exact = run_linear(change(b, **{name: value.double() for name, value in vars(b).items() if value.is_floating_point()}), PLAIN).weight
    one, many = (run_linear(b, PLAIN, chunk_bytes=chunk).weight for chunk in (None, smallest_chunk(b)))
    rounded = torch.zeros_like(one)
    for rows in torch.arange(1024).chunk(64):
        rounded += run_linear(per_token(b, lambda value, rows=rows: value[rows]), PLAIN, denominator=1024.0).weight
    assert error(many, exact) <= 1.01 * error(one, exact)
    assert error(rounded, exact) > 2 * error(one, exact)
