"""torch.compile in one graph, the custom ops' contracts, and the refusal of gradients of gradients."""

import dataclasses
import os
import shutil
from collections import OrderedDict
from typing import ClassVar

import pytest
import torch

import gigpo_fast
from gigpo_fast import loss
from gigpo_fast.head import Head
from gigpo_fast.logprob import linear_token_log_probs, token_log_probs
from gigpo_fast.loss import linear_policy_loss, plan_tokens, policy_loss
from gigpo_fast.objective import Clip, EntropyBonus, KLPenalty, PolicyObjective, SequenceMeanTokenMean, SequenceRatio, Surrogate
from gigpo_fast.recipes import base
from gigpo_fast.tokens import ready_tokens
from tests.compile_helpers import Counting, fresh_compiler  # noqa: F401 - a fixture
from tests.loss_helpers import keywords_of, make_batch, run_linear
from tests.tolerance import assert_same_bits, error

FULL = PolicyObjective(surrogate=Clip(0.1, 0.3, dual=2.0), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02))
SEQUENCE = PolicyObjective(
    SequenceRatio(), Clip(0.1, 0.3, dual=2.0), KLPenalty(0.1), entropy_bonus=EntropyBonus(0.02), aggregation=SequenceMeanTokenMean()
)
GRADIENTS = ("hidden", "weight", "bias")


@dataclasses.dataclass(frozen=True)
class Softened(Surrogate):
    """A surrogate that the package does not know: -A tanh(rho / width) width."""

    width: float = 2.0
    zero_at_zero_advantage: ClassVar[bool] = True

    def loss(self, batch, log_ratio):
        return -batch.advantages * torch.tanh(torch.exp(log_ratio) / self.width) * self.width


def compiled(function, backend):
    return torch.compile(function, fullgraph=True, dynamic=True, backend=backend)


def step(b, objective, call, **keywords):
    """Loss and gradients of one call."""
    leaves = [getattr(b, name).clone().requires_grad_() for name in GRADIENTS]
    loss, metrics = call(*leaves, b.token_ids, b.advantages, b.mask, objective, keywords_of(b, objective) | keywords)
    loss.backward()
    return loss.detach(), metrics, [leaf.grad for leaf in leaves]


def fused(hidden, weight, bias, token_ids, advantages, mask, objective, keywords):
    out = linear_policy_loss(hidden, Head(weight, bias), token_ids, advantages, mask, objective=objective, **keywords)
    return out.loss, out.metrics


def unfused(hidden, weight, bias, token_ids, advantages, mask, objective, keywords):
    found = linear_token_log_probs(hidden, Head(weight, bias), token_ids)
    out = policy_loss(found.log_probs, advantages, mask, entropy=found.entropy, objective=objective, **keywords)
    return out.loss, out.metrics


def from_logits(hidden, weight, bias, token_ids, advantages, mask, objective, keywords):
    found = token_log_probs(hidden @ weight.T + bias, token_ids)
    out = policy_loss(found.log_probs, advantages, mask, entropy=found.entropy, objective=objective, **keywords)
    return out.loss, out.metrics


def check(call, objective, backend, b):
    want, got = step(b, objective, call), step(b, objective, compiled(call, backend))
    assert error(got[0], want[0]) <= 2e-7 * max(1.0, float(want[0].abs()))
    assert error(got[1], want[1]) <= 1e-5 * float(want[1].abs().max())
    for ours, theirs in zip(got[2], want[2]):
        assert ours.dtype == theirs.dtype and error(ours, theirs) <= 1e-6 * float(theirs.abs().max())


@pytest.mark.parametrize("objective, call", [
    (FULL, fused), (SEQUENCE, fused), (PolicyObjective(surrogate=Softened()), fused), (SEQUENCE, unfused), (PolicyObjective(surrogate=Softened()), unfused),
    (FULL, from_logits),
], ids=["full-fused", "sequence-fused", "foreign-fused", "sequence-unfused", "foreign-unfused", "full-logits"])  # fmt: skip
def test_one_graph(objective, call):
    check(call, objective, "aot_eager", make_batch((3, 6)))


@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler for CPU tensors: apt-get install g++"
)
@pytest.mark.slow
@pytest.mark.parametrize("objective, call", [(FULL, fused), (PolicyObjective(surrogate=Softened()), fused), (SEQUENCE, unfused)],
                         ids=["full-fused", "foreign-fused", "sequence-unfused"])  # fmt: skip
def test_inductor(objective, call):
    check(call, objective, "inductor", make_batch((3, 6)))


def test_new_lengths_and_coefficients_do_not_recompile():
    """A scheduled coefficient, another denominator (a tensor), other lengths and other numbers of trained tokens: one graph."""
    counting, first = Counting("aot_eager"), 0
    call = compiled(fused, counting)
    for number, (rows, columns) in enumerate([(3, 6), (4, 9), (5, 7), (2, 11)]):
        objective = PolicyObjective(
            surrogate=Clip(0.1 + 0.01 * number, 0.3, dual=2.0),
            divergence=KLPenalty(0.1 / (number + 1)),
            entropy_bonus=EntropyBonus(0.02 * number + 0.01),
        )
        b, denominator = make_batch((rows, columns), seed=number), {"denominator": torch.tensor(50.0 + number)}
        got, want = step(b, objective, call, **denominator), run_linear(b, objective, **denominator)
        assert_same_bits("loss", got[0], want.loss)
        for ours, name in zip(got[2], GRADIENTS):
            assert error(ours, getattr(want, name)) <= 1e-6
        first = first or counting.graphs  # tracing may start over once by itself
        assert counting.graphs == first


def test_a_foreign_surrogate_runs_fused_and_unfused():
    objective = PolicyObjective(surrogate=Softened(3.0))
    b = make_batch((3, 6), dtype=torch.float64)
    (loss, _, gradients), (plain, _, wanted) = step(b, objective, fused), step(b, objective, unfused)
    assert error(loss, plain) < 1e-14
    for ours, theirs in zip(gradients, wanted):
        assert error(ours, theirs) < 1e-14


def test_a_class_of_the_same_name_is_another_class():
    """As when a notebook cell runs again: the old objective keeps its formula."""

    def define(sign):
        @dataclasses.dataclass(frozen=True)
        class Again(Surrogate):
            def loss(self, batch, log_ratio):
                return sign * batch.log_probs

        return PolicyObjective(surrogate=Again())

    b, first, second = make_batch(), define(1.0), define(-1.0)
    assert_same_bits("loss", run_linear(b, first).loss, -run_linear(b, second).loss)


def opcheck_arguments(b, objective, need):
    tokens, denominator = ready_tokens("test", objective, tuple(b.mask.shape), torch.device("cpu"), torch.float32, b.advantages, b.mask, b.old,
                                       b.ref if objective.needs_reference else None, None, None, None)  # fmt: skip
    flat = lambda value: None if value is None else value.reshape(-1)  # noqa: E731
    plan = plan_tokens(b.mask, b.advantages, objective=objective)
    leaves = [value.clone().requires_grad_(needed) for value, needed in zip((b.hidden.view(-1, 8), b.weight, b.bias), need)]
    sequences = tokens.sequences
    return (*leaves, flat(b.token_ids), flat(b.mask), plan.rows, plan.n_backward, plan.boundaries, torch.ones(b.mask.numel()), 0.0, flat(b.advantages),
            flat(b.old), flat(tokens.ref_log_probs), flat(tokens.token_weights), None if sequences is None else sequences.ids,
            None if sequences is None else sequences.lengths, [], denominator, objective.structure, objective.numbers, list(need), 1 << 20, False, None, "", [0], "")  # fmt: skip


@pytest.mark.parametrize("need", [(True, True, True), (True, False, False), (False, True, True)])
@pytest.mark.parametrize("objective", [FULL, SEQUENCE], ids=["full", "sequence"])
def test_contract_of_the_fused_op(objective, need):
    torch.library.opcheck(torch.ops.gigpo_fast.linear_policy_loss.default, opcheck_arguments(make_batch(), objective, need))


def test_contracts_of_the_log_prob_ops():
    b, scale, ids = make_batch(), torch.ones(18), torch.randint(23, (18,))
    hidden, weight, bias = b.hidden.view(-1, 8).requires_grad_(), b.weight.requires_grad_(), b.bias.requires_grad_()
    for logits in (torch.randn(18, 23, requires_grad=True), torch.randn(18, 30).bfloat16()[:, :23].requires_grad_()):
        torch.library.opcheck(torch.ops.gigpo_fast.token_log_probs.default, (logits, ids, scale, 0.0))
    torch.library.opcheck(
        torch.ops.gigpo_fast.linear_token_log_probs.default, (hidden, weight, bias, ids, scale, 0.25, 1 << 20, False, "", [0])
    )
    torch.library.opcheck(
        torch.ops.gigpo_fast.linear_token_log_probs.default, (hidden, weight, None, ids, scale, 0.0, 1 << 20, True, "", [0])
    )


def test_contracts_of_the_backward_ops():
    n, logits, hidden, weight = 18, torch.randn(18, 23), torch.randn(18, 8), torch.randn(23, 8)
    c, e, ids, scale = torch.randn(n), torch.randn(n), torch.randint(23, (n,)), torch.ones(n)
    checks = {"test_utils": ("test_schema", "test_faketensor")}  # its autograd formula is there to refuse
    ops = torch.ops.gigpo_fast
    _, entropy, lse, _ = ops.token_log_probs(logits, ids, scale, 0.0)
    torch.library.opcheck(ops.token_log_probs_backward.default, (c, e, logits, ids, scale, 0.0, entropy, lse), **checks)
    for bias in (torch.randn(23), None):
        _, entropy, lse, _ = ops.linear_token_log_probs(hidden, weight, bias, ids, scale, 0.0, 1 << 20, False, "", [0])
        need = [True, True, bias is not None]
        arguments = (c, e, hidden, weight, bias, ids, scale, 0.0, entropy, lse, need, 1 << 20, False, "", [0])
        torch.library.opcheck(ops.linear_token_log_probs_backward.default, arguments, **checks)
    held = (torch.randn(n, 8), torch.randn(23, 8), torch.randn(0))
    torch.library.opcheck(ops.linear_policy_loss_backward.default, (torch.tensor(2.0), *held, hidden, weight, None), **checks)


@pytest.mark.parametrize("name", ["linear_policy_loss", "linear_token_log_probs", "token_log_probs"])
@pytest.mark.parametrize("way", ["create_graph", "jacobian"])
def test_gradients_of_gradients_are_refused(name, way):
    """Through every op, with the upstream gradient or the inputs differentiated again. Never a silent 0."""
    b = make_batch(dtype=torch.float64)
    hidden, weight = b.hidden.clone().requires_grad_(), b.weight.clone().requires_grad_()
    loss = {
        "linear_policy_loss": lambda: linear_policy_loss(hidden, weight, b.token_ids, b.advantages, b.mask, old_log_probs=b.old,
                                                         objective=PolicyObjective()).loss,
        "linear_token_log_probs": lambda: linear_token_log_probs(hidden, weight, b.token_ids).log_probs.square().sum(),
        "token_log_probs": lambda: token_log_probs(hidden @ weight.T, b.token_ids).entropy.square().sum(),
    }[name]()  # fmt: skip
    if way == "jacobian":
        loss = loss * torch.ones((), dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(loss, [hidden, weight], create_graph=True)
    for gradient in first:
        with pytest.raises(
            RuntimeError,
            match=f"{name}: gradients of gradients are not available, got a backward through its backward; do not use create_graph",
        ):
            gradient.square().sum().backward(retain_graph=True)


def test_policy_loss_is_plain_torch_and_may_be_differentiated_twice():
    b = make_batch(dtype=torch.float64)
    log_probs = b.log_probs.clone().requires_grad_()

    def loss(value):
        return policy_loss(value, b.advantages, b.mask, old_log_probs=b.old, objective=PolicyObjective(surrogate=Softened())).loss

    assert torch.autograd.gradgradcheck(loss, (log_probs,))


def test_value_checks_wait_outside_a_compiled_graph():
    """Full validation reads values, which do not exist while tracing: it must neither break the graph nor raise there."""
    with gigpo_fast.validation("full"):
        check(fused, FULL, "aot_eager", make_batch((3, 6)))


@pytest.mark.parametrize("name", ["grpo_loss", "gigpo_loss", "linear_grpo_loss", "linear_gigpo_loss"])
def test_a_named_loss_may_meet_the_compiler_before_its_recipe_was_asked_for(name, monkeypatch):
    monkeypatch.setattr(base, "_made", OrderedDict())  # as in a new process
    b, function = make_batch((3, 6)), getattr(loss, name)
    first = (b.hidden, b.weight, b.token_ids) if name.startswith("linear") else (b.log_probs,)
    got = compiled(lambda *given: function(*given).loss, "aot_eager")(*first, b.advantages, b.mask)
    assert error(got, function(*first, b.advantages, b.mask).loss) <= 2e-7
