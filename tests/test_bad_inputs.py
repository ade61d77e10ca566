"""Wrong arguments of the losses and log-probs: each message names the function, the argument, what was expected, what came, and the fix."""

import re

import pytest
import torch

import gigpo_fast
from gigpo_fast.distributed import Denominator, global_denominator
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import LinearPolicyLoss, LossOutput, linear_policy_loss, plan_tokens, policy_loss, rows_that_matter
from gigpo_fast.objective import (
    EntropyBonus,
    KLPenalty,
    PolicyObjective,
    SequenceMeanTokenMean,
    SequenceRatio,
    TokenMean,
    TokenSum,
    TokenWeights,
)
from gigpo_fast.pairwise import PairwiseOutput, pairwise_loss
from gigpo_fast.recipes import recipe
from tests.loss_helpers import change, make_batch

PLAIN, SEQUENCE = PolicyObjective(), PolicyObjective(SequenceRatio(), aggregation=SequenceMeanTokenMean())
KL, BONUS, WEIGHTED = (
    PolicyObjective(divergence=KLPenalty(0.1)),
    PolicyObjective(entropy_bonus=EntropyBonus(0.1)),
    PolicyObjective(weighting=TokenWeights()),
)
B = make_batch((3, 4))


def policy(b=B, objective=PLAIN, **keywords):
    return policy_loss(b.log_probs, b.advantages, b.mask, objective=objective, **keywords)


def linear(b=B, objective=PLAIN, head=None, **keywords):
    return linear_policy_loss(
        b.hidden, b.weight if head is None else head, b.token_ids, b.advantages, b.mask, objective=objective, **keywords
    )


def says(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()


BOTH = pytest.mark.parametrize("function, call", [("policy_loss", policy), ("linear_policy_loss", linear)], ids=["policy", "linear"])


@BOTH
def test_tensors_an_objective_needs_and_those_it_does_not_read(function, call):
    says(
        ValueError,
        f"{function}: ref_log_probs must be given as (3, 4) for an objective with a KL penalty, got None; score the batch",
        lambda: call(B, KL),
    )
    says(ValueError, f"{function}: ref_log_probs must be None for an objective without a divergence, got (3, 4) float32; add divergence=KLPenalty",
         lambda: call(ref_log_probs=B.ref))  # fmt: skip
    says(ValueError, f"{function}: extras must be exactly the names the objective reads, ['weights'], got [] (missing ['weights'], unread [])",
         lambda: call(B, WEIGHTED))  # fmt: skip
    says(ValueError, f"{function}: extras must be exactly the names the objective reads, [], got ['weights'] (missing [], unread ['weights']); pass the",
         lambda: call(extras={"weights": B.weights}))  # fmt: skip
    says(TypeError, f"{function}: extras must be a dict from names to tensors, got 'list'; pass a dict, for example extras={{\"weights\": ...}}",
         lambda: call(B, WEIGHTED, extras=[B.weights]))  # fmt: skip
    assert call(B, WEIGHTED, extras={"weights": B.weights}).loss.isfinite()
    says(TypeError, f"{function}: extras['weights'] must be (3, 4)", lambda: call(B, WEIGHTED, extras={"weights": B.token_ids}))


@BOTH
def test_advantages_and_objectives(function, call):
    says(ValueError, f"{function}: advantages must be (3, 4) float32 or float64 or bfloat16 or float16, got (3,) float32; give one advantage a token",
         lambda: call(change(B, advantages=torch.rand(3))))  # fmt: skip
    says(
        ValueError,
        f"{function}: advantages must be (3, 4) float, got None; compute them with gigpo_fast.advantage",
        lambda: call(change(B, advantages=None)),
    )
    says(TypeError, f"{function}: advantages must be a torch.Tensor, got list", lambda: call(change(B, advantages=[1.0])))
    says(TypeError, f"{function}: advantages must be (3, 4) float32", lambda: call(change(B, advantages=B.token_ids)))
    for wrong in (float("nan"), float("inf")):
        broken = change(B, advantages=B.advantages.clone(), mask=torch.ones_like(B.mask))
        broken.advantages[1, 3] = wrong
        says(
            ValueError,
            f"{function}: advantages must be finite at trained tokens, got {wrong} at [1, 3] (1 in all); mask such tokens",
            lambda b=broken: call(b),
        )
    says(
        TypeError,
        f"{function}: objective must be a PolicyObjective, got 'gigpo'; compose one, or take recipes.recipe",
        lambda: call(B, "gigpo"),
    )
    says(ValueError, f"{function}: mask must be (3, 4), got (3, 3) bool", lambda: call(change(B, mask=B.mask[:, :3])))


@BOTH
@pytest.mark.parametrize("wrong", [0, 0.0, -3.0, float("nan"), float("inf")])
def test_denominators(function, call, wrong):
    for form in (wrong, Denominator(wrong)):
        says(
            ValueError,
            f"{function}: denominator must be a finite number > 0, got {wrong}; count the whole batch",
            lambda f=form: call(denominator=f),
        )
    if not wrong > 0:
        says(
            ValueError,
            f"{function}: denominator must be > 0, got {float(wrong)}; count",
            lambda: call(denominator=torch.tensor(float(wrong))),
        )
    says(ValueError, f"{function}: denominator must be (), got (1,) float32; pass a 0-dim tensor", lambda: call(denominator=torch.ones(1)))
    says(TypeError, f"{function}: denominator must be a finite number > 0, got True", lambda: call(denominator=True))


@BOTH
def test_sequence_ids(function, call):
    packed = change(B, **{name: getattr(B, name).flatten(0, 1) for name in ("hidden", "token_ids", "log_probs", "advantages", "mask")})
    says(ValueError, f"{function}: sequence_ids must be given as (12,) int64 for packed tokens with an objective that needs sequences, got None; give every",
         lambda: call(packed, SEQUENCE))  # fmt: skip
    call(packed, PLAIN)
    says(
        ValueError,
        f"{function}: sequence_ids must be (3, 4) int64, got (3,) int64",
        lambda: call(B, SEQUENCE, sequence_ids=torch.arange(3)),
    )
    says(
        TypeError,
        f"{function}: sequence_ids must be (3, 4) int64, got (3, 4) float32",
        lambda: call(B, SEQUENCE, sequence_ids=B.advantages),
    )
    whole = change(B, mask=torch.ones_like(B.mask))
    says(ValueError, f"{function}: sequence_ids must be labels >= 0 at trained tokens, got -1 at [0, 0]; give every token the label",
         lambda: call(whole, SEQUENCE, sequence_ids=torch.full((3, 4), -1)))  # fmt: skip
    call(whole, SEQUENCE, sequence_ids=torch.full((3, 4), 12))


def test_policy_loss_alone():
    says(ValueError, "policy_loss: entropy must be given as (3, 4) for an objective with an entropy bonus, got None; pass logprob.token_log_probs",
         lambda: policy(B, BONUS))  # fmt: skip
    says(ValueError, "policy_loss: entropy must be (3, 4)", lambda: policy(B, BONUS, entropy=B.entropy[:, :1]))
    says(TypeError, "policy_loss: log_probs must be (3, 4) float32 or float64 or bfloat16 or float16, got (3, 4) int64",
         lambda: policy(change(B, log_probs=B.token_ids)))  # fmt: skip
    with pytest.raises(TypeError, match="objective"):
        policy_loss(B.log_probs, B.advantages, B.mask)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature(wrong):
    calls = {"linear_policy_loss": lambda t: linear(temperature=t), "linear_token_log_probs": lambda t: linear_token_log_probs(B.hidden, B.weight, B.token_ids, temperature=t),
             "token_log_probs": lambda t: token_log_probs(B.hidden @ B.weight.T, B.token_ids, temperature=t)}  # fmt: skip
    for name, call in calls.items():
        says(
            ValueError,
            f"{name}: temperature must be a finite number > 0, got {wrong}; use the temperature the tokens were sampled with",
            lambda c=call: c(wrong),
        )
        says(ValueError, f"{name}: temperature must be (3, 4) float32", lambda c=call: c(torch.ones(3)))
        if not wrong > 0:
            says(ValueError, f"{name}: temperature must be > 0 at every token, got minimum", lambda c=call: c(torch.full((3, 4), wrong)))


@pytest.mark.parametrize("make, error, message", [
    (lambda: torch.empty(0), ValueError, "head.weight must be (V, H), not empty, got (0,) float32; a sharded parameter must be gathered first: deepspeed.zero.Gath"),
    (lambda: torch.empty(0, 8), ValueError, "head.weight must be (V, H), not empty, got (0, 8) float32; a sharded parameter"),
    (lambda: B.weight.flatten(), ValueError, "head.weight must be (V, H), not empty, got (184,) float32; a sharded parameter must be gathered first"),
    (lambda: torch.nn.Linear(8, 23), TypeError, "head must be the head's weight (V, H) or a Head, got 'Linear'; pass model.lm_head.weight, or Head"),
    (lambda: B.weight.to(torch.int8), TypeError, "head.weight must be float32, float64, bfloat16 or float16, got (23, 8) int8; dequantise the head"),
    (lambda: B.weight[:, :7], ValueError, "hidden must be (3, 4, 7)"),
    (lambda: Head(B.weight, B.bias[:5]), ValueError, "head.bias must be (23,) float32, got (5,) float32; pass lm_head.bias"),
    (lambda: Head(B.weight, B.bias.double()), TypeError, "head.bias must be (23,) float32, got (23,) float64"),
    (lambda: Head(B.weight, vocab_size=24), ValueError, "head.vocab_size must be an int in 1 .. 23, got 24; pass the tokenizer's number of tokens"),
    (lambda: Head(B.weight, vocab_size=0), ValueError, "head.vocab_size must be an int in 1 .. 23, got 0"),
    (lambda: Head(B.weight, softcap=0.0), ValueError, "softcap must be a finite number > 0, got 0.0; Gemma 2 uses 30.0; None for no softcap"),
    (lambda: Head(B.weight, logit_scale=-1.0), ValueError, "logit_scale must be a finite number > 0, got -1.0"),
    (lambda: B.weight.bfloat16(), TypeError, "hidden must be of the head's dtype bfloat16, got (3, 4, 8) float32; cast one of them, or call under torch.autocast"),
])  # fmt: skip
def test_heads(make, error, message):
    says(error, f"linear_policy_loss: {message}", lambda: linear(head=make()))
    says(error, f"linear_token_log_probs: {message}", lambda: linear_token_log_probs(B.hidden, make(), B.token_ids))


def test_hidden_states_that_are_not_finite():
    for value in (float("nan"), float("inf")):
        broken = change(B, hidden=B.hidden.clone(), mask=torch.ones_like(B.mask))
        broken.hidden[1, 2, 3], broken.hidden[2, 0, 0] = value, -value
        message = (
            "linear_policy_loss: hidden must be finite at trained tokens, got NaN or infinity at [1, 2] (2 tokens in all); look for an"
        )
        says(ValueError, message, lambda b=broken: linear(b))
        broken.mask[1, 2] = broken.mask[2, 0] = False
        linear(broken)
        broken.mask[1, 2] = True
        with gigpo_fast.validation("metadata"):
            linear(broken)


def test_an_adapter_around_the_head_is_refused():
    layer = torch.nn.Module()
    layer.base_layer = torch.nn.Linear(8, 23)
    says(TypeError, "LinearPolicyLoss: lm_head must be a plain linear head, got Module, an adapter around one; merge the adapter",
         lambda: LinearPolicyLoss(layer, PLAIN)(B.hidden, B.token_ids, B.advantages, B.mask))  # fmt: skip


def test_chunk_bytes():
    says(ValueError, "linear_policy_loss: chunk_bytes must be at least", lambda: linear(chunk_bytes=1))
    with pytest.raises(ValueError, match=r"chunk_bytes must be at least (\d+) bytes for 16 rows of this head, got 1; raise it") as caught:
        linear_token_log_probs(B.hidden, B.weight, B.token_ids, chunk_bytes=1)
    least = int(re.search(r"at least (\d+)", str(caught.value)).group(1))
    linear(chunk_bytes=least), linear_token_log_probs(B.hidden, B.weight, B.token_ids, chunk_bytes=least)
    says(ValueError, "chunk_bytes must be at least", lambda: linear(chunk_bytes=least - 1))


def test_plans_of_another_batch():
    plan = plan_tokens(B.mask, B.advantages, objective=PLAIN)
    linear(plan=plan)
    other = make_batch((3, 5))
    says(ValueError, "linear_policy_loss: plan must be made by plan_tokens for shape (3, 5) and this objective, got one for (3, 4)",
         lambda: linear(other, plan=plan))  # fmt: skip
    says(
        ValueError,
        "linear_policy_loss: plan must be made by plan_tokens for shape (3, 4) and this objective",
        lambda: linear(B, SEQUENCE, plan=plan),
    )
    swapped = change(B, mask=~B.mask)
    with gigpo_fast.validation("full"), pytest.raises(ValueError, match="linear_policy_loss: plan must"):
        linear(swapped, plan=plan)  # the same shape, other tokens


def test_a_plan_that_skips_more_than_the_objective_allows():
    """A plan made for an objective without KL leaves out backward work that one with KL needs."""
    b = change(B, advantages=torch.zeros_like(B.advantages))
    plan = plan_tokens(b.mask, b.advantages, objective=PLAIN)
    with gigpo_fast.validation("full"), pytest.raises(ValueError, match="linear_policy_loss: plan must"):
        linear(b, KL, ref_log_probs=B.ref, plan=plan)


def test_planners():
    says(TypeError, "plan_tokens: mask must be (3, 4) bool", lambda: plan_tokens(B.mask.float(), B.advantages, objective=PLAIN))
    says(ValueError, "plan_tokens: advantages must be (3, 4) float32", lambda: plan_tokens(B.mask, B.advantages[:, 0], objective=PLAIN))
    says(ValueError, "rows_that_matter: mask must be (B, T) bool, got (12,) bool; packed tokens have no rows: use plan_tokens",
         lambda: rows_that_matter(B.mask.flatten(), B.advantages.flatten(), objective=PLAIN))  # fmt: skip
    says(
        ValueError,
        "rows_that_matter: advantages must be (3, 4) float32",
        lambda: rows_that_matter(B.mask, B.advantages[0], objective=PLAIN),
    )
    says(TypeError, "global_denominator: mask must be (3, 4) bool", lambda: global_denominator(B.mask.float(), aggregation=TokenMean()))
    says(TypeError, "plan_tokens: mask must be a torch.Tensor", lambda: plan_tokens([[True]], B.advantages, objective=PLAIN))


def test_log_probs():
    logits = B.hidden @ B.weight.T
    says(ValueError, "token_log_probs: logits must be (..., V) with at least one leading dimension, got (23,) float32; add one with logits[None]",
         lambda: token_log_probs(logits[0, 0], B.token_ids[0, 0]))  # fmt: skip
    says(TypeError, "token_log_probs: logits must be", lambda: token_log_probs(B.token_ids, B.token_ids))
    says(
        TypeError,
        "token_log_probs: token_ids must be (3, 4) int64 or int32, got (3, 4) float32",
        lambda: token_log_probs(logits, B.advantages),
    )
    says(
        ValueError,
        "token_log_probs: vocab_size must be an int in 1 .. 23, got 24",
        lambda: token_log_probs(logits, B.token_ids, vocab_size=24),
    )
    says(
        TypeError,
        "linear_token_log_probs: token_ids must be a torch.Tensor, got list",
        lambda: linear_token_log_probs(B.hidden, B.weight, [1]),
    )
    says(ValueError, "linear_policy_loss: token_ids must be (B, T) or packed (N,), got (1, 3, 4) int64; flatten further dimensions",
         lambda: linear_policy_loss(B.hidden[None], B.weight, B.token_ids[None], B.advantages[None], B.mask[None], objective=PLAIN))  # fmt: skip


def test_a_plan_is_what_plan_tokens_makes():
    says(TypeError, "linear_policy_loss: plan must be a Plan or None, got 'auto'; plan_tokens(mask, advantages, objective=...) makes it",
         lambda: linear(plan="auto"))  # fmt: skip
    made = plan_tokens(B.mask, B.advantages, objective=PLAIN)
    torch.testing.assert_close(linear(plan=made).loss, linear().loss)


@BOTH
def test_a_trained_token_of_no_sequence_is_refused_also_where_the_objective_reads_no_sequences(function, call):
    labels = torch.arange(3)[:, None].repeat(1, 4)
    want = call(sequence_ids=labels.masked_fill(~B.mask, -1)).loss  # behind the mask a label is nothing
    torch.testing.assert_close(want, call().loss)
    place = B.mask.nonzero()[-1].tolist()
    labels[tuple(place)] = -1
    says(ValueError, f"{function}: sequence_ids must be labels >= 0 at trained tokens, got -1 at {place}; give every token the label",
         lambda: call(sequence_ids=labels))  # fmt: skip


def test_a_device_is_named_once():
    says(ValueError, "policy_loss: mask must be on cpu, got (3, 4) bool on meta; move it with .to(device)",
         lambda: policy(change(B, mask=B.mask.to("meta"))))  # fmt: skip
    says(ValueError, "policy_loss: mask must be on meta, got (3, 4) bool on cpu; move it with .to(device)",
         lambda: policy(change(B, log_probs=B.log_probs.to("meta"))))  # fmt: skip


def test_losses_have_shapes_and_dtypes_on_meta():
    away = change(B, **{name: getattr(B, name).to("meta") for name in ("hidden", "weight", "token_ids", "log_probs", "advantages", "mask")})
    leaves = [away.hidden.detach().requires_grad_(), away.weight.detach().requires_grad_()]
    output = linear(change(away, hidden=leaves[0], weight=leaves[1]))
    output.loss.backward()
    for one, other in zip((*output, *(leaf.grad for leaf in leaves)), (*linear(), B.hidden, B.weight), strict=True):
        assert (one.shape, one.dtype, one.device.type) == (other.shape, other.dtype, "meta")
    assert policy(away).loss.device.type == "meta"


@BOTH
def test_a_denominator_that_counted_something_else_is_refused(function, call):
    means = {"tokens": PLAIN, "sequences": PolicyObjective(aggregation=SequenceMeanTokenMean()), "nothing": PolicyObjective(aggregation=TokenSum())}
    for wanted, objective in means.items():
        for counted, other in means.items():
            denominator = global_denominator(B.mask, objective=other)
            if counted == wanted:
                torch.testing.assert_close(call(B, objective, denominator=denominator).loss, call(B, objective).loss)
                continue
            says(ValueError, f"{function}: denominator must be a number of {wanted}, as {objective.aggregation} takes, got a number of {counted}; count "
                 "for this objective, global_denominator(mask, objective=objective), or pass its .total if that is meant",
                 lambda: call(B, objective, denominator=denominator))  # fmt: skip  # noqa: B023 - used at once
            assert call(B, objective, denominator=denominator.total).loss.isfinite()


def test_a_denominator_of_no_objective_is_told_where_to_find_one():
    says(TypeError, 'global_denominator: objective must be the objective of the loss, got None; pass objective=recipes.recipe("grpo").objective',
         lambda: global_denominator(B.mask))  # fmt: skip
    one, other = global_denominator(B.mask, objective=recipe("grpo").objective), global_denominator(B.mask, aggregation=TokenMean())
    assert one == other and one.counts == "tokens"


def test_outputs_are_merged_from_a_list():
    one = policy(denominator=6.0)
    for wrong in (one, [tuple(one)], [one.loss]):
        says(TypeError, "LossOutput.merge: outputs must be a list of LossOutput, got", lambda: LossOutput.merge(wrong))  # noqa: B023
    torch.testing.assert_close(LossOutput.merge([one, LossOutput(*tuple(one))]).loss, 2 * one.loss)
    pair = pairwise_loss(torch.tensor([-1.0, -2.0]), [[0, 1]], lengths=torch.ones(2), objective=recipe("simpo").objective)
    says(TypeError, "PairwiseOutput.merge: outputs must be a list of PairwiseOutput, got", lambda: PairwiseOutput.merge(pair))
    torch.testing.assert_close(PairwiseOutput.merge([pair]).loss, pair.loss)
