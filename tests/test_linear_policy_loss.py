"""`linear_policy_loss` against the float64 reference: every block, dtype, chunk size and plan; and that skipping work changes nothing."""

import functools
from unittest import mock

import pytest
import torch

from gigpo_fast import backend, testing
from gigpo_fast.head import Head
from gigpo_fast.loss import (
    LinearPolicyLoss,
    linear_gigpo_loss,
    linear_grpo_loss,
    linear_policy_loss,
    plan_tokens,
    policy_loss,
    rows_that_matter,
)
from gigpo_fast.objective import (
    Clip,
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceRatio,
)
from gigpo_fast.ops import fused_loss, gemm, passes
from gigpo_fast.recipes import recipe
from tests.loss_helpers import bare_objectives, change, covering_objectives, make_batch, run_linear, run_policy, smallest_chunk
from tests.tolerance import assert_same_bits, error

OBJECTIVES = covering_objectives()
PLAIN = PolicyObjective()
SEQUENCE = PolicyObjective(
    SequenceRatio(), Clip(0.1, 0.3, dual=2.0), KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02), aggregation=SequenceMeanTokenMean()
)
FULL = PolicyObjective(surrogate=Clip(0.1, 0.3, dual=2.0), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
GRADIENTS = ("hidden", "weight", "bias")
CASES = ["holes and an empty row", "on-policy", "garbage at untrained tokens", "extreme log-ratios", "sequences that are not rows", "two long rows",
         "bias, scale, softcap, temperature", "large logits", "zero advantages"]  # fmt: skip
NATIVE = backend.why_not_native(torch.device("cpu")) is None
PATHS = ["torch", pytest.param("native", marks=pytest.mark.skipif(not NATIVE, reason="the C++ rows are not built"))]


def in_small_chunks(hidden, head, *arguments, **keywords):
    weight = head.weight if isinstance(head, Head) else head
    fixed = 8192 * weight.shape[1] * 4 if weight.dtype.itemsize == 2 else 0
    chunk = fixed + passes.MINIMUM_ROWS * passes._bytes_per_row(weight)
    return linear_policy_loss(hidden, head, *arguments, chunk_bytes=chunk, **keywords)


@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_value_and_gradients(number):
    """Every pair of options occurs in these objectives; dtype, row kernels and chunk size take turns."""
    objective = OBJECTIVES[number]
    fn = (linear_policy_loss, in_small_chunks)[number // 3 % 2]
    dtypes = [torch.float64, (torch.float32, torch.bfloat16, torch.float16)[number % 3]]
    cases = [case for case in CASES if case != "extreme log-ratios" or objective.ratio.log_ratio_clip is not None]
    with backend.use("native" if NATIVE and number % 5 else "torch"):
        testing.check_loss(functools.partial(fn, objective=objective), objective=objective, linear=True, dtypes=dtypes, cases=cases)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fn", [linear_policy_loss, in_small_chunks], ids=["one chunk", "small chunks"])
@pytest.mark.parametrize("objective", [PLAIN, SEQUENCE, FULL], ids=["plain", "sequence", "full"])
def test_every_case_on_every_path(objective, fn, path):
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    with backend.use(path):
        testing.check_loss(functools.partial(fn, objective=objective), objective=objective, linear=True, dtypes=dtypes)


@pytest.mark.parametrize("named, name", [(linear_grpo_loss, "grpo"), (linear_gigpo_loss, "gigpo")])
def test_named_losses(named, name):
    testing.check_loss(named, objective=recipe(name).objective, linear=True, cases=["on-policy", "holes and an empty row", "packed"])


def test_module_owns_the_head():
    b = make_batch()
    layer = torch.nn.Linear(8, 23)
    layer.weight.data, layer.bias.data = b.weight.clone(), b.bias.clone()
    module = LinearPolicyLoss(layer, FULL, softcap=4.0, logit_scale=0.5)
    assert dict(module.named_parameters())["lm_head.weight"] is layer.weight
    out = module(b.hidden, b.token_ids, b.advantages, b.mask, old_log_probs=b.old, ref_log_probs=b.ref)
    out.loss.backward()
    want = run_linear(b, FULL, head=lambda weight, bias: Head(weight, bias, 0.5, 4.0))
    assert_same_bits("loss", out.loss.detach(), want.loss)
    assert_same_bits("weight", layer.weight.grad, want.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_rounded_to_the_input_dtype_are_caught(dtype, monkeypatch):
    """The mutation that the tolerance must see: logits that pass through bf16 or fp16."""
    exact = gemm.head_logits
    monkeypatch.setattr(passes, "head_logits", lambda hidden, weight, bias, *_: exact(hidden, weight, bias).to(weight.dtype).float())
    with pytest.raises(AssertionError, match=r"loss: got .* \(error"):
        testing.check_loss(
            functools.partial(linear_policy_loss, objective=FULL), objective=FULL, linear=True, dtypes=[dtype], cases=["all tokens trained"]
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dlogits_of_rounded_logits_are_caught(dtype, monkeypatch):
    """Even where only the backward sees rounded logits, as in a recomputation."""
    exact = passes.d_logits_of
    monkeypatch.setattr(passes, "d_logits_of", lambda logits, *rest: exact(logits.to(dtype).float(), *rest))
    with pytest.raises(AssertionError, match="gradient of") as caught:
        testing.check_loss(functools.partial(linear_policy_loss, objective=FULL), objective=FULL, linear=True, dtypes=[dtype],
                           cases=["all tokens trained", "large logits"])  # fmt: skip
    assert ": loss:" not in str(caught.value)


@pytest.mark.parametrize("objective", [PLAIN, SEQUENCE, FULL], ids=["plain", "sequence", "full"])
def test_chunks_agree(objective):
    """One chunk, chunks of a few rows and a cut in the middle of a sequence give one result."""
    b = make_batch((3, 40), dtype=torch.float64, seed=3)
    least = smallest_chunk(b)
    want = run_linear(b, objective)
    expected = want.output.metrics_as_floats()
    for chunk in (least, 2 * least + 1000, 3 * least):
        got = run_linear(b, objective, chunk_bytes=chunk)
        assert error(got.loss, want.loss) < 1e-14
        measured = got.output.metrics_as_floats()
        assert measured.pop("two_pass_fraction") == (1 if objective is SEQUENCE and chunk == least else 0)
        assert measured == pytest.approx({name: expected[name] for name in measured}, rel=1e-6, abs=1e-7)
        for name in GRADIENTS:
            assert error(getattr(got, name), getattr(want, name)) < 1e-14, (chunk, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_slabs_of_the_vocabulary(dtype):
    """Sequences longer than a chunk are recomputed in pieces of the vocabulary, a few dozen rows at a time."""
    b = make_batch((2, 120), vocabulary=1500, dtype=dtype, seed=1)
    assert len(b.token_ids.div(512, rounding_mode="floor").unique()) == 3
    want, got = run_linear(b, SEQUENCE), run_linear(b, SEQUENCE, chunk_bytes=smallest_chunk(b))
    tolerance = 1e-13 if dtype == torch.float64 else 2.0**-8  # one rounding of a result more or less
    for name in ("loss", *GRADIENTS):
        assert error(getattr(got, name), getattr(want, name)) <= tolerance * float(getattr(want, name).abs().max()), name


def defeat_skipping():
    """Every trained token goes through the backward, whatever its advantage and coefficient."""
    return mock.patch.multiple("gigpo_fast.plan", tokens_that_matter=lambda mask, *_: mask), mock.patch.object(
        fused_loss.FusedLoss, "_active", lambda self, c, e, start, stop: (None, stop if any(self.need) else start)
    )


def zeroed(b, pattern):
    advantages = b.advantages.clone()
    if pattern == "whole rows":
        advantages[::2] = 0
    elif pattern == "inside sequences":
        advantages[:, ::2] = 0
        advantages[-1] = 0
    else:
        advantages[:] = 0
    return change(b, advantages=advantages)


@pytest.mark.parametrize("pattern", ["whole rows", "inside sequences", "everywhere"])
@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_skipping_changes_nothing(number, pattern):
    objective = OBJECTIVES[number]
    b = zeroed(make_batch((4, 9), dtype=torch.float64, seed=number), pattern)
    keywords = {"chunk_bytes": smallest_chunk(b)} if number % 4 else {}
    got = run_linear(b, objective, **keywords)
    planner, active = defeat_skipping()
    with planner, active:
        want = run_linear(b, objective, **keywords)
    # Roundings follow the sizes of the terms, not the sum in which they cancel: with advantages below 0 all terms have one sign.
    sizes = float(run_linear(change(b, advantages=-b.advantages.abs()), objective).loss.abs())
    assert error(got.loss, want.loss) <= 1e-15 * max(1.0, sizes, float(want.loss.abs()))
    for name in GRADIENTS:
        scale = max(float(getattr(want, name).abs().max()), 1e-3)
        assert error(getattr(got, name), getattr(want, name)) <= 1e-14 * scale, name


def count_backward_rows(b, objective, **keywords):
    """How many rows were turned into dlogits."""
    seen = []
    exact = passes.d_logits_of
    with mock.patch.object(
        passes, "d_logits_of", lambda logits, rows, *rest: seen.append(rows.d_log_probs.shape[0]) or exact(logits, rows, *rest)
    ):
        out = run_linear(b, objective, **keywords)
    return sum(seen), out.output.metrics_as_floats()["skipped_fraction"]


def test_skipped_tokens_cost_no_backward():
    b = zeroed(make_batch((4, 9), trained=1.1), "whole rows")
    reinforce = PolicyObjective(surrogate=Reinforce())
    assert count_backward_rows(b, reinforce) == (18, 0.5)
    assert count_backward_rows(zeroed(b, "everywhere"), reinforce) == (0, 1.0)
    assert count_backward_rows(b, PolicyObjective(surrogate=Reinforce(), divergence=KLPenalty(0.1))) == (36, 0.0)
    b.old = b.old - 1.0  # every ratio above 1.2: good actions are clipped
    good = int((b.advantages > 0).sum())
    assert good > 0 and count_backward_rows(b, PLAIN) == (18 - good, pytest.approx((18 + good) / 36))


@pytest.mark.parametrize("number", [*range(0, len(OBJECTIVES), 5), *range(len(OBJECTIVES) - len(bare_objectives()), len(OBJECTIVES))])
def test_a_plan_changes_no_bit(number):
    objective = OBJECTIVES[number]
    b = zeroed(make_batch((5, 8), seed=number), "inside sequences")
    for chunk in (None, smallest_chunk(b)):
        want = run_linear(b, objective, chunk_bytes=chunk)
        got = run_linear(b, objective, chunk_bytes=chunk, plan=plan_tokens(b.mask, b.advantages, objective=objective))
        for name in ("loss", "metrics", *GRADIENTS):
            assert_same_bits(name, getattr(got, name), getattr(want, name))


@pytest.mark.parametrize("number", [*range(0, len(OBJECTIVES), 5), *range(len(OBJECTIVES) - len(bare_objectives()), len(OBJECTIVES))])
def test_rows_that_do_not_matter_need_no_forward(number):
    """Leaving them out, with the denominator of the whole batch, changes neither loss gradient nor, without KL and entropy, the loss."""
    objective = OBJECTIVES[number]
    b = make_batch((6, 5), dtype=torch.float64, seed=number)
    b.advantages[1], b.advantages[4, ::2], b.mask[2] = 0, 0, False
    keep = rows_that_matter(b.mask, b.advantages, objective=objective)
    assert not keep[2] and keep[4] and (bool(keep[1]) != objective.zero_at_zero_advantage)
    want = run_linear(b, objective, denominator=11.0)
    names = ("hidden", "token_ids", "advantages", "mask", "weights", "kl_mask", "old", "ref")
    got = run_linear(change(b, **{name: getattr(b, name)[keep] for name in names}), objective, denominator=11.0)
    assert error(got.weight, want.weight) < 1e-15 and error(got.hidden, want.hidden[keep]) < 1e-15
    assert torch.count_nonzero(want.hidden[~keep]) == 0 and error(got.loss, want.loss) < 1e-14


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("number", range(0, len(OBJECTIVES), 4))
def test_fused_and_unfused_metrics_agree(number, on_policy):
    objective = OBJECTIVES[number]
    b = make_batch((4, 7), dtype=torch.float64, seed=number)
    fused = run_linear(b, objective, on_policy=on_policy).output.metrics_as_floats()
    plain = run_policy(b, objective, on_policy=on_policy, entropy=b.entropy).output.metrics_as_floats()
    assert set(fused) - set(plain) == {"skipped_fraction", "two_pass_fraction"}  # of a head alone
    del fused["skipped_fraction"], fused["two_pass_fraction"]
    assert fused == pytest.approx(plain, rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("group", range(8))
def test_whatever_needs_a_gradient(group):
    """All combinations of requires_grad: the value does not depend on it, and exactly the wanted gradients come."""
    b = make_batch()
    want = run_linear(b, FULL)
    wanted = {name: bool(group >> bit & 1) for bit, name in enumerate(GRADIENTS)}
    leaves = {name: getattr(b, name).clone().requires_grad_(needed) for name, needed in wanted.items()}
    out = linear_policy_loss(leaves["hidden"], Head(leaves["weight"], leaves["bias"]), b.token_ids, b.advantages, b.mask, old_log_probs=b.old,
                             ref_log_probs=b.ref, objective=FULL)  # fmt: skip
    assert_same_bits("loss", out.loss.detach(), want.loss)
    assert_same_bits("metrics", out.metrics, want.metrics)
    assert out.loss.requires_grad == any(wanted.values())
    if any(wanted.values()):
        out.loss.backward()
    for name, needed in wanted.items():
        assert_same_bits(name, leaves[name].grad, getattr(want, name) if needed else None)


def test_no_grad_only_scores():
    b = make_batch()
    with torch.no_grad(), mock.patch.object(passes, "d_logits_of", side_effect=AssertionError("a backward ran")):
        out = linear_policy_loss(b.hidden.clone().requires_grad_(), Head(b.weight, b.bias), b.token_ids, b.advantages, b.mask, old_log_probs=b.old,
                                 ref_log_probs=b.ref, objective=FULL)  # fmt: skip
    assert_same_bits("loss", out.loss, run_linear(b, FULL).loss)
    assert not out.loss.requires_grad


def test_heads_features_meet_the_unfused_path():
    """Padded vocabulary, softcap, scale and a per-token temperature against policy_loss of torch log-probs."""
    b = make_batch((3, 6), dtype=torch.float64)
    b.token_ids.clamp_(max=18)
    temperature = 0.5 + torch.rand(3, 6, dtype=torch.float64)
    got = run_linear(b, FULL, temperature=temperature, head=lambda weight, bias: Head(weight, bias, 1.3, 6.0, 19))
    leaves = [value.clone().requires_grad_() for value in (b.hidden, b.weight, b.bias)]
    z = 6.0 * torch.tanh((leaves[0] @ leaves[1].T + leaves[2]) * 1.3 / 6.0)[..., :19] / temperature[..., None]
    log_p = torch.log_softmax(z, -1)
    out = policy_loss(log_p.gather(-1, b.token_ids[..., None])[..., 0], b.advantages, b.mask, old_log_probs=b.old, ref_log_probs=b.ref,
                      entropy=-(log_p.exp() * log_p).sum(-1), objective=FULL)  # fmt: skip
    want = torch.autograd.grad(out.loss, leaves)
    assert error(got.loss, out.loss) < 1e-14
    for name, gradient in zip(GRADIENTS, want):
        assert error(getattr(got, name), gradient) < 1e-14
    assert torch.count_nonzero(got.weight[19:]) == torch.count_nonzero(got.bias[19:]) == 0
