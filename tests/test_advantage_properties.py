"""Advantages: relations that hold for every batch, drawn by hypothesis."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import advantage
from gigpo_fast.advantage import CORRECTED, ROLL, VERL_AGENT, GroupStatistics
from gigpo_fast.reference import advantage as reference

FAR_LABELS = [-(2**63), 2**63 - 1, -2, 10**9, 10**12 + 7, 2**31, 0, 5]
SCALES = st.sampled_from([None, "std"])
STATISTICS = st.sampled_from(
    [CORRECTED, VERL_AGENT, ROLL, GroupStatistics(ddof=0, singleton="raw"), GroupStatistics(zero_variance="divide")]
)
GAMMAS = st.sampled_from([0.0, 0.5, 0.95, 1.0])
NUMBERS = st.sampled_from([0.0, 0.0, 0.0, 1.0, 0.1, 0.3, 0.35, 9.9, -0.1, -7.25])


@st.composite
def batches(draw, dtype=torch.float64):
    """A few tasks of a few trajectories of a few steps in a few states; rows in any order, some not valid."""
    rows = []
    trajectories = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), min_size=1, max_size=7))
    for trajectory, (task, length) in enumerate(trajectories):
        for step in range(length):
            rows.append((draw(NUMBERS), trajectory, task, draw(st.integers(0, 2)), step, draw(st.integers(0, 5)) > 0))
    rows = draw(st.permutations(rows))
    rewards, *labels, valid = zip(*rows)
    trajectory, task, anchor, step = (torch.tensor(label) for label in labels)
    return dict(
        rewards=torch.tensor(rewards, dtype=dtype), trajectory=trajectory, group=task, anchor=anchor, step=step, valid=torch.tensor(valid)
    )


def select(batch, rows):
    return {name: tensor[rows] for name, tensor in batch.items()}


def equal(one, other):
    return all(torch.equal(left, right) for left, right in zip(one, other))


@given(batches(), GAMMAS, SCALES, STATISTICS)
def test_agrees_with_the_reference(batch, gamma, scale, statistics):
    options = dict(gamma=gamma, scale=scale, statistics=statistics, step_weight=0.5)
    result, exact = advantage.gigpo_advantages(**batch, **options), reference.gigpo_advantages(**batch, **options)
    for ours, wanted in zip(result, exact):
        # Groups that are constant but for float64 rounding are divided by eps = 1e-6, which leaves 1e-9.
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-8)


@given(batches(torch.float32), GAMMAS, SCALES, STATISTICS, st.randoms(use_true_random=False))
def test_row_order_changes_no_bit(batch, gamma, scale, statistics, random):
    order = list(range(len(batch["rewards"])))
    random.shuffle(order)
    options = dict(gamma=gamma, scale=scale, statistics=statistics)
    result = advantage.gigpo_advantages(**batch, **options)
    shuffled = advantage.gigpo_advantages(**select(batch, order), **options)
    assert equal((part[order] for part in result), shuffled)
    penalised = batch["rewards"]  # rows of one trajectory differ
    for function in (advantage.group_advantages, advantage.leave_one_out_advantages):
        whole = function(penalised, batch["group"], trajectory=batch["trajectory"], valid=batch["valid"], statistics=statistics)
        parts = select(batch, order)
        again = function(penalised[order], parts["group"], trajectory=parts["trajectory"], valid=parts["valid"], statistics=statistics)
        assert torch.equal(whole[order], again)


@given(st.integers(0, 2**31), SCALES, STATISTICS)
def test_row_order_changes_no_bit_of_float64(seed, scale, statistics):
    """Groups of some fifty unequal numbers: sums in another order would differ in their last bits, which no rounding hides here."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(150, dtype=torch.float64, generator=generator)
    trajectory, order = torch.randint(0, 9, (150,), generator=generator), torch.randperm(150, generator=generator)
    task, anchor = trajectory % 3, torch.randint(0, 2, (150,), generator=generator)

    def result(rows):
        labels = trajectory[rows], task[rows], anchor[rows]
        given_scores = dict(step=torch.arange(150)[rows], episode_scores=scores[rows])
        both = advantage.gigpo_advantages(scores[rows], *labels, gamma=0.95, scale=scale, statistics=statistics, **given_scores)
        return *both, advantage.leave_one_out_advantages(scores[rows], task[rows], trajectory=trajectory[rows])

    assert equal((part[order] for part in result(torch.arange(150))), result(order))


@given(batches(torch.float32), SCALES, st.permutations(FAR_LABELS), st.booleans())
def test_names_of_groups_change_no_bit(batch, scale, names, as_text):
    def renamed(label):
        new = [names[old] for old in label.tolist()]
        return [f"{name:+d}" for name in new] if as_text else torch.tensor(new)

    other = {**batch, "trajectory": renamed(batch["trajectory"]), "group": renamed(batch["group"]), "anchor": renamed(batch["anchor"])}
    options = dict(gamma=0.95, scale=scale)
    assert equal(advantage.gigpo_advantages(**batch, **options), advantage.gigpo_advantages(**other, **options))


@given(batches(torch.float32), SCALES, STATISTICS, st.sampled_from([float("nan"), float("inf"), -1e38]), st.sampled_from(FAR_LABELS))
def test_rows_that_are_not_valid_do_not_exist(batch, scale, statistics, number, label):
    valid, options = batch["valid"], dict(gamma=0.95, scale=scale, statistics=statistics)
    result = advantage.gigpo_advantages(**batch, **options)
    rubbish = {name: torch.where(valid, tensor, label) for name, tensor in batch.items() if name not in ("rewards", "valid")}
    rubbish |= dict(rewards=torch.where(valid, batch["rewards"], number), valid=valid)
    given_rubbish = torch.where(valid, result.step_returns, number)
    assert equal(result, advantage.gigpo_advantages(**rubbish, **options))
    assert torch.equal(result.step, advantage.gigpo_advantages(**rubbish, step_returns=given_rubbish, **options).step)
    removed = advantage.gigpo_advantages(**select(batch, valid), **options)
    assert equal((part[valid] for part in result), removed)
    assert not any(part[~valid].any() for part in result)


@given(batches(), SCALES, st.sampled_from([-100.0, 0.125, 3.0]))
def test_a_constant_in_every_score_changes_nothing(batch, scale, shift):
    first = advantage.gigpo_advantages(**batch, gamma=0.95, scale=scale)
    totals = reference.gigpo_advantages(**batch, gamma=1.0)[3]
    shifted = advantage.gigpo_advantages(
        **batch, gamma=0.95, scale=scale, step_returns=first.step_returns + shift, episode_scores=totals + shift
    )
    still = advantage.gigpo_advantages(**batch, gamma=0.95, scale=scale, step_returns=first.step_returns, episode_scores=totals)
    torch.testing.assert_close(shifted.advantages, still.advantages, rtol=0.0, atol=1e-7)  # 1e-14 of rounding over eps = 1e-6


@given(batches(torch.float32), st.sampled_from([2.0**-10, 0.5, 4.0, 2.0**20]))
def test_a_factor_in_every_reward_cancels_in_the_deviation(batch, factor):
    no_eps = GroupStatistics(eps=0.0)
    scaled = {**batch, "rewards": batch["rewards"] * factor}
    first = advantage.gigpo_advantages(**batch, gamma=0.95, scale="std", statistics=no_eps)
    second = advantage.gigpo_advantages(**scaled, gamma=0.95, scale="std", statistics=no_eps)
    assert equal(first[:3], second[:3])  # powers of two: no rounding of its own
    plain, larger = advantage.gigpo_advantages(**batch, gamma=0.95), advantage.gigpo_advantages(**scaled, gamma=0.95)
    assert torch.equal(plain.advantages * factor, larger.advantages)


@given(batches(torch.float32), SCALES)
def test_tasks_do_not_see_each_other(batch, scale):
    result = advantage.gigpo_advantages(**batch, gamma=0.95, scale=scale)
    for task in batch["group"].unique():
        rows = batch["group"] == task
        assert equal((part[rows] for part in result), advantage.gigpo_advantages(**select(batch, rows), gamma=0.95, scale=scale))


@given(batches(torch.float32))
def test_equal_futures_get_equal_returns(batch):
    """A copy of a trajectory, elsewhere in the batch, has the same returns to the last bit."""
    copied = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    copied["trajectory"] = torch.cat([batch["trajectory"], batch["trajectory"] + 1000])
    inputs = {name: copied[name] for name in ("rewards", "trajectory", "step", "valid")}
    first, second = advantage.discounted_returns(**inputs, gamma=0.95).chunk(2)
    assert torch.equal(first, second)
