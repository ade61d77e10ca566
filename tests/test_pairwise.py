"""Preference losses: numbers worked out by hand, value and every gradient against the reference, what cannot matter, and what is reported."""

import math

import pytest
import torch

from gigpo_fast.pairwise import (
    AlphaDivergence,
    ChiSquare,
    ForwardKL,
    Hinge,
    JensenShannon,
    Logistic,
    LogOdds,
    NegativeLogLikelihood,
    PairClip,
    PairwiseObjective,
    PairwiseOutput,
    ReverseChiSquare,
    ReverseKL,
    Robust,
    Score,
    Sigmoid,
    SoftLabel,
    Square,
    TotalVariation,
    all_pairs,
    halves,
    pairwise_loss,
    pseudo_rewards,
    response_loss,
)
from gigpo_fast.reference import pairwise as reference
from tests.pairwise_cases import FREE, OBJECTIVES, SINGLE, given, responses, written
from tests.tolerance import GRADIENT, VALUE, assert_no_worse_than, assert_same_bits, error, roundings

NLL = NegativeLogLikelihood
DPO_PART = 0.620957  # -log sigma(.1 ((-10 + 11) - (-12 + 11.5)))


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def one_pair(objective, chosen, rejected, **keywords):
    """Loss and gradient of a single pair of float64 numbers."""
    log_probs = tensor(chosen, rejected).requires_grad_()
    keywords = {name: tensor(*value) for name, value in keywords.items()}
    out = pairwise_loss(log_probs, torch.tensor([[0, 1]]), objective=objective, **keywords)
    return float(out.loss.detach()), torch.autograd.grad(out.loss, log_probs)[0].tolist()


@pytest.mark.parametrize(
    "objective, numbers, keywords, loss",
    [
        (PairwiseObjective(beta=0.1), (-10, -12), {"ref_log_probs": (-11, -11.5)}, DPO_PART),
        (PairwiseObjective(beta=0.1, nll=NLL(0.2, per_token=True)), (-10, -12), {"ref_log_probs": (-11, -11.5), "lengths": (5, 5)}, 1.020957),
        (PairwiseObjective(beta=0.1, nll=NLL(0.005 * 0.1)), (-10, -12), {"ref_log_probs": (-11, -11.5)}, 0.625957),
        (PairwiseObjective(beta=0.1, nll=NLL(0.2 * 0.1)), (-10, -12), {"ref_log_probs": (-11, -11.5)}, 0.820957),
        (PairwiseObjective(score=FREE, beta=0.1), (-10, -14), {}, 0.513015),
        (PairwiseObjective(score=FREE, beta=0.1, rejected=0.5), (-10, -14), {}, 0.854355),
        (PairwiseObjective(score=FREE, beta=0.1, rejected=0.5), (-14, -10), {}, 1.241154),
        (PairwiseObjective(beta=0.2, rejected=0.75), (-10, -14), {"ref_log_probs": (-11, -13)}, 0.533382),
        (PairwiseObjective(Square(1.0), Score(1 / 3, 2 / 3), 1.0), (3, 0), {"ref_log_probs": (1.5, 0), "previous_log_probs": (2, 0)}, 0.027778),
        (PairwiseObjective(Square(1.0), Score(1.0), 1.0), (3, 0), {"ref_log_probs": (1.5, 0)}, 0.25),
        (PairwiseObjective(Square(0.5), beta=1.0), (1.5, 0), {"ref_log_probs": (0, 0)}, 1.0),  # the bandit's IPO: beta is the margin
        (PairwiseObjective(Square(), beta=1.0), (-1, -2), {"ref_log_probs": (-1.2, -1.7), "targets": ((0.7 - 0.4) / 0.5,)}, 0.01),
        (PairwiseObjective(Square(), beta=1.0), (-1, -2), {"ref_log_probs": (-1.2, -1.7), "targets": ((0.7 - 0.5) / 0.5,)}, 0.01),
        (PairwiseObjective(Square(scale=1.0), beta=0.5), (0.2, -0.1), {"ref_log_probs": (0, 0), "targets": (1,)}, 0.7225),  # CoPG, 2 beta = 1
        (PairwiseObjective(beta=0.1), (2, 0), {"ref_log_probs": (0, 0)}, 0.5981389),  # DNO, hard
        (PairwiseObjective(SoftLabel(), beta=0.1), (2, 0), {"ref_log_probs": (0, 0), "targets": (0.75,)}, 0.6481389),
        (PairwiseObjective(beta=1.0), (0.3, -0.2), {"ref_log_probs": (0, 0)}, 0.4740770),  # SePPO, a losing sample
        (PairwiseObjective(beta=1.0), (0.3, 0.2), {"ref_log_probs": (0, 0)}, 0.6443967),  # a winning one: its sign is turned
        (PairwiseObjective(PairClip(0.2), beta=1.0), (0.1, -0.3), {"ref_log_probs": (0, 0), "targets": (math.exp(-0.2),)}, -0.0818731),
        (PairwiseObjective(Hinge(), beta=0.5), (1, 0), {"ref_log_probs": (0, 0)}, 0.5),
        (PairwiseObjective(Hinge(), beta=0.5), (3, 0), {"ref_log_probs": (0, 0)}, 0.0),
        (PairwiseObjective(Sigmoid(), beta=1.0), (math.log(3), 0), {"ref_log_probs": (0, 0)}, 0.25),
        (PairwiseObjective(Logistic(0.25), beta=1.0), (math.log(3), 0), {"ref_log_probs": (0, 0)}, math.log(4) - 0.75 * math.log(3)),
        (PairwiseObjective(Robust(0.25), beta=1.0), (math.log(3), 0), {"ref_log_probs": (0, 0)}, math.log(4) - 1.5 * math.log(3)),
        (PairwiseObjective(score=Score(0.0, per_token=True), beta=2.0, margin=1.0), (-2, -6), {"lengths": (2, 4)}, math.log(2)),  # 2(-1+1.5)-1
    ],
)  # fmt: skip
def test_numbers(objective, numbers, keywords, loss):
    assert one_pair(objective, *numbers, **keywords)[0] == pytest.approx(loss, abs=5.1e-7)


@pytest.mark.parametrize(
    "objective, numbers, keywords, gradient",
    [
        (PairwiseObjective(beta=0.1), (0, 0), {"ref_log_probs": (0, 0)}, (-0.05, 0.05)),
        (PairwiseObjective(score=FREE, beta=0.1, rejected=0.5), (0, 0), {}, (-0.05, 0.025)),
        (PairwiseObjective(Square(scale=1.0), beta=0.5), (0.2, -0.1), {"ref_log_probs": (0, 0), "targets": (1,)}, (-0.85, 0.85)),
        (PairwiseObjective(Hinge(), beta=0.5), (3, 0), {"ref_log_probs": (0, 0)}, (0, 0)),
        (PairwiseObjective(PairClip(0.2), beta=1.0), (0.1, -0.3), {"ref_log_probs": (0, 0), "targets": (1,)}, (0, 0)),  # beyond epsilon
        (PairwiseObjective(PairClip(0.2), beta=1.0), (0.1, -0.3), {"ref_log_probs": (0, 0), "targets": (-1,)}, (0.5, -0.5)),  # pessimism
        (PairwiseObjective(beta=0.1, nll=NLL(0.3)), (0, 0), {"ref_log_probs": (0, 0)}, (-0.35, 0.05)),
        (PairwiseObjective(beta=0.1, nll=NLL(0.3, True, True)), (0, 0), {"ref_log_probs": (0, 0), "lengths": (2, 5)}, (-0.125, 0.02)),
    ],
)  # fmt: skip
def test_gradients_by_hand(objective, numbers, keywords, gradient):
    assert one_pair(objective, *numbers, **keywords)[1] == pytest.approx(list(gradient), abs=1e-12)


def test_the_ranking_loss_of_cpl():
    """Three segments in rising order of score, bias .5: all three pairs."""
    pairs = all_pairs(tensor(0, 1, 2), torch.zeros(3, dtype=torch.int64))
    out = pairwise_loss(tensor(-14, -10, -6), pairs, objective=PairwiseObjective(score=FREE, beta=0.1, rejected=0.5))
    assert float(out.loss) == pytest.approx(0.747716, abs=5e-7)


def test_transforms_by_hand():
    d = math.log(0.4)  # policy .2 against a target of .5
    for divergence, want in {
        ForwardKL(): 2.5, ReverseKL(): -0.0837093, JensenShannon(): 0.5596158, TotalVariation(): 0.5, ChiSquare(): 5.25, ReverseChiSquare(): 1.2
    }.items():  # fmt: skip
        assert pseudo_rewards(tensor(math.log(0.2)), tensor(math.log(0.5)), divergence=divergence).item() == pytest.approx(want, abs=5e-8)
        assert float(reference.TRANSFORMS[type(divergence).__name__](tensor(d)[0])) == pytest.approx(-want, abs=5e-8)
    assert AlphaDivergence(1.0).value(tensor(d)).item() == pytest.approx(1 - 2.5)
    assert LogOdds().value(tensor(math.log(0.75), math.log(0.25), -1e-9)).tolist() == pytest.approx(
        [math.log(3), -math.log(3), math.log(1e9)]
    )


def check(objective, b, call, spec):
    log_probs = b.log_probs.clone().requires_grad_()
    out = call(log_probs)
    out.loss.backward()
    exact = b.log_probs.double().clone().requires_grad_()
    want = spec(exact)
    want.backward()
    return out, log_probs.grad, want.detach(), exact.grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_pairs_against_the_reference(name, dtype):
    """bf16 and fp32 inputs are exact numbers, so what is left is the arithmetic's own rounding."""
    objective, b = OBJECTIVES[name], responses(dtype=dtype)
    tensors = given(b, objective, 6)
    out, gradient, want, wanted = check(
        objective,
        b,
        lambda x: pairwise_loss(x, b.pairs, objective=objective, denominator=4.0, **tensors),
        lambda x: reference.pairwise_loss(x, b.pairs, rejected=objective.rejected, given=tensors, denominator=4.0, **written(objective)),
    )
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.loss.dtype == compute and gradient.dtype == dtype
    assert error(out.loss, want) <= roundings(torch.maximum(want.abs(), tensor(1.0)), compute, 40)
    assert error(gradient, wanted) <= roundings(wanted, compute, 100) + roundings(wanted, dtype, 1)
    assert gradient[3] == 0  # in no pair


@pytest.mark.parametrize("name", SINGLE)
def test_single_responses_against_the_reference(name):
    objective, b = OBJECTIVES[name], responses()
    b.log_probs[3] = -1.0  # the odds of an empty response are infinite
    tensors = given(b, objective, 7)
    out, gradient, want, wanted = check(
        objective,
        b,
        lambda x: response_loss(x, b.desirable, objective=objective, reference_point=0.3, **tensors),
        lambda x: reference.response_loss(x, b.desirable, reference_point=0.3, given=tensors, **written(objective)),
    )
    assert error(out.loss, want) <= roundings(torch.maximum(want.abs(), tensor(1.0)), torch.float64, 40)
    assert error(gradient, wanted) <= roundings(wanted, torch.float64, 100)


def test_kto_by_hand():
    """r = beta (S - S_ref) = (.4, -.2), reference point .1: desirable weight 1.5."""
    out = response_loss(
        tensor(-1, -2),
        torch.tensor([True, False]),
        ref_log_probs=tensor(-5, 0),
        weights=tensor(1.5, 1.0),
        reference_point=torch.tensor(0.1),
        objective=PairwiseObjective(Sigmoid(), beta=0.1),
    )
    sigma = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert float(out.loss) == pytest.approx((1.5 * (1 - sigma(0.3)) + (1 - sigma(0.3))) / 2)
    named = out.metrics_as_floats()
    assert named["reward_chosen"] == pytest.approx(0.4) and named["reward_rejected"] == pytest.approx(-0.2)
    assert "reward_margin" not in named and "accuracy" not in named and named["n_pairs"] == 2  # without pairs there are none
    paired = pairwise_loss(tensor(-1, -2), halves(2), objective=PairwiseObjective(score=FREE))
    assert PairwiseOutput.merge([out, paired]).metrics_as_floats()["accuracy"] == 1.0  # and they do not count


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_pair_of_weight_zero_cannot_matter(name, garbage):
    objective = OBJECTIVES[name]
    found = []
    for value in (-1.0, garbage):
        b = responses()
        b.pairs[4] = torch.tensor([3, 3])  # the pair of weight 0, alone with response 3
        for field in ("log_probs", "ref_log_probs", "previous_log_probs"):
            getattr(b, field)[3] = value
        b.targets[4] = value
        log_probs = b.log_probs.clone().requires_grad_()
        out = pairwise_loss(log_probs, b.pairs, objective=objective, **given(b, objective, 6))
        out.loss.backward()
        found.append((out.loss.detach(), log_probs.grad, out.metrics, out.losses))
    for what, (one, other) in zip(("loss", "gradient", "metrics", "losses"), zip(*found)):
        assert_same_bits(what, other, one)
    assert found[1][1][3] == 0


def test_extreme_log_odds_are_exact():
    """h = +-200 in float32: -log sigma is 0 and 200, with gradients 0 and -1, and nothing overflows; fp64 keeps exp(-40)."""
    log_probs = torch.tensor([200.0, 0.0], requires_grad=True)
    for pair, loss, slope in (([0, 1], 0.0, 0.0), ([1, 0], 200.0, 1.0)):
        out = pairwise_loss(log_probs, torch.tensor([pair]), objective=PairwiseObjective(score=FREE, beta=1.0))
        assert float(out.loss.detach()) == pytest.approx(loss, abs=1e-30)
        assert torch.autograd.grad(out.loss, log_probs)[0].tolist() == pytest.approx([slope, -slope], abs=1e-30)
    small = pairwise_loss(tensor(40, 0), torch.tensor([[0, 1]]), objective=PairwiseObjective(score=FREE, beta=1.0)).loss
    assert float(small) == pytest.approx(math.exp(-40), rel=1e-12)


def test_anchors_targets_and_weights_carry_no_gradient():
    objective = PairwiseObjective(Square(), Score(1.0, 0.5), 1.0)
    b = responses()
    leaves = {name: getattr(b, name).clone().requires_grad_() for name in ("log_probs", "ref_log_probs", "previous_log_probs")}
    leaves |= {name: getattr(b, name)[:6].clone().requires_grad_() for name in ("targets", "weights")}
    pairwise_loss(leaves.pop("log_probs"), b.pairs, objective=objective, **leaves).loss.backward()
    assert all(leaf.grad is None for leaf in leaves.values())


@pytest.mark.parametrize("name", ["DPO", "RPO per token", "INPO"])
def test_any_split_of_the_pairs_sums_to_the_same(name):
    objective, b = OBJECTIVES[name], responses()
    tensors = given(b, objective, 6)
    whole_leaf = b.log_probs.clone().requires_grad_()
    whole = pairwise_loss(whole_leaf, b.pairs, objective=objective, denominator=6, **tensors)
    whole.loss.backward()
    leaf, parts = b.log_probs.clone().requires_grad_(), []
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        cut = {key: value[rows] if key in ("targets", "weights") else value for key, value in tensors.items()}
        parts.append(pairwise_loss(leaf, b.pairs[rows], objective=objective, denominator=torch.tensor(6.0), **cut))
    merged = PairwiseOutput.merge(parts)
    merged.loss.backward()
    assert error(merged.loss, whole.loss) <= 1e-15 and error(leaf.grad, whole_leaf.grad) <= 1e-15
    assert_same_bits("losses", merged.losses, whole.losses)
    one, other = merged.metrics_as_floats(), whole.metrics_as_floats()
    assert one == pytest.approx(other, rel=1e-6)


def test_metrics():
    """Two pairs of three responses: beta .5, one ordered rightly."""
    out = pairwise_loss(
        tensor(-1, -2, -4), torch.tensor([[0, 1], [2, 1]]), ref_log_probs=tensor(-2, -2, -2), objective=PairwiseObjective(beta=0.5)
    )
    rewards = {"reward_chosen": (0.5 - 1) / 2, "reward_rejected": 0.0, "reward_margin": -0.25, "accuracy": 0.5}
    others = {"log_prob_chosen": -2.5, "log_prob_rejected": -2.0, "n_pairs": 2, "denominator": 2, "loss_sum": float(out.loss)}
    assert out.metrics_as_floats() == pytest.approx(rewards | others)
    assert out.losses.tolist() == pytest.approx([math.log1p(math.exp(-0.5)), math.log1p(math.exp(1.0))])


def test_no_pairs_at_all():
    log_probs = torch.zeros(3, requires_grad=True)
    out = pairwise_loss(log_probs, torch.zeros(0, 2, dtype=torch.int64), objective=PairwiseObjective(score=FREE))
    out.loss.backward()
    assert float(out.loss.detach()) == 0 and log_probs.grad.tolist() == [0, 0, 0] and set(out.metrics_as_floats().values()) == {0.0, 1.0}


def test_pairs():
    assert halves(6).tolist() == [[0, 3], [1, 4], [2, 5]]
    scores = tensor(1, 3, 1, 2, math.nan, 9)
    assert all_pairs(scores, torch.tensor([7, 7, 7, 7, 7, -1])).tolist() == [[1, 0], [1, 2], [1, 3], [3, 0], [3, 2]]
    assert all_pairs(scores, torch.tensor([7, 7, 7, 7, 7, -1]), least=2.0).tolist() == [[1, 0], [1, 2]]


def test_pairs_against_plain_torch():
    """The same formula in torch, fp32: no worse than it, on large log-probs that cancel."""
    g = torch.Generator().manual_seed(3)
    log_probs, ref = (-200 + 5 * torch.randn(64, generator=g) for _ in range(2))
    pairs, objective = halves(64), PairwiseObjective(nll=NLL(0.01))
    leaf, plain, exact = (log_probs.clone().requires_grad_(), log_probs.clone().requires_grad_(), log_probs.double().requires_grad_())
    out = pairwise_loss(leaf, pairs, ref_log_probs=ref, objective=objective).loss
    formula = lambda x, r: (-torch.nn.functional.logsigmoid(0.1 * ((x - r)[:32] - (x - r)[32:])) - 0.01 * x[:32]).mean()  # noqa: E731
    eager, want = formula(plain, ref), formula(exact, ref.double())
    for value in (out, eager, want):
        value.backward()
    assert_no_worse_than("loss", out, want, eager, factor=VALUE, floor=roundings(want.detach(), torch.float32, 2))
    assert_no_worse_than("gradient", leaf.grad, exact.grad, plain.grad, factor=GRADIENT, floor=roundings(exact.grad, torch.float32, 4))
