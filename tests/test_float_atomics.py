"""No formula adds floats in an order that a GPU does not fix: a profiler walks every recipe, forward and backward, as a GPU takes them."""

import ast
import pathlib

import pytest
import torch

import gigpo_fast
from gigpo_fast.advantage import running_baseline_advantages, tree_values
from gigpo_fast.pairwise import linear_pairwise_loss, pairwise_loss, response_loss
from gigpo_fast.segments import rows, running_sums, segment_sum
from tests.loss_helpers import make_batch, run_linear, run_policy
from tests.pairwise_cases import OBJECTIVES, SINGLE, given, responses
from tests.recipe_cases import distinct

FLOATS = ("float", "double", "c10::Half", "c10::BFloat16")
# Sums by float atomics on CUDA, and scans whose order of additions is not fixed there. index_put_ with accumulate sorts first.
UNORDERED = ("index_add", "index_add_", "index_select_backward", "scatter_add", "scatter_add_", "index_reduce", "bincount", "cumsum", "cumprod")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(rows, "_any_order", lambda values: not values.is_floating_point())


def unordered_sums(call) -> list[str]:
    """What ran of the operations above on floats. Rows of hidden states are gathered by distinct places: one addition to each zero."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        call()
    found, seen = [], 0
    for event in profile.profiler.kineto_results.events():
        name, dtypes, shapes = event.name().removeprefix("aten::"), event.dtypes(), event.shapes()
        seen += name == "mul"
        if not dtypes or dtypes[0] not in FLOATS or len(shapes[0]) > 1:
            continue
        if name in UNORDERED:
            found.append(f"{name} {shapes[0]}")
    assert seen  # the profiler saw the formulas
    return found


def test_scatter_reduce_takes_extrema_alone():
    """The profiler does not see how scatter_reduce reduces; no order of programs changes a maximum."""
    package = pathlib.Path(gigpo_fast.__file__).parent
    calls = [
        node
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("scatter_reduce")
    ]
    assert len(calls) > 5
    assert {node.args[3].value for node in calls if isinstance(node.args[3], ast.Constant)} == {"amin", "amax"}


def test_the_walk_sees_what_it_is_for():
    x, places = torch.ones(5, requires_grad=True), torch.tensor([0, 0, 1])
    assert unordered_sums(lambda: (x * 2).index_select(0, places).sum().backward()) == ["index_select_backward [3]", "index_add_ [5]"]
    assert unordered_sums(lambda: (x * 2)[places].sum().backward()) == []
    assert unordered_sums(lambda: (x * 2).detach().cumsum(0)) == ["cumsum [5]"]
    assert unordered_sums(lambda: segment_sum(x * 2, torch.tensor([0, 1, 1, 0, 2]), 3).sum().backward()) == []


@pytest.mark.parametrize("name", distinct())
def test_recipes(name):
    objective, b = distinct()[name], make_batch((4, 6), dtype=torch.float64)
    b.sequence_ids = torch.tensor([[5], [9], [5], [2]]).expand(4, 6)
    for on_policy in (False, True):
        assert unordered_sums(lambda: run_policy(b, objective, on_policy=on_policy)) == []  # noqa: B023 - used at once
        assert unordered_sums(lambda: run_linear(b, objective, on_policy=on_policy)) == []  # noqa: B023


@pytest.mark.parametrize("name", OBJECTIVES)
def test_preferences(name):
    objective, b = OBJECTIVES[name], responses()
    log_probs = b.log_probs.clone().requires_grad_()
    known = given(b, objective, len(b.pairs))
    assert unordered_sums(lambda: pairwise_loss(log_probs, b.pairs, objective=objective, **known).loss.backward()) == []
    tokens = make_batch((7, 4), dtype=torch.float64)
    known.pop("lengths", None)
    ids = torch.arange(7)[:, None].expand(7, 4)
    hidden = tokens.hidden.clone().requires_grad_()
    call = lambda: linear_pairwise_loss(  # noqa: E731
        hidden, tokens.weight, tokens.token_ids, tokens.mask, b.pairs, sequence_ids=ids, sequences=7, objective=objective, **known
    ).loss.backward()
    assert unordered_sums(call) == []
    if name in SINGLE:
        known = given(b, objective, 7)
        known["weights"] = torch.where(b.lengths > 0, known["weights"], 0)  # an empty response has no odds
        assert unordered_sums(lambda: response_loss(log_probs, b.desirable, objective=objective, **known).loss.backward()) == []


def test_advantages():
    parent = torch.tensor([-1, 0, 0, 1, 1, 2])
    assert unordered_sums(lambda: tree_values(torch.rand(6) * 2, parent, depth=2)) == []
    scores, agent = torch.rand(6), torch.tensor([0, 1, 0, 1, 0, 0])
    assert unordered_sums(lambda: (scores * running_baseline_advantages(scores, agent, torch.zeros(2)).advantages)) == []


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 64, 65])
def test_sums_of_the_first_values(length):
    values = torch.rand(length, dtype=torch.float64)
    torch.testing.assert_close(running_sums(values), values.cumsum(0), rtol=1e-14, atol=0)
