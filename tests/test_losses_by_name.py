"""Losses by name, by numbers worked out by hand, and what others stumbled over."""

import math

import pytest
import torch

from gigpo_fast import advantage
from gigpo_fast.loss import policy_loss
from gigpo_fast.objective import (
    CISPO,
    AveragedRatio,
    ClipB,
    ClipV,
    FutureKL,
    NegativeLogLikelihood,
    NoRatio,
    PolicyObjective,
    RatioRegion,
    Scheduled,
    Sequences,
    TokenBatch,
    TokenRatio,
    TokenSum,
    WarmupCosine,
    Weighted,
    proximal_log_probs,
)
from gigpo_fast.recipes import recipe
from tests.loss_helpers import make_batch, run_policy

LN2 = math.log(2.0)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def factors(weighting, log_probs, A, mask=None, **keywords):
    """The factor of every token: minus the gradient of a weighted likelihood's sum."""
    leaf = log_probs.clone().requires_grad_()
    mask = torch.ones_like(log_probs, dtype=torch.bool) if mask is None else mask
    objective = PolicyObjective(NoRatio(), Weighted(NegativeLogLikelihood(), weighting), aggregation=TokenSum())
    if weighting.needs_entropy:
        keywords["entropy"] = keywords["entropy"].expand_as(leaf)
    policy_loss(leaf, A.expand_as(log_probs), mask, objective=objective, **keywords).loss.backward()
    return -leaf.grad


def future(log_ratio, mask=None, A=1.0, positions=None, **settings):
    log_ratio = rows(log_ratio)
    positions = torch.arange(log_ratio.shape[1])[None] if positions is None else torch.tensor([positions])
    given = {"old_log_probs": torch.full_like(log_ratio, -2.0), "extras": {"position_ids": positions}}
    mask = None if mask is None else torch.tensor([mask])
    return factors(FutureKL(**settings), log_ratio - 2.0, torch.tensor(A, dtype=torch.float64), mask, **given)[0].tolist()


def test_fipo_weighs_a_token_by_what_follows():
    """Log-ratios .1, -.2, .3 and a half-life of 32: F = .1915666, .0935716, .3, and nothing above 1.2."""
    sums = [math.log(weight) for weight in future([0.1, -0.2, 0.3], clip=None, safety=None)]
    assert sums == pytest.approx([0.1915666, 0.09357162, 0.3], abs=5e-8)
    assert future([0.1, -0.2, 0.3]) == pytest.approx([1.2, 1.098089, 1.2], abs=5e-7)


def test_fipo_never_weighs_a_token_less_unless_asked():
    assert future([-0.5, -0.5, 0.0]) == [1.0, 1.0, 1.0]
    assert future([-0.5, -0.05, 0.0], both_sides=True) == pytest.approx([0.8, math.exp(-0.05), 1.0])


def test_fipo_counts_the_positions_of_masked_tokens():
    """Half-life 1: over one masked token the third counts a quarter, packed or not; without positions it would count half."""
    over = future([0.4, 9.0, 0.4], [True, False, True], half_life=1, clip=None, safety=None)
    packed = future([0.4, 0.4], half_life=1, clip=None, safety=None, positions=[0, 2])
    assert over == pytest.approx([math.exp(0.5), 0.0, math.exp(0.4)]) and packed == pytest.approx([math.exp(0.5), math.exp(0.4)])


def test_fipo_distrusts_bad_tokens_that_rose():
    bad = future([LN2, 0.4], A=-1.0, safety=1.5)
    assert bad == pytest.approx([1.0, 1.2]) and future([LN2, 0.4], safety=1.5) == pytest.approx([1.2, 1.2])
    limited = future([0.1, LN2], half_life=1, clip=None, safety=None, ratio_limit=1.5)
    assert limited == pytest.approx([math.exp(0.1), 1.0])  # the ratio of 2 is in nobody's future, nor in its own


def test_fipo_of_long_sequences_in_any_order():
    """A thousand tokens of two sequences, mixed and shuffled, against a loop."""
    g = torch.Generator().manual_seed(0)
    n = 1000
    values, ids, shuffled = 0.1 * torch.randn(n, generator=g, dtype=torch.float64), torch.arange(n) % 2, torch.randperm(n, generator=g)
    want, running = torch.zeros(n, dtype=torch.float64), [0.0, 0.0]
    for place in reversed(range(n)):
        running[place % 2] = values[place] + 0.5 ** (2 / 3) * running[place % 2]
        want[place] = running[place % 2]
    old, extras = torch.full((n,), -2.0, dtype=torch.float64), {"position_ids": torch.arange(n)[shuffled]}
    keywords = {"old_log_probs": old, "extras": extras, "sequence_ids": ids[shuffled]}
    found = factors(FutureKL(3, None, safety=None), values[shuffled] - 2.0, old, **keywords)
    assert torch.allclose(found.log(), want[shuffled], atol=1e-12)


def test_what_these_blocks_refuse():
    with pytest.raises(TypeError, match="RatioRegion: level must be a Level block such as TokenLevel"):
        RatioRegion(level="sequence")
    with pytest.raises(ValueError, match="FutureKL: half_life must be an int >= 1, got 0; 32 is the paper's decay rate"):
        FutureKL(0)
    ones = torch.ones(2, dtype=torch.float64)
    cut = Sequences(torch.zeros(2, dtype=torch.int64), torch.tensor([4.0]), group_name="ranks")
    batch = TokenBatch(-ones, None, ones, -ones, None, ones, cut, {"position_ids": torch.arange(2)}, None)
    with pytest.raises(ValueError, match="FutureKL: sequences must lie on one rank, got sequences that are cut over ranks; gather them"):
        FutureKL().factor(batch)


def real(log_ratio, correct, group, groups):
    log_ratio = rows(*([value] for value in log_ratio))
    extras = {"group_ids": torch.tensor(group)[:, None], "correct": torch.tensor(correct)[:, None]}
    leaf = (log_ratio - 1.0).requires_grad_()
    given = {"old_log_probs": torch.full_like(log_ratio, -1.0), "extras": extras, "denominator": groups}
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    loss = policy_loss(leaf, torch.zeros_like(leaf), mask, objective=recipe("real").objective, **given).loss
    loss.backward()
    return float(loss.detach()), leaf.grad[:, 0].tolist()


def test_real_classifies_a_group():
    value, gradient = real([0.2, -0.1, 0.3, 0.0], [True, True, False, False], [0] * 4, 1.0)
    assert value == pytest.approx(2.402657379, abs=5e-9)
    goods, bads = 1 + math.exp(-0.4) + math.exp(0.2), 1 + math.exp(0.6) + 1
    want = [-2 * math.exp(-0.4) / goods, -2 * math.exp(0.2) / goods, 2 * math.exp(0.6) / bads, 2 / bads]
    assert gradient == pytest.approx(want)


def test_real_counts_the_groups_that_it_skips():
    """A second group of right answers alone adds nothing and halves the mean."""
    value, gradient = real([0.2, -0.1, 0.3, 0.0, 5.0, 5.0], [True, True, False, False, True, True], [0] * 4 + [1] * 2, 2.0)
    assert value == pytest.approx(2.402657379 / 2, abs=5e-9) and gradient[4:] == [0.0, 0.0]
    assert math.isfinite(real([900.0, -900.0], [False, True], [0, 0], 1.0)[0])


def test_clip_b_drops_bad_tokens_of_low_discriminator():
    """S = 0, 0, .7358, -.3679: mean .0920, population deviation .4009."""
    log_probs, entropy = rows([-1.0] * 4), rows([1.0, 1.0, 3.0, 0.0])
    bad, zero = rows([-1.0] * 4), rows([-1.0, -1.0, -1.0, 0.0])
    assert factors(ClipB(1.0), log_probs, bad, entropy=entropy)[0].tolist() == [1, 1, 1, 0]
    assert factors(ClipB(1.2), log_probs, bad, entropy=entropy)[0].tolist() == [1, 1, 1, 1]
    assert factors(ClipB(1.0), log_probs, zero, entropy=entropy)[0].tolist() == [1, 1, 1, 1]


def test_clip_v_is_not_centred_and_drops_tokens_without_advantage():
    """x = 1, 1, 1, 1.2 lies above 2 deviations of .0866 although hardly any lies above the mean."""
    given = {"entropy": rows([1.0] * 4), "extras": {"expected_discriminator": rows([1.0, 1.0, 1.0, 1.2])}}
    A = rows([-1.0, 0.0, 1.0, -1.0])
    assert factors(ClipV(2.0, 1.0), rows([-1.0] * 4), A, **given)[0].tolist() == [0, 0, 1, 0]
    assert factors(ClipV(2.0, 0.25), rows([-1.0] * 4), A, **given)[0].tolist() == [1, 1, 1, 0]  # one of four at most: the largest x


def rec(name, ratio, A, **settings):
    log_probs = torch.full((1, len(ratio)), -1.0, dtype=torch.float64).requires_grad_()
    old = -1.0 - rows(ratio).log()
    mask = torch.ones_like(log_probs, dtype=torch.bool)
    objective = recipe(name, **settings).objective
    keywords = {"sequence_ids": torch.zeros(1, len(ratio), dtype=torch.int64)} if objective.needs_sequences else {}
    policy_loss(log_probs, rows(A), mask, old_log_probs=old, objective=objective, denominator=1.0, **keywords).loss.backward()
    return log_probs.grad[0].tolist()


def test_rec_drops_what_leaves_its_region():
    ratio, A = [1.5, 1.5, 0.5, 0.5, 1.0], [1.0, -1.0, 1.0, -1.0, 2.0]
    assert rec("rec_one_side", ratio, A) == pytest.approx([0, 1, -1, 0, -2])
    assert rec("rec_one_side", ratio, A, importance=True) == pytest.approx([0, 1.5, -0.5, 0, -2])
    assert rec("rec_two_side", ratio, A) == pytest.approx([0, 0, 0, 0, -2])
    assert rec("rec_ring", [0.4, 0.3, 3.0, 3.1, 0.39], [1.0, -1.0, -1.0, 1.0, 2.0]) == pytest.approx([-1, 0, 1, 0, -2])
    assert rec("rec_sequence", [1.5, 1.5], [1.0, -1.0]) == pytest.approx([0, 0.5])  # s = 1.5 of both; each counts half
    assert rec("rec_sequence", [2.0, 0.5], [1.0, -1.0], importance=True) == pytest.approx([-0.5, 0.5])  # s = 1
    regular = rec("rec_two_side", [1.1], [0.0], kl_coefficient=0.5, nll_coefficient=0.25)
    assert regular == pytest.approx([math.log(1.1) - 0.25])


def test_rec_of_a_group_of_one_is_zero():
    found = recipe("rec_one_side").advantages(torch.tensor([1.0, 0.0, 0.7]), [0, 0, 1])
    assert found.tolist() == pytest.approx([0.5, -0.5, 0.0])


def test_ratio_averages():
    """Log-ratios log 4 and 0: the sequence's ratio is 2; averages 3 and 1.5, geometric ones sqrt 8 and sqrt 2."""
    old = rows([-1.0 - 2 * LN2, -1.0])
    mask = torch.ones(1, 2, dtype=torch.bool)
    for geometric, want in ((False, [3.0, 1.5]), (True, [math.sqrt(8), math.sqrt(2)])):
        leaf = rows([-1.0, -1.0]).requires_grad_()
        objective = PolicyObjective(AveragedRatio(geometric), CISPO(1.0, 4.0), aggregation=TokenSum())
        one = torch.zeros(1, 2, dtype=torch.int64)
        policy_loss(leaf, rows([1.0, -1.0]), mask, old_log_probs=old, objective=objective, sequence_ids=one).loss.backward()
        assert leaf.grad[0].tolist() == pytest.approx([-want[0], want[1]])


def test_a_bound_on_arts_ratio_hits_good_tokens_too():
    """high = 1.1 - 1: a ratio of 2 weighs 1.1 at A = 1 and at A = -1."""
    leaf = rows([-1.0], [-1.0]).requires_grad_()
    objective = recipe("art_average", high=0.1).objective
    mask = torch.ones(2, 1, dtype=torch.bool)
    policy_loss(leaf, rows([1.0], [-1.0]), mask, old_log_probs=rows([-1 - LN2], [-1 - LN2]), objective=objective).loss.backward()
    assert leaf.grad[:, 0].tolist() == pytest.approx([-0.55, 0.55])


def test_proximal_log_probs_of_stale_and_fresh_tokens():
    """Version 3: sampled at 1 half way; at 2 the proximal policy itself; at 3 the sampler's; a prompt (-1) the sampler's."""
    old, new, versions = rows([-1.0] * 4), rows([-2.0] * 4), torch.tensor([[1, 2, 3, -1]])
    assert proximal_log_probs(new, old, versions, 3).tolist() == [pytest.approx([-1.5, -1.0, -1.0, -1.0])]
    linear = proximal_log_probs(new, old, versions, 3, linear=True)
    assert linear.tolist() == [pytest.approx([-1.3798855, -1.0, -1.0, -1.0], abs=5e-8)]
    assert not proximal_log_probs(new.requires_grad_(), old, versions, 3).requires_grad
    with pytest.raises(ValueError, match="proximal_log_probs: version must be an int >= 0, got -1; pass the current policy's version"):
        proximal_log_probs(new, old, versions, -1)


def test_mix_adds_an_experts_likelihood():
    found, b = recipe("mix", mu=0.25), make_batch((3, 4), dtype=torch.float64)
    assert float(run_policy(b, found.objective).loss) == pytest.approx(0.75 * float(run_policy(b, recipe("grpo").objective).loss))
    assert float(run_policy(b, found.second).loss) == pytest.approx(-0.25 * float(b.log_probs[b.mask].mean()))
    phi, p = recipe("chord_phi", mu=0.25).second, b.log_probs[b.mask].exp()
    assert float(run_policy(b, phi).loss) == pytest.approx(-0.25 * float((p * (1 - p) * p.log()).mean()))


def test_chord_moves_both_parts():
    found = recipe("chord_mu", peak=0.9, valley=0.05, warmup=5, decay=10)
    own = Scheduled(found.objective, found.schedules)
    expert = Scheduled(found.second, {"surrogate.coefficients.0": WarmupCosine(0, 0.9, 0.05, 5, 10)})
    for step, mu in ((0, 0.0), (1, 0.18), (5, 0.9), (6, 0.8791990), (10, 0.475), (15, 0.05), (99, 0.05)):
        assert expert(step).surrogate.coefficients[0] == pytest.approx(mu, abs=5e-8)
        assert own(step).surrogate.coefficients[0] == pytest.approx(1 - mu, abs=5e-8)
    assert own(3).structure == found.objective.structure


def test_a_star_po_values_lie_between_mean_and_maximum():
    scores, group = torch.tensor([1.0, 0.0, 0.0, 0.5], dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    cold, warm = (advantage.soft_values(scores, group, temperature=value)[0].item() for value in (1e-3, 1e3))
    assert cold == pytest.approx(1.0, abs=2e-3) and warm == pytest.approx(0.375, abs=1e-3)


@pytest.mark.parametrize("name", ["fipo", "rec_ring", "art_average"])
def test_on_policy_they_are_the_plain_gradient(name):
    b = make_batch((3, 4), dtype=torch.float64)
    plain = run_policy(b, PolicyObjective(TokenRatio()), on_policy=True)
    found = run_policy(b, recipe(name).objective, on_policy=True)
    assert torch.allclose(found.log_probs, plain.log_probs, atol=1e-15)
