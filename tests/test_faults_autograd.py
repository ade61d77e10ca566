"""Faults of the autograd and dispatch kind (upstream gradients, retained graphs, dtypes, frozen heads), by their catalogue number."""

import functools
import math
import warnings

import pytest
import torch

from gigpo_fast import testing
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_policy_loss, policy_loss
from gigpo_fast.objective import (
    Clip,
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    SequenceMeanTokenMean,
    SequenceRatio,
    TokenSum,
    TokenWeights,
)
from gigpo_fast.reference import logprob as reference
from tests.loss_helpers import all_trained, change, keywords_of, make_batch, one_row, run_linear, run_policy
from tests.tolerance import assert_same_bits, error

PLAIN = PolicyObjective()
FULL = PolicyObjective(surrogate=Clip(0.1, 0.3, dual=2.0), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
SEQUENCE = PolicyObjective(SequenceRatio(), aggregation=SequenceMeanTokenMean())
INF, NAN = math.inf, math.nan


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


def test_F50_dual_clip_is_for_bad_actions_and_above_one():
    for dual in (1.0, 0.5, 0.0, -3.0, NAN):
        with pytest.raises(ValueError, match="Clip: dual must be a number > 1 or None"):
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
