"""Blocks by numbers worked out by hand, or printed with the papers' formulas; where nothing is held constant, also by finite differences."""

import math

import pytest
import torch

from gigpo_fast.loss import policy_loss
from gigpo_fast.objective import (
    CISPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GMPO,
    K1,
    K2,
    K3,
    NFT,
    SAPO,
    TOPR,
    VESPO,
    AbsoluteKL,
    AdvantageWeightedNLL,
    CISPOAbsolute,
    Clip,
    CovarianceBand,
    CovarianceTop,
    Detached,
    EntropyBonus,
    EntropyTarget,
    GroupContrast,
    HingeKL,
    Kimi15,
    KLPenalty,
    NoRatio,
    Normalized,
    NoSurrogate,
    OldProbability,
    PolicyObjective,
    Reinforce,
    SegmentRatio,
    SequenceMeanTokenMean,
    SequenceMeanTokenSum,
    SequenceProductRatio,
    SurrogateSum,
    TokenClip,
    TokenRatio,
    TokenSum,
    TopEntropy,
    Unclipped,
    Weighted,
)

LN2 = math.log(2.0)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def run(objective, lp, A, *, log_ratio=0.0, differences=False, **keywords):
    """(loss, gradient of the log-probs) of tokens in one row, or in the rows of `lp`; old log-probs lie `log_ratio` below."""
    lp = tensor(lp)
    lp = (lp if lp.dim() == 2 else lp[None]).requires_grad_()
    old = (lp.detach() - tensor(log_ratio)).expand_as(lp)
    mask = torch.ones_like(lp, dtype=torch.bool)
    shaped = {name: tensor(keywords.pop(name)).view_as(lp) for name in ("ref_log_probs", "entropy") if name in keywords}
    extras = {name: value.view_as(lp) for name, value in keywords.pop("extras", {}).items()} or None

    def loss(values):
        advantages = tensor(A).expand_as(values)
        return policy_loss(values, advantages, mask, old_log_probs=old, objective=objective, extras=extras, **shaped, **keywords).loss

    value = loss(lp)
    (gradient,) = torch.autograd.grad(value, lp)
    if differences:
        for place in range(lp.numel()):
            step = torch.zeros(lp.numel(), dtype=torch.float64)
            step[place] = 1e-6
            slope = float(loss(lp.detach() + step.view_as(lp)) - loss(lp.detach() - step.view_as(lp))) / 2e-6
            assert slope == pytest.approx(gradient.flatten()[place].item(), abs=1e-7)
    return value.item(), gradient.flatten().tolist()


def one(surrogate, A, log_ratio=0.0, lp=-1.0, **keywords):
    """(loss, gradient) of a single token."""
    value, gradient = run(PolicyObjective(TokenRatio(None), surrogate), [lp], A, log_ratio=log_ratio, **keywords)
    return value, gradient[0]


@pytest.mark.parametrize("surrogate, A, log_ratio, value, slope", [
    (Unclipped(), 2.0, LN2, -4.0, -4.0),
    (SAPO(), 1.0, 0.0, -2.0, -1.0),
    (SAPO(), -1.0, LN2, 2.822000, 1.536220),  # tau 1.05
    (DRO(0.5), 0.5, 0.4, 0.54, -0.3),
    (Kimi15(), 0.5, 0.4, 0.508, -0.46),
    (DPPOTV(0.9, 0.9, score_function=False), 1.0, LN2, -2.0, -2.0),
    (SurrogateSum((Unclipped(), Reinforce()), (0.5, 2.0)), 1.0, LN2, 1.0, -3.0),
])  # fmt: skip
def test_one_token_with_a_gradient_through_all_of_it(surrogate, A, log_ratio, value, slope):
    assert one(surrogate, A, log_ratio, differences=True) == pytest.approx((value, slope), abs=1e-6)


@pytest.mark.parametrize("surrogate, A, log_ratio, weight", [
    (CISPO(0.2, 0.28), 1.0, LN2, 1.28), (CISPO(0.2, 0.28), 1.0, -LN2, 0.8), (CISPO(0.2, 0.28), -1.0, LN2, 1.28),
    (CISPO(None, 0.28), 1.0, -LN2, 0.5),
    (CISPO(0.2, 0.28, unified_mask=True), 1.0, LN2, 0.0), (CISPO(0.2, 0.28, unified_mask=True), -1.0, LN2, 1.28),
    (CISPO(0.2, 0.28, unified_mask=True), -1.0, -LN2, 0.0), (CISPO(0.2, 0.28, unified_mask=True), 1.0, -LN2, 0.8),
    (CISPOAbsolute(5.0), 1.0, 3 * LN2, 5.0), (CISPOAbsolute(5.0), 1.0, LN2, 2.0), (CISPOAbsolute(1.0), 1.0, -LN2, 0.5),
    (VESPO(), 1.0, 0.0, 1.0), (VESPO(), -1.0, 0.0, 1.0), (VESPO(), 1.0, LN2, 4 * math.exp(-3)), (VESPO(), -1.0, LN2, 8 * math.exp(-2)),
    (TOPR(), 1.0, 3.0, 1.0), (TOPR(), -1.0, LN2, 1.0), (TOPR(), -1.0, -LN2, 0.5), (TOPR(0.5, 2.0), -1.0, -LN2, 1.0), (TOPR(0.5), 1.0, 0.1, 0.5),
    (DPPOTV(0.2, 0.2), 1.0, LN2, 2.0), (DPPOTV(0.2, 0.2, maximum=1.5), 1.0, LN2, 1.5),
    (AdvantageWeightedNLL(2.0), 2.0, 0.0, math.e / 2), (AdvantageWeightedNLL(1.0, 5.0), 2.0, 0.0, 2.5),  # over A
])  # fmt: skip
def test_one_token_with_a_constant_weight(surrogate, A, log_ratio, weight):
    """-weight A log_prob: the weight has no gradient."""
    assert one(surrogate, A, log_ratio, lp=-1.5) == pytest.approx((weight * A * 1.5, -weight * A), abs=1e-9)


def test_a_ceiling_bounds_the_unclipped_side_alone():
    """Below the clip's own bound the clipped side decides for a bad action, and keeps its gradient (arXiv 2505.07291)."""
    ratio = math.log(1.25)
    assert one(Clip(0.2, 0.3, ceiling=1.1), -1.0, ratio, differences=True) == pytest.approx((1.25, 1.25))
    assert one(Clip(0.2, 0.3, ceiling=1.1), 1.0, ratio, differences=True) == pytest.approx((-1.1, 0.0))
    assert one(Clip(0.2, 0.3, ceiling=4.0), -1.0, math.log(9.0), differences=True) == pytest.approx((4.0, 0.0))


def test_dppo_gates_by_how_far_the_probability_moved():
    """p = .8 from .5: moved by .3, and the binary divergence KL(.5 || .8) is .223144."""
    lp, moved = math.log(0.8), math.log(0.8 / 0.5)
    for surrogate in (DPPOTV(0.2, 0.2), DPPOKL(0.2, 0.2)):
        assert one(surrogate, 1.0, moved, lp) == (0.0, 0.0)
        assert one(surrogate, -1.0, moved, lp) == pytest.approx((1.6 * lp, 1.6))  # it rose: a bad action may fall again
        assert one(surrogate, 1.0, -moved, math.log(0.5)) == pytest.approx((0.625 * LN2, -0.625))
    assert one(DPPOTV(0.2, 0.31), 1.0, moved, lp)[1] == pytest.approx(-1.6)
    assert one(DPPOKL(0.2, 0.2232), 1.0, moved, lp)[1] == pytest.approx(-1.6)
    assert one(DPPOTV(0.29, 0.2), -1.0, -moved, math.log(0.5)) == (0.0, 0.0)


@pytest.mark.parametrize("correct, rate, ratio, settings, value, slope", [
    (True, 0.5, 1.1, {}, -0.047655, -0.5), (False, 0.5, 0.9, {}, -0.047655, 0.409091),
    (False, 0.5, 1.2, {}, 0.0, 0.6), (False, 0.5, 1.2, {"floor_negative": 0.1}, 0.111572, 0.75),
    (True, 0.25, 1.1, {"normalize": 2}, -0.165082, -math.sqrt(3)), (False, 0.25, 0.9, {"normalize": 2}, -0.056794, None),
    (True, 0.25, 1.0, {}, 0.0, -0.75), (False, 0.25, 1.0, {}, 0.0, 0.25),  # -(y - p): Dr. GRPO
    (True, 0.25, 1.0, {"normalize": 2}, 0.0, -1.732051), (False, 0.25, 1.0, {"normalize": 2}, 0.0, 0.577350),  # GRPO
    (True, 1.0, 1.0, {}, 0.0, -0.02), (False, 0.5, 0.9, {"negative_weight": 0.0}, 0.0, 0.0),
])  # fmt: skip
def test_nft(correct, rate, ratio, settings, value, slope):
    extras = {"correct": torch.tensor([correct]), "correct_rate": tensor([rate])}
    got = one(NFT(**settings), 0.0, math.log(ratio), extras=extras)
    assert got[0] == pytest.approx(value, abs=1e-6) and (slope is None or got[1] == pytest.approx(slope, abs=1e-6))


def test_gmpo():
    objective = PolicyObjective(surrogate=GMPO(), aggregation=SequenceMeanTokenMean())
    value, gradient = run(objective, [-1.0, -2.0], 1.0, log_ratio=[0.5, -0.1], differences=True)
    assert value == pytest.approx(-math.exp(0.15)) and gradient == pytest.approx([0.0, -math.exp(0.15) / 2])
    value, gradient = run(objective, [-1.0, -2.0], -1.0, log_ratio=[0.5, -0.6], differences=True)
    assert value == pytest.approx(math.exp(0.05)) and gradient == pytest.approx([math.exp(0.05) / 2, 0.0])


def test_token_clip():
    extras = {"clip_low": tensor([0.1, 0.1, 0.3]), "clip_high": tensor([0.2, 0.9, 0.3])}
    objective = PolicyObjective(surrogate=TokenClip(dual=1.5), aggregation=TokenSum())
    value, gradient = run(objective, [-1.0] * 3, [1.0, 1.0, -1.0], log_ratio=[math.log(1.5)] * 2 + [LN2], extras=extras)
    assert value == pytest.approx(-1.2 - 1.5 + 1.5) and gradient == pytest.approx([0.0, -1.5, 0.0])


def test_segment_and_product_ratios():
    lp, log_ratio = [-1.0, -1.0, -1.0], [0.2, 0.4, -0.3]
    segments = {"segment_ids": torch.tensor([7, 7, 2**40])}
    value, gradient = run(PolicyObjective(SegmentRatio(), Unclipped(), aggregation=TokenSum()), lp, [1.0, 2.0, 1.0], log_ratio=log_ratio,
                          extras=segments, sequence_ids=torch.zeros(1, 3, dtype=torch.int64), differences=True)  # fmt: skip
    assert value == pytest.approx(-3 * math.exp(0.3) - math.exp(-0.3))
    assert gradient == pytest.approx([-1.5 * math.exp(0.3), -1.5 * math.exp(0.3), -math.exp(-0.3)])
    product = PolicyObjective(SequenceProductRatio(token_clip=0.35), Unclipped(), aggregation=SequenceMeanTokenMean())
    value, gradient = run(product, lp, 1.0, log_ratio=log_ratio, differences=True)
    assert value == pytest.approx(-math.exp(0.25)) and gradient == pytest.approx([-math.exp(0.25), 0.0, -math.exp(0.25)])


def test_mdpo_and_awr():
    value, _ = run(PolicyObjective(surrogate=Unclipped()), [-1.0, -1.0], [1.0, -1.0], log_ratio=[0.1, -0.2], differences=True)
    assert value == pytest.approx(-0.1432201, abs=1e-7)
    value, _ = run(PolicyObjective(NoRatio(), AdvantageWeightedNLL()), [-1.0, -2.0, -1.5], [1.0, 0.0, 0.5])
    assert value == pytest.approx(2.397121, abs=1e-6)


def test_disco():
    """One group of four answers of a token each, two right; the old policy differs in the last: KL 3e-4, penalty 6e-5."""
    lp = [[-0.4], [-0.6], [-1.0], [-2.0]]
    extras = {"group_ids": torch.tensor([3] * 4), "correct": torch.tensor([True, True, False, False])}
    old = [[0.0], [0.0], [0.0], [-0.0012]]
    for tau, value, weights in (
        (None, -0.99994, (0.5, 0.5)),
        (1.0, -0.8798255, (0.7310586, 0.2689414)),
        (10.0, None, (0.5249792, 0.4750208)),
    ):
        objective = PolicyObjective(TokenRatio(None), GroupContrast(tau), HingeKL(), aggregation=SequenceMeanTokenMean())
        got, gradient = run(objective, lp, 0.0, log_ratio=old, extras=extras, denominator=1.0)
        assert value is None or got == pytest.approx(value, abs=1e-7)
        slope = 1e3 * (3e-4 - 1e-4) / 4  # of the penalty: KL falls as the policy's log-probs rise
        assert gradient == pytest.approx([-0.5 - slope, -0.5 - slope, weights[0] - slope, weights[1] - slope], abs=1e-7)
    without = PolicyObjective(TokenRatio(None), GroupContrast(1.0), HingeKL(threshold=3.1e-4), aggregation=SequenceMeanTokenMean())
    assert run(without, lp, 0.0, log_ratio=old, extras=extras, denominator=1.0)[1][2] == pytest.approx(0.7310586, abs=1e-7)
    one_kind = extras | {"correct": torch.tensor([True] * 4)}
    assert run(without, lp, 0.0, log_ratio=old, extras=one_kind, denominator=1.0) == (0.0, [0.0] * 4)


def test_a_far_answer_does_not_overflow_the_contrast():
    extras = {"group_ids": torch.tensor([0] * 3), "correct": torch.tensor([True, False, False])}
    objective = PolicyObjective(TokenRatio(None), GroupContrast(1e-3), aggregation=SequenceMeanTokenMean())
    value, gradient = run(objective, [[-1.0], [-2.0], [-900.0]], 0.0, extras=extras, denominator=1.0, differences=True)
    assert value == pytest.approx(1.0 - 2.0 - 1e-3 * LN2) and gradient == pytest.approx([-1.0, 1.0, 0.0])


def test_top_entropy_divides_by_the_kept_or_by_all():
    """H = [.1 .9 .2 .8 .3], a fifth: the threshold is .82, the second token alone is kept."""
    entropy, A = [0.1, 0.9, 0.2, 0.8, 0.3], [1.0, 2.0, 3.0, 4.0, 5.0]
    for weighting, value in ((TopEntropy(0.2), -0.4), (Normalized(TopEntropy(0.2)), -2.0), (TopEntropy(0.2, exact_count=True), -0.4),
                             (TopEntropy(threshold=0.81), -0.4), (TopEntropy(0.3, exact_count=True), -1.2), (TopEntropy(0.0), -0.4)):  # fmt: skip
        objective = PolicyObjective(surrogate=Weighted(Unclipped(), weighting))
        assert run(objective, [-1.0] * 5, A, entropy=entropy)[0] == pytest.approx(value)


COVARIANCE = {"lp": [-0.1, -2.0, -0.2, -1.9], "A": [1.0, 1.0, -1.0, -1.0], "log_ratio": [0.1, 0.1, 0.0, -0.1]}


def test_clip_cov_and_kl_cov():
    """Covariances .95, -.95, -.85, .85; plain -.0763761."""
    keys = {"token_keys": torch.arange(4)}
    band = Weighted(Clip(1.0, 1.0), CovarianceBand(0.25, 0.9, 5.0))
    top = KLPenalty(1.0, AbsoluteKL(), anchor="old", weighting=CovarianceTop(0.25))
    assert run(PolicyObjective(surrogate=Unclipped()), **COVARIANCE)[0] == pytest.approx(-0.0763761, abs=1e-7)
    assert run(PolicyObjective(surrogate=band), **COVARIANCE, extras=keys)[0] == pytest.approx(0.1999166, abs=1e-7)
    assert run(PolicyObjective(surrogate=Unclipped(), divergence=top), **COVARIANCE)[0] == pytest.approx(-0.0513761, abs=1e-7)
    none = KLPenalty(1.0, AbsoluteKL(), anchor="old", weighting=CovarianceTop(0.0))
    assert run(PolicyObjective(surrogate=Unclipped(), divergence=none), **COVARIANCE)[0] == pytest.approx(-0.0763761, abs=1e-7)
    clipped = Weighted(Clip(1.0, 0.05), CovarianceBand(0.25, 0.9, 5.0, clip_high=0.05))  # PPO has taken the candidate out
    assert run(PolicyObjective(surrogate=clipped), **COVARIANCE, extras=keys)[1][2:] == pytest.approx([0.25, math.exp(-0.1) / 4])


@pytest.mark.parametrize("estimator, value, slope", [(K1(), -0.4, 1.0), (K2(), 0.08, -0.4), (K3(), 0.0918247, 1 - math.exp(0.4))])
def test_a_teacher_as_anchor(estimator, value, slope):
    objective = PolicyObjective(surrogate=NoSurrogate(), divergence=KLPenalty(1.0, estimator, anchor="teacher"))
    got = run(objective, [-1.0], 0.0, extras={"teacher_log_probs": tensor([-0.6])}, differences=True)
    assert got == (pytest.approx(value, abs=1e-7), pytest.approx([slope]))


def test_kdrl():
    objective = PolicyObjective(surrogate=Unclipped(), divergence=KLPenalty(0.002, K2(), anchor="teacher"))
    value, _ = run(objective, [-1.0, -2.0], [0.5, -0.5], extras={"teacher_log_probs": tensor([-0.6, -2.5])}, differences=True)
    assert value == pytest.approx(0.000205, abs=1e-9)


def test_nash_md_gradient():
    """The score function of the divergence: P - 1/2 = .3, beta = .1, log-ratios to the reference .2 and -.2."""
    penalty = KLPenalty(0.1, Detached(K1()), importance_weighted=NoRatio())
    objective = PolicyObjective(NoRatio(), Reinforce(), penalty, aggregation=TokenSum())
    _, gradient = run(objective, [-0.5, -1.0], 0.3, ref_log_probs=[-0.7, -0.8])
    assert gradient == pytest.approx([-0.28, -0.32])


def test_dance_grpo():
    value, _ = run(PolicyObjective(surrogate=Clip(1e-4, 1e-4)), [-1.0, -1.0], 5.0, log_ratio=[math.log(1.0002), math.log(0.9999)])
    assert value == pytest.approx(-5.0, abs=1e-9)


def test_spo():
    """Only tokens with an old probability below .9 count, in the sum and in what it is divided by."""
    old, ratio = [0.95, 0.6, 0.99, 0.5, 0.3, 0.97], [1.1, 1.3, 1.0, 0.7, 1.05, 1.4]
    lp = [math.log(p * r) for p, r in zip(old, ratio)]
    A = [0.25, 0.25, -0.5, -0.5, 0.75, 0.75]
    objective = PolicyObjective(surrogate=Weighted(Clip(), Normalized(OldProbability(0.9))))
    assert run(objective, lp, A, log_ratio=[math.log(r) for r in ratio])[0] == pytest.approx(-0.229167, abs=1e-6)


def test_uni_grpo():
    """The policy term is a mean over the masked positions of an answer, its divergence a sum."""
    penalty = KLPenalty(0.01, K3(), anchor="old", aggregation=SequenceMeanTokenSum())
    objective = PolicyObjective(surrogate=Clip(), divergence=penalty, aggregation=SequenceMeanTokenMean())
    value, _ = run(objective, [-1.0, -1.0], 0.5, log_ratio=[math.log(1.3), math.log(1.1)], differences=True)
    assert value == pytest.approx(-0.574640, abs=1e-6)


def test_one_shot_rlvr():
    objective = PolicyObjective(surrogate=Clip(), divergence=KLPenalty(0.001), entropy_bonus=EntropyBonus(0.001))
    value, _ = run(objective, [-1.0], 0.1, ref_log_probs=[-1.2], entropy=[1.5], differences=True)
    assert value == pytest.approx(-0.101481, abs=1e-6)


def test_props():
    ratios = [math.log(r) for r in (0.5, 0.9, 1.5)]
    assert run(PolicyObjective(surrogate=Clip(0.3, 0.3)), [-2.0] * 3, -1.0, log_ratio=ratios)[0] == pytest.approx(1.033333, abs=1e-6)


@pytest.mark.parametrize("settings", [{}, {"mean": 20.0}])
def test_entropy_target(settings):
    """|20 - 35| = 15; the gradient pushes every entropy up by the same share."""
    objective = PolicyObjective(surrogate=NoSurrogate(), entropy_bonus=EntropyTarget(1.0, 35.0, **settings))
    entropy = tensor([[18.0, 22.0]]).requires_grad_()
    lp, mask = tensor([[-1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    loss = policy_loss(lp, torch.zeros_like(lp), mask, entropy=entropy, objective=objective).loss
    loss.backward()
    assert loss.item() == 15.0 and entropy.grad.tolist() == [[-0.5, -0.5]]
