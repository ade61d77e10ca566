"""Advantages: numbers worked out by hand, and agreement with the float64 reference to half a unit in the last place."""

import math

import pytest
import torch

from gigpo_fast import advantage, validation
from gigpo_fast.advantage import CORRECTED, ROLL, VERL_AGENT, GroupStatistics
from gigpo_fast.reference import advantage as reference

# Two trajectories of one task: A visits s0, s1 and succeeds, B visits s0, s2 and fails.
REWARDS = torch.tensor([0.0, 1.0, 0.0, 0.0])
TRAJECTORY = torch.tensor([0, 0, 1, 1])
TASK = torch.zeros(4, dtype=torch.int64)
ANCHOR = torch.tensor([0, 1, 0, 2])


def near(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0.0, atol=tolerance)


def test_two_trajectories_by_hand():
    result = advantage.gigpo_advantages(REWARDS, TRAJECTORY, TASK, ANCHOR, gamma=0.95)
    near(result.step_returns, [0.95, 1.0, 0.0, 0.0])
    near(result.episode, [0.5, 0.5, -0.5, -0.5])
    near(result.step, [0.475, 0.0, -0.475, 0.0])
    near(result.advantages, [0.975, 0.5, -0.975, -0.5])
    scaled = advantage.gigpo_advantages(REWARDS, TRAJECTORY, TASK, ANCHOR, gamma=0.95, scale="std")
    near(scaled.advantages, [1.4142115, 0.7071058, -1.4142115, -0.7071058])


def test_step_weight():
    half = advantage.gigpo_advantages(REWARDS, TRAJECTORY, TASK, ANCHOR, gamma=0.95, step_weight=0.5)
    near(half.advantages, [0.7375, 0.5, -0.7375, -0.5])
    none = advantage.gigpo_advantages(REWARDS, TRAJECTORY, TASK, ANCHOR, gamma=0.95, step_weight=0.0)
    assert torch.equal(none.advantages, none.episode)


def test_no_state_twice_is_grpo():
    result = advantage.gigpo_advantages(REWARDS, TRAJECTORY, TASK, torch.arange(4), gamma=0.95, scale="std")
    total = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert torch.equal(result.advantages, advantage.group_advantages(total, TASK, scale="std", trajectory=TRAJECTORY))
    assert not result.step.any()


def test_rows_or_trajectories_are_counted():
    scores, trajectory, task = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1, 1]), torch.zeros(5, dtype=torch.int64)
    near(advantage.group_advantages(scores, task, trajectory=trajectory), [0.5, 0.5, -0.5, -0.5, -0.5])
    near(advantage.group_advantages(scores, task, trajectory=trajectory, statistics=ROLL), [0.6, 0.6, -0.4, -0.4, -0.4])
    near(advantage.group_advantages(scores, task), [0.6, 0.6, -0.4, -0.4, -0.4])


def test_rows_of_a_trajectory_may_differ():
    # Trajectory means 0.5 and -0.5: the group's mean is 0, its deviation sqrt(1/2); each row keeps its own score.
    scores, trajectory, task = torch.tensor([1.0, 0.0, -0.5]), torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.int64)
    near(advantage.group_advantages(scores, task, trajectory=trajectory), [1.0, 0.0, -0.5])
    deviation = math.sqrt(0.5) + 1e-6
    near(advantage.group_advantages(scores, task, trajectory=trajectory, scale="std"), [1.0 / deviation, 0.0, -0.5 / deviation])
    near(advantage.leave_one_out_advantages(scores, task, trajectory=trajectory), [1.5, 0.5, -1.0])


def test_a_lone_trajectory_whose_rows_differ():
    """Compared with its own mean its rows would not be 0; with nothing to compare with, they are."""
    scores, trajectory, task = torch.tensor([1.0, 0.0]), torch.tensor([3, 3]), torch.zeros(2, dtype=torch.int64)
    for scale in (None, "std"):
        assert advantage.group_advantages(scores, task, trajectory=trajectory, scale=scale).tolist() == [0.0, 0.0]
    raw = GroupStatistics(singleton="raw")
    assert advantage.group_advantages(scores, task, trajectory=trajectory, statistics=raw).tolist() == [1.0, 0.0]


def test_verl_agent_conventions():
    # Two tasks; the second is one row with score 5, which passes through.
    scores, returns = torch.tensor([1.0, 1.0, 0.0, 5.0]), torch.tensor([0.9, 1.0, 0.0, 5.0])
    trajectory, task, anchor = torch.tensor([1, 1, 2, 3]), torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 0, 0])
    given = dict(gamma=0.95, episode_scores=scores, step_returns=returns)
    as_peer = advantage.gigpo_advantages(torch.zeros(4), trajectory, task, anchor, statistics=VERL_AGENT, **given)
    near(as_peer.advantages, [0.7833333, 0.3333333, -1.1166667, 5.0])
    scaled = advantage.gigpo_advantages(torch.zeros(4), trajectory, task, anchor, statistics=VERL_AGENT, scale="std", **given)
    near(scaled.advantages, [1.2845, 0.5773, -1.8618, 5.0], 1e-4)
    assert scaled.step[1] == 0.0 and scaled.step[3] == 0.0  # a state seen once gives 0 also where a lone trajectory does not
    near(advantage.gigpo_advantages(torch.zeros(4), trajectory, task, anchor, **given).episode, [0.5, 0.5, -0.5, 0.0])


def test_leave_one_out_by_hand():
    scores, task = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.int64)
    near(advantage.leave_one_out_advantages(scores, task), [1.0, -1 / 3, -1 / 3, -1 / 3])
    near(advantage.group_advantages(scores, task), [0.75, -0.25, -0.25, -0.25])
    lone = torch.tensor([2.0])
    assert advantage.leave_one_out_advantages(lone, lone.long()).item() == 0.0
    assert advantage.leave_one_out_advantages(lone, lone.long(), statistics=VERL_AGENT).item() == 2.0


def test_returns_by_hand():
    rewards, trajectory = torch.tensor([1.0, 10.0, 2.0, 20.0, 4.0]), torch.tensor([5, 6, 5, 6, 5])  # two trajectories, interleaved
    near(advantage.discounted_returns(rewards, trajectory, gamma=0.5), [3.0, 20.0, 4.0, 20.0, 4.0])
    near(advantage.discounted_returns(rewards, trajectory, gamma=1.0), [7.0, 30.0, 6.0, 20.0, 4.0])
    assert torch.equal(advantage.discounted_returns(rewards, trajectory, gamma=0.0), rewards)
    late_first = advantage.discounted_returns(rewards, trajectory, gamma=0.5, step=torch.tensor([30, 1, 20, 0, 10]))
    near(late_first, [1.0, 10.0, 2.5, 25.0, 5.25])
    skipped = torch.tensor([True, True, False, True, True])
    near(advantage.discounted_returns(rewards, trajectory, gamma=0.5, valid=skipped), [3.0, 20.0, 0.0, 20.0, 4.0])


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 100, 1025])
@pytest.mark.parametrize("gamma", [0.01, 0.95, 0.999, 1.0])
def test_returns_round_once(length, gamma):
    rewards, trajectory = torch.randn(3 * length), torch.randint(0, 3, (3 * length,))
    returns = advantage.discounted_returns(rewards, trajectory, gamma=gamma)
    exact = reference.discounted_returns(rewards, trajectory, gamma=gamma)
    half_ulp = 2.0**-24 * exact.abs() + 1e-12  # the floor: float64 sums of some thousand terms
    assert ((returns.double() - exact).abs() <= half_ulp).all()


@pytest.mark.parametrize("scale", [None, "std"])
@pytest.mark.parametrize(
    "statistics", [CORRECTED, VERL_AGENT, ROLL, GroupStatistics(ddof=0, singleton="raw")], ids=["corrected", "verl_agent", "roll", "ddof0"]
)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_advantages_round_once(scale, statistics, offset):
    rows = 700
    scores, returns = torch.randn(rows) + offset, torch.randn(rows) - offset
    trajectory = torch.randint(0, 120, (rows,))
    task, anchor = trajectory % 17, torch.randint(0, 30, (rows,))
    options = dict(scale=scale, statistics=statistics)
    given = dict(gamma=0.9, step_weight=0.7, episode_scores=scores, step_returns=returns, **options)
    result = advantage.gigpo_advantages(torch.zeros(rows), trajectory, task, anchor, **given)
    exact = reference.gigpo_advantages(torch.zeros(rows), trajectory, task, anchor, **given)
    for ours, wanted in zip(result[:3], exact[:3]):
        # The floor: float64 sums of numbers of size `offset`, over deviations of about 1.
        assert ((ours.double() - wanted).abs() <= 2.0**-24 * wanted.abs() + 1e-13 * (100.0 + offset)).all()
    alone = advantage.leave_one_out_advantages(scores, task, statistics=statistics, trajectory=trajectory)
    wanted = reference.leave_one_out_advantages(scores, task, statistics=statistics, trajectory=trajectory)
    assert ((alone.double() - wanted).abs() <= 2.0**-24 * wanted.abs() + 1e-13 * (100.0 + offset)).all()


def test_given_returns_and_scores_repeat_the_result():
    rewards, trajectory = torch.randn(60), torch.arange(60) // 6
    task, anchor = trajectory // 5, torch.randint(0, 5, (60,))
    first = advantage.gigpo_advantages(rewards, trajectory, task, anchor, gamma=0.9, scale="std")
    totals = advantage.discounted_returns(rewards, trajectory, gamma=1.0)[trajectory * 6]
    again = advantage.gigpo_advantages(
        rewards, trajectory, task, anchor, gamma=0.0, scale="std", step_returns=first.step_returns, episode_scores=totals
    )
    for one, other in zip(first, again):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert torch.equal(first.step_returns, again.step_returns) and torch.equal(first.step, again.step)


def test_no_gradient_and_no_change_of_inputs():
    rewards = REWARDS.clone().requires_grad_()
    before = [rewards.detach().clone(), TRAJECTORY.clone(), ANCHOR.clone()]
    result = advantage.gigpo_advantages(rewards, TRAJECTORY, TASK, ANCHOR, gamma=0.95)
    assert not any(tensor.requires_grad for tensor in result)
    assert all(torch.equal(old, new) for old, new in zip(before, [rewards.detach(), TRAJECTORY, ANCHOR]))


def test_no_rows():
    none, label = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert advantage.discounted_returns(none, label, gamma=0.9, step=label).shape == (0,)
    assert advantage.group_advantages(none, label, scale="std", trajectory=label).shape == (0,)
    assert advantage.leave_one_out_advantages(none, label).shape == (0,)
    assert all(part.shape == (0,) for part in advantage.gigpo_advantages(none, label, label, label, gamma=0.9))


def test_views_are_read_as_what_they_show():
    wide = torch.randn(4, 6)
    rewards, labels = wide[:, 3], torch.tensor([[0, 9], [0, 9], [1, 9], [1, 9]])[:, 0]
    result = advantage.gigpo_advantages(rewards, labels, TASK[:1].expand(4), ANCHOR, gamma=0.95)
    again = advantage.gigpo_advantages(rewards.clone(), labels.clone(), TASK, ANCHOR, gamma=0.95)
    assert all(torch.equal(one, other) for one, other in zip(result, again))


@pytest.mark.parametrize("level", ["auto", "metadata"])
@pytest.mark.parametrize("scale", [None, "std"])
def test_no_value_is_read_back_from_a_device(scale, level):
    """Meta tensors have no values: reading one raises, so on a GPU nothing would wait."""
    with validation(level):
        rewards = torch.zeros(33, device="meta")
        label, valid = torch.zeros(33, dtype=torch.int64, device="meta"), torch.ones(33, dtype=torch.bool, device="meta")
        result = advantage.gigpo_advantages(
            rewards, label, label, label, gamma=0.9, step=label, valid=valid, scale=scale, episode_scores=rewards
        )
        assert {(part.shape, part.dtype, part.device.type) for part in result} == {((33,), torch.float32, "meta")}
        advantage.gigpo_advantages(rewards, label, label, label, gamma=0.9, scale=scale)
        advantage.leave_one_out_advantages(rewards, label, trajectory=label, valid=valid)
        ids = advantage.step_ids(valid.view(3, 11), turns=True)
        assert advantage.to_tokens(rewards, ids).shape == (3, 11)
    with pytest.raises(RuntimeError):  # such tensors do tell
        bool(rewards.sum())


def test_passes_beyond_the_longest_trajectory_change_nothing(monkeypatch):
    """On a GPU the length of the longest trajectory is not known to the host, so the doubling runs on to S."""
    from gigpo_fast.segments import segments_torch

    rewards, trajectory = torch.randn(500), torch.randint(0, 9, (500,))
    here = advantage.discounted_returns(rewards, trajectory, gamma=0.99)
    monkeypatch.setattr(segments_torch, "_longest", lambda remaining: remaining.shape[0] - 1)
    assert torch.equal(here, advantage.discounted_returns(rewards, trajectory, gamma=0.99))
