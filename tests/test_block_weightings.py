"""Weightings by hand: the factor of every token, what a statistic from outside changes, and which token a seed draws."""

import math

import pytest
import torch

from gigpo_fast.objective import (
    K1,
    K2,
    K3,
    BinaryKL,
    CovarianceBand,
    CovarianceStatistics,
    CovarianceTop,
    MixedGroups,
    Normalized,
    OffPolicySequenceMask,
    OldProbability,
    PositiveScores,
    Product,
    RandomFraction,
    RatioGuard,
    Rejection,
    Reversed,
    RolloutCorrection,
    Scope,
    SecondMoment,
    SegmentMean,
    SequenceMax,
    SequenceMean,
    Sequences,
    SequenceSum,
    TokenBatch,
    TokenLevel,
    TokenWeights,
    TopEntropy,
    TotalVariation,
)
from gigpo_fast.objective.selection import descending_rank, masked_quantile
from gigpo_fast.objective.token_masks import uniform
from gigpo_fast.reference.weightings import uniform as reference_uniform

LN2 = math.log(2.0)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def batch(lp, *, old=None, A=None, entropy=None, ids=None, mask=None, **extras):
    """Tokens of the sequences `ids`; untrained ones hold zeros, as the losses see to it."""
    lp, n = tensor(lp), len(lp)
    ids = torch.tensor([0] * n if ids is None else ids)
    mask = None if mask is None else torch.tensor(mask)
    trained = torch.ones(n) if mask is None else mask.float()
    lengths = torch.zeros(int(ids.max()) + 1).index_add_(0, ids, trained)
    given = {name: value if isinstance(value, torch.Tensor) else tensor(value) for name, value in extras.items()}
    A = torch.ones(n, dtype=torch.float64) if A is None else tensor(A)
    old, entropy = (None if value is None else tensor(value) for value in (old, entropy))
    return TokenBatch(lp, entropy, A, old, None, torch.ones(n, dtype=torch.float64), Sequences(ids, lengths.double()), given, mask)


def factors(block, *arguments, **keywords):
    return block.factor(batch(*arguments, **keywords)).tolist()


GAPS = {
    "lp": [-1.0] * 4,
    "old": [0.0] * 4,
    "ids": [0, 0, 1, 1],
    "rollout_log_probs": [-LN2, LN2, -3 * LN2, 0.0],
}  # old - rollout: ln 2, -ln 2, 3 ln 2, 0
SEGMENTS = torch.tensor([5, 5, 9, -1])


@pytest.mark.parametrize("block, expected", [
    (RolloutCorrection(), [2.0, 0.5, 2.0, 1.0]), (RolloutCorrection(low=0.8, high=None), [2.0, 0.8, 8.0, 1.0]),
    (RolloutCorrection(low=0.5, high=2.0, truncate=False), [2.0, 0.5, 0.0, 1.0]),
    (RolloutCorrection(SequenceSum(), high=6.0), [1.0, 1.0, 6.0, 6.0]), (RolloutCorrection(SequenceMean(), high=9.0), [1.0, 1.0, 8**0.5, 8**0.5]),
    (RolloutCorrection(SegmentMean(), high=9.0), [1.0, 1.0, 8.0, 1.0]), (RolloutCorrection(high=9.0, log_ratio_clip=LN2), [2.0, 0.5, 2.0, 1.0]),
    (RolloutCorrection(high=9.0, current=True), [2 / math.e, 0.5 / math.e, 8 / math.e, 1 / math.e]),
    (Rejection(high=2.0), [1.0, 1.0, 0.0, 1.0]), (Rejection(low=0.6), [1.0, 0.0, 1.0, 1.0]), (Rejection(None, SequenceMax(), high=7.9), [1.0, 1.0, 0.0, 0.0]),
    (Rejection(K1(), high=0.0), [0.0, 1.0, 0.0, 1.0]),
    (Rejection(K1(), low=0.0), [1.0, 0.0, 1.0, 1.0]), (Rejection(Reversed(K1()), high=0.0), [1.0, 0.0, 1.0, 1.0]),
    (Rejection(K2(), SequenceSum(), high=0.5), [1.0, 1.0, 0.0, 0.0]), (Rejection(K3(), high=0.2), [1.0, 0.0, 0.0, 1.0]),  # .1931, .3069, 1.204, 0
    (Rejection(None, TokenLevel(), low=0.5, high=2.0, current=True), [1.0, 0.0, 0.0, 0.0]),
])  # fmt: skip
def test_rollout_correction_and_rejection(block, expected):
    assert factors(block, **GAPS, segment_ids=SEGMENTS) == pytest.approx(expected)


def test_gates_on_probabilities():
    """p = .8 against .5: |p - q| = .3 and the binary divergence is .192745; what is no probability is rejected."""
    given = {"lp": [0.0] * 3, "old": [math.log(0.8), math.log(0.5), 0.5], "rollout_log_probs": [math.log(0.5), math.log(0.5), -1.0]}
    assert factors(Rejection(TotalVariation(), high=0.3 + 1e-9), **given) == [1.0, 1.0, 0.0]
    assert factors(Rejection(TotalVariation(), high=0.29), **given) == [0.0, 1.0, 0.0]
    assert factors(Rejection(BinaryKL(), high=0.1928), **given) == [1.0, 1.0, 0.0]
    assert factors(Rejection(BinaryKL(), high=0.1927), **given) == [0.0, 1.0, 0.0]
    certain = BinaryKL().value(tensor([0.0, -1e-20]), tensor([-1.0, 0.0]))
    assert torch.isfinite(certain).all() and certain[0] == pytest.approx(1.0, abs=1e-6)


def test_a_missing_rollout_log_prob_is_ratio_one_and_is_rejected():
    given = {"lp": [-1.0] * 2, "old": [-1.0] * 2, "rollout_log_probs": [math.nan, -1.0 - LN2]}
    assert factors(RolloutCorrection(SequenceSum(), high=9.0), **given) == pytest.approx([2.0, 2.0])
    assert factors(Rejection(high=9.0), **given) == [0.0, 1.0]


def test_a_level_pools_trained_tokens_alone():
    """The untrained token's statistic is 0: the largest, and none of the sequence's."""
    given = {"lp": [-1.0] * 3, "old": [-1.0, -1.0, 0.0], "rollout_log_probs": [-0.5, -0.8, 0.0], "mask": [True, True, False]}
    assert factors(Rejection(K1(), SequenceMax(), high=-0.1), **given)[:2] == [1.0, 1.0]
    assert factors(Rejection(K1(), SequenceMax(), high=-0.3), **given)[:2] == [0.0, 0.0]
    assert factors(Rejection(K1(), SequenceMean(), high=-0.34), **given)[:2] == [1.0, 1.0]


def test_token_masks():
    lp = [math.log(p) for p in (0.95, 0.5, 0.89)]
    assert factors(OldProbability(0.9), [-1.0] * 3, old=lp) == [0.0, 1.0, 1.0]
    assert factors(OldProbability(0.6), lp) == [0.0, 1.0, 0.0]  # on-policy: the policy's own
    assert factors(MixedGroups(), [-1.0] * 3, group_spread=[0.0, 1e-9, 1.0]) == [0.0, 1.0, 1.0]
    assert factors(MixedGroups(0.5), [-1.0] * 3, group_spread=[0.0, 0.5, 1.0]) == [0.0, 0.0, 1.0]
    assert factors(PositiveScores(), [-1.0] * 3, scores=[0.0, -1.0, 0.1]) == [0.0, 0.0, 1.0]


def test_off_policy_sequences_lose_their_bad_actions():
    """mean(anchor - policy) is .3 in the first sequence, .1 in the second, NaN in the third."""
    given = {"lp": [-1.0] * 6, "A": [1.0, -1.0, -1.0, 0.0, -1.0, 1.0], "ids": [0, 0, 1, 1, 2, 2]}
    anchor = [-0.6, -0.8, -0.9, -0.9, math.nan, -1.0]
    assert factors(OffPolicySequenceMask(0.2), **given, rollout_log_probs=anchor) == [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    assert factors(OffPolicySequenceMask(0.05, old=True), **given, old=anchor) == [1.0, 0.0, 0.0, 1.0, 0.0, 1.0]


def test_second_moment():
    """Squares 1, .04, .25, 0: their means from below are 0, .02, .0967, .3225."""
    given = {"lp": [0.0] * 4, "old": [0.0] * 4, "rollout_log_probs": [1.0, 0.2, -0.5, 0.0]}
    for threshold, expected in ((0.4, [1, 1, 1, 1]), (0.1, [0, 1, 1, 1]), (0.05, [0, 1, 0, 1]), (1e-9, [0, 0, 0, 1])):
        assert factors(SecondMoment(threshold), **given) == expected
    assert factors(SecondMoment(cutoff=0.25), **given) == [0, 1, 0, 1]
    assert factors(SecondMoment(0.1, old=True), [0.0] * 4, old=given["rollout_log_probs"]) == [0, 1, 1, 1]
    masked = factors(SecondMoment(0.13), **given, mask=[True, False, True, True])  # means 0, .125, .4167
    assert [masked[0], *masked[2:]] == [0, 1, 1]


def test_ratio_guard():
    given = {"lp": [0.0, 0.0], "old": [-LN2, 0.0]}  # ratios 2 and 1
    assert factors(RatioGuard(1.5), **given) == [1.0, 1.0] and factors(RatioGuard(1.49), **given) == [0.0, 0.0]
    assert factors(RatioGuard(1.49, log_ratio_clip=0.1), **given) == [1.0, 1.0]
    assert factors(RatioGuard(1.49, mean=1.4), **given) == [1.0, 1.0] and factors(RatioGuard(1.5, mean=1.6), **given) == [0.0, 0.0]


def test_products_and_means():
    given = {"lp": [-1.0] * 4, "weights": [1.0, 2.0, 3.0, 4.0], "scores": [1.0, -1.0, 1.0, 1.0]}
    assert factors(Product((TokenWeights(), PositiveScores())), **given) == [1.0, 0.0, 3.0, 4.0]
    assert factors(Normalized(TokenWeights()), **given) == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert factors(Normalized(TokenWeights(), mean=2.0), **given) == [0.5, 1.0, 1.5, 2.0]
    assert factors(Normalized(TokenWeights()), **{**given, "mask": [False, False, True, True]})[2:] == pytest.approx([6 / 7, 8 / 7])
    assert factors(Normalized(PositiveScores()), [-1.0], scores=[-1.0]) == [0.0]


def test_statistics_leave_out_untrained_tokens():
    mask = [True, True, False, True, False]
    entropy = [0.1, 0.9, 0.0, 0.5, 0.0]
    kept = lambda block, **given: [f for f, m in zip(factors(block, mask=mask, **given), mask) if m]  # noqa: E731
    assert kept(TopEntropy(0.5), lp=[0.0] * 5, entropy=entropy) == [0.0, 1.0, 1.0]  # the median of three is .5
    assert kept(TopEntropy(0.34, exact_count=True), lp=[0.0] * 5, entropy=entropy) == [0.0, 1.0, 1.0]
    lp, A = [-0.1, -2.0, 0.0, -1.0, 0.0], [1.0, -1.0, 0.0, 0.5, 0.0]
    assert kept(CovarianceTop(0.7), lp=lp, A=A) == [1.0, 1.0, 0.0]
    # Covariances with the means of the three: A - 1/6, lp + 31/30.
    exact = [(a - 1 / 6) * (x + 3.1 / 3) for a, x in ((1.0, -0.1), (-1.0, -2.0), (0.5, -1.0))]
    whole = CovarianceStatistics(1 / 6, -3.1 / 3, sorted(exact)[1])
    assert kept(CovarianceTop(0.7, whole), lp=lp, A=A) == [1.0, 1.0, 0.0]


def test_covariance_band_drops_as_many_as_it_says():
    lp, A = [-0.1, -2.0, -0.2, -1.9], [1.0, 1.0, -1.0, -1.0]  # covariances .95, -.95, -.85, .85
    keys = torch.arange(4)
    for fraction, low, dropped in ((0.25, 0.8, 1), (0.5, 0.8, 2), (1.0, 0.8, 2), (0.25, 0.94, 1), (0.25, 0.96, 0), (0.0, 0.8, 1)):
        found = factors(CovarianceBand(fraction, low, 5.0), lp, A=A, token_keys=keys)
        assert found.count(0.0) == dropped and found[1] == found[2] == 1.0
    drawn = {tuple(factors(CovarianceBand(0.25, 0.8, 5.0, seed=seed), lp, A=A, token_keys=keys)) for seed in range(20)}
    assert len(drawn) == 2  # another seed may draw another token
    outside = CovarianceStatistics(0.0, -1.05, 1.0)
    assert factors(CovarianceBand(0.0, 0.8, 5.0, statistics=outside), lp, A=A, token_keys=keys) == [0.0, 1.0, 1.0, 0.0]


def test_draws_are_those_of_splitmix64_and_evenly_spread():
    keys = torch.tensor([0, 1, -1, 2**62, -(2**63), 7919])
    for seed in (0, 1, 2**61):
        assert uniform(keys, seed).tolist() == [reference_uniform(key, seed) for key in keys.tolist()]
    many = uniform(torch.arange(20000), 0)
    assert abs(float(many.mean()) - 0.5) < 0.01 and 0 <= float(many.min()) and float(many.max()) < 1
    assert abs(float(torch.corrcoef(torch.stack([many, uniform(torch.arange(20000), 1)]))[0, 1])) < 0.03
    kept = factors(RandomFraction(0.25), [0.0] * 20000, token_keys=torch.arange(20000))
    assert abs(sum(kept) / 20000 - 0.25) < 0.02


def test_ranks_and_quantiles():
    values, among = tensor([3.0, 1.0, 3.0, 9.0, -math.inf]), torch.tensor([True, True, True, False, True])
    assert descending_rank(values, among).tolist() == [0, 2, 1, 4, 3]
    for share in (0.0, 0.3, 0.5, 1.0):
        exact = torch.quantile(tensor([3.0, 1.0, 3.0, 5.0]), share)
        assert float(masked_quantile(tensor([3.0, 1.0, 3.0, 9.0, 5.0]), among, share)) == pytest.approx(float(exact))
    assert masked_quantile(values, torch.zeros(5, dtype=torch.bool), 0.5) == math.inf
    assert descending_rank(tensor([]), torch.zeros(0, dtype=torch.bool)).tolist() == []


def test_a_statistic_from_outside_makes_a_block_one_of_tokens():
    inside = (TopEntropy(), CovarianceTop(), CovarianceBand(), SecondMoment(), RatioGuard(), Normalized(TokenWeights()))
    outside = (TopEntropy(threshold=1.0), CovarianceTop(statistics=CovarianceStatistics(0.0, 0.0, 0.0)),
               CovarianceBand(statistics=CovarianceStatistics(0.0, 0.0, 0.0)), SecondMoment(cutoff=1.0), RatioGuard(mean=1.0),
               Normalized(TokenWeights(), mean=1.0))  # fmt: skip
    assert {block.scope for block in inside} == {Scope.BATCH} and {block.scope for block in outside} == {Scope.TOKEN}
    assert Product((TopEntropy(threshold=1.0), RolloutCorrection(SequenceSum()))).scope == Scope.SEQUENCE
