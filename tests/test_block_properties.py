"""What every block must keep: the text it travels as, what it declares, any split, any chunk, and that masked values cannot matter."""

import dataclasses

import pytest
import torch

from gigpo_fast.distributed import global_denominator
from gigpo_fast.objective import (
    Clip,
    CovarianceBand,
    CovarianceStatistics,
    CovarianceTop,
    EntropyBonus,
    EntropyTarget,
    HingeKL,
    KLPenalty,
    Normalized,
    NoSurrogate,
    PolicyObjective,
    RatioGuard,
    Reinforce,
    Reversed,
    Scope,
    SecondMoment,
    Sequences,
    TokenBatch,
    TokenRatio,
    TokenSum,
    TokenWeights,
    TopEntropy,
    Unclipped,
    Weighted,
    Weighting,
)
from gigpo_fast.objective.differentiate import objective_from
from gigpo_fast.objective.divergence import K1
from gigpo_fast.ops.clip_twin import twin_options
from tests.block_cases import ALL, WEIGHTINGS
from tests.loss_helpers import EXTRAS, change, make_batch, per_token, run_linear, run_policy, smallest_chunk
from tests.tolerance import assert_same_bits, error

FLOATS = ("advantages", "weights", "log_probs", "entropy", "old", "ref", *EXTRAS)
# These divide by what they count in a call: right for a full batch, and another number for a part of one.
COUNT_HERE = ("penalty own aggregation, own count", "penalty own token mean", "penalty whole term")
SPLITTABLE = [name for name, objective in ALL.items() if objective.scope < Scope.BATCH and name not in COUNT_HERE]
WHOLE = [name for name, objective in ALL.items() if objective.scope == Scope.BATCH]


def batch(shape=(4, 6), **keywords):
    return make_batch(shape, dtype=torch.float64, **keywords)


@pytest.mark.parametrize("name", ALL)
def test_travels_as_text(name):
    objective = ALL[name]
    again = objective_from(objective.structure, tuple(objective.numbers.tolist()))
    declared = ("scope", "reads", "needs_entropy", "needs_reference", "needs_sequences", "zero_at_zero_advantage", "known_on_policy")
    assert again == objective and hash(again) == hash(objective) and again.structure == objective.structure
    assert [getattr(again, what) for what in declared] == [getattr(objective, what) for what in declared]


@pytest.mark.parametrize("name", ALL)
def test_zero_at_zero_advantage_is_what_the_formula_does(name):
    """Where it is declared, value and gradient vanish wherever all advantages of the scope are 0; else they do not."""
    objective, b = ALL[name], batch(trained=1.1)
    for every in ("scores", "group_spread"):
        setattr(b, every, getattr(b, every).abs() + 1)  # nothing is masked out by these
    alone = run_policy(change(b, advantages=torch.zeros_like(b.advantages)), objective, entropy=b.entropy.clone().requires_grad_())
    vanishes = torch.count_nonzero(alone.log_probs) == 0 and float(alone.loss) == 0.0
    assert vanishes == objective.zero_at_zero_advantage
    if objective.zero_at_zero_advantage and objective.scope < Scope.BATCH:
        b.advantages[1:3] = 0
        assert torch.count_nonzero(run_policy(b, objective).log_probs[1:3]) == 0


@pytest.mark.parametrize("name", ALL)
def test_scope_is_how_far_a_gradient_reaches(name):
    """Another log-prob and advantage of one token change other tokens' coefficients within the declared scope only."""
    objective, b = ALL[name], batch((3, 5), trained=1.1)
    other = change(b, log_probs=b.log_probs.clone(), advantages=b.advantages.clone())
    other.log_probs[1, 2] -= 0.4
    other.advantages[1, 2] += 1.0
    difference = run_policy(b, objective).log_probs - run_policy(other, objective).log_probs
    difference[1, 2] = 0
    if objective.scope < Scope.BATCH:
        assert torch.count_nonzero(difference[[0, 2]]) == 0
    if objective.scope == Scope.TOKEN:
        assert torch.count_nonzero(difference) == 0


@pytest.mark.parametrize("name", SPLITTABLE)
@pytest.mark.parametrize("parts", [2, 3])
def test_any_split_gives_the_same_loss_and_gradient(name, parts):
    objective, b = ALL[name], batch((5, 4), seed=3)
    denominator = global_denominator(b.mask, objective=objective)
    whole = run_policy(b, objective, denominator=denominator)
    pieces = [
        run_policy(per_token(b, lambda value, r=rows: value[r]), objective, denominator=denominator)
        for rows in torch.randperm(5, generator=torch.Generator().manual_seed(parts)).sort().values.chunk(parts)
    ]
    assert error(sum(piece.loss for piece in pieces), whole.loss) < 1e-14
    assert error(torch.cat([piece.log_probs for piece in pieces]), whole.log_probs) < 1e-15


@pytest.mark.parametrize("name", ALL)
def test_what_untrained_tokens_hold_changes_no_bit(name):
    objective, b = ALL[name], make_batch((4, 5), seed=1)
    b.mask[2] = False
    noise = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -1.0]).expand(4, 5)
    spoiled = {}
    for field in FLOATS:
        value = getattr(b, field)
        garbage = noise.to(value.dtype) if value.is_floating_point() else ~value if value.dtype == torch.bool else value - 2**62
        spoiled[field] = torch.where(b.mask, value, garbage)
    want, got = run_policy(b, objective), run_policy(change(b, **spoiled), objective)
    assert_same_bits("loss", got.loss, want.loss)
    assert_same_bits("metrics", got.metrics, want.metrics)
    assert_same_bits("log_probs", got.log_probs, want.log_probs)
    assert torch.count_nonzero(got.log_probs[~b.mask]) == 0


@pytest.mark.parametrize("on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("name", [name for name in ALL if ALL[name].scope > Scope.TOKEN or name.startswith("penalty own")])
def test_fused_in_chunks_that_cut_what_belongs_together(name, on_policy):
    """Chunks of 16 tokens under sequences of 24: those need two passes, or coefficients that are known beforehand."""
    objective = ALL[name]
    b = batch((2, 24), trained=1.1, hidden=4, vocabulary=11)
    small = run_linear(b, objective, on_policy=on_policy, chunk_bytes=smallest_chunk(b))
    large = run_linear(b, objective, on_policy=on_policy)
    assert error(small.loss, large.loss) < 1e-13
    for what in ("hidden", "weight", "bias"):
        assert error(getattr(small, what), getattr(large, what)) < 1e-13


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_weight_is_a_constant(name):
    """With REINFORCE, whose value is linear in the log-prob, the gradient is the value's factor of each token and nothing else."""
    b = batch(trained=1.1)
    b.log_probs = b.log_probs.clamp(max=-0.05)
    objective = PolicyObjective(surrogate=Weighted(Reinforce(), WEIGHTINGS[name]), aggregation=TokenSum())
    got = run_policy(b, objective)
    assert float(got.loss) == pytest.approx(float((got.log_probs * b.log_probs).sum()), rel=1e-12)


def pair_of(name):
    """A block with its statistic from the call, and the same block with that statistic given: (inside, outside, common objective fields)."""
    b = batch((4, 8), trained=1.1, seed=2)
    A, lp = float(b.advantages.mean()), float(b.log_probs.mean())
    covariance = ((b.advantages - A) * (b.log_probs - lp)).flatten().sort(descending=True).values
    cut = CovarianceStatistics(A, lp, float(covariance[5]))
    clip = lambda weighting: PolicyObjective(surrogate=Weighted(Clip(), weighting))  # noqa: E731
    squares = (b.old - b.rollout_log_probs).square().flatten().sort().values
    kept = int((squares.cumsum(0) / torch.arange(1, 33) <= 0.02).sum())
    gap = float((b.old - b.log_probs).mean())
    table = {
        "entropy": (clip(TopEntropy(0.3)), clip(TopEntropy(0.3, threshold=float(torch.quantile(b.entropy, 0.7))))),
        "covariance top": (clip(CovarianceTop(6 / 32)), clip(CovarianceTop(6 / 32, cut))),
        "all of the band": (clip(CovarianceBand(1.0, 0.1, 9.0)), clip(CovarianceBand(1.0, 0.1, 9.0, statistics=CovarianceStatistics(A, lp, 1.0)))),
        "second moment": (clip(SecondMoment(0.02)), clip(SecondMoment(0.02, cutoff=float(squares[kept])))),
        "ratio": (clip(RatioGuard(1.0)), clip(RatioGuard(1.0, mean=float((b.log_probs - b.old).exp().mean())))),
        "mean": (clip(Normalized(TokenWeights())), clip(Normalized(TokenWeights(), mean=float(b.weights.mean())))),
        "entropy target": tuple(PolicyObjective(entropy_bonus=EntropyTarget(0.1, 1.0, mean=m)) for m in (None, float(b.entropy.mean()))),
        "hinge": tuple(PolicyObjective(divergence=HingeKL(3.0, gap - 1, Reversed(K1()), mean=m)) for m in (None, gap)),
    }  # fmt: skip
    return b, *table[name]


PAIRS = ["entropy", "covariance top", "all of the band", "second moment", "ratio", "mean", "entropy target", "hinge"]


@pytest.mark.parametrize("name", PAIRS)
def test_a_statistic_from_outside_is_the_whole_batch_for_every_part(name):
    b, inside, outside = pair_of(name)
    want = run_policy(b, inside, denominator=32.0)
    whole = run_policy(b, outside, denominator=32.0)
    assert error(whole.loss, want.loss) < 1e-14 and error(whole.log_probs, want.log_probs) < 1e-15
    parts = [run_policy(per_token(b, lambda value, r=rows: value[r]), outside, denominator=32.0) for rows in (slice(0, 2), slice(2, 4))]
    assert error(parts[0].loss + parts[1].loss, want.loss) < 1e-14
    if name in ("entropy", "covariance top", "mean", "hinge"):  # each part's own statistic is another
        apart = [run_policy(per_token(b, lambda value, r=rows: value[r]), inside, denominator=32.0) for rows in (slice(0, 2), slice(2, 4))]
        assert error(apart[0].loss + apart[1].loss, want.loss) > 1e-6


def test_the_weight_of_a_policy_term_leaves_the_others_alone():
    """Weighted masks the surrogate; `weighting` masks the whole term."""
    b = batch()
    b.weights = torch.zeros_like(b.weights)
    penalised = {"divergence": KLPenalty(0.1), "entropy_bonus": EntropyBonus(0.1)}
    inner = run_policy(b, PolicyObjective(surrogate=Weighted(Unclipped(), TokenWeights()), **penalised))
    alone = run_policy(change(b, advantages=torch.zeros_like(b.advantages)), PolicyObjective(surrogate=Unclipped(), **penalised))
    outer = run_policy(b, PolicyObjective(surrogate=Unclipped(), weighting=TokenWeights(), **penalised))
    assert float(alone.loss) != 0.0 and error(inner.loss, alone.loss) < 1e-15 and error(inner.log_probs, alone.log_probs) < 1e-15
    assert float(outer.loss) == 0.0 and torch.count_nonzero(outer.log_probs) == 0 and torch.count_nonzero(outer.entropy) == 0


def test_a_zero_weight_hides_a_surrogate_that_overflows():
    b = batch(trained=1.1)
    b.old = b.old - 1e4
    objective = PolicyObjective(TokenRatio(None), Weighted(Unclipped(), TokenWeights()))
    assert float(run_policy(change(b, weights=torch.zeros_like(b.weights)), objective).loss) == 0.0


@dataclasses.dataclass(frozen=True)
class Forgetful(Weighting):
    """A weighting that forgot that it is a constant."""

    def factor(self, batch):
        return batch.log_probs.exp()


@pytest.mark.parametrize("make", [lambda w: PolicyObjective(surrogate=Weighted(Reinforce(), w)), lambda w: PolicyObjective(surrogate=Reinforce(), weighting=w),
                                  lambda w: PolicyObjective(surrogate=NoSurrogate(), divergence=KLPenalty(1.0, K1(), weighting=w))],
                         ids=["Weighted", "weighting", "penalty"])  # fmt: skip
def test_the_weight_of_any_weighting_has_no_gradient(make):
    b = batch(trained=1.1)
    known = run_policy(change(b, weights=b.log_probs.exp()), make(TokenWeights()))
    got = run_policy(b, make(Forgetful()))
    assert error(got.loss, known.loss) < 1e-15 and error(got.log_probs, known.log_probs) < 1e-15


def test_labels_are_whole_numbers():
    b = batch()
    with pytest.raises(TypeError, match=r"policy_loss: extras\['segment_ids'\] must be .*int64"):
        run_policy(change(b, segment_ids=b.segment_ids.double()), ALL["SegmentRatio"])
    with pytest.raises(TypeError, match=r"policy_loss: extras\['teacher_log_probs'\] must be"):
        run_policy(change(b, teacher_log_probs=b.token_keys), ALL["penalty teacher"])


def test_labels_of_sequences_that_are_cut_over_ranks_are_refused():
    """A segment's sum over one rank's tokens would be silently too small."""
    ids, values = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    cut = TokenBatch(values, None, values, None, None, values, Sequences(ids, torch.tensor([4.0]), "a group"), {}, None)
    with pytest.raises(
        ValueError, match="objective: segment_ids and group_ids must lie on one rank, got sequences that are cut over ranks; use"
    ):
        cut.label_sums(values, ids)
    assert cut._replace(sequences=Sequences(ids, torch.tensor([2.0]))).label_sums(values, ids).tolist() == [2.0, 2.0]


def test_the_clip_kernel_serves_none_of_them():
    """It computes plain clips with a plain k3: whatever else an objective says, the formula must run."""
    assert [name for name in ALL if twin_options(ALL[name]) is not None] == []
    plain = PolicyObjective(surrogate=Clip(0.2, 0.3, ceiling=1.3), divergence=KLPenalty(0.1), entropy_bonus=EntropyBonus(0.1))
    assert twin_options(plain) is not None
    assert twin_options(PolicyObjective(surrogate=Clip(0.2, 0.3, ceiling=1.29))) is None


@pytest.mark.parametrize("name", WHOLE)
def test_a_batch_of_nothing(name):
    b = batch(trained=-1.0)
    assert float(run_policy(b, ALL[name]).loss) == 0.0
    got = run_linear(b, ALL[name])
    assert float(got.loss) == 0.0 and torch.count_nonzero(got.weight) == 0
