"""Which visits to a state count in GiGPO's step groups: `min_trajectories` and `first_visit`, by hand and against the reference."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import advantage
from gigpo_fast.advantage import CORRECTED, VERL_AGENT, GroupStatistics
from gigpo_fast.reference import advantage as reference
from tests.test_advantage_properties import batches

# One task. Trajectory 7 is in state 0 twice, then in 1 twice; trajectory 8 is in state 0, then in 2; trajectory 9 in state 0.
TRAJECTORY = torch.tensor([7, 7, 7, 7, 8, 8, 9])
ANCHOR = torch.tensor([0, 0, 1, 1, 0, 2, 0])
RETURNS = torch.tensor([4.0, 8.0, 1.0, 3.0, 2.0, 5.0, 0.0])
OPTIONS = dict(gamma=1.0, step_returns=RETURNS)


def step_level(**options):
    return advantage.gigpo_advantages(torch.zeros(7), TRAJECTORY, torch.zeros(7, dtype=torch.int64), ANCHOR, **OPTIONS, **options).step


def near(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0.0, atol=1e-6)


def test_every_visit_counts_by_default():
    near(step_level(), [0.5, 4.5, -1.0, 1.0, -1.5, 0.0, -3.5])  # state 0: mean of 4, 8, 2, 0


def test_first_visits_by_hand():
    # State 0: mean of 4, 2, 0 is 2, and the second visit (8) is compared with it. State 1 has one first visit, so nothing to compare.
    near(step_level(first_visit=True), [2.0, 6.0, 0.0, 0.0, 0.0, 0.0, -2.0])
    deviation = 2.0 + 1e-6  # of 4, 2, 0
    near(step_level(first_visit=True, scale="std"), [2 / deviation, 6 / deviation, 0.0, 0.0, 0.0, 0.0, -2 / deviation])


def test_fewest_trajectories_by_hand():
    near(step_level(min_trajectories=2), [0.5, 4.5, 0.0, 0.0, -1.5, 0.0, -3.5])  # state 1 knows one trajectory only
    near(step_level(min_trajectories=3), [0.5, 4.5, 0.0, 0.0, -1.5, 0.0, -3.5])
    assert not step_level(min_trajectories=4).any()
    near(step_level(min_trajectories=3, first_visit=True), [2.0, 6.0, 0.0, 0.0, 0.0, 0.0, -2.0])


def test_only_the_step_level_changes():
    task, rewards = torch.zeros(7, dtype=torch.int64), torch.arange(7.0)
    plain = advantage.gigpo_advantages(rewards, TRAJECTORY, task, ANCHOR, gamma=0.9)
    other = advantage.gigpo_advantages(rewards, TRAJECTORY, task, ANCHOR, gamma=0.9, min_trajectories=2, first_visit=True)
    assert torch.equal(plain.episode, other.episode) and torch.equal(plain.step_returns, other.step_returns)
    assert not torch.equal(plain.step, other.step)
    torch.testing.assert_close(other.advantages, other.episode + other.step)


def test_first_is_first_in_time_among_valid_rows():
    # The rows of trajectory 7 stand in reverse; its first visit to state 0 (return 4) is then said to be invalid, so 8 is the first.
    rows = torch.tensor([3, 2, 1, 0, 4, 5, 6])
    step = torch.tensor([3, 2, 1, 0, 0, 1, 0])
    given_rows = TRAJECTORY[rows], torch.zeros(7, dtype=torch.int64), ANCHOR[rows]
    options = dict(gamma=1.0, step_returns=RETURNS[rows], step=step, first_visit=True)
    found = advantage.gigpo_advantages(torch.zeros(7), *given_rows, **options)
    near(found.step, [0.0, 0.0, 6.0, 2.0, 0.0, 0.0, -2.0])
    valid = torch.tensor([True, True, True, False, True, True, True])
    found = advantage.gigpo_advantages(torch.zeros(7), *given_rows, valid=valid, **options)
    near(found.step, [0.0, 0.0, 14 / 3, 0.0, -4 / 3, 0.0, -10 / 3])  # mean of 8, 2, 0


@given(
    batches(),
    st.sampled_from([None, "std"]),
    st.sampled_from([CORRECTED, VERL_AGENT, GroupStatistics(ddof=0)]),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_agrees_with_the_reference(batch, scale, statistics, fewest, first, some_nowhere):
    if some_nowhere:
        batch["anchor"] = batch["anchor"] - 1  # -1: in no state
        batch["valid"] = torch.ones_like(batch["valid"]) & (batch["anchor"] != -1)
    options = dict(gamma=0.9, scale=scale, statistics=statistics, min_trajectories=fewest, first_visit=first)
    result, exact = advantage.gigpo_advantages(**batch, **options), reference.gigpo_advantages(**batch, **options)
    for ours, wanted in zip(result, exact):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-8)


@given(batches(torch.float32), st.integers(1, 3), st.randoms(use_true_random=False))
def test_row_order_changes_no_bit(batch, fewest, random):
    order = list(range(len(batch["rewards"])))
    random.shuffle(order)
    options = dict(gamma=0.9, scale="std", min_trajectories=fewest, first_visit=True)
    whole = advantage.gigpo_advantages(**batch, **options).step
    assert torch.equal(whole[order], advantage.gigpo_advantages(**{name: rows[order] for name, rows in batch.items()}, **options).step)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_trajectories": 0}, ValueError, "min_trajectories must be an integer >= 1, got 0; 1 counts every group"),
        ({"min_trajectories": 2.0}, TypeError, "min_trajectories must be an integer >= 1, got 2.0"),
        ({"min_trajectories": True}, TypeError, "min_trajectories must be an integer >= 1, got True"),
        ({"first_visit": 1}, TypeError, "first_visit must be True or False, got 1; pass a bool"),
    ],
)
def test_messages(options, error, message):
    with pytest.raises(error, match=re.escape(f"gigpo_advantages: {message}")):
        step_level(**options)
