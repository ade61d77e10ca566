"""The estimators of one number a row: the papers' worked numbers, agreement with the float64 loops, and relations that always hold."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import advantage
from gigpo_fast.advantage import CORRECTED, ROLL, SPO_TREE, TRL, VERL, GroupStatistics
from gigpo_fast.reference import estimators as reference
from tests.tolerance import assert_same_bits

ONE = torch.zeros(4, dtype=torch.int64)
NO_EPS = GroupStatistics(eps=0.0)
POPULATION = GroupStatistics(eps=0.0, ddof=0)


def near(actual, expected, tolerance=2e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0.0, atol=tolerance)


def rows(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_worked_numbers_of_standardised_scores():
    near(advantage.group_advantages(rows(2, 1, 1, 0), ONE, scale="std", statistics=TRL), [1.2245949, 0, 0, -1.2245949])  # TON
    near(advantage.group_advantages(rows(3, 2, 1, 0), ONE, scale="std", statistics=TRL), [1.161805, 0.387268, -0.387268, -1.161805])
    near(advantage.group_advantages(rows(1, 0, 0, 0), ONE, scale="std"), [1.499997, -0.499999, -0.499999, -0.499999])  # Vision-R1
    near(advantage.group_advantages(rows(1, 1, 0, 0), ONE, scale="std", statistics=VERL), [0.866024, 0.866024, -0.866024, -0.866024])
    two, four = rows(2.5, 0.5, 2, 0), GroupStatistics(eps=0.0, ddof=0)  # MMaDA
    near(advantage.group_advantages(two, ONE, scale="std", statistics=four), [1.212678, -0.727607, 0.727607, -1.212678])
    near(advantage.group_advantages(two, ONE, scale="std", statistics=NO_EPS), [1.050210, -0.630126, 0.630126, -1.050210])


def test_worked_numbers_of_leave_one_out():
    regularised = rows(1, 0, 0.5) - 0.5 * rows(0.2, -0.1, 0)  # CoPG, three samples
    near(advantage.leave_one_out_advantages(regularised, ONE[:3]), [0.625, -0.65, 0.025])
    near(advantage.leave_one_out_advantages(rows(0.5, -0.2), ONE[:2]), [0.7, -0.7])  # HyPO's baseline
    # Others of the first row: 0, 0 and 3: mean 1, deviation sqrt(3). Of the last: 1, 0, 0: mean 1/3, deviation 1/sqrt(3).
    found = advantage.scaled_leave_one_out_advantages(rows(1, 0, 0, 3), ONE, eps=0.0)
    near(found[[0, 3]], [0.0, (3 - 1 / 3) * math.sqrt(3)])
    others = advantage.leave_one_out_moments(rows(1, 0, 0, 3), ONE)
    near(others.mean[[0, 3]], [1.0, 1 / 3])
    near(others.std[[0, 3]], [math.sqrt(3), 1 / math.sqrt(3)])
    # The others of the only right answer are all wrong: the difference stays as it is.
    assert advantage.scaled_leave_one_out_advantages(rows(1, 0, 0, 0), ONE)[0] == 1.0


def test_worked_numbers_of_several_rewards():
    rewards, weights = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]]), [0.7, 0.3]
    wide = rewards.double()
    summed = (wide * torch.tensor(weights, dtype=torch.float64)).sum(1)
    near(advantage.group_advantages(summed, ONE, scale="std", statistics=NO_EPS), [0.4548588, -0.4548588, 1.1371471, -1.1371471])
    near(advantage.normalised_sum(wide, ONE, weights=weights, statistics=NO_EPS), [0.3464102, -0.3464102, 0.8660254, -0.8660254])
    whole = advantage.gdpo_advantages(wide, ONE, weights=weights, statistics=NO_EPS)
    total = rows(0.3464102, -0.3464102, 0.8660254, -0.8660254)
    near(whole, total / total.std())
    near(advantage.gdpo_advantages(rewards, ONE), [0, 0, math.sqrt(1.5), -math.sqrt(1.5)], 1e-5)  # two equal z-scores and two opposite


def test_worked_numbers_of_length_and_count():
    # Baseline (1*1 + 0*3 + 2*0 + 1*0) / 4: OPO with lengths 1, 3, 0 and 0.
    near(advantage.opo_advantages(rows(1, 0, 2, 1), torch.tensor([1, 3, 0, 0]), ONE), [0.75, -0.25, 1.75, 0.75])
    group = torch.tensor([0, 0, 1, 1])
    near(advantage.gpg_advantages(rows(1, 0, 1, 1), group), [1.0, -1.0, 0.0, 0.0])  # half the rows teach: alpha 2
    near(advantage.gpg_advantages(rows(1, 0, 1, 1), group, rescale="nonzero_scores"), [2 / 3, -2 / 3, 0.0, 0.0])
    near(advantage.gpg_advantages(rows(1, 0, 1, 1), group, rescale=None, normaliser=0.25), [2.0, -2.0, 0.0, 0.0])
    near(advantage.maxrl_advantages(rows(1, 0, 0, 0), ONE), [3.0, -1.0, -1.0, -1.0])
    near(advantage.maxrl_advantages(rows(-1, 0, 0, 0), ONE), [0.0] * 4)
    near(advantage.normalise(rows(3, 1, 2, 2), mean_over="batch", std_over=None), [1.0, -1.0, 0.0, 0.0])


def test_worked_numbers_of_soft_and_shifted_baselines():
    eight = torch.zeros(8, dtype=torch.int64)
    near(advantage.soft_values(rows(1, 1, 0, 0, 0, 0, 0, 0), eight, temperature=0.5), [0.477229297] * 8)  # V* of A*-PO
    near(advantage.soft_values(rows(1e6, 0, 0, 0), ONE, temperature=0.1), [1e6 - 0.1 * math.log(4)] * 4)  # nothing overflows
    near(advantage.soft_baseline_advantages(rows(1, 0, 0, 0), ONE, shift=-0.1), [0.85, -0.15, -0.15, -0.15])  # AsymRE
    two = advantage.soft_baseline_advantages(rows(1, 0), ONE[:2], temperature=1.0)  # log((e + 1) / 2)
    near(two, [1 - math.log((math.e + 1) / 2), -math.log((math.e + 1) / 2)])
    alone = dict(shift=-0.1, statistics=VERL)
    near(advantage.soft_baseline_advantages(rows(0.3), ONE[:1], **alone), [0.3])  # the lone score itself, without the shift
    near(advantage.soft_baseline_advantages(rows(0.3), ONE[:1], shift=-0.1), [0.0])


def test_worked_numbers_of_the_best_of_k():
    near(advantage.max_at_k_advantages(rows(1, 3, 2, 0), ONE), [0.0, 1.0, 0.0, 0.0])  # best minus second best
    near(advantage.max_at_k_advantages(rows(1, 3, 2, 0), ONE, k=2), [1 / 6, 1.0, 0.5, 0.0])
    deviation = math.sqrt(5 / 3) + 1e-6
    near(advantage.max_at_k_advantages(rows(1, 3, 2, 0), ONE, scale="std"), [0.0, 1 / deviation, 0.0, 0.0])
    near(advantage.max_at_k_advantages(rows(3, 3, 2, 0), ONE), [0.0] * 4)  # a shared best adds nothing
    # One right of four, pairs: R = 1/2, s = 1/2; a wrong one is in a winning pair once in three.
    near(advantage.pass_at_k_advantages(rows(1, 0, 0, 0), ONE, k=2), [1.0, -1 / 3, -1 / 3, -1 / 3])
    near(advantage.pass_at_k_advantages(rows(1, 1, 1, 0), ONE, k=2), [0.0] * 4)  # every pair wins
    plain = advantage.group_advantages(rows(1, 0, 0, 0), ONE, scale="std", statistics=POPULATION)
    near(advantage.pass_at_k_advantages(rows(1, 0, 0, 0), ONE, k=1), plain)


def test_worked_numbers_of_ranks():
    near(advantage.rank_advantages(rows(9, 5, 1, 0), ONE), [0.5, 1 / 6, -1 / 6, -0.5])
    near(advantage.rank_advantages(rows(9, 5, 1, 0), ONE, top=1), [1.0, -1 / 3, -1 / 3, -1 / 3])
    near(advantage.rank_advantages(rows(9, 5, 1, 0), ONE, top=2), [0.6, 0.2, -0.4, -0.4])


def test_worked_numbers_of_a_running_baseline():
    found = advantage.running_baseline_advantages(rows(1, 1), torch.tensor([0, 0]), torch.zeros(1), decay=0.9)
    near(found.advantages, [1.0, 0.9])
    near(found.baselines, [0.19])


def test_worked_numbers_of_semantic_entropy():
    cluster = ["a", "a", "b", "c"]
    rao = advantage.semantic_entropy(cluster, ONE)
    mean = advantage.semantic_entropy(cluster, ONE, expected=False)
    near(rao, [1.0397208] * 4)
    near(mean, [1.1552453] * 4)
    count = advantage.group_moments(rows(1, 0, 0, 0), ONE).count
    near(advantage.uncertainty_weights(rao, count, alpha=0.5), [0.625] * 4)
    near(advantage.uncertainty_weights(rao, count, alpha=0.5, decay=lambda x: torch.exp(-x)), [0.6872893] * 4)
    near(advantage.uncertainty_weights(rao, count, alpha=0.5, decay=lambda x: 1 / (1 + x)), [0.7272727] * 4)
    centred = advantage.group_advantages(rows(1, 0, 0, 0), ONE)
    near(centred * advantage.uncertainty_weights(mean, count), [0.7375, -0.2458333, -0.2458333, -0.2458333])
    raw = advantage.semantic_entropy(cluster, ONE, log_probs=rows(-60, -55, -70, -65), normalised=False, expected=False)
    near(raw, [63.331095] * 4)
    near(advantage.uncertainty_weights(raw, count), [0.0863254] * 4)


def test_worked_numbers_of_trees():
    tree = torch.tensor([-1, 0, 0, 0, 0])
    near(advantage.tree_values(rows(7, 1, 0, 1, 1), tree, depth=1), [0.75, 1, 0, 1, 1])
    values = advantage.tree_values(rows(7, 1, 0, 1, 1), tree, depth=1)
    near(advantage.tree_advantages(values, tree), [0.0, 0.25, -0.75, 0.25, 0.25])
    near(advantage.tree_advantages(values, tree, scale="std"), [0.0, 0.577350, -1.732051, 0.577350, 0.577350])
    # A branch that ends early: the root's value is the mean of 1 and 0.5, not of the three leaves.
    early = torch.tensor([-1, 0, 0, 2, 2])
    near(advantage.tree_values(rows(0, 1, 0, 1, 0), early, depth=2)[0], 0.75)
    near(advantage.tree_advantages(rows(0.75, 1, 0.5, 1, 0), early, best_of=4)[1], 1 - (1 - 0.25**4))


def test_worked_numbers_of_nested_contexts():
    """Two trajectories through a, b and c, b: state b has two visits, with different pasts."""
    returns, trajectory = torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.tensor([0, 0, 1, 1])
    same_past = advantage.hgpo_advantages(returns, trajectory, ONE, ["a", "b", "a", "b"], gamma=0.0, history=1)
    # b: length 1 (weight 2) and length 2 (weight 3) both compare 1 with 0.
    near(same_past.advantages, [0.0, 0.5, 0.0, -0.5])
    other_past = advantage.hgpo_advantages(returns, trajectory, ONE, ["a", "b", "c", "b"], gamma=0.0, history=1)
    near(other_past.advantages, [0.0, 0.5, 0.0, -0.5])  # the lone longer context drops out
    short = advantage.hgpo_advantages(
        rows(0, 1, 0, 0, 0.2), torch.tensor([0, 0, 1, 1, 2]), torch.zeros(5, dtype=torch.int64), ["a", "b", "c", "b", "b"], gamma=0.0
    )
    near(short.advantages, [0.0, 0.6, 0.0, -0.4, -0.2])  # no step has three states behind it, so none is compared by three
    with_episode = advantage.hgpo_advantages(
        returns, trajectory, ONE, ["a", "b", "c", "b"], gamma=0.0, history=1, episode_scores=torch.tensor([1.0, 1.0, 0.0, 0.0])
    )
    near(with_episode.advantages, [0.5, 0.5, -0.5, -0.5])
    near(with_episode.episode, [0.5, 0.5, -0.5, -0.5])


def test_agents_of_a_task_apart():
    task, agent = torch.tensor([0, 0, 0, 0]), ["planner", "solver", "planner", "solver"]
    group = advantage.combined_labels(task, agent)
    assert group[0] == group[2] and group[1] == group[3] and group[0] != group[1]
    near(advantage.group_advantages(rows(1, 10, 0, 20), group), [0.5, -5.0, -0.5, 5.0])


SCORES = st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.5, -0.3, 2.0, 9.9])
ROWS = {
    "scaled_leave_one_out": (advantage.scaled_leave_one_out_advantages, reference.scaled_leave_one_out_advantages, {}),
    "gpg": (advantage.gpg_advantages, reference.gpg_advantages, {}),
    "gpg_as_verl": (advantage.gpg_advantages, reference.gpg_advantages, dict(rescale="nonzero_scores", singleton="raw", normaliser=2.0)),
    "maxrl": (advantage.maxrl_advantages, reference.maxrl_advantages, {}),
    "max_at_n": (advantage.max_at_k_advantages, reference.max_at_k_advantages, dict(statistics=VERL)),
    "max_at_3": (advantage.max_at_k_advantages, reference.max_at_k_advantages, dict(k=3, scale="std", statistics=TRL)),
    "pass_at_2": (advantage.pass_at_k_advantages, reference.pass_at_k_advantages, dict(k=2)),
    "pass_at_4": (advantage.pass_at_k_advantages, reference.pass_at_k_advantages, dict(k=4, eps=1e-3)),
    "rank": (advantage.rank_advantages, reference.rank_advantages, {}),
    "rank_top_2": (advantage.rank_advantages, reference.rank_advantages, dict(top=2)),
}
for _mean in ("group", "batch", None):
    for _std in ("group", "batch", None):
        for _extra in (
            dict(statistics=ROLL),
            dict(leave_one_out=True, around_mean=True, statistics=GroupStatistics(singleton="raw", ddof=0)),
        ):
            _options = dict(mean_over=_mean, std_over=_std, **_extra)
            ROWS[f"normalise_{_mean}_{_std}_{len(_extra)}"] = (advantage.normalise, reference.normalise, _options)


@st.composite
def batches(draw):
    size = draw(st.integers(1, 12))
    column = lambda element: draw(st.lists(element, min_size=size, max_size=size))  # noqa: E731
    scores = torch.tensor(column(SCORES), dtype=torch.float64)
    return dict(scores=scores, group=torch.tensor(column(st.integers(0, 2))), valid=torch.tensor(column(st.integers(0, 4))) > 0)


@pytest.mark.parametrize("name", ROWS)
@given(batches())
def test_agrees_with_the_reference(name, batch):
    function, slow, options = ROWS[name]
    # Deviations that are 0 but for the rounding of a mean are divided by eps = 1e-6, which leaves 1e-9.
    torch.testing.assert_close(function(**batch, **options), slow(**batch, **options), rtol=1e-9, atol=1e-8)


@given(batches(), st.sampled_from([None, 0.05, 0.7, 20.0]), st.sampled_from([0.0, -0.1]))
def test_soft_baselines_agree_with_the_reference(batch, temperature, shift):
    for statistics in (CORRECTED, VERL):
        options = dict(temperature=temperature, shift=shift, statistics=statistics)
        slow = reference.soft_baseline_advantages(**batch, **options)
        torch.testing.assert_close(advantage.soft_baseline_advantages(**batch, **options), slow, rtol=1e-9, atol=1e-9)
    order = torch.randperm(len(batch["scores"]), generator=torch.Generator().manual_seed(0))
    if temperature is not None:
        ours = advantage.soft_values(**batch, temperature=temperature)
        torch.testing.assert_close(ours, reference.soft_values(**batch, temperature=temperature), rtol=1e-9, atol=1e-9)
        again = advantage.soft_values(**{name: value[order] for name, value in batch.items()}, temperature=temperature)
        assert torch.equal(again, ours[order])


@given(batches(), st.lists(st.integers(0, 5), min_size=12, max_size=12))
def test_opo_agrees_with_the_reference(batch, lengths):
    lengths = torch.tensor(lengths[: len(batch["scores"])])
    for statistics in (CORRECTED, VERL):
        ours = advantage.opo_advantages(batch["scores"], lengths, batch["group"], statistics=statistics, valid=batch["valid"])
        slow = reference.opo_advantages(batch["scores"], lengths, batch["group"], statistics=statistics, valid=batch["valid"])
        torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-12)
    if bool((lengths == lengths[0]).all()) and lengths[0] > 0:
        plain = advantage.group_advantages(**batch)
        torch.testing.assert_close(advantage.opo_advantages(batch["scores"], lengths, batch["group"], valid=batch["valid"]), plain)


@given(batches(), st.integers(1, 3), st.booleans())
def test_several_rewards_agree_with_the_reference(batch, columns, sparse):
    wide = torch.stack([batch["scores"] * (k + 1) - k * batch["scores"].flip(0) for k in range(columns)], 1)
    valid = (torch.arange(wide.numel()).view(wide.shape) % 3 > 0) if sparse else batch["valid"]
    weights = [0.5, 2.0, 1.0][:columns]
    ours = advantage.normalised_sum(wide, batch["group"], weights=weights, valid=valid)
    torch.testing.assert_close(ours, reference.normalised_sum(wide, batch["group"], weights=weights, valid=valid), rtol=1e-9, atol=1e-8)


@given(batches(), st.lists(st.integers(0, 2), min_size=12, max_size=12), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_running_baselines_agree_with_the_reference(batch, agents, decay):
    agent, start = torch.tensor(agents[: len(batch["scores"])]), torch.tensor([0.0, 0.5, -1.0])
    ours = advantage.running_baseline_advantages(batch["scores"], agent, start, decay=decay, valid=batch["valid"])
    slow = reference.running_baseline_advantages(batch["scores"], agent, start, decay=decay, valid=batch["valid"])
    torch.testing.assert_close(ours.advantages, slow[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.baselines, slow[1], rtol=1e-12, atol=1e-12)


@given(batches(), st.lists(st.integers(0, 2), min_size=12, max_size=12), st.booleans(), st.booleans())
def test_semantic_entropy_agrees_with_the_reference(batch, clusters, expected, given_log_probs):
    cluster = torch.tensor(clusters[: len(batch["scores"])])
    log_probs = -5.0 - batch["scores"] if given_log_probs else None
    for normalised in (True, False) if given_log_probs else (True,):
        options = dict(log_probs=log_probs, normalised=normalised, expected=expected, valid=batch["valid"])
        ours = advantage.semantic_entropy(cluster, batch["group"], **options)
        torch.testing.assert_close(ours, reference.semantic_entropy(cluster, batch["group"], **options), rtol=1e-9, atol=1e-9)


@given(batches(), st.lists(st.integers(-1, 1), min_size=12, max_size=12), st.integers(0, 3), st.sampled_from([None, "std"]))
def test_nested_contexts_agree_with_the_reference(batch, states, history, scale):
    size = len(batch["scores"])
    anchor, trajectory = torch.tensor(states[:size]), batch["group"] * 3 + torch.arange(size) % 2
    step = torch.arange(size).flip(0)
    valid = batch["valid"] & (anchor != -1)
    options = dict(gamma=0.9, history=history, length_exponent=1.5, scale=scale, statistics=POPULATION, step=step, valid=valid)
    ours = advantage.hgpo_advantages(batch["scores"], trajectory, batch["group"], anchor, **options)
    slow = reference.hgpo_advantages(batch["scores"], trajectory, batch["group"], anchor, **options)
    torch.testing.assert_close(ours.advantages, slow, rtol=1e-7, atol=1e-7)  # returns equal but for rounding, over a deviation of 1e-16
    torch.testing.assert_close(ours.step, ours.advantages)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.integers(0, 99))
def test_trees_agree_with_the_reference(choices, seed):
    parent = torch.tensor([-1, *(choice % (place + 1) for place, choice in enumerate(choices))])
    scores = torch.randn(len(parent), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = advantage.tree_values(scores, parent, depth=len(parent))
    torch.testing.assert_close(values, reference.tree_values(scores, parent), rtol=1e-12, atol=1e-12)
    gaps = torch.where(parent >= 0, values - values[parent.clamp(min=0)], 0.0)
    torch.testing.assert_close(advantage.tree_advantages(values, parent), gaps, rtol=1e-12, atol=1e-12)
    assert SPO_TREE.ddof == 0


@pytest.mark.parametrize("name", ROWS)
@given(batches(), st.randoms(use_true_random=False))
def test_order_names_and_invalid_rows_do_not_matter(name, batch, random):
    function, _, options = ROWS[name]
    batch = {**batch, "scores": batch["scores"].float()}
    result = function(**batch, **options)
    order = list(range(len(result)))
    random.shuffle(order)
    shuffled = function(**{key: value[order] for key, value in batch.items()}, **options)
    torch.testing.assert_close(shuffled, result[order], rtol=1e-6, atol=1e-6)
    renamed = function(batch["scores"], [f"task {label}" for label in batch["group"].tolist()], valid=batch["valid"], **options)
    assert_same_bits("renamed", renamed, result)
    rubbish = torch.where(batch["valid"], batch["scores"], float("nan"))
    elsewhere = torch.where(batch["valid"], batch["group"], 77)
    assert_same_bits("rubbish", function(rubbish, elsewhere, valid=batch["valid"], **options), result)
    assert not result[~batch["valid"]].any()


CENTRED = ["scaled_leave_one_out", "gpg", "max_at_n", "max_at_3", "pass_at_2", "rank", "normalise_group_group_1", "normalise_batch_None_1"]


@pytest.mark.parametrize("name", CENTRED)
@given(batches(), st.sampled_from([-4.0, 0.5, 64.0]))
def test_a_constant_in_every_score_changes_nothing(name, batch, shift):
    function, _, options = ROWS[name]
    if options.get("statistics") is VERL:
        options = {**options, "statistics": CORRECTED}  # a lone row's raw score does move
    moved = function(batch["scores"] + shift, batch["group"], valid=batch["valid"], **options)
    torch.testing.assert_close(moved, function(**batch, **options), rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", ["pass_at_2", "rank", "maxrl", "normalise_group_group_1"])
@given(batches(), st.sampled_from([0.25, 8.0]))
def test_a_factor_in_every_score_changes_nothing(name, batch, factor):
    function, _, options = ROWS[name]
    options = {**options, **(dict(statistics=NO_EPS) if "statistics" in options else {})}
    scaled = function(batch["scores"] * factor, batch["group"], valid=batch["valid"], **options)
    torch.testing.assert_close(scaled, function(**batch, **options), rtol=1e-9, atol=1e-9)


SUBTRACTING = [name for name, (*_, options) in ROWS.items() if options.get("mean_over", "group") is not None]


@pytest.mark.parametrize("name", SUBTRACTING)
@pytest.mark.parametrize("score", [0.1, 9.9, -0.3])
@pytest.mark.parametrize("size", [3, 7, 16])
def test_constant_groups_give_exactly_zero(name, score, size):
    function, _, options = ROWS[name]
    result = function(torch.full((size,), score), torch.zeros(size, dtype=torch.int64), **options)
    assert not result.any()
    if name.startswith("max_at") or name.startswith("pass"):  # ties at the top, exactly
        pair = torch.tensor([score, score, score - 1.0] * size)
        assert not advantage.max_at_k_advantages(pair, torch.zeros(3 * size, dtype=torch.int64)).any()


@pytest.mark.parametrize("name", ROWS)
def test_a_group_of_one_and_dtypes(name):
    function, _, options = ROWS[name]
    alone = function(torch.tensor([3.0]), torch.tensor([5]), **options)
    raw = options.get("singleton") == "raw" or getattr(options.get("statistics"), "singleton", "") == "raw"
    if name.startswith("gpg"):
        wanted = 1.5 if raw else 0.0
    elif options.get("mean_over", "group") is None and options.get("std_over", "group") is None:
        wanted = 3.0
    else:
        wanted = 3.0 if raw else 0.0
    near(alone, [wanted], 1e-5)
    assert alone.dtype == torch.float32 and function(torch.tensor([3.0]).double(), torch.tensor([5]), **options).dtype == torch.float64
    assert function(torch.zeros(0), torch.zeros(0, dtype=torch.int64), **options).shape == (0,)
    assert function(torch.tensor([True, False]), ONE[:2], **options).dtype == torch.float32
