"""Switches and numbers that functions are called with: read as what they are, or refused by name before any work starts."""

import functools
import inspect
import math

import numpy as np
import pytest
import torch

from gigpo_fast import distributed, logprob, loss, pairwise, recipes, reward
from tests.test_arrays import FUNCTIONS, arguments, bits
from tests.tolerance import assert_same_bits

G = torch.Generator().manual_seed(8)
HIDDEN, WEIGHT, IDS = torch.randn(2, 4, 8, generator=G), torch.randn(12, 8, generator=G), torch.arange(8).view(2, 4)
ADVANTAGES, MASK = torch.randn(2, 4, generator=G), torch.ones(2, 4, dtype=torch.bool)
GRPO, DPO, PAIRS = recipes.recipe("grpo").objective, recipes.recipe("simpo").objective, torch.tensor([[0, 1]])
OF_HEADS = {
    "linear_policy_loss": lambda **k: loss.linear_policy_loss(HIDDEN, WEIGHT, IDS, ADVANTAGES, MASK, objective=GRPO, **k),
    "linear_grpo_loss": lambda **k: loss.linear_grpo_loss(HIDDEN, WEIGHT, IDS, ADVANTAGES, MASK, **k),
    "linear_gigpo_loss": lambda **k: loss.linear_gigpo_loss(HIDDEN, WEIGHT, IDS, ADVANTAGES, MASK, **k),
    "linear_token_log_probs": lambda **k: logprob.linear_token_log_probs(HIDDEN, WEIGHT, IDS, **k),
    "linear_token_statistics": lambda **k: logprob.linear_token_statistics(HIDDEN, WEIGHT, IDS, **k),
    "linear_sequence_log_probs": lambda **k: pairwise.linear_sequence_log_probs(HIDDEN, WEIGHT, IDS, MASK, **k),
    "linear_pairwise_loss": lambda **k: pairwise.linear_pairwise_loss(HIDDEN, WEIGHT, IDS, MASK, PAIRS, objective=DPO, **k),
}
SWITCHES = [
    *((name, key, None) for name, fn in FUNCTIONS.items() for key, p in inspect.signature(fn).parameters.items() if p.annotation is bool),
    *((name, "invariant", call) for name, call in OF_HEADS.items()),
    ("plan_tokens", "score_idle", lambda **k: loss.plan_tokens(MASK, ADVANTAGES, objective=GRPO, **k)),
    ("gather_rows", "sum_gradients", lambda **k: distributed.gather_rows(WEIGHT, **k)),
]  # fmt: skip


def _call(name: str, call):
    """The call of that name, of equal inputs however often it is called."""
    return call or functools.partial(FUNCTIONS[name], **arguments(name, FUNCTIONS[name]))


@pytest.mark.parametrize(("name", "key", "call"), SWITCHES, ids=[f"{name}-{key}" for name, key, _ in SWITCHES])
def test_a_switch_is_true_or_false_and_never_a_text(name, key, call):
    call = _call(name, call)
    for wrong in ("false", "true", "", 1, 0, None, 0.5, [True], torch.tensor(True)):
        with pytest.raises(TypeError, match=rf"\w+: {key} must be True or False, got .*; pass a bool; a text such as \"false\" would"):
            call(**{key: wrong})
    for right in (True, False):
        if not right and key in ("normalised", "count_trained_tokens"):
            continue  # these calls lack what False needs
        for one, other in zip(bits(call(**{key: right})), bits(call(**{key: np.bool_(right)})), strict=True):
            assert_same_bits(name, one.detach(), other.detach())


def test_the_walk_finds_the_switches():
    assert len(SWITCHES) > 20 and ("advantage.step_ids", "turns", None) in SWITCHES


@pytest.mark.parametrize("name", OF_HEADS)
def test_a_byte_budget_is_an_int_that_holds_some_rows(name):
    call = OF_HEADS[name]
    for wrong, error in (("1e8", TypeError), (1e8, TypeError), (True, TypeError), (torch.tensor(1 << 20), TypeError), (0, ValueError), (-5, ValueError)):
        with pytest.raises(error, match=r"\w+: chunk_bytes must be (an integer >= 1|at least \d+ bytes for 16 rows of this head), got"):
            call(chunk_bytes=wrong)
    for one, other in zip(bits(call(chunk_bytes=int(1e8))), bits(call(chunk_bytes=np.int64(100_000_000))), strict=True):
        assert_same_bits(name, one, other)


def _scalars(function) -> list[str]:
    """Keywords that are no tensors, labels or process groups."""
    other = ("Tensor", "ProcessGroup", "list")
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and (p.annotation is float or not any(x in str(p.annotation) for x in other))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_setting_of_another_kind_is_refused_by_name(name):
    function = FUNCTIONS[name]
    for key in _scalars(function):
        for wrong in ("nonsense", [1], {}, torch.tensor([0.5, 0.5]), object(), math.nan):
            with pytest.raises((TypeError, ValueError), match=rf"\w+: {key}(\[0\])? must be "):
                function(**{**arguments(name, function), key: wrong})


def test_two_ends_may_be_a_list_and_infinity_is_no_budget():
    right, lengths = torch.tensor([True, False]), torch.tensor([0, 10])
    assert reward.cosine_length(right, lengths, max_length=10, right=[2, 1], wrong=[-2.0, 0.25]).tolist() == [2.0, 0.25]
    budget = reward.difficulty_budget([1.0, 4.0, 6.0], [0.0, 0.0, 0.0], thresholds=[3.5, 5.0], easy=math.inf, hard=8)
    assert budget.tolist() == [math.inf, math.inf, 8.0]


def test_public_functions_of_one_kind_are_all_here():
    with_budget = {name for module in (loss, logprob, pairwise) for name in module.__all__ if _takes(getattr(module, name), "chunk_bytes")}
    assert with_budget == set(OF_HEADS)


def _takes(value, key: str) -> bool:
    return inspect.isfunction(value) and isinstance(inspect.signature(value).parameters.get(key), inspect.Parameter)
