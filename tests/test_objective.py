"""The blocks of an objective: what they declare is true, what they refuse, how they travel as text, and how metrics merge."""

import dataclasses

import pytest
import torch

from gigpo_fast import metrics
from gigpo_fast.loss import LossOutput
from gigpo_fast.objective import (
    K1,
    K3,
    Block,
    Clip,
    EntropyBonus,
    KLPenalty,
    NoRatio,
    PolicyObjective,
    Reinforce,
    Scope,
    SequenceMeanTokenMean,
    SequenceMeanTokenSumNorm,
    SequenceRatio,
    Surrogate,
    TokenMean,
    TokenRatio,
    TokenWeights,
)
from gigpo_fast.objective.block import read, write
from gigpo_fast.objective.differentiate import objective_from
from gigpo_fast.recipes import names, recipe
from tests.loss_helpers import AXES, change, covering_objectives, make_batch, run_policy

OBJECTIVES = covering_objectives()


@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_an_objective_travels_as_text_and_numbers(number):
    objective = OBJECTIVES[number]
    again = objective_from(objective.structure, tuple(objective.numbers.tolist()))
    assert again == objective and again.structure == objective.structure
    assert (again.scope, again.reads, again.needs_entropy) == (objective.scope, objective.reads, objective.needs_entropy)


def test_numbers_are_not_in_the_structure():
    """A scheduled coefficient changes the numbers only, so that nothing compiled depends on it."""
    first, second = (
        PolicyObjective(surrogate=Clip(low, 0.28, dual=3.0), divergence=KLPenalty(beta)) for low, beta in ((0.2, 0.01), (0.1, 0.02))
    )
    assert first.structure == second.structure and first.numbers.tolist() != second.numbers.tolist()
    assert first.numbers.dtype == torch.float64 and PolicyObjective(surrogate=Clip(0.2, dual=None)).structure != first.structure


def test_every_pair_of_options_is_covered():
    """What the tests of the losses rely on: each option of a block meets each option of every other block."""
    for a, options in AXES.items():
        for b, others in AXES.items():
            met = {(getattr(objective, a), getattr(objective, b)) for objective in OBJECTIVES}
            assert a == b or met >= {(x, y) for x in options for y in others}


@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_zero_at_zero_advantage_is_what_the_formula_does(number):
    """An objective that declares it has value and gradient 0 wherever all advantages of its scope are 0; one that does not, has not."""
    objective = OBJECTIVES[number]
    b = make_batch((4, 5), dtype=torch.float64, trained=1.1, seed=number)
    b.advantages[1:3] = 0
    b.kl_mask[:] = True
    got = run_policy(b, objective, entropy=b.entropy.clone().requires_grad_())
    alone = run_policy(change(b, advantages=torch.zeros_like(b.advantages)), objective, entropy=b.entropy)
    vanishes = torch.count_nonzero(got.log_probs[1:3]) == 0 and float(alone.loss) == 0.0
    assert vanishes == objective.zero_at_zero_advantage


@pytest.mark.parametrize("number", range(len(OBJECTIVES)))
def test_scope_is_how_far_a_gradient_reaches(number):
    """Changing one token's advantage and log-prob changes coefficients of other tokens within the declared scope only."""
    objective = OBJECTIVES[number]
    b = make_batch((3, 5), dtype=torch.float64, trained=1.1, seed=number)
    other = change(b, log_probs=b.log_probs.clone())
    other.log_probs[1, 2] += 0.05
    difference = run_policy(b, objective).log_probs - run_policy(other, objective).log_probs
    difference[1, 2] = 0
    assert torch.count_nonzero(difference[[0, 2]]) == 0
    if objective.scope == Scope.TOKEN:
        assert torch.count_nonzero(difference) == 0


def test_scope_and_needs():
    plain = PolicyObjective()
    assert (plain.scope, plain.needs_sequences, plain.needs_entropy, plain.needs_reference, plain.reads) == (
        Scope.TOKEN,
        False,
        False,
        False,
        (),
    )
    full = PolicyObjective(
        SequenceRatio(), Clip(), KLPenalty(0.1, own_mask=True), TokenWeights(), EntropyBonus(0.1), SequenceMeanTokenMean()
    )
    assert (full.scope, full.needs_sequences, full.needs_entropy, full.needs_reference) == (Scope.SEQUENCE, True, True, True)
    assert set(full.reads) == {"kl_mask", "weights"} and not full.zero_at_zero_advantage
    assert PolicyObjective(aggregation=SequenceMeanTokenMean()).scope == Scope.TOKEN  # lengths are known beforehand


@pytest.mark.parametrize("make, message", [
    (lambda: Clip(low=-0.1), "Clip: low must be a number >= 0 and <= 1, got -0.1; the usual value is 0.2"),
    (lambda: Clip(low=1.5), "Clip: low must be a number >= 0 and <= 1, got 1.5"),
    (lambda: Clip(high=float("nan")), "Clip: high must be a number >= 0, got nan"),
    (lambda: Clip(dual=1.0), "Clip: dual must be a number > 1 or None, got 1.0; the usual value is 3.0"),
    (lambda: Clip(ceiling=0.0), "Clip: ceiling must be a number > 0 or None, got 0.0"),
    (lambda: TokenRatio(-1.0), "TokenRatio: log_ratio_clip must be a positive number, a .low, high. pair around 0 or None, got -1.0; 20.0"),
    (lambda: TokenRatio(0.0), "TokenRatio: log_ratio_clip must be"),
    (lambda: SequenceRatio((0.5, 1.0)), "SequenceRatio: log_ratio_clip must be"),
    (lambda: KLPenalty(-0.1), "KLPenalty: coefficient must be a number >= 0, got -0.1; GiGPO uses 0.01"),
    (lambda: KLPenalty(float("nan")), "KLPenalty: coefficient must be a number >= 0"),
    (lambda: KLPenalty("0.1"), "KLPenalty: coefficient must be a number >= 0"),
    (lambda: KLPenalty(0.1, "k3"), r"KLPenalty: estimator must be a divergence estimator such as K3\(\), got 'k3'"),
    (lambda: EntropyBonus(None), "EntropyBonus: coefficient must be a number, got None"),
    (lambda: SequenceMeanTokenSumNorm(0), "SequenceMeanTokenSumNorm: length must be a number > 0, got 0; pass the maximum response length"),
    (lambda: SequenceMeanTokenSumNorm(True), "SequenceMeanTokenSumNorm: length must be"),
    (lambda: SequenceMeanTokenSumNorm(float("inf")), "SequenceMeanTokenSumNorm: length must be"),
    (lambda: PolicyObjective(surrogate="clip"), "PolicyObjective: surrogate must be a Surrogate block, got 'clip'"),
    (lambda: PolicyObjective(ratio=None), "PolicyObjective: ratio must be a Ratio block, got None"),
    (lambda: PolicyObjective(divergence=K3()), r"PolicyObjective: divergence must be a KLPenalty block, got K3"),
    (lambda: recipe("pgo"), "recipe: name must be that of a recipe, got 'pgo'; the nearest are 'tpo', 'rpo', 'ppo', .*PolicyObjective composes anything else"),
    (lambda: recipe("grpo", clip=0.2), r"recipe: 'grpo' takes the settings .*'clip_low'.*, got \['clip'\]"),
])  # fmt: skip
def test_wrong_settings_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_missing_length_is_an_error():
    with pytest.raises(TypeError, match="length"):
        SequenceMeanTokenSumNorm()


def test_what_cannot_travel_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Holds(Surrogate):
        table: torch.Tensor

    with pytest.raises(
        TypeError,
        match="objective: a block field must be a number, bool, str, None, tuple or block, got Tensor.*; pass tensors through extras",
    ):
        PolicyObjective(surrogate=Holds(torch.zeros(3)))


def test_fields_of_every_kind_travel():
    @dataclasses.dataclass(frozen=True)
    class Everything(Block):
        number: float
        whole: int
        flag: bool
        text: str
        nothing: None
        pair: tuple
        inner: Block

    value = Everything(0.5, 3, True, 'it\'s "quoted"', None, (1.5, (2, False)), K1())
    numbers: list[float] = []
    text = write(value, numbers)
    assert numbers == [0.5, 1.5] and read(text, tuple(numbers)) == value
    assert read(text, (7.0, 8.0)).number == 7.0
    with pytest.raises(ValueError, match="objective: cannot read"):
        read("__import__('os')", ())


def test_equal_objectives_are_equal_and_hashable():
    assert PolicyObjective() == PolicyObjective() and hash(PolicyObjective()) == hash(PolicyObjective())
    assert PolicyObjective(surrogate=Reinforce()) != PolicyObjective()


def test_recipes_are_compositions():
    assert {"grpo", "gigpo"} <= set(names())
    for name in ("grpo", "gigpo"):
        assert recipe(name).objective == PolicyObjective(TokenRatio(), Clip(0.2, 0.2), None, None, None, TokenMean())
        full = recipe(name, clip_low=0.1, clip_high=0.3, dual_clip=3.0, kl_coefficient=0.01, entropy_coefficient=0.001).objective
        assert full == PolicyObjective(
            TokenRatio(), Clip(0.1, 0.3, dual=3.0), KLPenalty(0.01, K3()), None, EntropyBonus(0.001), TokenMean()
        )


def test_no_ratio_ignores_the_old_policy():
    b = make_batch()
    objective = PolicyObjective(ratio=NoRatio())
    found = run_policy(b, objective).output.metrics_as_floats()
    assert found["ratio_max"] == 1.0 and found["clip_fraction_high"] == 0.0 and found["approx_kl"] != 0.0


def test_merged_metrics_are_sums_counts_and_maxima():
    """Means weigh by their counts: 1 token at 0.5 and 3 at 0.1 are 0.2, not 0.3."""
    tensor = torch.tensor

    def part(tokens, kl, ratio, denominator):
        return metrics.pack({"n_active": tensor(tokens)}, {"approx_kl": (tensor(tokens * kl), tensor(tokens))},
                            {"ratio_max": tensor(ratio), "denominator": tensor(denominator)}, tensor(0.0))  # fmt: skip

    merged = metrics.as_floats(metrics.merge([part(1.0, 0.5, 3.0, 4.0), part(3.0, 0.1, 2.0, 4.0)]))
    assert (
        merged["approx_kl"] == pytest.approx(0.2)
        and merged["n_active"] == 4.0
        and merged["ratio_max"] == 3.0
        and merged["denominator"] == 4.0
    )
    assert set(metrics.NAMES) - set(merged) == {name for name in metrics.POLICY.means if name != "approx_kl"}  # means over nothing
    assert len(metrics.NAMES) == len(set(metrics.NAMES))
    with pytest.raises(ValueError, match="LossOutput.merge: outputs must hold at least one LossOutput, got none"):
        LossOutput.merge([])
