"""Rewards: the papers' worked numbers, agreement with the float64 loops, and what stands in rows that do not count."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import advantage, reward
from gigpo_fast.advantage import TRL, GroupStatistics
from gigpo_fast.objective import K1, K2, K3
from gigpo_fast.reference import reward as reference
from tests.tolerance import assert_same_bits

ONE = torch.zeros(4, dtype=torch.int64)
NO_EPS = GroupStatistics(eps=0.0)


def near(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0.0, atol=tolerance)


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_sums():
    parts = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    near(reward.weighted_sum(parts, weights=[0.8, 0.2]), [1.0, 0.2, 0.8, 0.0])  # GUI-R1
    scored = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    unscored = torch.where(scored, parts, float("nan"))
    assert reward.weighted_sum(unscored, scored=scored).tolist() == [2.0, 0.0, 0.0, 0.0]
    assert reward.normalised_sum is advantage.normalised_sum


def test_cosine_length():
    lengths = rows(0, 500, 1000, 2000)  # Open-RS, L = 1000
    right, wrong = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    near(reward.cosine_length(right, lengths, max_length=1000), [1.0, 0.75, 0.5, 0.5])
    near(reward.cosine_length(wrong, lengths, max_length=1000), [-1.0, -0.75, -0.5, -0.5])
    near(reward.cosine_length(right, lengths, max_length=1000, clamp=False)[3], 1.0)


def test_soft_overlong():
    lengths = torch.tensor([100, 16384, 18432, 20480, 30000])  # DAPO: 20480 with a buffer of 4096
    near(reward.soft_overlong(lengths, max_length=20480, buffer=4096), [0.0, 0.0, -0.5, -1.0, -1.0])
    near(reward.soft_overlong(lengths, max_length=20480, buffer=4096, penalty=0.5)[2], -0.25)


def test_pixelthink():
    difficulty, doubt, lengths = rows(2, 6, 6, 4, 2), rows(0.4, 0.4, 0.4, 0.4, 0.4), rows(146, 266, 316, 900, 60)
    budget = reward.difficulty_budget(difficulty, doubt)
    near(budget[[0, 1]], [96.0, 266.0])
    assert budget[3] == math.inf
    near(reward.soft_length(lengths, budget), [0.9, 1.0, 0.9, 1.0, 1.0])
    total = rows(3, 3, 0, 3) * reward.soft_length(rows(146, 96, 5, 196), torch.full((4,), 96.0))
    near(total, [2.7, 3.0, 0.0, 2.4])
    near(advantage.group_advantages(total, ONE, scale="std"), [0.491967, 0.710619, -1.475901, 0.273315])
    top = torch.tensor([[[0.5, 0.25], [0.9, 0.05], [0.0, 0.0]]]).log()
    mask = torch.tensor([[True, True, False]])
    near(reward.top_two_uncertainty(top, mask), [(0.75 + 0.15) / 2])


def test_dast():
    total, lengths = rows(3, 3, 1, 2), rows(100, 200, 400, 300)  # UI-R1: the budget is 275
    bonus = reward.dast_length(total == 3, lengths, ONE)
    near(total + bonus, [3.818182, 3.636364, 0.9, 1.9])


def test_group_length():
    correct = torch.tensor([True, True, False, False])
    near(reward.group_length(correct, rows(100, 300, 200, 300), ONE), [0.5, -0.5, 0.0, -0.5])
    near(reward.group_length(correct, rows(7, 7, 7, 7), ONE), [0.0] * 4)


def test_tool_cost():
    near(reward.tool_cost(torch.arange(4), torch.ones(4), max_calls=4), [0.0, 1.0, 0.866025, 0.707107])
    near(reward.tool_cost(torch.arange(4), torch.zeros(4), max_calls=4), [1.0, 0.866025, 0.707107, 0.587785])
    near(reward.tool_cost(torch.arange(4), torch.zeros(4), max_calls=3), [1.0, 0.809017, 0.623490, 0.5])
    near(reward.tool_cost(torch.arange(4), max_calls=1), [1.0, 0.5, 0.309017, 0.2225209])
    calls, correct = torch.tensor([1, 2, 0, 3]), torch.tensor([True, True, False, True])  # OTC
    fewest = reward.fewest_calls(calls, correct, ONE)
    assert fewest.tolist() == [1.0] * 4
    total = correct * reward.tool_cost(calls, fewest, max_calls=4)
    near(total, [1.0, 0.866025, 0.0, 0.707107])
    near(advantage.group_advantages(total, ONE, scale="std"), [0.801156, 0.500260, -1.444759, 0.143343], 2e-6)
    assert reward.fewest_calls(calls, correct & False, ONE).tolist() == [math.inf] * 4
    assert reward.fewest_calls(calls, correct, ONE, known=torch.tensor([0.0, 5.0, 1.0, 2.0])).tolist() == [0.0, 1.0, 1.0, 1.0]
    assert reward.tool_cost(calls, torch.full((4,), math.inf), max_calls=4).tolist() == [1.0] * 4


def test_cost_penalty():
    costs = torch.tensor([[10, 1], [20, 4], [0, 2], [5, 4]])
    near(reward.cost_penalty(rows(1, 1, 0, 0), costs, ONE, weights=[0.2, 0.4]), [1 - 0.5 * 0.2, 1 - 0.5 * 0.6, -0.5 * 0.2, -0.5 * 0.45])
    near(reward.cost_penalty(rows(0, 0, 0, 0), costs, ONE, weights=[0.2, 0.4]), [0.0] * 4)
    near(reward.cost_penalty(rows(1, 1, 1, 1), costs * 0, ONE, weights=[0.2, 0.4]), [1.0] * 4)


def test_ensembles():
    scores = torch.tensor([[1, 0.9], [2, 1.0], [0, 1.1]], dtype=torch.float64)
    near(reward.ensemble_mean(scores), [1.0, 1.0])
    near(reward.ensemble_worst(scores), [0.0, 0.9])
    near(reward.ensemble_uncertainty(scores, coefficient=0.5, ddof=0), [0.666667, 0.996667])
    near(reward.ensemble_uncertainty(scores, coefficient=0.5), [0.5, 0.995])
    near(reward.ensemble_uncertainty(scores[:1], coefficient=0.5), [1.0, 0.9])


def test_the_worst_population():
    rewards = torch.tensor([[1, 0], [0, 1], [1, 0], [1, 0]], dtype=torch.float64)  # MaxMin: means .75 and .25
    chosen = reward.worst_population(rewards)
    near(chosen, [0.0, 1.0, 0.0, 0.0])
    near(advantage.group_advantages(chosen, ONE, scale="std", statistics=NO_EPS), [-0.5, 1.5, -0.5, -0.5])
    near(advantage.group_advantages(chosen, ONE), [-0.25, 0.75, -0.25, -0.25])
    share = 1 / (1 + math.exp(-0.5))
    near(reward.worst_population(rewards, temperature=1.0), [1 - share, share, 1 - share, 1 - share])
    valid = torch.tensor([True, True, False, False])
    unread = torch.where(valid.unsqueeze(1), rewards, float("nan"))
    assert reward.worst_population(unread, valid=valid).tolist() == [1.0, 0.0, 0.0, 0.0]  # means are equal, the first counts


def test_gates():
    correct, group = torch.tensor([True, True, True, False]), torch.tensor([0, 0, 1, 1])
    assert reward.all_of_group(correct, group).tolist() == [True, True, False, False]
    assert reward.any_of_group(correct, group).tolist() == [True] * 4
    assert (~reward.any_of_group(~correct, group)).tolist() == [True, True, False, False]
    valid = torch.tensor([True, True, True, False])
    assert reward.all_of_group(correct, group, valid=valid).tolist() == [True, True, True, False]
    # ConciseR: all right, so the shorter the better, whatever the coefficient; one wrong, and length does not count.
    lengths = rows(100, 300, 200, 400)
    for coefficient in (0.1, 3.0):
        total = reward.gated_bonus(
            rows(1, 1, 1, 1), reward.remaining_length(lengths, max_length=500), torch.ones(4, dtype=torch.bool), coefficient=coefficient
        )
        near(advantage.group_advantages(total, ONE, scale="std", statistics=NO_EPS), [1.1618950, -0.3872983, 0.3872983, -1.1618950])
    gate = reward.all_of_group(rows(1, 1, 1, 0) > 0, ONE)
    total = reward.gated_bonus(rows(1, 1, 1, 0), torch.full((4,), float("nan")), gate)
    near(advantage.group_advantages(total, ONE, scale="std", statistics=NO_EPS), [0.5, 0.5, 0.5, -1.5])


def test_the_divergence_in_the_reward():
    log_probs, ref = rows(-1, -2).unsqueeze(0), rows(-1.2, -1.5).unsqueeze(0)  # SALSA
    mask = torch.ones(1, 2, dtype=torch.bool)
    near(reward.kl_rewards(log_probs, ref, mask, coefficient=0.05), [[-0.01, 0.025]])
    near(reward.kl_rewards(log_probs, ref, mask, coefficient=1.0, estimator=K2()), [[-0.02, -0.125]])
    near(reward.kl_rewards(log_probs, ref, mask, coefficient=1.0, estimator=K3()), [[-(math.exp(-0.2) - 0.8), -(math.exp(0.5) - 1.5)]])
    unread = torch.tensor([[-1.0, float("nan")]])
    assert reward.kl_rewards(unread, unread, torch.tensor([[True, False]]), coefficient=1.0, estimator=K1()).tolist() == [[0.0, 0.0]]
    holes = torch.tensor([[True, False, True, False], [False] * 4, [False, True, False, False]])
    assert reward.score_at_last_token(torch.tensor([5.0, float("nan"), 7.0]), holes).tolist() == [[0, 0, 5, 0], [0] * 4, [0, 7, 0, 0]]


def test_an_adaptive_coefficient():
    controller = reward.AdaptiveCoefficient(target=6.0, horizon=10000)
    assert controller.next(0.2, 6.0, 256) == 0.2
    assert controller.next(0.2, 6.6, 1000) == pytest.approx(0.2 * (1 + 0.1 * 0.1))
    assert controller.next(0.2, 600.0, 1000) == pytest.approx(0.2 * 1.02)  # the error counts up to a fifth
    assert controller.next(0.2, 0.0, 1000) == pytest.approx(0.2 * 0.98)


def test_running_scale():
    scores, state = rows(1, 3, 2), reward.RunningMoments.empty()  # PPO-max: deviation 1
    scaled, after = reward.running_scale(scores, state)
    near(scaled, [1.0, 3.0, 2.0])
    near(reward.running_scale(scores, state, center=True)[0], [-1.0, 1.0, 0.0])
    near(reward.running_scale(scores, state, clip=2.5)[0], [1.0, 2.5, 2.0])
    assert [float(part) for part in after] == [3.0, 2.0, pytest.approx(2 / 3)]
    assert reward.running_scale(rows(5.0), state)[0].tolist() == [5.0]  # one reward has no deviation


def test_penalties_and_differences():
    good = torch.tensor([True, False, True, False])
    near(reward.invalid_action_penalty(rows(1, 1, 0, 0), good), [1.0, 0.9, 0.0, -0.1])
    near(reward.return_difference(rows(0.2, 0.5, 0.4), ONE[:3]), [0.3, -0.1, 0.0])  # Retroformer
    near(reward.return_difference(rows(1, 5, 2, 7), torch.tensor([0, 1, 0, 1])), [1.0, 2.0, 0.0, 0.0])
    near(reward.return_difference(rows(1, 5, 2, 7), ONE, trial=torch.tensor([3, 1, 2, 0])), [0.0, -3.0, -1.0, -2.0])


@st.composite
def batches(draw):
    size = draw(st.integers(1, 10))
    column = lambda element: draw(st.lists(element, min_size=size, max_size=size))  # noqa: E731
    return dict(
        correct=torch.tensor(column(st.booleans())),
        lengths=torch.tensor(column(st.integers(0, 40)), dtype=torch.float64),
        group=torch.tensor(column(st.integers(0, 2))),
        rewards=torch.tensor(column(st.sampled_from([0.0, 1.0, 0.5, -0.3])), dtype=torch.float64),
    )


SAME = {
    "cosine": lambda m, b: m.cosine_length(b["correct"], b["lengths"], max_length=25.0, right=(2.0, 0.25), wrong=(-2.0, -1.0)),
    "cosine_unclamped": lambda m, b: m.cosine_length(b["correct"], b["lengths"], max_length=9.0, clamp=False),
    "overlong": lambda m, b: m.soft_overlong(b["lengths"], max_length=30.0, buffer=7.0, penalty=0.7),
    "dast": lambda m, b: m.dast_length(b["correct"], b["lengths"], b["group"], slope=-0.7, offset=0.4),
    "group_length": lambda m, b: m.group_length(b["correct"], b["lengths"], b["group"]),
    "fewest": lambda m, b: m.fewest_calls(b["lengths"], b["correct"], b["group"]).double(),
    "tool_cost": lambda m, b: m.tool_cost(b["lengths"], (b["lengths"].flip(0) - 5).clamp(min=0), max_calls=4),
    "tool_cost_alone": lambda m, b: m.tool_cost(b["lengths"], max_calls=4),
    "cost_penalty": lambda m, b: m.cost_penalty(
        b["rewards"], torch.stack([b["lengths"], b["lengths"].flip(0)], 1), b["group"], weights=[0.25, 0.1]
    ),
    "difference": lambda m, b: m.return_difference(b["rewards"], b["group"], trial=torch.arange(len(b["rewards"])).flip(0)),
}


@pytest.mark.parametrize("name", SAME)
@given(batches())
def test_agrees_with_the_reference(name, batch):
    torch.testing.assert_close(SAME[name](reward, batch), SAME[name](reference, batch), rtol=1e-12, atol=1e-12)


@given(st.lists(st.lists(st.floats(-10, 10), min_size=0, max_size=5), min_size=1, max_size=4), st.booleans(), st.sampled_from([None, 1.0]))
def test_running_scale_agrees_with_the_reference(numbers, center, clip):
    batches = [torch.tensor(batch, dtype=torch.float64) for batch in numbers]
    state, ours = reward.RunningMoments.empty(), []
    for batch in batches:
        scaled, state = reward.running_scale(batch, state, center=center, clip=clip)
        ours.append(scaled)
    spread = torch.cat(batches)
    if len(spread) > 1 and 0 < float(spread.std()) < 1e-6:
        return  # a spread at the rounding of the numbers
    for one, other in zip(ours, reference.running_scale(batches, center=center, clip=clip)):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


MASKED = {
    "cosine": lambda b, v: reward.cosine_length(b["correct"], b["lengths"], max_length=25.0, valid=v),
    "dast": lambda b, v: reward.dast_length(b["correct"], b["lengths"], b["group"], valid=v),
    "group_length": lambda b, v: reward.group_length(b["correct"], b["lengths"], b["group"], valid=v),
    "tool_cost": lambda b, v: reward.tool_cost(
        b["lengths"], reward.fewest_calls(b["lengths"], b["correct"], b["group"], valid=v), max_calls=4, valid=v
    ),
    "cost_penalty": lambda b, v: reward.cost_penalty(b["rewards"], b["lengths"].unsqueeze(1), b["group"], weights=[0.3], valid=v),
    "difference": lambda b, v: reward.return_difference(b["rewards"], b["group"], valid=v),
    "running": lambda b, v: reward.running_scale(b["rewards"], reward.RunningMoments.empty(), valid=v)[0],
}


@pytest.mark.parametrize("name", MASKED)
@given(batches(), st.lists(st.booleans(), min_size=10, max_size=10), st.sampled_from([float("nan"), -1e30]))
def test_rows_that_do_not_count_do_not_exist(name, batch, used, number):
    valid = torch.tensor(used[: len(batch["rewards"])])
    result = MASKED[name](batch, valid)
    rubbish = {key: torch.where(valid, value, number) if value.is_floating_point() else value for key, value in batch.items()}
    rubbish["group"] = torch.where(valid, batch["group"], 99)
    assert_same_bits(name, MASKED[name](rubbish, valid), result)
    kept = MASKED[name]({key: value[valid] for key, value in batch.items()}, torch.ones(int(valid.sum()), dtype=torch.bool))
    torch.testing.assert_close(result[valid], kept, rtol=1e-12, atol=1e-12)
    assert not result[~valid].any()


def test_results_are_float32_unless_asked():
    lengths = torch.tensor([3, 4])
    assert reward.soft_overlong(lengths, max_length=5, buffer=2).dtype == torch.float32
    assert reward.soft_overlong(lengths.double(), max_length=5, buffer=2).dtype == torch.float64
    assert reward.weighted_sum(torch.ones(2, 2, dtype=torch.bool)).dtype == torch.float32
    assert TRL.eps == 1e-4
