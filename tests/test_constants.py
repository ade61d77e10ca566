"""Arguments that are constants by contract: a gradient that was to flow into one is warned of, once, and is 0."""

import warnings

import pytest
import torch
from torch.func import grad, jvp

from gigpo_fast import constants, loss, pairwise
from gigpo_fast.logprob import Head, linear_token_log_probs, token_log_probs
from gigpo_fast.objective import KLPenalty, PolicyObjective, TokenWeights
from tests.loss_helpers import make_batch

B = make_batch((2, 4), hidden=3, vocabulary=7)
OBJECTIVE = PolicyObjective(divergence=KLPenalty(0.1), weighting=TokenWeights())
PAIRS, PAIR = pairwise.PairwiseObjective(link=pairwise.Square(), beta=0.5), torch.tensor([[0, 1]])
SUMS = torch.tensor([-3.0, -4.0])
LABELS = torch.tensor([True, False])
TOKENS = {"advantages": B.advantages, "old_log_probs": B.old, "ref_log_probs": B.ref, "weights": B.weights, "denominator": torch.tensor(5.0)}
TEMPERATURE = {"temperature": torch.ones(2, 4)}


def policy(advantages, weights, **keywords):
    return loss.policy_loss(B.log_probs, advantages, B.mask, extras={"weights": weights}, objective=OBJECTIVE, **keywords).loss


def linear(advantages, weights, **keywords):
    head = Head(B.weight, B.bias)
    out = loss.linear_policy_loss(
        B.hidden, head, B.token_ids, advantages, B.mask, extras={"weights": weights}, objective=OBJECTIVE, **keywords
    )
    return out.loss


def pair(**keywords):
    return pairwise.pairwise_loss(SUMS, PAIR, objective=PAIRS, **keywords).loss


def response(**keywords):
    return pairwise.response_loss(SUMS, LABELS, objective=PAIRS, **keywords).loss


OF_PAIRS = {"ref_log_probs": SUMS, "targets": torch.ones(1), "weights": torch.ones(1), "denominator": torch.tensor(2.0)}
OF_RESPONSES = OF_PAIRS | {"targets": torch.ones(2), "weights": torch.ones(2), "reference_point": torch.tensor(0.1)}
FUNCTIONS = {
    "policy_loss": (policy, TOKENS),
    "linear_policy_loss": (linear, TOKENS | TEMPERATURE),
    "token_log_probs": (lambda temperature: token_log_probs(B.hidden, B.token_ids.clamp(max=2), temperature=temperature)[0].sum(), TEMPERATURE),
    "linear_token_log_probs": (
        lambda temperature: linear_token_log_probs(B.hidden, B.weight, B.token_ids, temperature=temperature)[0].sum(),
        TEMPERATURE,
    ),
    "pairwise_loss": (pair, OF_PAIRS),
    "response_loss": (response, OF_RESPONSES),
    "sequence_log_probs": (
        lambda token_weights: pairwise.sequence_log_probs(B.log_probs, B.mask, token_weights=token_weights).log_probs.sum(),
        {"token_weights": B.weights},
    ),
}
ROWS = [(function, argument) for function, (_, arguments) in FUNCTIONS.items() for argument in arguments]


@pytest.fixture(autouse=True)
def nothing_warned():
    constants._warned.clear()
    yield
    constants._warned.clear()


def name_of(function, argument):
    return r"extras\['weights'\]" if argument == "weights" and "policy" in function else argument


@pytest.mark.parametrize("way", ["backward", "grad", "jvp"])
@pytest.mark.parametrize("function, argument", ROWS)
def test_one_warning_and_a_derivative_of_zero(function, argument, way):
    call, arguments = FUNCTIONS[function]
    others = {name: value for name, value in arguments.items() if name != argument}
    of_one = lambda value: call(**{argument: value}, **others)  # noqa: E731
    value = arguments[argument]
    with pytest.warns(UserWarning, match=f"^{function}: {name_of(function, argument)} is a constant here, got a tensor that is .*; pass "):
        if way == "backward":
            assert not of_one(value.clone().requires_grad_()).requires_grad
        elif way == "grad":
            assert not grad(of_one)(value).any()
        else:
            assert not jvp(of_one, (value,), (torch.ones_like(value),))[1].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_one(value.clone().requires_grad_())  # once is enough
        constants._warned.clear()
        of_one(value.clone().requires_grad_().detach())  # the advice
        with torch.no_grad():
            of_one(value.clone().requires_grad_())  # no gradient was to flow


def test_old_log_probs_that_were_not_detached():
    """The classical mistake: the ratio is 1 and the gradient must be that of the new log-probs alone."""
    log_probs = B.log_probs.clone().requires_grad_()
    with pytest.warns(UserWarning, match="^policy_loss: old_log_probs is a constant here.*pass old_log_probs.detach"):
        got = torch.autograd.grad(loss.grpo_loss(log_probs, B.advantages, B.mask, old_log_probs=log_probs).loss, log_probs)[0]
    want = torch.autograd.grad(loss.grpo_loss(log_probs, B.advantages, B.mask, old_log_probs=log_probs.detach()).loss, log_probs)[0]
    assert torch.equal(got, want) and bool(got.any())


def test_a_compiled_graph_is_not_broken():
    call = torch.compile(lambda a: policy(**{**TOKENS, "advantages": a}), fullgraph=True, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        call(B.advantages.clone().requires_grad_())
    torch._dynamo.reset()
