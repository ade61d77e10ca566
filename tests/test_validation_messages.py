"""Mistakes of a first day, under the default validation on a CPU: each raises before any work, and the advice of its message works."""

import math
import re

import pytest
import torch

import gigpo_fast
from gigpo_fast import advantage, anchor, pairwise, recipes
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_policy_loss, policy_loss
from tests.loss_helpers import make_batch

NAN, INF = math.nan, math.inf
GRPO = recipes.recipe("grpo", kl_coefficient=0.1).objective
ROLLOUT = recipes.recipe("grpo").objective


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with gigpo_fast.validation("auto"):
        yield


@pytest.fixture
def b():
    batch = make_batch((3, 4))
    batch.old, batch.ref = -batch.old.abs() - 0.1, -batch.ref.abs() - 0.1
    batch.mask[1, 2], batch.mask[0, 0] = True, False
    return batch


def from_log_probs(b, **changes):
    given = {"old_log_probs": b.old, "ref_log_probs": b.ref, "objective": GRPO} | changes
    return policy_loss(b.log_probs, b.advantages, b.mask, **given)


def from_hidden(b, **changes):
    given = {"old_log_probs": b.old, "ref_log_probs": b.ref, "objective": GRPO} | changes
    return linear_policy_loss(b.hidden, b.weight, b.token_ids, b.advantages, b.mask, **given)


LOSSES = pytest.mark.parametrize("function, call", [("policy_loss", from_log_probs), ("linear_policy_loss", from_hidden)])


def refused(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()


@LOSSES
@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["advantages", "old", "ref"])
def test_numbers_that_are_none_at_a_trained_token(function, call, name, wrong, b):
    values = getattr(b, name)
    values[0, 0] = wrong  # untrained: whatever is stored there
    assert math.isfinite(call(b).loss)
    values[1, 2] = wrong
    argument = name if name == "advantages" else f"{name}_log_probs"
    refused(ValueError, f"{function}: {argument} must be finite at trained tokens, got {wrong} at [1, 2] (1 in all); mask such tokens out",
            lambda: call(b))  # fmt: skip
    b.mask = b.mask & values.isfinite()  # as it says
    assert math.isfinite(call(b).loss)


@LOSSES
@pytest.mark.parametrize("name", ["old_log_probs", "ref_log_probs"])
def test_probabilities_are_no_log_probs(function, call, name, b):
    probabilities = {"old_log_probs": b.old, "ref_log_probs": b.ref}[name].exp()
    trained = probabilities[b.mask]
    refused(ValueError, f"{function}: {name} must be log-probs (nats, <= 0), got numbers from {trained.min():.3g} to {trained.max():.3g} "
            "at trained tokens; take their log: they look like probabilities", lambda: call(b, **{name: probabilities}))  # fmt: skip
    assert math.isfinite(call(b, **{name: probabilities.log()}).loss)


def test_negative_log_likelihoods_are_no_log_probs_of_tokens(b):
    message = "linear_policy_loss: old_log_probs must be log-probs (nats, <= 0), got numbers from"
    refused(ValueError, message, lambda: from_hidden(b, old_log_probs=b.old * -10))
    with pytest.raises(ValueError, match="negate them: they look like negative log-likelihoods"):
        from_hidden(b, old_log_probs=b.old * -10)
    assert math.isfinite(from_hidden(b, old_log_probs=-(b.old * -10)).loss)
    # A log-density (of a denoising step) may be positive; policy_loss takes those.
    densities = b.old.abs() + 2
    assert math.isfinite(policy_loss(densities, b.advantages, b.mask, old_log_probs=densities + 0.1, objective=ROLLOUT).loss)


def test_log_probs_of_the_policy_itself(b):
    good = b.log_probs.clone()
    b.log_probs = good.exp().clamp(max=1.0)
    with pytest.raises(ValueError, match="policy_loss: log_probs must be log-probs .*; take their log: they look like probabilities"):
        from_log_probs(b)
    with gigpo_fast.validation("metadata"):  # the way for log-densities, which the message names
        assert math.isfinite(from_log_probs(b).loss)
    b.log_probs = good.clone()
    b.log_probs[1, 2] = NAN
    refused(ValueError, "policy_loss: log_probs must be free of NaN at trained tokens, got nan at [1, 2] (1 in all); mask such",
            lambda: from_log_probs(b))  # fmt: skip
    b.mask = b.mask & ~b.log_probs.isnan()
    assert math.isfinite(from_log_probs(b).loss)


def test_certain_tokens_with_rounding_are_log_probs(b):
    certain = torch.full_like(b.old, 1e-6)
    assert math.isfinite(from_hidden(b, old_log_probs=certain, ref_log_probs=torch.zeros_like(certain)).loss)


@LOSSES
@pytest.mark.parametrize("name", ["log_probs", "old_log_probs", "ref_log_probs"])
def test_logits_are_no_log_probs(function, call, name, b):
    logits = torch.randn(3, 4, 23)
    message = f"{function}: {name} must be (3, 4) float, one number a token, got (3, 4, 23) float32, which has the shape of logits over 23"
    if name == "log_probs":
        if function == "policy_loss":
            refused(ValueError, message, lambda: policy_loss(logits, b.advantages, b.mask, objective=ROLLOUT))
        return
    refused(ValueError, message, lambda: call(b, **{name: logits}))
    assert math.isfinite(call(b, **{name: token_log_probs(logits, b.token_ids).log_probs}).loss)


def test_whole_results_where_one_of_their_tensors_belongs(b):
    found = anchor.group_states(["a", "b", "a"])
    rewards = torch.rand(3)
    both = lambda anchors: advantage.gigpo_advantages(rewards, [0, 0, 1], [0, 0, 0], anchors, gamma=0.9)  # noqa: E731
    refused(TypeError, "gigpo_advantages: anchor must be one tensor of a StateGroups, got all of it; pass its .ids", lambda: both(found))
    refused(TypeError, "pass its .ids", lambda: advantage.group_advantages(rewards, found))
    result, steps = both(found.ids), advantage.step_ids(b.mask)
    refused(TypeError, "advantages must be one tensor of a GiGPOAdvantages, got all of it; pass its .advantages",
            lambda: advantage.to_tokens(result, steps))  # fmt: skip
    assert advantage.to_tokens(result.advantages, steps).shape == (3, 4)
    scored = token_log_probs(torch.randn(3, 4, 23), b.token_ids)
    refused(TypeError, "policy_loss: log_probs must be one tensor of a TokenLogProbs, got all of it; pass its .log_probs",
            lambda: policy_loss(scored, b.advantages, b.mask, objective=ROLLOUT))  # fmt: skip
    refused(TypeError, "old_log_probs must be one tensor of a TokenLogProbs, got all of it; pass its .log_probs",
            lambda: from_hidden(b, old_log_probs=scored))  # fmt: skip
    whole = pairwise.sequence_log_probs(scored.log_probs, b.mask)
    refused(TypeError, "pairwise_loss: log_probs must be one tensor of a SequenceLogProbs, got all of it; pass its .log_probs",
            lambda: pairwise.pairwise_loss(whole, torch.tensor([[0, 1]]), objective=recipes.recipe("ipo").objective))  # fmt: skip


@pytest.mark.parametrize("wrong", [-100, -1, 23, 2**40])
def test_token_ids_outside_the_vocabulary(wrong, b):
    b.token_ids[0, 0] = wrong  # untrained
    assert math.isfinite(from_hidden(b).loss)
    b.token_ids[1, 2] = wrong
    found = f"linear_policy_loss: token_ids must be in 0 .. 22 at every trained token, got {wrong} at [1, 2] (1 in all); "
    if wrong > 0:
        refused(ValueError, found + "check the tokenizer against the head", lambda: from_hidden(b))
    else:
        refused(ValueError, found + f"{wrong} is padding: take it out of the mask, mask & (token_ids != {wrong})", lambda: from_hidden(b))
        b.mask = b.mask & (b.token_ids != wrong)
        assert math.isfinite(from_hidden(b).loss)


@pytest.mark.parametrize("call", [lambda b, ids: token_log_probs(b.hidden @ b.weight.T, ids), lambda b, ids: linear_token_log_probs(b.hidden, b.weight, ids)])  # fmt: skip
def test_padding_among_the_ids_to_score(call, b):
    b.token_ids[1, 2] = -100
    with pytest.raises(ValueError, match=r"token_ids must be in 0 .. 22 at every token, got -100 at \[1, 2\].*pass token_ids.clamp\(min=0\)"):
        call(b, b.token_ids)
    assert bool(call(b, b.token_ids.clamp(min=0)).log_probs.isfinite().all())


@LOSSES
@pytest.mark.parametrize("name", ["on_policy_distillation", "kdrl", "trado"])
def test_the_reference_where_the_anchor_is_another_policy(function, call, name, b):
    objective = recipes.recipe(name).objective
    teacher = name != "trado"
    who = "teacher" if teacher else "old"
    fix = "pass the teacher's log-probs as extras={'teacher_log_probs': ...}" if teacher else "leave it out: the divergence is from old"
    refused(ValueError, f'{function}: ref_log_probs must be None where the divergence is from anchor="{who}", got (3, 4) float32; {fix}',
            lambda: call(b, objective=objective))  # fmt: skip
    extras = {"teacher_log_probs": b.ref} if teacher else None
    assert math.isfinite(call(b, objective=objective, ref_log_probs=None, extras=extras).loss)


@LOSSES
def test_what_blocks_read_beside_the_rest(function, call, b):
    objective = recipes.recipe("kdrl").objective
    extra = lambda value: {"objective": objective, "ref_log_probs": None, "extras": {"teacher_log_probs": value}}  # noqa: E731
    b.ref[0, 0] = NAN
    assert math.isfinite(call(b, **extra(b.ref)).loss)
    b.ref[1, 2] = NAN
    refused(ValueError, f"{function}: extras['teacher_log_probs'] must be free of NaN at trained tokens, got nan at [1, 2] (1 in all)",
            lambda: call(b, **extra(b.ref)))  # fmt: skip
    refused(ValueError, f"{function}: extras['teacher_log_probs'] must be log-probs (nats, <= 0)",
            lambda: call(b, **extra(b.old.exp())))  # fmt: skip


def test_labels_that_are_swapped_and_steps_that_repeat():
    rewards, task = torch.rand(4), torch.tensor([0, 0, 0, 0])
    own, steps, states = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"gigpo_advantages: step must be different in all valid rows of a trajectory, .* in rows 0, 1; number"):
        advantage.gigpo_advantages(rewards, own, task, states, gamma=0.9, step=steps)
    with pytest.raises(ValueError, match="discounted_returns: step must be different"):
        advantage.discounted_returns(rewards, own, gamma=0.9, step=steps)
    steps = torch.tensor([0, 1, 0, 1])
    assert advantage.gigpo_advantages(rewards, own, task, states, gamma=0.9, step=steps).advantages.isfinite().all()
    with pytest.raises(ValueError, match=r"to_tokens: step_ids must be in \[-1, 2\) for 2 advantages"):
        advantage.to_tokens(torch.rand(2), advantage.step_ids(torch.ones(3, 2, dtype=torch.bool)))


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
def test_rewards_that_are_no_numbers(wrong):
    rewards, label = torch.tensor([1.0, wrong, 0.5]), torch.tensor([0, 0, 0])
    calls = [
        lambda valid: advantage.group_advantages(rewards, label, valid=valid),
        lambda valid: advantage.discounted_returns(rewards, label, gamma=0.9, valid=valid),
        lambda valid: advantage.gigpo_advantages(rewards, label, label, label, gamma=0.9, valid=valid).advantages,
    ]
    for call in calls:
        with pytest.raises(ValueError, match="must be finite in valid rows, got not finite in rows 1; set valid=False in rows without a score"):
            call(None)
        assert call(torch.tensor([True, False, True])).isfinite().all()


ORPO = recipes.recipe("orpo").objective
PAIRS = torch.tensor([[0, 1], [2, 3]])


@pytest.mark.parametrize("length, log_prob, kind", [(0.0, 0.0, "which is empty"), (1.0, 0.0, r"which is certain \(log-prob 0\)"), (2.0, 0.5, "")])
def test_a_response_without_a_finite_score_is_named_and_may_be_left_out(length, log_prob, kind):
    log_probs, lengths = torch.tensor([-3.0, log_prob, -2.0, -4.0]), torch.tensor([3.0, length, 2.0, 4.0])
    with pytest.raises(ValueError, match=rf"pairwise_loss: log_probs must be of a finite score, got \S+ of response 1 of pair 0.*{kind}; leave it"):
        pairwise.pairwise_loss(log_probs, PAIRS, lengths=lengths, objective=ORPO)
    log_probs.requires_grad_()
    found = pairwise.pairwise_loss(log_probs, PAIRS, lengths=lengths, weights=torch.tensor([0.0, 1.0]), objective=ORPO, denominator=1.0)
    found.loss.backward()  # as it says
    alone = pairwise.pairwise_loss(log_probs, PAIRS[1:], lengths=lengths, objective=ORPO, denominator=1.0)
    assert torch.equal(found.loss, alone.loss) and log_probs.grad[:2].tolist() == [0.0, 0.0]
    assert bool(log_probs.grad.isfinite().all()) and all(math.isfinite(value) for value in found.metrics_as_floats().values())


@pytest.mark.parametrize("wrong", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["log_probs", "ref_log_probs", "weights", "lengths", "targets"])
def test_numbers_that_are_none_in_a_comparison(name, wrong):
    objective = {"lengths": ORPO, "targets": pairwise.PairwiseObjective(pairwise.Square())}.get(name, recipes.recipe("dpo").objective)
    given = {"log_probs": torch.tensor([-3.0, -1.0, -2.0, -4.0]), "weights": torch.ones(2)}
    given |= {"lengths": torch.full((4,), 3.0)} if objective.needs_lengths else {}
    given |= {"ref_log_probs": torch.full((4,), -3.0)} if objective.needs_reference else {}
    given |= {"targets": torch.ones(2)} if objective.needs_targets else {}
    given[name][1] = wrong
    call = lambda pairs, **more: pairwise.pairwise_loss(pairs=pairs, objective=objective, **given | more)  # noqa: E731
    place = r"\[1\]" if name in ("weights", "targets") else r"\[0, 1\]"
    with pytest.raises(ValueError, match=rf"pairwise_loss: {name} must be finite in every comparison that counts, got {wrong} at {place}"):
        call(PAIRS)
