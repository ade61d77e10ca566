"""Settings: what blocks refuse, what schedules say at each step, and numbers exchanged without a new structure."""

import pytest

from gigpo_fast.objective import (
    CISPO,
    DPPOKL,
    DPPOTV,
    DRO,
    GMPO,
    K1,
    K3,
    NFT,
    SAPO,
    TOPR,
    VESPO,
    AdvantageWeightedNLL,
    Aggregation,
    CISPOAbsolute,
    Clip,
    Constant,
    CovarianceBand,
    CovarianceStatistics,
    CovarianceTop,
    EntropyBonus,
    EntropyTarget,
    GroupContrast,
    HingeKL,
    Kimi15,
    KLPenalty,
    Linear,
    MixedGroups,
    Normalized,
    OffPolicySequenceMask,
    OldProbability,
    Piecewise,
    PolicyObjective,
    Product,
    RandomFraction,
    RatioGuard,
    Rejection,
    RolloutCorrection,
    Scheduled,
    SecondMoment,
    SequenceMeanTokenSum,
    SequenceProductRatio,
    StepAnneal,
    SurrogateSum,
    TokenClip,
    TokenRatio,
    TokenSum,
    TokenWeights,
    TopEntropy,
    Unclipped,
    Weighted,
    with_value,
)

NAN = float("nan")


class Odd(Aggregation):
    """An aggregation that counts something else."""


@pytest.mark.parametrize("make, message", [
    (lambda: CISPO(low=-0.1), "CISPO: low must be a number >= 0 and <= 1 or None, got -0.1"),
    (lambda: CISPO(high=NAN), "CISPO: high must be a number >= 0, got nan"),
    (lambda: CISPOAbsolute(0.0), "CISPOAbsolute: maximum must be a number > 0, got 0.0"),
    (lambda: SAPO(tau_negative=0), "SAPO: tau_negative must be a number > 0, got 0"),
    (lambda: VESPO(k_positive="2"), "VESPO: k_positive must be a number >= 0, got '2'"),
    (lambda: GMPO(high=-1.0), "GMPO: high must be a number >= 0, got -1.0"),
    (lambda: DPPOTV(low=True), "DPPOTV: low must be a number >= 0, got True"),
    (lambda: DPPOKL(maximum=0.0), "DPPOKL: maximum must be a number > 0 or None, got 0.0"),
    (lambda: DRO(0.0), "DRO: beta must be a number > 0, got 0.0"),
    (lambda: Kimi15(-1.0), "Kimi15: tau must be a number > 0, got -1.0"),
    (lambda: NFT(normalize=3), "NFT: normalize must be 0, 1 or 2, got 3; 1 is the authors' choice"),
    (lambda: NFT(floor_negative=-1.0), "NFT: floor_negative must be a number >= 0, got -1.0"),
    (lambda: TOPR(low=0.5, high=0.2), "TOPR: high must be a number >= 0.5, got 0.2"),
    (lambda: AdvantageWeightedNLL(0.0), "AdvantageWeightedNLL: temperature must be a number > 0, got 0.0"),
    (lambda: GroupContrast(-1.0), "GroupContrast: temperature must be a number > 0 or None, got -1.0"),
    (lambda: TokenClip(1.0), "TokenClip: dual must be a number > 1 or None, got 1.0"),
    (lambda: SequenceProductRatio(token_clip=0.0), "SequenceProductRatio: token_clip must be a number > 0 or None, got 0.0"),
    (lambda: SequenceProductRatio(0.0), "SequenceProductRatio: log_ratio_clip must be"),
    (lambda: Weighted(K1(), TokenWeights()), r"Weighted: surrogate must be a Surrogate block, got K1.*; see gigpo_fast.objective"),
    (lambda: Weighted(Clip(), Clip()), "Weighted: weighting must be a Weighting block, got Clip"),
    (lambda: SurrogateSum((Clip(), 1.0), (1.0, 1.0)), "SurrogateSum: terms must be a tuple of Surrogate blocks, got"),
    (lambda: SurrogateSum((Clip(),), (1.0, 2.0)), r"SurrogateSum: coefficients must be 1 numbers in a tuple, one a term, got \(1.0, 2.0\)"),
    (lambda: Product(()), r"Product: factors must be a tuple of Weighting blocks, got \(\)"),
    (lambda: Normalized(None), "Normalized: weighting must be a Weighting block, got None"),
    (lambda: Normalized(TokenWeights(), mean=0.0), "Normalized: mean must be a number > 0 or None, got 0.0"),
    (lambda: KLPenalty(0.1, anchor="base"), r"KLPenalty: anchor must be one of \['old', 'previous', 'ref', 'rollout', 'teacher'\], got 'base'"),
    (lambda: KLPenalty(0.1, importance_weighted="yes"), "KLPenalty: importance_weighted must be a bool or a Ratio block, got 'yes'"),
    (lambda: KLPenalty(0.1, weighting=Clip()), "KLPenalty: weighting must be a Weighting block or None, got Clip"),
    (lambda: KLPenalty(0.1, aggregation="sum"), "KLPenalty: aggregation must be an Aggregation block or None, got 'sum'"),
    (lambda: KLPenalty(0.1, denominator=3.0), "KLPenalty: denominator must be None without an aggregation, got 3.0; it would not be read"),
    (lambda: KLPenalty(0.1, aggregation=TokenSum(), denominator=0.0), "KLPenalty: denominator must be a number > 0 or None, got 0.0"),
    (lambda: KLPenalty(0.1, aggregation=Odd()), "KLPenalty: denominator must be given for the aggregation .*, got None"),
    (lambda: KLPenalty(0.1, clip=-1.0), "KLPenalty: clip must be a number > 0, a .low, high. pair around 0 or None, got -1.0; 10.0 is usual"),
    (lambda: HingeKL(-1.0), "HingeKL: coefficient must be a number >= 0, got -1.0"),
    (lambda: HingeKL(estimator="k1"), "HingeKL: estimator must be a divergence estimator such as K3"),
    (lambda: EntropyTarget(0.1, None), "EntropyTarget: target must be a number, got None"),
    (lambda: EntropyTarget(-0.1, 1.0), "EntropyTarget: coefficient must be a number >= 0, got -0.1"),
    (lambda: RolloutCorrection(high=None), "RolloutCorrection: low or high must be given, got None for both; a usual upper bound is 2.0"),
    (lambda: RolloutCorrection(low=3.0), "RolloutCorrection: low must be <= high, got low=3.0, high=2.0"),
    (lambda: RolloutCorrection("token"), r"RolloutCorrection: level must be a Level block such as TokenLevel\(\), got 'token'"),
    (lambda: RolloutCorrection(log_ratio_clip=0.0), "RolloutCorrection: log_ratio_clip must be a number > 0 or None, got 0.0"),
    (lambda: Rejection("k1", high=1.0), "Rejection: estimator must be a divergence estimator such as K3.. or None, got 'k1'"),
    (lambda: Rejection(K1()), "Rejection: low or high must be given"),
    (lambda: OldProbability(0.0), "OldProbability: threshold must be a number > 0, got 0.0"),
    (lambda: MixedGroups(-1.0), "MixedGroups: tolerance must be a number >= 0, got -1.0"),
    (lambda: RandomFraction(1.5), "RandomFraction: fraction must be a number >= 0 and <= 1, got 1.5"),
    (lambda: RandomFraction(0.5, seed=-1), r"RandomFraction: seed must be an int in 0 .. 2\^62 - 1, got -1; 0 is the default"),
    (lambda: CovarianceBand(seed=0.5), "CovarianceBand: seed must be an int"),
    (lambda: CovarianceBand(clip_low=-1.0), "CovarianceBand: clip_low must be a number >= 0, got -1.0"),
    (lambda: CovarianceTop(2.0), "CovarianceTop: fraction must be a number >= 0 and <= 1, got 2.0"),
    (lambda: CovarianceTop(0.1, 0.3), "CovarianceTop: statistics must be a CovarianceStatistics block or None, got 0.3"),
    (lambda: CovarianceStatistics(0.0, None, 0.0), "CovarianceStatistics: mean_log_prob must be a number, got None"),
    (lambda: TopEntropy(-0.1), "TopEntropy: fraction must be a number >= 0 and <= 1, got -0.1"),
    (lambda: TopEntropy(exact_count=True, threshold=1.0), "TopEntropy: exact_count must be False with a threshold, got True; a threshold cannot count"),
    (lambda: OffPolicySequenceMask(None), "OffPolicySequenceMask: threshold must be a number, got None"),
    (lambda: SecondMoment(0.0), "SecondMoment: threshold must be a number > 0, got 0.0"),
    (lambda: RatioGuard(log_ratio_clip=0.0), "RatioGuard: log_ratio_clip must be a number > 0, got 0.0"),
    (lambda: PolicyObjective(divergence=(KLPenalty(0.1), K3())), "PolicyObjective: divergence must be a KLPenalty block, got K3"),
    (lambda: PolicyObjective(entropy_bonus=KLPenalty(0.1)), "PolicyObjective: entropy_bonus must be a EntropyTerm block, got KLPenalty"),
    (lambda: Linear(0.0, 1.0, 0), "Linear: steps must be a number > 0, got 0; it is the step at which `end` is reached"),
    (lambda: Piecewise(((5, 1.0), (5, 2.0))), r"Piecewise: points must be \(step, value\) pairs in increasing steps, got"),
    (lambda: StepAnneal(1.0, 0.1, 0.0, every=0), "StepAnneal: every must be an int >= 1, got 0; 1 lowers the value at each step"),
])  # fmt: skip
def test_wrong_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize("schedule, values", [
    (Constant(0.04), {0: 0.04, 10**6: 0.04}),
    (Linear(0.1, 0.0, 100), {0: 0.1, 25: 0.075, 100: 0.0, 500: 0.0}),
    (Piecewise(((0, 0.01), (30, 0.0), (100, 0.02))), {0: 0.01, 15: 0.005, 30: 0.0, 65: 0.01, 100: 0.02, 200: 0.02}),  # OThink-MR1
    (Piecewise(((10, 1.0),)), {0: 1.0, 10: 1.0, 11: 1.0}),
    (Piecewise(((10, 1.0), (20, 3.0))), {0: 1.0, 10: 1.0, 15: 2.0}),
    (StepAnneal(5e-3, 5e-5, 1e-3), {0: 5e-3, 20: 4e-3, 40: 3e-3, 80: 1e-3, 200: 1e-3}),  # KDRL
    (StepAnneal(1.0, 0.5, -9.0, every=10), {0: 1.0, 9: 1.0, 10: 0.5, 25: 0.0}),
])  # fmt: skip
def test_schedules(schedule, values):
    assert {step: schedule(step) for step in values} == pytest.approx(values, abs=1e-12)


SEVERAL = PolicyObjective(
    TokenRatio((-1.0, 1.0)),
    Weighted(Clip(), TopEntropy(0.2, threshold=1.0)),
    (KLPenalty(0.1), KLPenalty(0.2, K3(5.0), anchor="old", aggregation=SequenceMeanTokenSum(), denominator=3.0)),
    entropy_bonus=EntropyBonus(0.01),
)


@pytest.mark.parametrize("path, read", [
    ("divergence.0.coefficient", lambda o: o.divergence[0].coefficient),
    ("divergence.1.coefficient", lambda o: o.divergence[1].coefficient),
    ("divergence.1.estimator.input_clip", lambda o: o.divergence[1].estimator.input_clip),
    ("divergence.1.denominator", lambda o: o.divergence[1].denominator),
    ("surrogate.surrogate.low", lambda o: o.surrogate.surrogate.low),
    ("surrogate.weighting.threshold", lambda o: o.surrogate.weighting.threshold),
    ("entropy_bonus.coefficient", lambda o: o.entropy_bonus.coefficient),
    ("ratio.log_ratio_clip.1", lambda o: o.ratio.log_ratio_clip[1]),
])  # fmt: skip
def test_a_number_is_exchanged_and_nothing_else(path, read):
    changed = with_value(SEVERAL, path, 0.75)
    assert read(changed) == 0.75 and changed.structure == SEVERAL.structure
    differences = (changed.numbers != SEVERAL.numbers).sum()
    assert int(differences) == 1 and with_value(changed, path, read(SEVERAL)) == SEVERAL


@pytest.mark.parametrize("path, message", [
    ("divergence.2.coefficient", "with_value: path must lead through an index of the tuple at '2', got 'divergence.2.coefficient'"),
    ("divergance", r"with_value: path must lead through \['ratio', .*\] at 'divergance', got 'divergance'"),
    ("surrogate", "with_value: path must lead to a number, got 'surrogate', which is Weighted"),
    ("surrogate.surrogate.dual", "with_value: path must lead to a number, got 'surrogate.surrogate.dual', which is None"),
    ("weighting.x", "with_value: path must lead through an index of the tuple at 'x', got 'weighting.x'"),
])  # fmt: skip
def test_a_path_that_leads_nowhere_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        with_value(SEVERAL, path, 1.0)


def test_the_new_value_is_checked_as_the_first_was():
    with pytest.raises(ValueError, match="KLPenalty: coefficient must be a number >= 0, got -1.0"):
        with_value(SEVERAL, "divergence.0.coefficient", -1.0)


def test_scheduled_objectives():
    schedules = {"divergence.0.coefficient": Linear(0.1, 0.0, 10), "surrogate.surrogate.high": Constant(0.3)}
    over_time = Scheduled(SEVERAL, schedules)
    assert over_time(0).structure == over_time(10).structure == SEVERAL.structure
    assert [over_time(step).divergence[0].coefficient for step in (0, 5, 10, 20)] == pytest.approx([0.1, 0.05, 0.0, 0.0])
    assert over_time(3).surrogate.surrogate == Clip(0.2, 0.3)
    assert over_time(0) != over_time(1) and Scheduled(PolicyObjective(surrogate=Unclipped()), {})(7) == PolicyObjective(
        surrogate=Unclipped()
    )
