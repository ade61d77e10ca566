"""Lists and NumPy arrays for tensors, in every public function of advantages, rewards and pairs: the same bits, or an error that names them."""

import inspect
import pickle
import uuid

import numpy as np
import pytest
import torch
from torch import Tensor

from gigpo_fast import advantage, anchor, logprob, loss, pairwise, reward
from gigpo_fast.arrays import _is_tensor
from gigpo_fast.recipes import recipe
from tests.tolerance import assert_same_bits

G = torch.Generator().manual_seed(5)
ROWS, SHAPE = 8, (3, 4)
GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)


def draw(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=G)


FLAGS = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0], dtype=torch.bool)
# What an argument of that name is, where the rows are steps or responses.
OF_ROWS = {
    "group": GROUP, "trajectory": torch.arange(8) // 2, "anchor": torch.arange(8), "valid": FLAGS | (GROUP == 0),
    "action": GROUP, "success": torch.tensor([1, 1, 0, 0, 0, 0, 1, 1], dtype=torch.bool), "edges_only": FLAGS, "cluster": GROUP, "task": GROUP,
    "correct": FLAGS, "condition": FLAGS, "gate": FLAGS, "valid_action": FLAGS, "lengths": torch.arange(1, 9), "calls": torch.arange(8) % 3,
    "step": torch.tensor([0, 1, 0, 1, 0, 1, 0, 1]), "agent": GROUP, "baselines": torch.tensor([0.25, 0.5]), "count": torch.full((ROWS,), 4.0),
    "costs": draw(ROWS, 2), "weights": torch.tensor([0.5, 0.25]),
}  # fmt: skip
OF_TOKENS = {"mask": MASK, "turn_ids": torch.arange(4).expand(3, 4) // 2, "final_values": draw(3), "baselines": draw(3), "group": torch.tensor([0, 0, 1]),
             "first_result": torch.tensor([1, 2, -1]), "turn_rewards": draw(3), "outcome_rewards": draw(3), "sequence_ids": torch.arange(3)[:, None].expand(3, 4).contiguous(),
             "counted": MASK, "cuts": MASK, "start_known": torch.tensor([True, False, True]), "start_values": draw(3), "lam": draw(3, 4), "top_log_probs": -draw(3, 4, 2)}  # fmt: skip
OF_SHAPE = {  # arguments that differ between functions
    ("score_at_last_token", "scores"): draw(3), ("segment_advantages", "scores"): draw(3), ("tree_values", "scores"): draw(4),
    ("tree_values", "parent"): torch.tensor([-1, 0, 0, 1]), ("tree_advantages", "values"): draw(4), ("tree_advantages", "parent"): torch.tensor([-1, 0, 0, 1]),
    ("step_ids", "mask"): MASK, ("to_tokens", "advantages"): draw(2), ("to_tokens", "step_ids"): torch.tensor([[0, 0, -1], [1, -1, -1]]),
    ("reinforce_plus_plus_baseline_advantages", "step_ids"): torch.arange(8)[:, None].expand(8, 2).contiguous(),
    **{(name, "rewards"): draw(ROWS, 2) for name in ("normalised_sum", "gdpo_advantages", "weighted_sum", "worst_population")},
    **{(name, "scores"): draw(3, ROWS) for name in ("ensemble_mean", "ensemble_worst", "ensemble_uncertainty")},
    ("weighted_sum", "scored"): torch.ones(ROWS, 2, dtype=torch.bool), ("tool_cost", "fewest"): torch.ones(ROWS), ("log_probs", "semantic_entropy"): -draw(ROWS),
    ("leave_one_out_advantages", "trajectory"): torch.arange(8), ("group_advantages", "trajectory"): torch.arange(8),
    ("all_pairs", "group"): GROUP, ("all_pairs", "scores"): torch.arange(8.0),
}  # fmt: skip
SETTINGS = {"gamma": 0.5, "alpha": 0.5, "lam": 0.5, "k": 2, "max_length": 10, "buffer": 5, "max_calls": 4, "threshold": 0.5, "coefficient": 0.1, "depth": 2, "temperature": 0.5}
OTHERS = {
    "running_scale": {"state": reward.RunningMoments(0.0, 0.0, 0.0)},
    "normalise": {"group": GROUP}, "transitions": {"valid": None},  # of rows that are not valid it has other numbers
    "optimal_token_baseline_advantages": {"count_trained_tokens": True},
}  # fmt: skip
FUNCTIONS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": getattr(module, name)
    for module in (advantage, reward)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name)) and any(_is_tensor(p.annotation) for p in inspect.signature(getattr(module, name)).parameters.values())
}

NONE_MEANS = {("advantage.graph_advantages", "success"), ("reward.cost_penalty", "weights")}  # nobody succeeded; all weights 1


def arguments(name: str, function) -> dict:
    parameters = inspect.signature(function).parameters
    own = name.partition(".")[2]
    table, shape = (OF_TOKENS, SHAPE) if "mask" in parameters else (OF_ROWS, (ROWS,))
    given = dict(OTHERS.get(own, {}))
    for key, parameter in parameters.items():
        if key in given:
            continue
        if (own, key) in OF_SHAPE:
            given[key] = OF_SHAPE[own, key]
        elif key in ("lam", "trial", "next_anchor") or (parameter.default is not parameter.empty and key not in ("valid", "sequence_ids", "counted", "step")):
            given |= {key: SETTINGS[key]} if key in SETTINGS and parameter.default is parameter.empty else {}
        elif key in table:
            given[key] = table[key]
        elif _is_tensor(parameter.annotation):
            given[key] = draw(*shape)
        elif key in SETTINGS:
            given[key] = SETTINGS[key]
    return given


def bits(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in bits(item)] if isinstance(value, tuple) else []


def test_the_walk_finds_the_functions():
    assert len(FUNCTIONS) > 60


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lists_and_arrays_are_what_tensors_are(name):
    function = FUNCTIONS[name]
    given = arguments(name, function)
    want = bits(function(**given))
    assert want and any(isinstance(value, Tensor) for value in given.values())
    for other in (Tensor.tolist, Tensor.numpy, lambda value: tuple(value.tolist()), lambda value: value.flip(0).numpy()[::-1]):
        moved = {key: other(value) if isinstance(value, Tensor) else value for key, value in given.items()}
        for got, expected in zip(bits(function(**moved)), want, strict=True):
            assert got.dtype == expected.dtype or other is not Tensor.numpy
            assert_same_bits(name, got.to(expected.dtype), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_holds_no_numbers_is_named(name):
    function = FUNCTIONS[name]
    given = arguments(name, function)
    key = next(key for key, p in inspect.signature(function).parameters.items() if _is_tensor(p.annotation) and key in given)
    for wrong in (["a"], [[1.0], [1.0, 2.0]], [None], [2**70], np.array(["a"])):
        with pytest.raises(TypeError, match=f"{function.__name__}: {key} must be a tensor, or a list or array of numbers, got .*; pass numbers"):
            function(**{**given, key: wrong})
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_column_of_rows_is_named(name):
    function = FUNCTIONS[name]
    given, parameters = arguments(name, function), inspect.signature(function).parameters
    for key in [key for key, value in given.items() if isinstance(value, Tensor)]:
        for wrong in (None, "text", 1.5, object(), {"a": 1}, torch.tensor(1.0), torch.zeros(2, 2, 2, 2)):
            if wrong is None and (parameters[key].default is None or (name, key) in NONE_MEANS):
                continue
            with pytest.raises((TypeError, ValueError), match=r"^\w+: \w+ must be .*, got .*; \w+"):
                function(**{**given, key: wrong})


def test_a_list_has_no_dtype_and_an_array_keeps_its_own():
    group = [0, 0, 1, 1]
    assert advantage.group_advantages([0.1, 0.2, 0.3, 0.5], group).dtype == torch.float32
    assert advantage.group_advantages(np.array([0.1, 0.2, 0.3, 0.5]), group).dtype == torch.float64
    assert advantage.group_advantages(np.array([0.1, 0.2, 0.3, 0.5], np.float32), group).dtype == torch.float32
    mixed = advantage.group_advantages([1, 0, True, np.float64(0.5)], group)
    assert mixed.tolist() == [0.5, -0.5, 0.25, -0.25]
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert advantage.group_advantages([0.1, 0.2, 0.3, 0.5], group).tolist() == pytest.approx([-0.05, 0.05, -0.1, 0.1])
    finally:
        torch.set_default_dtype(before)


def test_a_list_of_tensors_stays_where_they_are():
    scores = [torch.tensor(1.0), torch.tensor(0.0), torch.tensor(5.0), torch.tensor(2.0)]
    assert advantage.group_advantages(scores, [0, 0, 1, 1]).tolist() == [0.5, -0.5, 1.5, -1.5]
    meta = [torch.zeros((), device="meta")] * 4
    with pytest.raises(ValueError, match=r"group_advantages: group must be on meta, got \(4,\) int64 on cpu"):
        advantage.group_advantages(meta, torch.tensor([0, 0, 1, 1]))


LABELS = {
    "np.int64 in a list": list(np.array([7, 7, -3, -3])), "np.str_ in a list": list(np.array(["a", "a", "b", "b"])),
    "UUIDs": [uuid.UUID(int=1), uuid.UUID(int=1), uuid.UUID(int=2), uuid.UUID(int=2)], "tuples": [("t", 1), ("t", 1), ("t", 2), ("t", 2)],
    "bytes": [b"a", b"a", b"b", b"b"], "huge ints": [2**80, 2**80, 2**80 + 1, 2**80 + 1], "unsigned array": np.array([2**64 - 1, 2**64 - 1, 0, 0], np.uint64),
    "int8 array, backwards": np.array([5, 5, 9, 9], np.int8)[::-1], "frozen sets": [frozenset("a"), frozenset("a"), frozenset("b"), frozenset("b")],
    "dates": list(np.array(["2020-01-01", "2020-01-01", "2021-01-01", "2021-01-01"], "datetime64[D]")), "a tuple of texts": ("x", "x", "y", "y"),
}  # fmt: skip
NO_LABELS = ([0.0, 0.0, 1.0, 1.0], [True, True, False, False], list(np.array([0.5, 0.5, 1, 1], np.float32)), list(np.array([True, True, False, False])),
             np.array([0.5, 0.5, 1, 1]), np.array([True, True, False, False]), [None, None, "a", "a"], [{}, {}, {}, {}], [torch.tensor(1)] * 4)  # fmt: skip


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_are_any_hashable_everywhere(labels):
    assert anchor.group_ids(labels).tolist() == [0, 0, 1, 1] == anchor.group_states([0] * 4, labels).ids.tolist()
    assert advantage.group_advantages(torch.tensor([1.0, 0.0, 5.0, 2.0]), labels).tolist() == [0.5, -0.5, 1.5, -1.5]
    found = advantage.gigpo_advantages([1.0, 0.0, 5.0, 2.0], labels, labels, labels, gamma=0.0)
    assert found.step.tolist() == [0.5, -0.5, 1.5, -1.5]
    assert reward.any_of_group([True, False, False, False], labels).tolist() == [True, True, False, False]
    assert pairwise.all_pairs([1.0, 0.0, 5.0, 2.0], labels).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("labels", NO_LABELS, ids=lambda value: f"{type(value).__name__} of {type(value[0]).__name__}")
def test_what_is_no_label_is_refused_everywhere(labels):
    scores = torch.tensor([1.0, 0.0, 5.0, 2.0])
    calls = (lambda: anchor.group_ids(labels), lambda: anchor.group_states([0] * 4, labels), lambda: advantage.group_advantages(scores, labels),
             lambda: advantage.discounted_returns(scores, labels, gamma=0.5), lambda: reward.any_of_group(scores > 0, labels),
             lambda: pairwise.all_pairs(scores, labels))  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match="must be (str, int or another exact hashable|hashable labels), got .*; (labels are compared|a tensor is equal)"):
            call()


def test_minus_one_means_the_same_in_a_list():
    """No state: such a row is compared with nothing, as it is in a tensor."""
    given = dict(trajectory=[0, 1, 2, 3], group=[0] * 4)
    want = advantage.graph_advantages(torch.tensor([1.0, 0.0, 5.0, 2.0]), anchor=torch.tensor([-1, -1, 7, 7]), success=FLAGS[:4], **given)
    for anchors in ([-1, -1, 7, 7], np.array([-1, -1, 7, 7]), list(np.array([-1, -1, 7, 7]))):
        got = advantage.graph_advantages([1.0, 0.0, 5.0, 2.0], anchor=anchors, success=FLAGS[:4], **given)
        for one, other in zip(bits(got), bits(want), strict=True):
            assert_same_bits("graph", one, other)
    with pytest.raises(TypeError, match="transitions: next_anchor must be integers, got str 'b' in row 0; its labels are those of another"):
        advantage.transitions([0, 0], [0, 0], ["a", "b"], next_anchor=["b", "c"])


def test_pairs_may_be_a_list():
    log_probs = torch.tensor([-1.0, -2.0, -3.0, -1.5], requires_grad=True)


    objective = recipe("simpo").objective
    want = pairwise.pairwise_loss(log_probs, torch.tensor([[0, 1], [2, 3]]), lengths=torch.full((4,), 2.0), objective=objective)
    for pairs in ([(0, 1), (2, 3)], [[0, 1], [2, 3]], np.array([[0, 1], [2, 3]])):
        got = pairwise.pairwise_loss(log_probs, pairs, lengths=[2.0] * 4, objective=objective)
        assert_same_bits("loss", got.loss, want.loss)
    with pytest.raises(TypeError, match="pairwise_loss: pairs must be a tensor, or a list or array of numbers"):
        pairwise.pairwise_loss(log_probs, [("a", "b")], lengths=[2.0] * 4, objective=objective)


HIDDEN, WEIGHT, IDS = draw(2, 3, 8), draw(20, 8), torch.arange(6).view(2, 3)


@pytest.mark.parametrize("value", [torch.tensor(2.0), torch.tensor(2), torch.tensor(2.0, dtype=torch.float64), torch.tensor(2.0).half(),
                                   torch.tensor(2, dtype=torch.uint8), np.float32(2), np.int64(2), 2])  # fmt: skip
def test_one_number_may_be_a_tensor_of_no_dimension(value):
    mask, advantages = torch.ones(2, 3, dtype=torch.bool), draw(2, 3)
    for function in (lambda t: logprob.linear_token_log_probs(HIDDEN, WEIGHT, IDS, temperature=t), lambda t: logprob.token_log_probs(HIDDEN @ WEIGHT.T, IDS, temperature=t)):
        assert_same_bits("log_probs", function(value).log_probs, function(2.0).log_probs)
    scored = lambda t, d: loss.linear_grpo_loss(HIDDEN, WEIGHT, IDS, advantages, mask, temperature=t, denominator=d).loss  # noqa: E731
    assert_same_bits("loss", scored(value, value), scored(2.0, 2.0))
    given = dict(lengths=torch.full((2,), 2.0), objective=recipe("simpo").objective)
    log_probs, pairs = -draw(2), torch.tensor([[0, 1]])
    assert_same_bits("pairs", pairwise.pairwise_loss(log_probs, pairs, denominator=value, **given).loss, pairwise.pairwise_loss(log_probs, pairs, denominator=2.0, **given).loss)


@pytest.mark.parametrize("wrong", [torch.tensor([2.0]), torch.tensor(True), "2", True, float("nan"), np.bool_(True), [2.0]])
def test_what_is_not_one_number_is_refused(wrong):
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises((TypeError, ValueError), match="temperature must be .*0-dim|temperature must be a finite number"):
        logprob.linear_token_log_probs(HIDDEN, WEIGHT, IDS, temperature=wrong)
    with pytest.raises((TypeError, ValueError), match="denominator must be .*0-dim|denominator must be a finite number"):
        loss.linear_grpo_loss(HIDDEN, WEIGHT, IDS, draw(2, 3), mask, denominator=wrong)


def test_whole_numbers_may_be_numpys():
    want = logprob.linear_token_log_probs(HIDDEN, logprob.Head(WEIGHT, vocab_size=18), IDS).log_probs
    assert_same_bits("vocab_size", logprob.linear_token_log_probs(HIDDEN, logprob.Head(WEIGHT, vocab_size=np.int64(18)), IDS).log_probs, want)
    scores = draw(ROWS)
    assert_same_bits("k", advantage.pass_at_k_advantages(scores > 0.5, GROUP, k=np.int32(2)), advantage.pass_at_k_advantages(scores > 0.5, GROUP, k=2))
    assert_same_bits("top", advantage.rank_advantages(scores, GROUP, top=np.int64(2)), advantage.rank_advantages(scores, GROUP, top=2))
    assert_same_bits("gamma", advantage.discounted_returns(scores, GROUP, gamma=np.float32(0.5)), advantage.discounted_returns(scores, GROUP, gamma=0.5))
    for wrong in (True, 2.5, "2", None):
        with pytest.raises((TypeError, ValueError), match="k must be an integer >= 1, got"):
            advantage.pass_at_k_advantages(scores > 0.5, GROUP, k=wrong)


@pytest.mark.parametrize("wrong", [None, 3, "hall", b"hall", {"hall"}, {"hall": 1}, iter(["hall"]), object()], ids=lambda wrong: type(wrong).__name__)
def test_labels_in_no_order_are_refused_by_name(wrong):
    with pytest.raises(TypeError, match=r"group_ids: labels must be a list of labels or an integer tensor, got .*; pass one label a row, list\(labels\)"):
        anchor.group_ids(wrong)
    assert anchor.group_ids(list({"hall": 1, "cellar": 2})).tolist() == anchor.group_ids(("hall", "cellar")).tolist() == [0, 1]


def test_a_mask_of_rows_is_not_told_about_tokens():
    for wrong, fix in ((torch.tensor([1, 0]), r"\(2,\) bool, got \(2,\) int64; use valid.bool\(\), or say what counts"), (True, "a torch.Tensor, got bool True; pass one bool a row")):
        for call in (lambda valid: anchor.group_states(["a", "b"], valid=valid), lambda valid: advantage.group_advantages([1.0, 2.0], [0, 0], valid=valid)):
            with pytest.raises(TypeError, match=f"valid must be {fix}"):
                call(wrong)
            call(torch.tensor([1, 0]).bool())
