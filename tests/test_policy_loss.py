"""`policy_loss` against the float64 reference, and the relations that must hold between its calls."""

import functools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from gigpo_fast import metrics, testing
from gigpo_fast.distributed import Denominator, global_denominator
from gigpo_fast.loss import LossOutput, PolicyLoss, gigpo_loss, grpo_loss, policy_loss
from gigpo_fast.objective import (
    K3,
    Clip,
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    Reinforce,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceRatio,
    TokenMean,
    TokenSum,
)
from gigpo_fast.recipes import recipe
from gigpo_fast.reference import loss as reference
from gigpo_fast.testing.described import described
from tests.loss_helpers import change, covering_objectives, keywords_of, make_batch, per_token, run_policy
from tests.tolerance import VALUE, assert_no_worse_than, assert_same_bits, error, roundings

OBJECTIVES = covering_objectives()
SEQUENCE = PolicyObjective(
    SequenceRatio(), Clip(0.1, 0.3, dual=2.0), KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02), aggregation=SequenceMeanTokenMean()
)
FULL = PolicyObjective(surrogate=Clip(0.1, 0.3, dual=2.0), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
CASES = [
    "holes and an empty row",
    "on-policy",
    "garbage at untrained tokens",
    "extreme log-ratios",
    "sequences that are not rows",
    "given denominator",
]


@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_value_and_gradients(number):
    """Every pair of options occurs in these objectives; each dtype within the 2x / 3x rule."""
    objective = OBJECTIVES[number]
    dtypes = [torch.float64, (torch.float32, torch.bfloat16, torch.float16)[number % 3]]
    # Unbounded ratios overflow at the extreme log-ratios, as their user asked for; unbounded k3 does at infinity.
    cases = [case for case in CASES if case != "extreme log-ratios" or objective.ratio.log_ratio_clip is not None]
    testing.check_loss(functools.partial(policy_loss, objective=objective), objective=objective, dtypes=dtypes, cases=cases)


@pytest.mark.parametrize("named, name", [(grpo_loss, "grpo"), (gigpo_loss, "gigpo")])
def test_named_losses(named, name):
    testing.check_loss(named, objective=recipe(name).objective)
    testing.check_loss(PolicyLoss(recipe(name).objective), objective=recipe(name).objective, cases=["packed", "on-policy"])


@pytest.mark.parametrize("number", range(0, len(OBJECTIVES), 3))
def test_metrics_are_those_of_the_reference(number):
    objective = OBJECTIVES[number]
    b = make_batch((4, 6), dtype=torch.float64, seed=number)
    got = run_policy(b, objective, entropy=b.entropy).output.metrics_as_floats()
    given = keywords_of(b, objective)
    extras = given.pop("extras", {})
    want = reference.policy_loss(b.log_probs, b.advantages, b.mask, **given, **extras, entropy=b.entropy, **described(objective)).metrics
    unmeasured = {"skipped_fraction", "two_pass_fraction"} if objective.penalties else {"skipped_fraction", "two_pass_fraction", "ref_kl"}
    assert set(want) == set(got) == set(metrics.NAMES) - unmeasured
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=3e-7, abs=1e-7), name  # the metrics are float32


def test_arithmetic_is_float32_for_low_precision_inputs():
    b = make_batch(dtype=torch.bfloat16)
    same = change(b, log_probs=b.log_probs.float(), entropy=b.entropy.float())
    assert_same_bits("loss", run_policy(b, FULL).loss, run_policy(same, FULL).loss)
    assert run_policy(b, FULL).loss.dtype == torch.float32 and run_policy(b, FULL).log_probs.dtype == torch.bfloat16


@pytest.mark.parametrize("objective", [FULL, SEQUENCE, PolicyObjective(surrogate=Reinforce())], ids=["token", "sequence", "reinforce"])
@given(seed=st.integers(0, 10**6), parts=st.integers(1, 4))
def test_micro_batches_add_up(objective, seed, parts):
    """Loss, gradients and metrics of whole rows in any number of parts, with the denominator given."""
    b = make_batch((5, 4), dtype=torch.float64, seed=seed)
    denominator = global_denominator(b.mask, objective=objective)
    whole = run_policy(b, objective, denominator=denominator)
    pieces = [
        run_policy(per_token(b, lambda value, r=rows: value[r]), objective, denominator=denominator)
        for rows in torch.arange(5).chunk(parts)
    ]
    assert error(sum(piece.loss for piece in pieces), whole.loss) <= roundings(whole.loss, torch.float64, 8) + 1e-15
    for name in ("log_probs", "entropy"):
        if getattr(whole, name) is not None:
            assert error(torch.cat([getattr(piece, name) for piece in pieces]), getattr(whole, name)) <= 1e-16
    merged = LossOutput.merge([piece.output for piece in pieces])
    assert error(merged.loss, whole.loss) <= 1e-15
    together, apart = whole.output.metrics_as_floats(), merged.metrics_as_floats()
    each = [piece.output.metrics_as_floats() for piece in pieces]
    for name, value in together.items():  # float32: every part of a sum, and the sum, is rounded once
        allowed = 2**-23 * (abs(value) + sum(abs(part.get(name, 0.0)) for part in each))
        assert abs(apart[name] - value) <= allowed, f"{name}: {apart[name]} of {value}"


def test_parts_of_sequences_add_up_when_their_lengths_are_given():
    """A sequence mean of per-token terms may even be cut inside a sequence."""
    objective = PolicyObjective(aggregation=SequenceMeanTokenMean())
    b = make_batch((3, 8), dtype=torch.float64)
    b.sequence_ids = torch.arange(3)[:, None].expand(3, 8).contiguous()
    denominator = global_denominator(b.mask, aggregation=objective.aggregation, sequence_ids=b.sequence_ids)
    assert denominator.per_sequence is not None
    whole = run_policy(b, objective)
    halves = [
        run_policy(per_token(b, lambda value, c=columns: value[:, c]), objective, denominator=denominator)
        for columns in (slice(0, 3), slice(3, 8))
    ]
    assert error(halves[0].loss + halves[1].loss, whole.loss) < 1e-15
    assert error(torch.cat([half.log_probs for half in halves], 1), whole.log_probs) < 1e-16


@given(seed=st.integers(0, 10**6))
def test_row_order_does_not_matter(seed):
    b = make_batch((6, 4), dtype=torch.float64, seed=seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    whole, moved = run_policy(b, SEQUENCE), run_policy(per_token(b, lambda value: value[order]), SEQUENCE)
    assert error(moved.loss, whole.loss) < 1e-14
    assert error(moved.log_probs, whole.log_probs[order]) < 1e-16


GARBAGE = st.lists(st.sampled_from([float("nan"), float("inf"), float("-inf"), 3e38, -1.0]), min_size=1, max_size=5)
FLOATS = ("advantages", "weights", "log_probs", "entropy", "old", "ref")


def spoiled(b, values):
    """The batch with `values` wherever nothing is trained."""
    noise = torch.tensor(values).repeat(b.mask.numel())[: b.mask.numel()].view_as(b.mask)
    return change(b, **{name: torch.where(b.mask, getattr(b, name), noise) for name in FLOATS})


@given(seed=st.integers(0, 10**6), values=GARBAGE)
def test_what_untrained_tokens_hold_changes_no_bit(seed, values):
    b = make_batch((3, 5), seed=seed)
    want, got = run_policy(b, SEQUENCE), run_policy(spoiled(b, values), SEQUENCE)
    assert_same_bits("loss", got.loss, want.loss)
    assert_same_bits("metrics", got.metrics, want.metrics)
    for name in ("log_probs", "entropy"):
        assert_same_bits(name, getattr(got, name), getattr(want, name))
        assert torch.count_nonzero(getattr(got, name)[~b.mask]) == 0


@given(seed=st.integers(0, 10**6), values=GARBAGE)
def test_appended_garbage_changes_no_gradient(seed, values):
    """Two columns and a row of it. The loss is summed by torch, whose order depends on the length: there, a rounding."""
    b = make_batch((3, 5), seed=seed)
    b.sequence_ids = torch.arange(3)[:, None].expand(3, 5).contiguous()
    padded = per_token(b, lambda value: torch.nn.functional.pad(value, (0, 2, 0, 1)) if value.dim() == 2 else value)
    want, got = run_policy(b, SEQUENCE, denominator=3.0), run_policy(spoiled(padded, values), SEQUENCE, denominator=3.0)
    terms = reference.policy_loss(b.log_probs, b.advantages, b.mask, old_log_probs=b.old, ref_log_probs=b.ref, entropy=b.entropy, denominator=3.0,
                                  **described(SEQUENCE)).terms  # fmt: skip
    assert error(got.loss, want.loss) <= 4 * torch.finfo(torch.float32).eps * float(terms.abs().sum())
    for name in ("log_probs", "entropy"):
        assert_same_bits(name, getattr(got, name)[:3, :5], getattr(want, name))
        assert torch.count_nonzero(getattr(got, name)[3:]) == 0 and torch.count_nonzero(getattr(got, name)[:, 5:]) == 0


@given(seed=st.integers(0, 10**6), factor=st.sampled_from([0.5, 2.0, 1024.0]))
def test_advantages_scale_the_policy_term(seed, factor):
    b = make_batch(seed=seed)
    once, more = run_policy(b, PolicyObjective()), run_policy(change(b, advantages=factor * b.advantages), PolicyObjective())
    assert_same_bits("loss", more.loss, factor * once.loss)  # powers of two scale without rounding
    assert_same_bits("gradient", more.log_probs, factor * once.log_probs)


@pytest.mark.parametrize("aggregation", [TokenMean(), TokenSum(), SequenceMeanTokenSum(), SequenceMeanTokenMean()], ids=str)
@pytest.mark.parametrize("explicit", [False, True], ids=["old is None", "old = new.detach()"])
def test_on_policy_is_reinforce(aggregation, explicit):
    b = make_batch((4, 5))
    old = {"old_log_probs": b.log_probs.clone()} if explicit else {"old_log_probs": None}
    clipped = run_policy(b, PolicyObjective(aggregation=aggregation), **old)
    plain = run_policy(b, PolicyObjective(surrogate=Reinforce(), aggregation=aggregation), **old)
    found = clipped.output.metrics_as_floats()
    assert found["ratio_max"] == 1.0 and found["clip_fraction_low"] == found["clip_fraction_high"] == found["approx_kl"] == 0.0
    assert_same_bits("gradient", clipped.log_probs, plain.log_probs)


def test_on_policy_sequence_ratio_is_exactly_one():
    b = make_batch((4, 5))
    for old in (None, b.log_probs.clone()):
        assert run_policy(b, PolicyObjective(SequenceRatio()), old_log_probs=old).output.metrics_as_floats()["ratio_max"] == 1.0


def test_upstream_gradients_are_linear_and_a_second_backward_repeats():
    b = make_batch(dtype=torch.float64)
    once, thrice = run_policy(b, FULL), run_policy(b, FULL, upstream=3.0)
    assert error(thrice.log_probs, 3 * once.log_probs) < 1e-15
    log_probs = b.log_probs.clone().requires_grad_()
    out = policy_loss(log_probs, b.advantages, b.mask, entropy=b.entropy, objective=FULL, **keywords_of(b, FULL))
    first = torch.autograd.grad(out.loss, log_probs, retain_graph=True)[0]
    second = torch.autograd.grad(out.loss, log_probs)[0]
    assert_same_bits("second backward", second, first)
    assert not out.metrics.requires_grad


@pytest.mark.parametrize("layout", ["transposed", "expanded", "offset", "strided"])
def test_any_strides(layout):
    b = make_batch((4, 6))
    b.advantages = b.advantages[:, :1].expand(4, 6)
    laid = {
        "transposed": lambda value: value.t().contiguous().t(),
        "expanded": lambda value: value,
        "offset": lambda value: torch.nn.functional.pad(value, (3, 2))[:, 3:-2],
        "strided": lambda value: value.repeat_interleave(2, 1)[:, ::2],
    }[layout]
    names = ("mask", "weights", "kl_mask", "log_probs", "entropy", "old", "ref") + (() if layout == "expanded" else ("advantages",))
    given = change(b, **{name: laid(getattr(b, name)) for name in names})
    plain = change(b, advantages=b.advantages.contiguous())
    for objective in (FULL, SEQUENCE):
        leaf = given.log_probs.detach().requires_grad_()
        out = policy_loss(leaf, given.advantages, given.mask, entropy=given.entropy, objective=objective, **keywords_of(given, objective))
        (gradient,) = torch.autograd.grad(out.loss, leaf)
        want = run_policy(plain, objective)
        assert_same_bits("loss", out.loss.detach(), want.loss)
        assert_same_bits("gradient", gradient, want.log_probs)


def test_no_inputs_are_changed():
    b = make_batch()
    before = {name: value.clone() for name, value in vars(b).items()}
    run_policy(b, SEQUENCE)
    for name, value in before.items():
        assert_same_bits(name, getattr(b, name), value)


def test_denominators_in_every_form():
    b = make_batch()
    want = run_policy(b, PolicyObjective(), denominator=7.0)
    for form in (7, torch.tensor(7.0), torch.tensor(7), Denominator(7.0), Denominator(torch.tensor(7.0, dtype=torch.float64))):
        assert_same_bits("loss", run_policy(b, PolicyObjective(), denominator=form).loss, want.loss)
    assert want.output.metrics_as_floats()["denominator"] == 7.0


def test_float32_is_as_exact_as_plain_torch_at_extreme_reference_log_probs():
    """k3 near zero divergence: exp(-x) - 1 + x has no digits left, expm1 has."""
    objective = PolicyObjective(surrogate=Reinforce(), divergence=KLPenalty(1.0, K3()))
    new = torch.full((1, 64), -1.0)
    ref = new + torch.logspace(-7, -3, 64)
    exact = reference.policy_loss(
        new.double(), torch.zeros(1, 64), torch.ones(1, 64, dtype=torch.bool), ref_log_probs=ref.double(), **described(objective)
    )
    plain = reference.policy_loss(new, torch.zeros(1, 64), torch.ones(1, 64, dtype=torch.bool), ref_log_probs=ref, **described(objective))
    got = policy_loss(new, torch.zeros(1, 64), torch.ones(1, 64, dtype=torch.bool), ref_log_probs=ref, objective=objective)
    assert_no_worse_than("k3", got.loss, exact.loss, plain.loss, factor=VALUE)
    assert float(got.loss) >= 0
