"""The estimators of one number a token: the papers' worked numbers, agreement with the float64 loops, layouts, masks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import advantage
from gigpo_fast.advantage import AREAL_WHITENING, OPENRLHF_WHITENING, VERL_WHITENING, Whitening
from gigpo_fast.reference import token_estimators as reference
from tests.tolerance import assert_same_bits


def near(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0.0, atol=tolerance)


def line(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def all_trained(tokens):
    return torch.ones_like(tokens, dtype=torch.bool)


def test_worked_numbers_of_gae():
    rewards, values = line(0.98, 0.0, -1.01), line(0.1, 0.2, 0.0)  # Text2Grad
    found = advantage.gae_advantages(rewards, values, all_trained(rewards), lam=0.95)
    near(found.advantages, [[-0.021525, -1.1595, -1.01]])
    near(advantage.whiten(found.advantages, all_trained(rewards)), [[1.1462334, -0.6939956, -0.4522378]])
    rewards, values = line(-0.002, 0.001, 0.997), line(0.2, 0.3, 0.5)  # PPO-max
    found = advantage.gae_advantages(rewards, values, all_trained(rewards), lam=0.95)
    near(found.advantages, [[0.7374925, 0.67315, 0.497]])
    near(found.returns, [[0.9374925, 0.97315, 0.997]])
    whitened = advantage.whiten(found.advantages, all_trained(rewards), statistics=Whitening(ddof=0, eps=1e-6))
    near(whitened, [[0.999516, 0.366603, -1.366119]])


def test_masked_tokens_are_time_steps_or_not():
    rewards, mask = line(1, 5, 2, 4), torch.tensor([[True, False, True, True]])
    near(advantage.token_returns(rewards, mask, gamma=0.5), [[1 + 0.5 * 4, 0.0, 4.0, 4.0]])
    near(advantage.token_returns(rewards, mask, gamma=0.5, carry=False), [[1 + 0.25 * 4, 0.0, 4.0, 4.0]])
    values = line(0.5, 9.0, 1.0, 2.0)
    carried = advantage.gae_advantages(rewards, values, mask, gamma=0.5, lam=0.5)
    last, middle = 4.0 - 2.0, 2.0 + 0.5 * 2.0 - 1.0 + 0.25 * 2.0
    near(carried.advantages, [[1.0 + 0.5 * 1.0 - 0.5 + 0.25 * middle, 0.0, middle, last]])
    stepped = advantage.gae_advantages(rewards, values, mask, gamma=0.5, lam=0.5, carry=False)
    near(stepped.advantages[0, 0], 1.0 - 0.5 + 0.25 * (0.5 * 1.0 + 0.25 * middle))  # through a state of value 0
    cut_off = advantage.gae_advantages(rewards, values, mask, gamma=0.5, lam=0.5, final_values=torch.tensor([3.0]))
    near(cut_off.advantages[0, 3], 4.0 + 0.5 * 3.0 - 2.0)


def test_worked_numbers_of_turns():
    # Three turns; the reward inside the second is not at its last token, so it does not count.
    mask = torch.tensor([[True, True, False, True, True, False, False, True]])
    rewards = line(0, 1, 7, 5, 2, 7, 7, 4)
    near(advantage.turn_returns(rewards, mask, gamma=0.5), [[3.0, 3.0, 0.0, 4.0, 4.0, 0.0, 0.0, 4.0]])
    ids = advantage.step_ids(mask, turns=True)
    steps = advantage.discounted_returns(torch.tensor([1.0, 2.0, 4.0]), torch.zeros(3, dtype=torch.int64), gamma=0.5)
    near(advantage.to_tokens(steps, ids).double(), advantage.turn_returns(rewards, mask, gamma=0.5))


def test_worked_numbers_of_remax():
    rewards, mask = line(0, 0, 1, 7), torch.tensor([[True, True, True, False]])
    near(advantage.remax_advantages(rewards, torch.tensor([0.25]), mask), [[0.75, 0.75, 0.75, 0.0]])


def test_worked_numbers_of_segments():
    # Values .5 (prompt), .75, .25 at two cuts, score 1: SPO's example, then without the value of the prompt.
    values, cuts = line(0.0, 0.75, 0.0, 0.25, 0.0, 0.0), torch.tensor([[False, True, False, True, False, False]])
    mask, score = torch.ones(1, 6, dtype=torch.bool), torch.tensor([1.0])
    found = advantage.segment_advantages(values, cuts, score, mask, start_values=torch.tensor([0.5]))
    near(found, [[0.25, 0.25, -0.5, -0.5, 0.75, 0.75]])
    near(advantage.segment_advantages(values, cuts, score, mask), [[0.0, 0.0, -0.5, -0.5, 0.75, 0.75]])
    near(advantage.segment_advantages(values, cuts & False, score, mask), [[0.0] * 6])
    log_probs = torch.tensor([[0.95, 0.6, 0.99, 0.5, 0.3, 0.97]]).log()
    chosen = advantage.low_probability_cuts(log_probs, mask, every=2)
    assert chosen.after.tolist() == [[True, False, False, True, False, False]] and chosen.start.tolist() == [False]
    assert advantage.low_probability_cuts(log_probs[:, 1:], mask[:, 1:], every=2).start.tolist() == [True]


def test_worked_numbers_of_the_optimal_token_baseline():
    """Two responses, both tokens with w = 1 - 2 p + s: grown .5, 1 and 1.5, 2."""
    rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2, dtype=torch.bool)
    log_probs = torch.tensor([[0.5, 0.5], [0.25, 0.5]]).log()
    squares = torch.tensor([[0.5, 0.5], [1.0, 0.5]])
    found = advantage.optimal_token_baseline_advantages(rewards, torch.tensor([0, 0]), log_probs, squares, mask)
    near(found, [[1 - 0.25, 1 - 1 / 3], [-0.25, -1 / 3]])
    weights = torch.tensor([[2.0, 2.0], [1.0, 1.0]])
    weighted = advantage.optimal_token_baseline_advantages(
        rewards, torch.tensor([0, 0]), log_probs, squares, mask, importance_weights=weights
    )
    near(weighted[0], [1 - 2 / 3.5, 1 - 4 / 6])
    same = torch.tensor([[0.0, 0.1], [0.0, 0.1]])
    assert not advantage.optimal_token_baseline_advantages(same, torch.tensor([0, 0]), log_probs, squares, mask).any()
    apart = advantage.optimal_token_baseline_advantages(rewards, torch.tensor([0, 1]), log_probs, squares, mask)
    near(apart, [[1.0, 1.0], [0.0, 0.0]])


def test_whitening_conventions():
    values, mask = line(1, 2, 6, 99), torch.tensor([[True, True, True, False]])
    near(advantage.whiten(values, mask), [[-2 / math.sqrt(7), -1 / math.sqrt(7), 3 / math.sqrt(7), 0.0]])
    near(
        advantage.whiten(values, mask, statistics=OPENRLHF_WHITENING),
        [[-2 / math.sqrt(14 / 3), -1 / math.sqrt(14 / 3), 3 / math.sqrt(14 / 3), 0.0]],
    )
    near(advantage.whiten(values, mask, statistics=AREAL_WHITENING)[0, 2], 3 / (math.sqrt(7) + 1e-5))
    near(advantage.whiten(values, mask, keep_mean=True)[0, 2], 3 + 3 / math.sqrt(7))
    near(advantage.rescale(values, mask)[0, 2], 6 / math.sqrt(7))
    counted = torch.tensor([[True, True, False, True]])
    near(advantage.whiten(values, mask, counted=counted), [[-math.sqrt(0.5), math.sqrt(0.5), 4.5 * math.sqrt(2), 0.0]])
    assert_same_bits("nothing counted", advantage.whiten(values, mask, counted=counted & False), advantage.whiten(values, mask))
    for empty in (mask & False, torch.tensor([[True, False, False, False]])):
        assert not advantage.whiten(values, empty).any()
    # A floor of 1e-8 keeps a tiny spread small; inside the root it is as good as nothing here.
    tiny = line(0, 1e-6, 0, 0)
    near(advantage.whiten(tiny, all_trained(tiny), statistics=OPENRLHF_WHITENING)[0, 1], 0.75e-6 / 1e-4)


def test_length_adaptive_lambda():
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    near(advantage.length_adaptive_lambda(mask, alpha=0.5), [[0.5] * 4, [0.0] * 4, [0.0] * 4])


@st.composite
def batches(draw):
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 9)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    random = lambda: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return dict(
        rewards=random(),
        values=random(),
        other=random(),
        lam=random().sigmoid(),
        mask=torch.rand(shape, generator=generator) < draw(st.sampled_from([0.5, 0.8, 1.1])),
    )


CASES = {
    "returns": (lambda m, b, **o: m.token_returns(b["rewards"], b["mask"], gamma=0.9, **o), {}),
    "returns_stepping": (lambda m, b, **o: m.token_returns(b["rewards"], b["mask"], gamma=0.9, carry=False, **o), {}),
    "turns": (lambda m, b, **o: m.turn_returns(b["rewards"], b["mask"], gamma=0.9, **o), {}),
    "gae": (lambda m, b, **o: m.gae_advantages(b["rewards"], b["values"], b["mask"], gamma=0.97, lam=0.9, **o)[0], {}),
    "gae_returns": (lambda m, b, **o: m.gae_advantages(b["rewards"], b["values"], b["mask"], gamma=0.97, lam=0.9, **o)[1], {}),
    "gae_stepping": (lambda m, b, **o: m.gae_advantages(b["rewards"], b["values"], b["mask"], gamma=0.9, lam=0.8, carry=False, **o)[0], {}),
    "gae_own_lambda": (lambda m, b, **o: m.gae_advantages(b["rewards"], b["values"], b["mask"], lam=b["lam"], **o)[0], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@given(batches())
def test_agrees_with_the_reference(name, batch):
    function, _ = CASES[name]
    torch.testing.assert_close(function(advantage, batch), function(reference, batch), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("carry", [True, False])
@given(batches())
def test_final_values_agree_with_the_reference(carry, batch):
    options = dict(gamma=0.9, lam=0.8, carry=carry, final_values=batch["other"][:, 0])
    ours = advantage.gae_advantages(batch["rewards"], batch["values"], batch["mask"], **options)
    slow = reference.gae_advantages(batch["rewards"], batch["values"], batch["mask"], **options)
    for one, other in zip(ours, slow):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@given(batches(), st.randoms(use_true_random=False))
def test_packed_tokens_in_any_interleaving_give_the_same(name, batch, random):
    """All tokens in one line, the sequences mixed but each in time order."""
    function, _ = CASES[name]
    rows, columns = batch["mask"].shape
    whose = [row for row in range(rows) for _ in range(columns)]
    random.shuffle(whose)
    seen, order = [0] * rows, []
    for row in whose:
        order.append(row * columns + seen[row])
        seen[row] += 1
    packed = {key: value.flatten()[order] for key, value in batch.items()}
    ids = torch.tensor(whose) * 10**12 + 7
    assert_same_bits(name, function(advantage, packed, sequence_ids=ids), function(advantage, batch).flatten()[order])


@pytest.mark.parametrize("name", CASES)
@given(batches(), st.sampled_from([float("nan"), float("inf"), -1e38]))
def test_what_stands_behind_a_mask_cannot_matter(name, batch, number):
    function, _ = CASES[name]
    clean = function(advantage, batch)
    rubbish = {key: value if key == "mask" else torch.where(batch["mask"], value, number) for key, value in batch.items()}
    assert_same_bits(name, function(advantage, rubbish), clean)
    assert not clean[~batch["mask"]].any()


@given(batches(), st.sampled_from([VERL_WHITENING, OPENRLHF_WHITENING, AREAL_WHITENING]), st.booleans(), st.booleans())
def test_whitening_agrees_with_the_reference(batch, statistics, keep_mean, some):
    counted = batch["other"] > 0 if some else None
    ours = advantage.whiten(batch["values"], batch["mask"], statistics=statistics, keep_mean=keep_mean, counted=counted)
    options = dict(ddof=statistics.ddof, eps=statistics.eps, eps_in=statistics.eps_in)
    slow = reference.whiten(batch["values"], batch["mask"], keep_mean=keep_mean, counted=counted, **options)
    torch.testing.assert_close(ours, slow, rtol=1e-9, atol=1e-9)
    rubbish = torch.where(batch["mask"], batch["values"], float("nan"))
    assert_same_bits("mask", advantage.whiten(rubbish, batch["mask"], statistics=statistics, keep_mean=keep_mean, counted=counted), ours)


@given(batches())
def test_whitened_numbers_have_mean_0_and_variance_1(batch):
    trained = advantage.whiten(batch["values"], batch["mask"])[batch["mask"]]
    if len(trained) > 1:
        assert abs(float(trained.mean())) < 1e-9 and abs(float(trained.var()) - 1) < 1e-4
    no_eps = Whitening(eps=1e-30)
    shifted = advantage.whiten(3.0 * batch["values"] + 100.0, batch["mask"], statistics=no_eps)
    torch.testing.assert_close(shifted, advantage.whiten(batch["values"], batch["mask"], statistics=no_eps), rtol=1e-9, atol=1e-9)


@given(st.floats(-1e6, 1e6), st.integers(2, 40))
def test_equal_numbers_whiten_to_exactly_zero(number, size):
    values = torch.full((size,), number, dtype=torch.float64)  # whose sum over size is not always the number
    assert not advantage.whiten(values, all_trained(values)).any()
    assert_same_bits("kept mean", advantage.whiten(values, all_trained(values), keep_mean=True), values)


@given(batches(), st.booleans(), st.sampled_from(["raw", "zero"]))
def test_the_optimal_token_baseline_agrees_with_the_reference(batch, compact, singleton):
    log_probs, squares = -batch["values"].abs(), batch["other"].sigmoid()
    group = [row // 2 for row in range(len(log_probs))]
    options = dict(count_trained_tokens=compact, singleton=singleton, importance_weights=batch["other"].exp())
    arguments = (batch["rewards"], torch.tensor(group), log_probs, squares, batch["mask"])
    ours = advantage.optimal_token_baseline_advantages(*arguments, **options)
    slow = reference.optimal_token_baseline_advantages(batch["rewards"], group, *arguments[2:], **options)
    # Both divide by the grown size + 1e-8, which may be near 0 or pass through it.
    torch.testing.assert_close(ours, slow, rtol=1e-7, atol=1e-7)
    rubbish = [torch.where(batch["mask"], value, float("nan")) for value in (batch["rewards"], log_probs, squares)]
    again = advantage.optimal_token_baseline_advantages(rubbish[0], torch.tensor(group), *rubbish[1:], batch["mask"], **options)
    assert_same_bits("mask", again, ours)
    if compact:
        whose = torch.arange(len(log_probs)).unsqueeze(1).expand(log_probs.shape)
        flat = [value.flatten() for value in (batch["rewards"], whose // 2, log_probs, squares, batch["mask"])]
        weights = options["importance_weights"].flatten()
        packed = advantage.optimal_token_baseline_advantages(
            *flat, sequence_ids=whose.flatten(), count_trained_tokens=True, singleton=singleton, importance_weights=weights
        )
        assert_same_bits("packed", packed, ours.flatten())


@given(batches(), st.booleans())
def test_segments_agree_with_the_reference(batch, with_start):
    cuts, scores = batch["other"] > 0.3, batch["rewards"][:, 0]
    known = batch["rewards"][:, -1] > 0
    start = dict(start_values=batch["values"][:, 0], start_known=known) if with_start else {}
    ours = advantage.segment_advantages(batch["values"], cuts, scores, batch["mask"], **start)
    slow = reference.segment_advantages(batch["values"], cuts, scores, batch["mask"], **start)
    torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-12)
    log_probs = -batch["other"].abs()
    for one, other in zip(
        advantage.low_probability_cuts(log_probs, batch["mask"], every=2), reference.low_probability_cuts(log_probs, batch["mask"], every=2)
    ):
        assert torch.equal(one, other)


@given(batches())
def test_reinforce_plus_plus_is_its_parts(batch):
    returns = advantage.token_returns(batch["rewards"], batch["mask"], gamma=0.9)
    whole = advantage.reinforce_plus_plus_advantages(batch["rewards"], batch["mask"], gamma=0.9)
    torch.testing.assert_close(whole, advantage.whiten(returns, batch["mask"]), rtol=1e-12, atol=1e-12)
    scores, ids = batch["rewards"][:, 0], advantage.step_ids(batch["mask"])
    group = torch.arange(len(scores)) // 2
    valid = torch.arange(len(scores)) != 1
    ours = advantage.reinforce_plus_plus_baseline_advantages(scores, group, ids, valid=valid)
    trained = batch["mask"] & valid.unsqueeze(1)
    rows = advantage.group_advantages(scores, group, valid=valid)
    torch.testing.assert_close(ours, advantage.whiten(rows.unsqueeze(1).expand(ids.shape), trained), rtol=1e-12, atol=1e-12)


def test_float32_is_rounded_once():
    generator = torch.Generator().manual_seed(1)
    rewards, values = (torch.randn(3, 400, generator=generator) for _ in range(2))
    mask = torch.rand(3, 400, generator=generator) < 0.7
    for one, other in zip(
        advantage.gae_advantages(rewards, values, mask, gamma=0.999, lam=0.95),
        reference.gae_advantages(rewards, values, mask, gamma=0.999, lam=0.95),
    ):
        assert one.dtype == torch.float32
        assert ((one.double() - other).abs() <= 2.0**-24 * other.abs() + 1e-12).all()
    long = advantage.token_returns(rewards, mask)
    exact = reference.token_returns(rewards, mask)
    assert ((long.double() - exact).abs() <= 2.0**-24 * exact.abs() + 1e-12).all()


def test_without_full_validation_a_nan_stays_in_its_sequence():
    from gigpo_fast import validation

    rewards, ids = torch.tensor([1.0, float("nan"), 2.0, 3.0]), torch.tensor([0, 1, 1, 0])
    mask = torch.ones(4, dtype=torch.bool)
    with validation("metadata"):
        returns = advantage.token_returns(rewards, mask, sequence_ids=ids)
        both = advantage.gae_advantages(rewards, torch.zeros(4), mask, sequence_ids=ids)
    assert returns.isnan().tolist() == [False, True, False, False] and both.advantages.isnan().tolist() == [False, True, False, False]
    assert returns[[0, 3]].tolist() == [4.0, 3.0]
