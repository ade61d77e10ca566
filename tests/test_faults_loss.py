"""Faults that policy losses in the wild have had, by their number in the catalogue: each has a defined answer here."""

import dataclasses
import math

import pytest
import torch

import gigpo_fast
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_policy_loss, plan_tokens, policy_loss
from gigpo_fast.objective import (
    DPPOKL,
    DPPOTV,
    K1,
    K3,
    SAPO,
    Clip,
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    TokenClip,
    TokenMean,
    TokenRatio,
    TokenSum,
    TokenWeights,
    Unclipped,
    Weighted,
    Weighting,
)
from gigpo_fast.recipes import recipe
from tests.loss_helpers import all_trained, change, make_batch, one_row, run_linear, run_policy
from tests.tolerance import assert_same_bits, error

PLAIN = PolicyObjective()
FULL = PolicyObjective(surrogate=Clip(0.1, 0.3, dual=2.0), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
SEQUENCE = PolicyObjective(SequenceRatio(), aggregation=SequenceMeanTokenMean())
INF, NAN = math.inf, math.nan


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
    with gigpo_fast.validation("metadata"):
        broken = policy_loss(one_row(NAN, -1.0), A, all_trained(A), old_log_probs=new.detach(), objective=PolicyObjective(ratio))
    assert math.isnan(float(broken.loss))


@dataclasses.dataclass(frozen=True)
class Silent(Weighting):
    """A factor of 0 at tokens that the old policy gave less than e^-1000."""

    def factor(self, batch):
        return (batch.old_log_probs > -1000).to(batch.advantages.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "advantage, objective",
    [
        (1.0, PolicyObjective(TokenRatio(None))), (0.0, PolicyObjective(TokenRatio(None))), (-1.0, PolicyObjective(TokenRatio(None), Clip(dual=3.0))),
        (-1.0, PolicyObjective(TokenRatio(None), Clip(ceiling=4.0))), (1.0, PolicyObjective(TokenRatio(None), TokenClip())),
        (0.0, PolicyObjective(TokenRatio(None), TokenClip())), (-1.0, PolicyObjective(TokenRatio(None), TokenClip(dual=3.0))),
        (0.0, PolicyObjective(TokenRatio(None), Unclipped())), (1.0, PolicyObjective(TokenRatio(None), SAPO())),
        (-1.0, PolicyObjective(TokenRatio(None), SAPO())), (0.0, PolicyObjective(TokenRatio(None), DPPOTV(maximum=None))),
        (1.0, PolicyObjective(TokenRatio(None), DPPOTV(score_function=False))), (1.0, PolicyObjective(TokenRatio(None), DPPOKL(maximum=None, score_function=False))),
        (-1.0, PolicyObjective(TokenRatio(None), Weighted(Unclipped(), Silent()))), (-1.0, PolicyObjective(TokenRatio(None), weighting=Silent())),
    ], ids=str)  # fmt: skip
def test_F01_a_slope_of_zero_times_an_infinite_ratio_is_zero(advantage, objective, dtype):
    """Where the loss no longer depends on the ratio (clipped, capped, advantage 0, weight 0), no NaN comes of exp's overflow."""
    new, A = one_row(-1.0, -1.0).to(dtype).requires_grad_(), one_row(advantage, 0.5).to(dtype)
    extras = {name: torch.full_like(A, 0.2) for name in objective.reads} or None
    out = policy_loss(new, A, all_trained(A), old_log_probs=one_row(-1e4, -1.1).to(dtype), objective=objective, extras=extras)
    gradient = torch.autograd.grad(out.loss, new)[0][0]
    assert math.isfinite(float(out.loss.detach())) and float(gradient[0]) == 0 and float(gradient[1]) < 0


def test_F01_nft_reads_one_side_of_each_answer():
    """A wrong answer of ratio 0 has a slope of 0: log(0) is the other side's."""
    new, A = one_row(-200.0).requires_grad_(), one_row(0.0)
    extras = {"correct": one_row(0.0), "correct_rate": one_row(0.5)}
    out = policy_loss(new, A, all_trained(A), old_log_probs=one_row(0.0), extras=extras, objective=recipe("nft").objective)
    assert float(out.loss.detach()) == pytest.approx(-0.5 * math.log(2), rel=1e-6) and torch.autograd.grad(out.loss, new)[0].item() == 0


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
    with pytest.raises(ValueError, match=r"policy_loss: log_probs must be free of NaN at trained tokens, got nan at \[1, 1\] \(1 in all\)"):
        run_policy(b, PLAIN)
    with gigpo_fast.validation("metadata"):
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
        trained, padding = ("trained ", "take it out of the mask") if name == "linear_policy_loss" else ("", r"pass token_ids.clamp\(min=0\)")
        fix = "check the tokenizer against the head" if wrong > 0 else f"{wrong} is padding: {padding}"
        with pytest.raises(
            ValueError, match=rf"{name}: token_ids must be in 0 .. 22 at every {trained}token, got {wrong} at \[1, 2\] \(1 in all\); {fix}"
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
