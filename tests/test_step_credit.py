"""Step credit over transitions and turns: the worked toy, the float64 loops, and what must hold in any batch."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gigpo_fast import advantage, backend
from gigpo_fast.advantage import VERL_AGENT
from gigpo_fast.reference import step_credit as reference
from tests.tolerance import assert_same_bits

# One task, four trajectories: A s0 s1 SUCCESS, B s0 s1 s2 end, C s0 s2 SUCCESS, D s0 s2 s0. Reward 10 for success.
TRAJECTORY, TASK = [0, 0, 1, 1, 1, 2, 2, 3, 3], [0] * 9
STATE = torch.tensor([0, 1, 0, 1, 2, 0, 2, 0, 2])
REACHED = torch.tensor([-1, -1, -1, -1, 3, -1, -1, -1, 0])  # what the last steps of B and D led to
ACTION = list("abacbdedb")
REWARDS = torch.tensor([0, 10, 0, 0, 0, 0, 10, 0, 0], dtype=torch.float64)
SUCCESS = torch.tensor([1, 1, 0, 0, 0, 1, 1, 0, 0], dtype=torch.bool)
TOY = (REWARDS, TRAJECTORY, TASK, STATE)


def near(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0.0, atol=tolerance)


def test_worked_numbers_of_graphgpo():
    edges = advantage.transitions(TRAJECTORY, TASK, STATE, success=SUCCESS, next_anchor=REACHED)
    assert advantage.success_distances(edges).tolist() == [1, 0, 1, 1, 3, 1, 0, 1, 2]
    found = advantage.graph_advantages(*TOY, success=SUCCESS, next_anchor=REACHED)
    near(found.step_returns, [1, 10, 1, 1, 0.01, 1, 10, 1, 0.1])
    near(found.step, [0, 0.7071067, 0, -0.7071067, -0.5851695, 0, 1.154665, 0, -0.5694953])
    near(found.advantages, [0.8660253, 1.573132, -0.8660253, -1.573132, -1.451195, 0.8660253, 2.02069, -0.8660253, -1.435521])


def test_the_deviations_eps_is_the_horizon_of_graphgpo():
    """Two moves from one state that end k and k + 1 moves from success: what is left of the difference of 0.9 10^(1 - k)."""
    for k, wanted in {1: 0.707107, 3: 0.707106 - 1e-4 * 1.1, 5: 0.6962, 6: 0.6111, 7: 0.2750, 8: 0.0423, 9: 0.0045}.items():
        # Two trajectories leave state 0; one needs k moves more, the other k + 1, over states of their own.
        states = [0, *range(100, 100 + k), 0, *range(200, 200 + k + 1)]
        trajectory = [0] * (k + 1) + [1] * (k + 2)
        rewards, success = torch.zeros(len(states)), torch.ones(len(states), dtype=torch.bool)
        found = advantage.graph_advantages(rewards, trajectory, [0] * len(states), torch.tensor(states), success=success)
        near(found.step[[0, k + 1]], [wanted, -wanted], 2e-4)


def test_worked_numbers_of_g2po():
    found = advantage.g2po_advantages(*TOY)
    near(found.episode[[0, 2]], [5.555556, -4.444444])
    near(found.advantages, [6.368056, 14.00556, -3.631944, -9.661111, -11.16111, 3.201389, 18.83889, -6.798611, -11.16111], 1e-5)
    scaled = advantage.g2po_advantages(*TOY, scale="std").advantages
    near(scaled, [1.926005, 3.183899, 0.02863923, -2.059161, -2.376943, -0.2535817, 4.079031, -2.150948, -2.376943])
    # A success that pays something else than `success_value` is none, unless it is said.
    half = (REWARDS / 2, *TOY[1:])
    assert advantage.g2po_advantages(*half).step_returns[1] == 0.0
    assert advantage.g2po_advantages(*half, success=SUCCESS, success_value=5.0).step_returns[1] == 5.0


def test_worked_numbers_of_state_values_and_actions():
    found = advantage.state_gae_advantages(*TOY)
    near(found, [0.8243497, 1.088387, -0.7419767, -0.972569, -0.7452038, 0.7546733, 1.455105, -0.9175613, -0.7452038])
    raw = advantage.state_gae_advantages(*TOY, scale=None)
    wanted = torch.tensor([3.8, 5, -3.318667, -4.366667, -3.333333, 3.483333, 6.666667, -4.116667, -3.333333]).double()
    near(raw, wanted - wanted.mean())
    near(advantage.action_advantages(*TOY, ACTION).step, [0, 5, 0, -5, -10 / 3, 0, 20 / 3, 0, -10 / 3])
    # Shrunk means of s1 and s2 with weight 2: each action of s1 has one row, of s2 two and one.
    shrunk = advantage.action_advantages(*TOY, ACTION, shrinkage=2.0).step
    near(shrunk, [0, 5 / 3, 0, -5 / 3, -5 / 3, 0, 20 / 9, 0, -5 / 3])
    gated = advantage.action_advantages(*TOY, ACTION, gate=4.0).step
    near(gated[[1, 4]], [5 * math.tanh(2 / 4), -10 / 3 * math.tanh(3 / 4)])


def test_worked_numbers_of_hindsight():
    hindsight, rewards = torch.tensor([0.8, 0.9, 0.7, 0.5, 0.6, 0.6]).double(), torch.tensor([0, 10, 0, 0, 0, 10]).double()
    found = advantage.hindsight_advantages(rewards, [0, 0, 1, 1, 2, 2], [0] * 6, hindsight)
    near(found.step_returns, [8.941176, 10.58824, 0, 0, 9.5, 10], 1e-5)
    near(found.step, [0.4807175, 0.8057097, -1.283525, -1.283525, 0.5909827, 0.689641])
    smooth = advantage.hindsight_advantages(rewards, [0, 0, 1, 1, 2, 2], [0] * 6, hindsight, smoothing=0.5)
    near(smooth.step_returns, [(8.941176 + 10.58824) / 2, 10.58824, 0, 0, 9.75, 10], 1e-5)
    # A step of a success that lies below the mean of the task: 0, or its own number.
    low = torch.tensor([0.1, 1.0, 1.0, 1.0]).double()
    two = (torch.tensor([0, 10, 10, 10]).double(), [0, 0, 1, 2], [0] * 4, low)
    assert advantage.hindsight_advantages(*two).step[0] == 0.0
    assert advantage.hindsight_advantages(*two, spare_successes=False).step[0] < 0.0


def test_worked_numbers_of_gains():
    gains = torch.tensor([0.2, 0.1, 0.3, 0, 0.4, 0.1, -0.2]).double()
    found = advantage.turn_gain_advantages(gains, [0, 0, 0, 1, 1, 2, 2], [0] * 7)
    # Turn 1: .2, 0, .1; turn 2: .1, .4, -.2; turn 3 belongs to one trajectory.
    near(found.advantages, [0.5773445, 0, 0, 0, 0.9999967, -0.7071044, -0.9999967], 5e-6)
    near(found.clip_factors[:3], [1.138634, 1, 1])


def test_the_turn_baseline_is_unbiased():
    """Three turns that pay 1 each; after the first and the second the episode goes on with p = 1/2, one logit for both. True gradient: 1/2.

    The gradient's estimate is averaged over all outcomes of n trajectories by enumeration.
    """
    lengths = {1: 0.5, 2: 0.25, 3: 0.25}
    score = {1: [-0.5], 2: [0.5, -0.5], 3: [0.5, 0.5]}  # d log pi of the decision after turn t

    def expected(n, weigh):
        total = 0.0
        for drawn in itertools.product(lengths, repeat=n):
            rows = [1.0] * sum(drawn)
            trajectory = [i for i, length in enumerate(drawn) for _ in range(length)]
            found = weigh(torch.tensor(rows).double(), trajectory, [0] * len(rows)).tolist()
            starts = [sum(drawn[:i]) for i in range(n)]
            # The decision after turn t is judged by what follows it, that is by the advantage at turn t less the turn's own reward.
            gradient = sum(s * found[starts[i] + t] for i, length in enumerate(drawn) for t, s in enumerate(score[length]))
            total += math.prod(lengths[length] for length in drawn) * gradient / n
        return total

    def mean(*arguments):
        return advantage.turn_baseline_advantages(*arguments, leave_one_out=False)

    for n, wanted in {2: 0.25, 3: 1 / 3, 4: 0.375}.items():
        assert expected(n, advantage.turn_baseline_advantages) == pytest.approx(0.5, abs=1e-12)
        assert expected(n, mean) == pytest.approx(wanted, abs=1e-12)


@st.composite
def batches(draw):
    size = draw(st.integers(1, 24))
    whole = lambda low, high: draw(st.lists(st.integers(low, high), min_size=size, max_size=size))  # noqa: E731
    trajectory, task = whole(0, 3), whole(0, 1)
    # The rows of a (task, trajectory) get times in a random order.
    times = draw(st.permutations(range(size)))
    return {
        "rewards": torch.tensor(whole(-2, 2), dtype=torch.float64),
        "trajectory": torch.tensor(trajectory) * 10**12,
        "group": torch.tensor(task) - 1,
        "anchor": torch.tensor(whole(-1, 3)) * 1,
        "action": torch.tensor(whole(0, 2)),
        "success": torch.tensor(whole(0, 4)) == 0,
        "step": torch.tensor(times),
        "valid": torch.tensor(whole(0, 5)) > 0,
    }


def all_of(b):
    b = dict(b)
    action, success = b.pop("action"), b.pop("success")
    valid = b["valid"]
    b["anchor"] = torch.where(valid, b["anchor"].clamp(min=0), b["anchor"])  # a valid step is taken in a state
    four = (b["rewards"], b["trajectory"], b["group"], b["anchor"])
    rest = {"step": b["step"], "valid": valid}
    graph, g2po = advantage.graph_advantages, advantage.g2po_advantages
    whole = {
        "graph": graph(*four, success=success, **rest).advantages,
        "graph rows": graph(*four, success=success, scale=None, statistics=VERL_AGENT, **rest).advantages,
        "g2po": g2po(*four, success_value=1.0, **rest).advantages,
        "g2po std": g2po(*four, success_value=1.0, scale="std", **rest).advantages,
        "state gae": advantage.state_gae_advantages(*four, **rest),
        "action": advantage.action_advantages(*four, action, shrinkage=1.0, gate=2.0, **rest).step,
        "turns": advantage.turn_baseline_advantages(*four[:3], gamma=0.9, **rest),
    }
    return whole, four, action, success, rest


@settings(max_examples=60, deadline=None)
@given(batches())
def test_against_the_loops(batch):
    found, four, action, success, rest = all_of(batch)
    flagged = success & batch["valid"]
    wanted = {
        "graph": reference.graph_advantages(*four, success=flagged, **rest)[0],
        "graph rows": reference.graph_advantages(*four, success=flagged, scale=None, statistics=VERL_AGENT, **rest)[0],
        "g2po": reference.g2po_advantages(*four, success_value=1.0, statistics=VERL_AGENT, **rest)[0],
        "g2po std": reference.g2po_advantages(*four, success_value=1.0, scale="std", statistics=VERL_AGENT, **rest)[0],
        "state gae": reference.state_gae_advantages(*four, **rest),
        "action": reference.action_advantages(*four, action, shrinkage=1.0, gate=2.0, **rest),
        "turns": reference.turn_baseline_advantages(*four[:3], gamma=0.9, **rest),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@settings(max_examples=30, deadline=None)
@given(batches(), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_what_is_not_valid_change_no_bit(batch, random):
    order = list(range(len(batch["step"])))
    random.shuffle(order)
    order = torch.tensor(order)
    moved = {name: value[order] for name, value in batch.items()}
    moved["rewards"] = torch.where(moved["valid"], moved["rewards"], float("nan"))
    moved["group"] = torch.where(moved["valid"], moved["group"], 7)
    plain, shuffled = all_of(batch)[0], all_of(moved)[0]
    for name in plain:
        assert_same_bits(name, shuffled[name], plain[name][order])


@pytest.mark.parametrize("lam", [1.0, 0.9])
def test_turn_gae_against_the_loops(lam):
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 9, generator=generator) > 0.4
    turns = torch.where(mask, (torch.rand(4, 9, generator=generator) > 0.6).cumsum(1) * 2, -1)
    final = torch.randn(4, generator=generator, dtype=torch.float64)
    found = advantage.turn_gae_advantages(rewards, values, mask, turns, gamma=0.95, lam=lam, final_values=final)
    wanted = reference.turn_gae_advantages(rewards, values, mask, turns, gamma=0.95, lam=lam, final_values=final)
    torch.testing.assert_close(tuple(found), wanted, rtol=1e-12, atol=1e-12)
    # Packed, the same tokens give the same numbers (what follows the last turn is worth nothing there).
    flat = lambda value: value.reshape(-1)  # noqa: E731
    rows = torch.arange(4).repeat_interleave(9)
    packed = advantage.turn_gae_advantages(flat(rewards), flat(values), flat(mask), flat(turns), lam=lam, sequence_ids=rows)
    wanted = reference.turn_gae_advantages(rewards, values, mask, turns, lam=lam)
    torch.testing.assert_close(packed.advantages.view(4, 9), wanted[0], rtol=1e-12, atol=1e-12)


def test_edges_of_earlier_batches_are_searched_and_not_credited():
    """A shortcut that an earlier batch found makes the move towards it the better one; its own rows get nothing."""
    trajectory, state = [0, 0, 1, 1, 9, 9], torch.tensor([0, 1, 0, 2, 2, 3])
    rewards, success = torch.tensor([0, 1.0, 0, 0, 0, 0]), torch.tensor([1, 1, 0, 0, 1, 1], dtype=torch.bool)
    earlier = torch.tensor([0, 0, 0, 0, 1, 1], dtype=torch.bool)
    alone = advantage.graph_advantages(rewards[:4], trajectory[:4], [0] * 4, state[:4], success=success[:4])
    together = advantage.graph_advantages(rewards, trajectory, [0] * 6, state, success=success, edges_only=earlier)
    assert alone.step_returns.tolist() == pytest.approx([1.0, 10.0, 0.01, 0.01])  # without a path: 3
    assert together.step_returns.tolist() == pytest.approx([1.0, 10.0, 0.1, 0.01, 0.0, 0.0])
    assert together.advantages[4:].tolist() == [0.0, 0.0]
    near(together.episode[:4], alone.episode)


def test_refusals():
    with pytest.raises(ValueError, match=r"graph_advantages: decay must be in \[0, 1\], got 2.0; pass a number between 0 and 1"):
        advantage.graph_advantages(*TOY, success=SUCCESS, decay=2.0)
    with pytest.raises(TypeError, match=r"graph_advantages: success must be \(9,\) bool"):
        advantage.graph_advantages(*TOY, success=SUCCESS.float())
    with pytest.raises(ValueError, match="action_advantages: gate must be a finite number > 0"):
        advantage.action_advantages(*TOY, ACTION, gate=0.0)
    with pytest.raises(ValueError, match=r"hindsight_advantages: bounds\[1\] must be a finite number >= 1.2"):
        advantage.hindsight_advantages(REWARDS, TRAJECTORY, TASK, torch.ones(9), bounds=(1.2, 0.8))
    with pytest.raises(ValueError, match="turn_gae_advantages: final_values must be"):
        advantage.turn_gae_advantages(
            torch.zeros(3), torch.zeros(3), torch.ones(3).bool(), torch.zeros(3).long(), sequence_ids=torch.zeros(3).long(), final_values=torch.zeros(3)
        )


@pytest.mark.parametrize("path", ["native", "torch"])
def test_distances_on_every_path(path):
    """A long chain, a ring, a state without a way out, and a task without success, against the loops."""
    if path == "native" and backend.why_not_native(torch.device("cpu")) is not None:
        pytest.skip(backend.why_not_native(torch.device("cpu")))
    chain, ring = 300, 7
    state = [*range(chain), *range(1000, 1000 + ring), *range(1000, 1000 + ring), 5000, 5001, 0, 1]
    trajectory = [0] * chain + [1] * (2 * ring) + [2] * 2 + [0] * 2
    task = [0] * (chain + 2 * ring + 2) + [1] * 2
    success = torch.tensor([label == 0 and which == 0 for label, which in zip(trajectory, task)])
    with backend.use(path):
        found = advantage.success_distances(advantage.transitions(trajectory, task, torch.tensor(state), success=success))
    wanted = reference.success_distances(trajectory, task, torch.tensor(state), success=success)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=0.0, equal_nan=True)
    assert found[0] == chain - 1 and found[chain] == chain + 1 and found[-1].isnan()
