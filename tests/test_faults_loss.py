"""Faults that policy losses in the wild have had, by their number in the catalogue: each has a defined answer here."""

import functools
import math
import warnings

import pytest
import torch

import gigpo_fast
from gigpo_fast import testing
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_policy_loss, plan_tokens, policy_loss
from gigpo_fast.objective import (
    K1,
    K3,
    Clip,
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    TokenMean,
    TokenRatio,
    TokenSum,
    TokenWeights,
)
from gigpo_fast.reference import logprob as reference
from tests.loss_helpers import change, keywords_of, make_batch, run_linear, run_policy
from tests.tolerance import assert_same_bits, error

PLAIN = PolicyObjective()
FULL = PolicyObjective(surrogate=Clip(0.1, 0.3, dual=2.0), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
SEQUENCE = PolicyObjective(SequenceRatio(), aggregation=SequenceMeanTokenMean())
INF, NAN = math.inf, math.nan


def one_row(*values):
    return torch.tensor([values])


def all_trained(like):
    return torch.ones(like.shape, dtype=torch.bool)


@pytest.mark.parametrize("ratio", [TokenRatio(), SequenceRatio(), SequenceRatio(stop_gradient_mean=True)], ids=str)
def test_F01_stale_tokens_do_not_overflow(ratio):
    """log-ratio 100: the ratio is e^20, the gradient 0, and the metric says so; None lets it overflow, NaN is never hidden."""
    new, A = one_row(-1.0, -1.0).requires_grad_(), one_row(-1.0, -1.0)
    for gap in (100.0, 1e4, 3e38):
        out = policy_loss(new, A, all_trained(A), old_log_probs=new.detach() - gap, objective=PolicyObjective(ratio))
        assert float(out.loss.detach()) == pytest.approx(math.exp(20), rel=1e-6)
        assert torch.autograd.grad(out.loss, new)[0].tolist() == [[0.0, 0.0]]
        assert out.metrics_as_floats()["ratio_clamped_fraction"] == 1.0
    unbounded = PolicyObjective(type(ratio)(log_ratio_clip=None))
    assert float(policy_loss(new, A, all_trained(A), old_log_probs=new.detach() - 100.0, objective=unbounded).loss) == INF
    assert math.isnan(
        float(policy_loss(one_row(NAN, -1.0), A, all_trained(A), old_log_probs=new.detach(), objective=PolicyObjective(ratio)).loss)
    )


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 3e38, -3e38])
@pytest.mark.parametrize(
    "objective", [FULL, PolicyObjective(SequenceRatio(), Clip(), KLPenalty(0.1, K1())), PolicyObjective(surrogate=Reinforce())], ids=str
)
def test_F02_an_infinite_ratio_under_the_mask_is_no_nan(objective, garbage):
    b = make_batch((3, 4))
    want, wanted = run_policy(b, objective), run_linear(b, objective)
    fill = {name: torch.where(b.mask, getattr(b, name), garbage) for name in ("log_probs", "old", "ref", "advantages", "entropy")}
    hidden = torch.where(b.mask.unsqueeze(-1), b.hidden, garbage)
    got, linear = run_policy(change(b, **fill), objective), run_linear(change(b, **fill, hidden=hidden), objective)
    assert_same_bits("loss", got.loss, want.loss)
    assert_same_bits("gradient", got.log_probs, want.log_probs)
    assert torch.count_nonzero(got.log_probs[~b.mask]) == 0
    for name in ("loss", "hidden", "weight", "bias"):
        assert_same_bits(name, getattr(linear, name), getattr(wanted, name))


def test_F03_k3_is_clipped_before_exp():
    """A finite value has a finite gradient: 0 beyond the clip, before and after exp."""
    new, A = one_row(-1.0, -1.0, -1.0).requires_grad_(), one_row(0.0, 0.0, 0.0)
    ref = one_row(200.0, 5.0, -300.0)
    for estimator, value in ((K3(), math.exp(20) - 21), (K3(output_clip=10.0), 10.0)):
        out = policy_loss(
            new, A, one_row(True, False, False), ref_log_probs=ref, objective=PolicyObjective(divergence=KLPenalty(1.0, estimator))
        )
        assert float(out.loss.detach()) == pytest.approx(value, rel=1e-6)
        assert torch.autograd.grad(out.loss, new)[0].tolist() == [[0.0, 0.0, 0.0]]
    out = policy_loss(new, A, all_trained(A), ref_log_probs=ref, objective=PolicyObjective(divergence=KLPenalty(1.0, K3(output_clip=10.0))))
    assert torch.isfinite(torch.autograd.grad(out.loss, new)[0]).all()


@pytest.mark.parametrize("surrogate", [Clip(), Clip(0.1, 0.3, dual=3.0), Clip(ceiling=4.0)], ids=str)
@pytest.mark.parametrize("ratio", [TokenRatio(0.5), SequenceRatio(0.5), SequenceRatio(0.5, stop_gradient_mean=True)], ids=str)
def test_F04_the_clamped_ratio_is_the_one_that_is_used(ratio, surrogate):
    new, A = one_row(-1.0, -1.5).requires_grad_(), one_row(-1.0, -1.0)
    out = policy_loss(new, A, all_trained(A), old_log_probs=new.detach() - 2.0, objective=PolicyObjective(ratio, surrogate))
    assert float(out.loss.detach()) == pytest.approx(math.exp(0.5), rel=1e-6)  # not e^2
    assert torch.count_nonzero(torch.autograd.grad(out.loss, new)[0]) == 0


class TestF05:
    """-inf log-probs, of tokens that a sampler's top-k or top-p had removed."""

    def batch(self):
        b = make_batch((3, 4), trained=1.1)
        b.old[1, 2] = -INF
        return b

    @pytest.mark.parametrize("objective", [PLAIN, FULL, SEQUENCE], ids=["plain", "full", "sequence"])
    def test_F05_such_a_token_has_no_policy_term_and_is_kept_in_the_divergence(self, objective):
        b = self.batch()
        with gigpo_fast.validation("metadata"):
            for got, path in ((run_policy(b, objective), "log_probs"), (run_linear(b, objective), "hidden")):
                gradient = getattr(got, path)[1, 2]
                assert torch.isfinite(got.loss) and all(math.isfinite(value) for value in got.output.metrics_as_floats().values())
                has_gradient = objective is not PLAIN and objective is not SEQUENCE
                assert bool((gradient != 0).any()) == has_gradient  # the divergence's alone
                assert got.output.metrics_as_floats()["nonfinite_tokens"] == 1.0
        with gigpo_fast.validation("metadata"):
            new = one_row(-INF, -1.0).requires_grad_()
            out = policy_loss(new, one_row(1.0, 1.0), all_trained(new), old_log_probs=one_row(-1.0, -1.0), objective=PLAIN)
        assert float(out.loss.detach()) == -0.5 and out.metrics_as_floats()["nonfinite_tokens"] == 1.0
        assert torch.autograd.grad(out.loss, new)[0].tolist() == [[0.0, -0.5]]

    def test_F05_full_validation_refuses_it(self):
        b = self.batch()
        for call in (run_policy, run_linear):
            with (
                gigpo_fast.validation("full"),
                pytest.raises(ValueError, match=r"old_log_probs must be .* at trained tokens, got -inf at \[1, 2\]"),
            ):
                call(b, PLAIN)


@pytest.mark.parametrize("name", ["old", "ref"])
def test_F06_a_missing_score_is_nan_and_an_error(name):
    b = make_batch((3, 4), trained=1.1)
    getattr(b, name)[0, 3] = NAN
    argument = {"old": "old_log_probs", "ref": "ref_log_probs"}[name]
    for function, call in (("policy_loss", run_policy), ("linear_policy_loss", run_linear)):
        with pytest.raises(
            ValueError,
            match=rf"{function}: {argument} must be (no NaN|finite) at trained tokens, got nan at \[0, 3\] \(1 in all\); mask such",
        ):
            call(b, FULL)
        with gigpo_fast.validation("metadata"):
            assert math.isnan(float(call(b, FULL).loss))  # without the check it is not hidden either


@pytest.mark.parametrize("objective", [
    PolicyObjective(SequenceRatio(), Clip(), KLPenalty(0.1), TokenWeights(), EntropyBonus(0.1), aggregation)
    for aggregation in (TokenMean(), TokenSum(), SequenceMeanTokenSum(), SequenceMeanTokenMean(), SequenceMeanTokenSumNorm(5.0))
] + [PLAIN], ids=str)  # fmt: skip
@pytest.mark.parametrize("denominator", [None, 100.0])
def test_F07_nothing_trained_is_loss_zero_attached_to_the_graph(objective, denominator):
    b = make_batch((3, 4), trained=-1.0)
    plain, linear = run_policy(b, objective, denominator=denominator), run_linear(b, objective, denominator=denominator)
    for got, names in ((plain, ["log_probs"]), (linear, ["hidden", "weight", "bias"])):
        assert float(got.loss) == 0.0 and got.output.loss.requires_grad
        for name in names:
            assert getattr(got, name) is not None and torch.count_nonzero(getattr(got, name)) == 0
        found = got.output.metrics_as_floats()
        assert (
            found["n_active"] == 0.0
            and found["denominator"] == (denominator or 1.0)
            and all(math.isfinite(value) for value in found.values())
        )


def test_F09_a_broken_loss_shows_in_the_metrics():
    b = make_batch((3, 4), trained=1.1)
    b.log_probs[1, 1] = NAN
    found = run_policy(b, PLAIN).output.metrics_as_floats()
    assert found["nonfinite_tokens"] == 1.0 and math.isnan(found["loss_sum"])


def test_F11_all_negative_logits():
    logits = -50.0 - 10 * torch.rand(16, 33)
    log_probs, entropy = token_log_probs(logits, torch.randint(33, (16,)))
    assert bool((log_probs <= 0).all()) and bool((entropy >= 0).all()) and bool((entropy <= math.log(33) + 1e-6).all())


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_F12_a_large_common_offset_keeps_the_difference(shift):
    logits = torch.randint(-2048, 2048, (16, 33)).float() / 512
    ids = torch.randint(33, (16,))
    want, got = token_log_probs(logits, ids), token_log_probs(logits + shift, ids)
    assert_same_bits("log_probs", got.log_probs, want.log_probs)
    weight, hidden = logits.t().contiguous(), torch.eye(16)
    assert_same_bits("linear", linear_token_log_probs(hidden, Head(weight, torch.full((33,), shift)), ids).log_probs, want.log_probs)


@pytest.mark.parametrize("size", [1.0, 5.0, 30.0])
def test_F13_forward_and_backward_see_the_same_logits(size):
    """The gradient is that of the value which was returned: a bf16 head, against the float64 gradient of the same operands."""
    b = make_batch((3, 6), dtype=torch.bfloat16)
    b.hidden = b.hidden * size
    exact = change(b, **{name: getattr(b, name).double() for name in ("hidden", "weight", "bias", "advantages", "old", "ref")})
    got, want = run_linear(b, PolicyObjective(surrogate=Reinforce())), run_linear(exact, PolicyObjective(surrogate=Reinforce()))
    for name in ("hidden", "weight", "bias"):
        largest = float(getattr(want, name).abs().max())
        assert error(getattr(got, name), getattr(want, name)) <= 3 * 2.0**-9 * largest, name  # bf16 rounds once, by 2^-9


def test_F14_log_probs_are_float32_and_do_not_depend_on_the_batch():
    b = make_batch((4, 16), dtype=torch.bfloat16)
    whole = token_log_probs((b.hidden @ b.weight.T), b.token_ids)
    assert whole.log_probs.dtype == whole.entropy.dtype == torch.float32
    for row in range(4):
        part = token_log_probs((b.hidden @ b.weight.T)[row, 3:9], b.token_ids[row, 3:9])
        assert_same_bits("log_probs", part.log_probs, whole.log_probs[row, 3:9])
    again = linear_token_log_probs(b.hidden, Head(b.weight, b.bias), b.token_ids).log_probs
    found = run_linear(change(b, old=again), PLAIN).output.metrics_as_floats()
    assert found["ratio_max"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("wrong", [-100, 23, 2**40, -1])
def test_F15_an_id_outside_the_vocabulary(wrong):
    b = make_batch((3, 4), trained=1.1)
    b.token_ids[1, 2] = wrong
    calls = {
        "token_log_probs": lambda: token_log_probs(b.hidden @ b.weight.T, b.token_ids),
        "linear_token_log_probs": lambda: linear_token_log_probs(b.hidden, b.weight, b.token_ids),
        "linear_policy_loss": lambda: linear_policy_loss(b.hidden, b.weight, b.token_ids, b.advantages, b.mask, objective=PLAIN),
    }
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match=f"{name}: token_ids must be in 0 .. 22 at every trained token, got {wrong} at flat position 6; mask padding"
        ):
            call()
        with gigpo_fast.validation("metadata"):
            out = call()
        if name == "linear_policy_loss":
            assert math.isnan(float(out.loss))
        else:
            assert torch.isnan(out.log_probs).nonzero().tolist() == [[1, 2]]


def test_F33_nothing_is_shifted_or_cut():
    b = make_batch((3, 6))
    with pytest.raises(
        ValueError,
        match=r"linear_policy_loss: hidden must be \(3, 5, 8\).*got \(3, 6, 8\) float32; hidden and token_ids need equal leading",
    ):
        linear_policy_loss(b.hidden, b.weight, b.token_ids[:, 1:], b.advantages[:, 1:], b.mask[:, 1:], objective=PLAIN)
    with pytest.raises(
        ValueError, match=r"token_log_probs: token_ids must be \(3, 6\) int64 or int32, got \(3, 5\) int64; one id a token, already shifted"
    ):
        token_log_probs(b.hidden @ b.weight.T, b.token_ids[:, 1:])
    with pytest.raises(ValueError, match=r"linear_token_log_probs: hidden must be \(3, 5, 8\)"):
        linear_token_log_probs(b.hidden, b.weight, b.token_ids[:, 1:])


@pytest.mark.parametrize("cast", [torch.float32, torch.int64, torch.uint8])
def test_F37_a_mask_is_bool(cast):
    b = make_batch((3, 4))
    b.mask = b.mask.to(cast)
    for function, call in (("policy_loss", run_policy), ("linear_policy_loss", run_linear)):
        with pytest.raises(
            TypeError, match=rf"{function}: mask must be \(3, 4\) bool .*got \(3, 4\) {str(cast)[6:]}; use mask.bool\(\); soft weights"
        ):
            call(b, PLAIN)
    with pytest.raises(TypeError, match="plan_tokens: mask must be .* bool"):
        plan_tokens(b.mask, b.advantages, objective=PLAIN)


@pytest.mark.parametrize("wrong", [-1.0, NAN, INF])
def test_F37_weights_are_finite_and_not_negative(wrong):
    b = make_batch((3, 4), trained=1.1)
    b.weights[2, 1] = wrong
    for function, call in (("policy_loss", run_policy), ("linear_policy_loss", run_linear)):
        with pytest.raises(ValueError, match=rf"{function}: extras\['weights'\] must be finite and >= 0 at trained tokens"):
            call(b, PolicyObjective(weighting=TokenWeights()))


def test_F44_every_token_has_its_own_upstream_gradient():
    b = make_batch((2, 5), dtype=torch.float64)
    c, e = torch.linspace(-2, 3, 10, dtype=torch.float64).view(2, 5), torch.linspace(1, -1, 10, dtype=torch.float64).view(2, 5)
    leaves, own = ([value.clone().requires_grad_() for value in (b.hidden, b.weight, b.bias)] for _ in range(2))
    got = linear_token_log_probs(leaves[0], Head(*leaves[1:]), b.token_ids)
    want = reference.linear_token_log_probs(own[0], own[1], b.token_ids, bias=own[2])
    for ours, theirs in zip(torch.autograd.grad(list(got), leaves, [c, e]), torch.autograd.grad(list(want), own, [c, e])):
        assert error(ours, theirs) < 1e-13


def test_F45_strided_upstream_gradients():
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(9, (6,))
    strided = torch.randn(6, 2, dtype=torch.float64)[:, 0]
    assert not strided.is_contiguous()
    got = torch.autograd.grad(token_log_probs(logits, ids).log_probs, logits, strided)[0]
    assert_same_bits("gradient", got, torch.autograd.grad(token_log_probs(logits, ids).log_probs, logits, strided.contiguous())[0])
    expanded = torch.autograd.grad(token_log_probs(logits, ids).log_probs.sum(), logits)[0]
    assert_same_bits(
        "gradient", expanded, torch.autograd.grad(token_log_probs(logits, ids).log_probs, logits, torch.ones(6, dtype=torch.float64))[0]
    )


def test_F46_copies_inside_do_not_cut_the_graph():
    """A trunk below the head gets its gradient, also through casts, slices and views on the way."""
    b = make_batch((3, 4))
    for prepare in (
        lambda h: h,
        lambda h: h.transpose(0, 1).contiguous().transpose(0, 1),
        lambda h: torch.cat([h, h])[:3],
        lambda h: h.bfloat16().float(),
    ):
        trunk = torch.nn.Linear(8, 8)
        linear_policy_loss(
            prepare(trunk(b.hidden)), b.weight, b.token_ids, b.advantages, b.mask, objective=FULL, **keywords_of(b, FULL)
        ).loss.backward()
        assert trunk.weight.grad is not None and float(trunk.weight.grad.abs().sum()) > 0


def test_F47_a_second_backward_is_the_first_and_saves_stay_whole():
    b = make_batch((3, 4), dtype=torch.float64)
    leaves = [value.clone().requires_grad_() for value in (b.hidden, b.weight)]
    for out in (linear_token_log_probs(leaves[0], leaves[1], b.token_ids).log_probs.sum(),
                linear_policy_loss(*leaves, b.token_ids, b.advantages, b.mask, objective=FULL, **keywords_of(b, FULL)).loss):  # fmt: skip
        first = torch.autograd.grad(out, leaves, retain_graph=True)
        for one, two in zip(first, torch.autograd.grad(out, leaves)):
            assert_same_bits("gradient", two, one)


@pytest.mark.parametrize("group", range(8))
def test_F48_the_value_does_not_depend_on_requires_grad(group):
    b = make_batch((3, 4))
    wanted = [bool(group >> bit & 1) for bit in range(3)]
    leaves = [value.clone().requires_grad_(needed) for value, needed in zip((b.hidden, b.weight, b.bias), wanted)]
    out = linear_token_log_probs(leaves[0], Head(*leaves[1:]), b.token_ids)
    want = linear_token_log_probs(b.hidden, Head(b.weight, b.bias), b.token_ids)
    assert_same_bits("log_probs", out.log_probs.detach(), want.log_probs)
    assert out.log_probs.requires_grad == any(wanted)
    if any(wanted):
        out.log_probs.sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == wanted


def test_F49_a_vocabulary_parallel_head_is_refused_not_wrong():
    b = make_batch()
    with pytest.raises(
        ValueError, match="linear_policy_loss: head.group_name must be None, got 'tp'; vocabulary-parallel heads are not available yet"
    ):
        linear_policy_loss(b.hidden, Head(b.weight, group_name="tp"), b.token_ids, b.advantages, b.mask, objective=PLAIN)


def test_F50_dual_clip_is_for_bad_actions_and_above_one():
    for dual in (1.0, 0.5, 0.0, -3.0, NAN):
        with pytest.raises(ValueError, match="Clip: dual must be > 1 or None"):
            Clip(dual=dual)
    new, A = one_row(0.0, 0.0, 0.0, 0.0), one_row(1.0, -1.0, 1.0, -1.0)
    old = -torch.log(one_row(5.0, 5.0, 0.1, 0.1))
    out = policy_loss(
        new, A, all_trained(A), old_log_probs=old, objective=PolicyObjective(surrogate=Clip(dual=3.0), aggregation=TokenSum())
    )
    assert float(out.loss) == pytest.approx(-1.2 + 3.0 - 0.1 + 0.8, rel=1e-6)
    found = out.metrics_as_floats()
    assert (found["clip_fraction_high"], found["clip_fraction_low"], found["dual_clip_fraction"]) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4), (1, 1)])
@pytest.mark.parametrize("name", ["advantages", "old", "ref", "weights"])
def test_F51_nothing_is_broadcast(name, shape):
    """B == T, where broadcasting (B,) against (B, T) would go unseen."""
    b = make_batch((4, 4))
    setattr(b, name, torch.rand(shape))
    objective = PolicyObjective(divergence=KLPenalty(0.1), weighting=TokenWeights())
    argument = {"old": "old_log_probs", "ref": "ref_log_probs", "weights": r"extras\['weights'\]"}.get(name, name)
    for function, call in (("policy_loss", run_policy), ("linear_policy_loss", run_linear)):
        with pytest.raises(ValueError, match=rf"{function}: {argument} must be \(4, 4\) .*got \({shape[0]},"):
            call(b, objective)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("head", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_F52_mixed_dtypes_run_under_autocast_and_are_an_error_without(inputs, head, autocast):
    b = make_batch((2, 3))
    hidden, weight = b.hidden.to(inputs).requires_grad_(), b.weight.to(head).requires_grad_()
    call = functools.partial(linear_policy_loss, hidden, weight, b.token_ids, b.advantages, b.mask, objective=PLAIN)
    if inputs != head and not autocast:
        with pytest.raises(
            TypeError,
            match=f"linear_policy_loss: hidden must be of the head's dtype {str(head)[6:]}, got .*; cast one of them, or call under",
        ):
            call()
        return
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = call()
    out.loss.backward()
    assert hidden.grad.dtype == inputs and weight.grad.dtype == head and torch.isfinite(out.loss)


def test_F53_a_frozen_head_has_no_gradient_buffer():
    """No tensor of V x H elements is allocated; with a trained head there is one."""
    from tests.memory import counted

    b = make_batch((2, 3), hidden=64, vocabulary=500)
    for trained in (False, True):
        hidden, weight = b.hidden.clone().requires_grad_(), b.weight.clone().requires_grad_(trained)
        with counted() as seen:
            linear_policy_loss(hidden, weight, b.token_ids, b.advantages, b.mask, objective=PLAIN).loss.backward()
        assert (seen.largest >= 500 * 64) == trained


def test_advantages_and_other_policies_are_constants():
    """Even if they come with a graph, as advantages of a critic do: no gradient flows into them."""
    b = make_batch((3, 4))
    given = {name: getattr(b, name).clone().requires_grad_() for name in ("advantages", "old", "ref", "weights")}
    objective = PolicyObjective(divergence=KLPenalty(0.1), weighting=TokenWeights())
    for call in (run_policy, run_linear):
        call(change(b, **given), objective)
        assert all(value.grad is None for value in given.values())


def test_no_warning_is_left():
    b = make_batch((3, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_linear(b, FULL), run_policy(b, FULL)
    assert testing.LOSS_CASES
