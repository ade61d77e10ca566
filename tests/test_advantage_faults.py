"""Advantages: the ways in which such code is known to go wrong, each with the answer given here, and the messages of errors."""

import inspect
import math
import warnings

import pytest
import torch

from gigpo_fast import advantage, reward, validation
from gigpo_fast.advantage import CORRECTED, VERL_AGENT, GroupStatistics

TASK = torch.zeros(4, dtype=torch.int64)
FOUR = torch.arange(4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_F08_a_reward_that_is_not_finite_is_named(bad):
    rewards = torch.tensor([1.0, bad, 0.0, bad])
    with pytest.raises(
        ValueError, match=r"group_advantages: scores must be finite in valid rows, got not finite in rows 1, 3; set valid=False"
    ):
        advantage.group_advantages(rewards, TASK)
    with pytest.raises(ValueError, match=r"discounted_returns: rewards must be finite .* rows 1, 3"):
        advantage.discounted_returns(rewards, FOUR, gamma=0.9)
    with pytest.raises(ValueError, match=r"gigpo_advantages: episode_scores must be finite .* rows 1, 3"):
        advantage.gigpo_advantages(torch.zeros(4), FOUR, TASK, FOUR, gamma=0.9, episode_scores=rewards)


def test_F08_a_reward_that_is_missing_leaves_the_rest_of_its_group_alone():
    rewards, valid = torch.tensor([1.0, float("nan"), 0.0, 3.0]), torch.tensor([True, False, True, False])
    assert advantage.group_advantages(rewards, TASK, valid=valid).tolist() == [0.5, 0.0, -0.5, 0.0]
    one_left = torch.tensor([True, False, False, False])
    assert advantage.group_advantages(rewards, TASK, valid=one_left).tolist() == [0.0] * 4


def test_F08_without_full_validation_a_nan_stays_in_its_group():
    rewards, task = torch.tensor([1.0, float("nan"), 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    with validation("metadata"):
        result = advantage.gigpo_advantages(rewards, FOUR, task, torch.zeros(4, dtype=torch.int64), gamma=0.9, scale="std")
    alone = advantage.gigpo_advantages(rewards[2:], FOUR[2:], task[2:], task[2:], gamma=0.9, scale="std")
    assert result.advantages[:2].isnan().all() and torch.equal(result.advantages[2:], alone.advantages)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_F08_without_a_future_nothing_comes_from_it(bad):
    with validation("metadata"):
        returns = advantage.discounted_returns(torch.tensor([1.0, 2.0, bad]), TASK[:3], gamma=0.0)
    assert returns[:2].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int8, torch.uint8])
def test_F10_integer_and_bool_rewards(dtype):
    rewards = torch.tensor([1, 0, 1, 0]).to(dtype)
    result = advantage.gigpo_advantages(rewards, FOUR // 2, TASK, TASK, gamma=0.5, scale="std")
    exact = advantage.gigpo_advantages(rewards.to(torch.float32), FOUR // 2, TASK, TASK, gamma=0.5, scale="std")
    assert result.advantages.dtype == torch.float32 and all(torch.equal(one, other) for one, other in zip(result, exact))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_F10_low_precision_rewards_are_promoted(dtype):
    # In bfloat16 the mean of these is 100, and three of four advantages would be 0 or -0.5.
    rewards = torch.tensor([100.0, 100.5, 100.0, 100.0]).to(dtype)
    rows = advantage.group_advantages(rewards, TASK)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, advantage.group_advantages(rewards.to(torch.float32), TASK))
    constant = torch.full((4,), 0.35, dtype=dtype)
    assert advantage.group_advantages(constant, TASK, scale="std").tolist() == [0.0] * 4


def test_F10_float64_stays():
    assert advantage.group_advantages(torch.zeros(4, dtype=torch.float64), TASK).dtype == torch.float64
    parts = advantage.gigpo_advantages(torch.zeros(4), FOUR, TASK, TASK, gamma=1.0, episode_scores=torch.zeros(4, dtype=torch.float64))
    assert {part.dtype for part in parts} == {torch.float64}


def test_F23_a_group_of_one():
    scores, task = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([7, 8, 8])
    for scale in (None, "std"):
        assert advantage.group_advantages(scores, task, scale=scale)[0] == 0.0
    assert advantage.group_advantages(scores, task, statistics=VERL_AGENT)[0] == 3.0
    raw = advantage.group_advantages(scores, task, scale="std", statistics=VERL_AGENT)[0]
    assert raw == torch.tensor(3.0 / (1.0 + 1e-6))
    many_steps = torch.zeros(3, dtype=torch.int64)  # one trajectory of several rows is still one trajectory
    assert not advantage.group_advantages(scores, many_steps, scale="std", trajectory=many_steps).any()


@pytest.mark.parametrize("statistics", [CORRECTED, VERL_AGENT], ids=["corrected", "verl_agent"])
def test_F23_a_state_seen_once_gives_nothing(statistics):
    result = advantage.gigpo_advantages(torch.tensor([3.0, 1.0]), FOUR[:2], FOUR[:2], TASK[:2], gamma=0.9, statistics=statistics)
    assert result.step.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.1, 0.3, 0.35, 9.9])
@pytest.mark.parametrize("count", range(3, 17))
def test_F24_constant_groups_give_exactly_zero(count, reward, dtype):
    rewards, task = torch.full((count,), reward, dtype=dtype), torch.zeros(count, dtype=torch.int64)
    for scale in (None, "std"):
        assert not advantage.group_advantages(rewards, task, scale=scale).any()
        result = advantage.gigpo_advantages(rewards, torch.arange(count), task, task, gamma=0.95, scale=scale)
        assert not any(part.any() for part in result[:3])
    assert not advantage.leave_one_out_advantages(rewards, task).any()
    tiny = GroupStatistics(zero_variance="divide", eps=1e-30)  # even over a vanishing eps: the numerator is 0
    assert not advantage.group_advantages(rewards, task, scale="std", statistics=tiny).any()


def test_F24_equal_means_of_unequal_rows_do_not_explode():
    scores, trajectory = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1])
    assert advantage.group_advantages(scores, TASK, scale="std", trajectory=trajectory).tolist() == [0.0] * 4
    assert advantage.group_advantages(scores, TASK, trajectory=trajectory).tolist() == [0.5, -0.5, -0.5, 0.5]


def test_F24_small_spread_on_a_large_offset():
    # E[x^2] - E[x]^2 in float32 gives 0 or noise here; the deviation is exactly 1/4.
    scores = torch.tensor([4096.0, 4096.25, 4096.5])
    near = advantage.group_advantages(scores, TASK[:3], scale="std", statistics=GroupStatistics(eps=0.0))
    assert near.tolist() == [-1.0, 0.0, 1.0]


def test_F25_labels_are_compared_not_used_as_addresses():
    scores = torch.tensor([1.0, 0.0, 5.0, 2.0])
    far = torch.tensor([10**15, 10**15, -(2**63), -(2**63)])
    assert advantage.group_advantages(scores, far).tolist() == [0.5, -0.5, 1.5, -1.5]
    text = ["7", "7", "007", "007"]
    assert advantage.group_advantages(scores, text).tolist() == [0.5, -0.5, 1.5, -1.5]
    assert advantage.group_advantages(scores, [7, 7, "7", "7"]).tolist() == [0.5, -0.5, 1.5, -1.5]
    # Neighbours above 2^53, where float64 would merge them.
    close = torch.tensor([2**53, 2**53 + 1, 2**53, 2**53 + 1])
    assert advantage.group_advantages(scores, close).tolist() == [-2.0, -1.0, 2.0, 1.0]


@pytest.mark.parametrize("name", ["trajectory", "group", "anchor"])
@pytest.mark.parametrize(
    "labels", [torch.zeros(4), [0.0, 1.0, 2.0, 3.0], [None] * 4, [True] * 4], ids=["tensor", "floats", "none", "bools"]
)
def test_F25_float_labels_are_refused(name, labels):
    arguments = {"trajectory": FOUR, "group": TASK, "anchor": FOUR, name: labels}
    with pytest.raises(TypeError, match=rf"gigpo_advantages: {name}.* must be .*; labels are compared, not rounded: pass int64 ids"):
        advantage.gigpo_advantages(torch.zeros(4), **arguments, gamma=0.9)


def test_F25_labels_of_rows_that_are_not_valid_are_not_read():
    scores, valid = torch.tensor([1.0, 7.0, 0.0, 7.0]), torch.tensor([True, False, True, False])
    assert advantage.group_advantages(scores, ["a", None, "a", 0.5], valid=valid).tolist() == [0.5, 0.0, -0.5, 0.0]
    assert advantage.group_advantages(scores, [None] * 4, valid=torch.zeros(4, dtype=torch.bool)).tolist() == [0.0] * 4


def test_F25_numpy_labels():
    numpy = pytest.importorskip("numpy")
    scores = torch.tensor([1.0, 0.0, 5.0, 2.0])
    for labels in (numpy.array(["a", "a", "b", "b"], dtype=object), numpy.array([-3, -3, 10**12, 10**12])):
        assert advantage.group_advantages(scores, labels).tolist() == [0.5, -0.5, 1.5, -1.5]


def test_F26_statistics_are_of_the_group_not_of_the_batch():
    scores, task = torch.tensor([1.0, 0.0, 101.0, 100.0]), torch.tensor([0, 0, 1, 1])
    assert advantage.group_advantages(scores, task).tolist() == [0.5, -0.5, 0.5, -0.5]
    assert advantage.group_advantages(scores, TASK).tolist() == [-49.5, -50.5, 50.5, 49.5]


def test_F27_groups_of_any_size_in_any_order():
    scores = torch.tensor([6.0, 1.0, 0.0, 3.0, 9.0, 4.0])
    task = torch.tensor([3, 5, 3, 3, 4, 5])  # sizes 3, 2, 1, interleaved
    assert advantage.group_advantages(scores, task).tolist() == [3.0, -1.5, -3.0, 0.0, 0.0, 1.5]


def test_F30_equal_states_of_two_tasks_stay_apart():
    rewards, task = torch.tensor([1.0, 0.0, 50.0, 20.0]), torch.tensor([0, 0, 1, 1])
    for anchor in (TASK, ["start"] * 4):
        result = advantage.gigpo_advantages(rewards, FOUR, task, anchor, gamma=0.9)
        assert result.step.tolist() == [0.5, -0.5, 15.0, -15.0]


def test_F29_rows_without_a_state_form_no_group():
    rewards, anchor = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([-1, -1, 4, 4])
    with pytest.raises(
        ValueError,
        match=r"gigpo_advantages: anchor must be the id of a state in valid rows, got -1 \(no state\) in rows 0, 1; pass the same `valid`",
    ):
        advantage.gigpo_advantages(rewards, FOUR, TASK, anchor, gamma=0.9)
    with validation("metadata"):
        assert advantage.gigpo_advantages(rewards, FOUR, TASK, anchor, gamma=0.9).step.tolist() == [0.0, 0.0, 0.5, -0.5]
    valid = anchor >= 0
    assert advantage.gigpo_advantages(rewards, FOUR, TASK, anchor, gamma=0.9, valid=valid).advantages.tolist() == [0.0, 0.0, 1.0, -1.0]


def test_F31_deviation_of_the_scores_as_one_vector():
    scores = torch.tensor([0.0, 0.25, 1.0, 7.0])
    rows = advantage.group_advantages(scores, TASK, scale="std")
    torch.testing.assert_close(rows, (scores - scores.mean()) / (torch.std(scores.view(1, 4)) + 1e-6), rtol=1e-6, atol=0.0)


def test_a_step_that_occurs_twice_is_named():
    trajectory, step = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 3, 3, 3])
    message = r"discounted_returns: step must be different in all valid rows of a trajectory, got the same \(trajectory, step\) in rows 1, 3; number"
    with pytest.raises(ValueError, match=message):
        advantage.discounted_returns(torch.zeros(4), trajectory, gamma=0.9, step=step)
    copy = torch.tensor([True, True, True, False])
    assert advantage.discounted_returns(torch.ones(4), trajectory, gamma=0.5, step=step, valid=copy).tolist() == [1.5, 1.0, 1.0, 0.0]


# Returns 1 0 | 0 1, two steps each; trajectories are numbered from 0 in both tasks.
AGAIN = {
    "rewards": torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 1]),
    "trajectory": torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]),
    "group": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
}
STATE = torch.tensor([0, 1, 0, 1, 2, 3, 2, 3])
BOTH = {  # every function that takes trajectories and groups, with what else it wants
    "gigpo_advantages": {"anchor": STATE, "gamma": 0.5},
    "hgpo_advantages": {"anchor": STATE, "gamma": 0.5},
    "group_advantages": {},
    "leave_one_out_advantages": {},
    "discounted_returns": {"gamma": 0.5},
    "turn_baseline_advantages": {},
    "turn_gain_advantages": {},
    "graph_advantages": {"anchor": STATE, "success": AGAIN["rewards"] > 0},
    "g2po_advantages": {"anchor": STATE},
    "state_gae_advantages": {"anchor": STATE},
    "action_advantages": {"anchor": STATE, "action": STATE % 2},
    "hindsight_advantages": {"hindsight": torch.full((8,), 0.5)},
    "transitions": {"anchor": STATE},
}


def call(name, **labels):
    given = {**AGAIN, **labels, **BOTH[name]}
    if name in ("group_advantages", "leave_one_out_advantages"):
        given["scores"] = torch.tensor([1.0, 1, 0, 0, 0, 0, 1, 1])
        del given["rewards"]
    if name == "turn_gain_advantages":
        given["gains"] = given.pop("rewards")
    if name == "transitions":
        del given["rewards"]
    return getattr(advantage, name)(**given)


def test_every_function_of_trajectories_and_groups_is_here():
    def takes(name):
        found = inspect.signature(getattr(advantage, name)).parameters if inspect.isfunction(getattr(advantage, name)) else {}
        return {"trajectory", "group"} <= set(found)

    assert {name for name in advantage.__all__ if takes(name)} - {"reinforce_plus_plus_baseline_advantages"} == set(BOTH)


@pytest.mark.parametrize("level", ["metadata", "full"])
@pytest.mark.parametrize("name", BOTH)
def test_trajectories_that_are_numbered_anew_in_every_task(name, level):
    with validation(level):
        again, unique = call(name), call(name, trajectory=AGAIN["trajectory"] + 2 * AGAIN["group"])
    parts = (lambda found: found[:3]) if name == "transitions" else (lambda found: found if isinstance(found, tuple) else (found,))
    assert all(torch.equal(one, other) for one, other in zip(parts(again), parts(unique)))


def test_trajectories_that_are_numbered_anew_by_hand():
    assert advantage.gigpo_advantages(**AGAIN, anchor=STATE, gamma=1.0).advantages.tolist() == [1.0, 1, -1, -1, -1, -1, 1, 1]
    returns = advantage.discounted_returns(**AGAIN, gamma=0.5)
    assert returns.tolist() == [0.5, 1, 0, 0, 0, 0, 0.5, 1]
    assert call("group_advantages").tolist() == [0.5, 0.5, -0.5, -0.5, -0.5, -0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", [name for name in BOTH if name != "discounted_returns"])
def test_swapped_trajectories_and_groups_are_refused(name):
    swapped = {"trajectory": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), "group": torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])}
    message = rf"{name}: trajectory must be a label within its group.*got one trajectory in every group, .*; swap trajectory and group, or"
    with pytest.raises(ValueError, match=message):
        call(name, **swapped)
    call(name, trajectory=swapped["group"], group=swapped["trajectory"])  # the advice, both halves of it
    call(name, trajectory=torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), group=swapped["group"])
    with validation("metadata"):
        call(name, **swapped)


def test_unequal_scores_of_a_trajectory_say_what_is_compared():
    rewards, group, trajectory = torch.tensor([0.0, 1, 0, 0]), torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    with pytest.warns(UserWarning, match=r"group_advantages: scores differ within a trajectory.*give all rows of one its total"):
        advantage.group_advantages(rewards, group, trajectory=trajectory)
    total = torch.tensor([1.0, 1, 0, 0])  # the advice
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = advantage.group_advantages(total, group, trajectory=trajectory)
    assert torch.equal(found, advantage.gigpo_advantages(rewards, trajectory, group, trajectory, gamma=0.9).episode)


def test_many_rows_are_not_all_named():
    with pytest.raises(ValueError, match=r"in rows 0, 1, 2, 3, 4, 5, 6, 7 and 92 more; "):
        advantage.group_advantages(torch.full((100,), float("nan")), torch.zeros(100, dtype=torch.int64))


@pytest.mark.parametrize("gamma", [-0.1, 1.01, float("nan"), "0.9", True, None])
def test_discount_outside_its_range(gamma):
    with pytest.raises((ValueError, TypeError), match=r"gamma must be .*; pass a number between 0 and 1"):
        advantage.discounted_returns(torch.zeros(4), FOUR, gamma=gamma)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(scale="mean"), r"scale must be None or 'std', got 'mean'; pass scale=\"std\""),
        (dict(statistics="corrected"), r"statistics must be a GroupStatistics, got 'corrected'; pass CORRECTED, VERL_AGENT"),
        (dict(step_weight=-1.0), r"step_weight must be a finite number >= 0.0, got -1.0"),
        (dict(step_weight=float("inf")), r"step_weight must be a finite number >= 0.0, got inf"),
        (dict(valid=torch.ones(4)), r"valid must be \(4,\) bool, got \(4,\) float32; use valid.bool\(\)"),
        (dict(valid=torch.ones(3, dtype=torch.bool)), r"valid must be \(4,\), got \(3,\) bool"),
        (dict(step=torch.zeros(4)), r"step must be \(4,\) int64 .*, got \(4,\) float32; number the steps"),
        (dict(step_returns=torch.zeros(4, 1)), r"step_returns must be \(4,\), got \(4, 1\) float32; pass one score a row"),
        (dict(episode_scores=["1.0"] * 4), r"episode_scores must be a tensor, or a list or array of numbers, got list .*; pass numbers"),
        (dict(step_returns=torch.zeros(4, dtype=torch.complex64)), r"step_returns must be real, got \(4,\) complex64"),
    ],
)
def test_messages(options, message):
    with pytest.raises((ValueError, TypeError), match="gigpo_advantages: " + message):
        advantage.gigpo_advantages(torch.zeros(4), FOUR, TASK, FOUR, **{"gamma": 0.9, **options})


@pytest.mark.parametrize(
    "labels, got", [([0, 1], "4 labels long, got 2"), (torch.zeros(5, dtype=torch.int64), r"\(4,\) int64.*, got \(5,\) int64")]
)
def test_messages_about_lengths(labels, got):
    with pytest.raises(ValueError, match=f"group_advantages: group must be {got}"):
        advantage.group_advantages(torch.zeros(4), labels)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(count="trajectories"), "count must be 'trajectory' or 'row', got 'trajectories'"),
        (dict(singleton=None), "singleton must be 'zero' or 'raw'"),
        (dict(zero_variance="skip"), "zero_variance must be 'zero' or 'divide'"),
        (dict(ddof=2), "ddof must be 0 or 1, got 2"),
        (dict(eps=-1e-6), "eps must be a finite number >= 0.0"),
        (dict(eps=0.0, zero_variance="divide"), 'eps must be above 0 with zero_variance="divide"'),
    ],
)
def test_messages_of_statistics(options, message):
    with pytest.raises(ValueError, match="GroupStatistics: " + message):
        GroupStatistics(**options)


HERE = torch.tensor([[True, True], [True, False]])
CALLS = {  # function, and the tensor that is broken in row 1
    "running_baseline_advantages: baselines": (lambda v: advantage.running_baseline_advantages([0.0, 0.0], [0, 1], v), torch.zeros(2)),
    "uncertainty_weights: entropy": (lambda v: advantage.uncertainty_weights(v, [2, 2]), torch.ones(2)),
    "uncertainty_weights: count": (lambda v: advantage.uncertainty_weights(torch.ones(2), v), torch.full((2,), 2.0)),
    "to_tokens: advantages": (lambda v: advantage.to_tokens(v, advantage.step_ids(HERE)), torch.ones(2)),
    "ensemble_mean: scores": (lambda v: reward.ensemble_mean(torch.stack([v, v])), torch.ones(2)),
    "ensemble_worst: scores": (lambda v: reward.ensemble_worst(torch.stack([v, v])), torch.ones(2)),
    "ensemble_uncertainty: scores": (lambda v: reward.ensemble_uncertainty(torch.stack([v, v]), coefficient=0.1), torch.ones(2)),
}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", CALLS)
def test_F08_what_every_row_of_counts_is_read_too(name, bad):
    """Under the default validation, on a CPU; where a call must not wait NaN stays NaN."""
    call, good = CALLS[name]
    broken = torch.where(torch.arange(2) == 1, bad, good)
    call(good)
    with pytest.raises(ValueError, match=f"^{name} must be finite.*, got not finite in rows 1; "):
        call(broken)
    with validation("metadata"):
        call(broken)


def test_F08_what_no_token_reads_may_be_anything():
    ids = torch.tensor([[0, 0, -1], [2, -1, -1]])
    assert advantage.to_tokens(torch.tensor([1.0, math.nan, 3.0]), ids).tolist() == [[1, 1, 0], [3, 0, 0]]
    top = torch.log(torch.tensor([[[0.6, 0.4], [math.nan, 0.1]]]))
    assert reward.top_two_uncertainty(top, torch.tensor([[True, False]])).tolist() == pytest.approx([0.8])
    with pytest.raises(ValueError, match=r"^top_two_uncertainty: top_log_probs must be free of NaN at trained tokens, got nan at \[0, 1\]"):
        reward.top_two_uncertainty(top, torch.ones(1, 2, dtype=torch.bool))
