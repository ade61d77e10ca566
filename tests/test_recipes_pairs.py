"""Numbers worked out by hand for preference recipes, value and gradient; and that each form of a method is the other where it should be."""

import math

import pytest
import torch

import gigpo_fast
from gigpo_fast.loss import policy_loss
from gigpo_fast.pairwise import (
    PairwiseObjective,
    Score,
    Sigmoid,
    SoftLabel,
    Square,
    all_pairs,
    halves,
    pairwise_loss,
    response_loss,
    sorted_scores,
)
from gigpo_fast.recipes import recipe

R = recipe
REF = {"ref_log_probs": (-11.0, -11.5)}
NONE = {"ref_log_probs": (0.0, 0.0)}
LENGTHS = {"lengths": (5.0, 5.0)}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


# name: (recipe, log-probs of chosen and rejected, what else it reads, loss)
NUMBERS = {
    "dpo": (R("dpo"), (-10.0, -12.0), REF, 0.620957),
    "rpo": (R("rpo"), (-10.0, -12.0), REF, 0.625957),
    "rpo, eta .2": (R("rpo", eta=0.2), (-10.0, -12.0), REF, 0.820957),
    "rpo_openrlhf": (R("rpo_openrlhf", beta=0.1), (-10.0, -12.0), REF | LENGTHS, 1.020957),
    "cpl": (R("cpl"), (-10.0, -14.0), {}, 0.854355),
    "cpl, plain": (R("cpl", bias=1.0), (-10.0, -14.0), {}, 0.513015),
    "cpl, the other way": (R("cpl"), (-14.0, -10.0), {}, 1.241154),
    "cpl_kl": (R("cpl_kl"), (-10.0, -14.0), {"ref_log_probs": (-11.0, -13.0)}, 0.533382),
    "cpl_bc": (R("cpl_bc", alpha=0.1), (-10.0, -14.0), LENGTHS, 0.513015 + (2.0 + 2.8) / 2),
    "inpo": (R("inpo", eta=0.5), (3.0, 0.0), {"ref_log_probs": (1.5, 0.0), "previous_log_probs": (2.0, 0.0)}, 0.027778),
    "ipo": (R("ipo", tau=0.5), (3.0, 0.0), {"ref_log_probs": (1.5, 0.0)}, 0.25),
    "ipo, h 1.5": (R("ipo", tau=0.5), (1.5, 0.0), NONE, 0.25),
    "egpo": (R("egpo"), (-1.0, -2.0), {"ref_log_probs": (-1.2, -1.7), "targets": (0.6,)}, 0.01),
    "online_ipo": (R("online_ipo"), (-1.0, -2.0), {"ref_log_probs": (-1.2, -1.7), "targets": (0.4,)}, 0.01),
    "dno": (R("dno"), (2.0, 0.0), {"previous_log_probs": (0.0, 0.0)}, 0.5981389),
    "dno_soft": (R("dno_soft"), (2.0, 0.0), {"previous_log_probs": (0.0, 0.0), "targets": (0.75,)}, 0.6481389),
    "seppo": (R("seppo"), (0.3, -0.2), NONE, 0.4740770),
    "seppo, the sample wins": (R("seppo"), (0.3, 0.2), NONE, 0.6443967),
    "copg": (R("copg", beta=0.5), (0.2, -0.1), NONE | {"targets": (1.0,)}, 0.7225),
    "p3o": (R("p3o"), (0.1, -0.3), NONE | {"targets": (math.exp(-0.2),)}, -0.0818731),
    "simpo": (R("simpo"), (-2.0, -6.0), {"lengths": (2.0, 4.0)}, math.log(2)),
    "slic": (R("slic", beta=0.5), (1.0, 0.0), NONE, 0.5),
    "robust_dpo": (R("robust_dpo", beta=1.0, flip_rate=0.25), (math.log(3), 0.0), NONE, math.log(4) - 1.5 * math.log(3)),
    "exo": (R("exo", beta=1.0, label_smoothing=0.25), (math.log(3), 0.0), NONE, 0.0),  # the policy's preference is the label's
    "discopop": (R("discopop", beta=1.0), (0.0, 0.0), NONE, (math.log(2) + 1) / 2),
    "orpo": (R("orpo"), (2 * math.log(0.75), 4 * math.log(0.25)), {"lengths": (2.0, 4.0)}, math.log(10 / 9) - 10 * math.log(0.75)),
    "apo_down": (R("apo_down"), (-10.0, -12.0), REF, 0.524979 + 0.462570),
    "tpo": (R("tpo", beta=0.1), (-10.0, -12.0), {}, 0.598139),
    "tpo_length": (R("tpo_length", beta=0.5), (-10.0, -12.0), LENGTHS, math.log1p(math.exp(0.3))),
    "aot": (R("aot", label_smoothing=0.25), (3.0, -2.0), {}, 0.75 * math.log1p(math.exp(-0.5)) + 0.25 * math.log1p(math.exp(0.5))),
    "aot_unpaired": (R("aot_unpaired"), (3.0, -2.0), {}, math.log1p(math.exp(-0.5))),
    "alpha_po": (R("alpha_po", beta=1.0, margin=0.0, alpha=1.0), (math.log(0.5), math.log(0.25)), {"lengths": (1.0, 1.0)}, math.log1p(math.exp(-2))),
}  # fmt: skip


def called(found, log_probs, given):
    given = {name: tensor(*value) for name, value in given.items()}
    return pairwise_loss(log_probs, torch.tensor([[0, 1]]), objective=found.objective, **given).loss


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    """The value, and its gradient by differences."""
    found, numbers, given, loss = NUMBERS[name]
    leaf = tensor(*numbers).requires_grad_()
    value = called(found, leaf, given)
    assert float(value.detach()) == pytest.approx(loss, abs=6e-7)
    (gradient,) = torch.autograd.grad(value, leaf)
    for place in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[place] = 1e-6
        difference = float(called(found, tensor(*numbers) + step, given) - called(found, tensor(*numbers) - step, given)) / 2e-6
        assert float(gradient[place]) == pytest.approx(difference, abs=1e-7, rel=1e-6), place


@pytest.mark.parametrize("name, chosen, rejected", [
    ("kto", 1 - 1 / (1 + math.exp(-0.1)), 1 / (1 + math.exp(0.2))),
    ("bco", math.log1p(math.exp(-0.1)), math.log1p(math.exp(-0.2))),
    ("sppo", (1.0 - 500.0) ** 2, (2.0 - 500.0) ** 2),
    ("apo_zero", 1 - 1 / (1 + math.exp(-0.1)), 1 / (1 + math.exp(0.2))),
])  # fmt: skip
def test_single_responses(name, chosen, rejected):
    """d = 1 of a good and -2 of a bad response: h is beta d of the one and -beta d of the other."""
    out = response_loss(tensor(1, -2), torch.tensor([True, False]), ref_log_probs=tensor(0, 0), objective=R(name).objective)
    assert out.losses.tolist() == pytest.approx([chosen, rejected])


def test_nca_of_a_pair():
    """-log sigma(c) - log sigma(-c) / 2 - log sigma(-r) / 2, of c = .1 and r = -.2, is the sum of two weighted soft labels."""
    given = {"targets": tensor(2 / 3, 1), "weights": tensor(1.5, 0.5), "denominator": 1.0, "ref_log_probs": tensor(0, 0)}
    out = response_loss(tensor(1, -2), torch.tensor([True, False]), objective=R("nca_pair").objective, **given)
    log_sigma = lambda x: -math.log1p(math.exp(-x))  # noqa: E731
    assert float(out.loss) == pytest.approx(-log_sigma(0.1) - 0.5 * log_sigma(-0.1) - 0.5 * log_sigma(0.2))


def test_a_star_po_regresses_on_the_optimal_advantage():
    """(.1 (-1 + 3) - (1 - .25))^2 = .3025, and its gradient."""
    leaf = tensor(-1.0).requires_grad_()
    given = {"ref_log_probs": tensor(-3.0), "targets": tensor(0.75)}
    loss = response_loss(leaf, torch.tensor([True]), objective=R("a_star_po", beta=0.1).objective, **given).loss
    assert float(loss.detach()) == pytest.approx(0.3025)
    assert torch.autograd.grad(loss, leaf)[0].item() == pytest.approx(2 * 0.1 * -0.55)


def test_aot_depends_on_the_whole_batch():
    """Two pairs at once compare other quantiles than each pair alone: the losses of the parts do not add up."""
    log_probs, ref, pairs = tensor(-1, -4, -6, -2), tensor(-2, -3, 0, -2), torch.tensor([[0, 1], [2, 3]])
    for name, paired, want in (("aot", True, [-4.0, 3.0, 1.0, 2.0]), ("aot_unpaired", False, [-6.0, 1.0, -1.0, 0.0])):
        found = sorted_scores(log_probs, ref, pairs, paired=paired)
        assert found.tolist() == want
        loss = lambda values: pairwise_loss(values, halves(len(values)), objective=R(name).objective, denominator=1.0).loss  # noqa: B023, E731
        parts = sum(loss(sorted_scores(log_probs, ref, pairs[place : place + 1], paired=paired)) for place in range(2))
        assert abs(float(loss(found) - parts)) > 1e-3
    with pytest.raises(ValueError, match=r"sorted_scores: pairs must be numbers in 0 .. 3, got numbers from 0 to 4; count responses from 0"):
        sorted_scores(log_probs, ref, torch.tensor([[0, 4]]))
    with gigpo_fast.validation("metadata"):  # as on a GPU, where checking would wait
        assert sorted_scores(log_probs, ref, torch.tensor([[0, 4]]))[0].isnan()


def test_the_gold_response_of_tpo_is_a_batch_of_its_own():
    found = R("tpo", coefficient=0.5).second
    gold = torch.tensor([[-1.0, -2.0], [-6.0, math.nan]], dtype=torch.float64)
    assert float(policy_loss(gold, torch.zeros_like(gold), ~gold.isnan(), objective=found).loss) == pytest.approx(1.5)  # a token mean


def test_the_gradient_of_copg():
    leaf = tensor(0.2, -0.1).requires_grad_()
    value = called(R("copg", beta=0.5), leaf, NONE | {"targets": (1.0,)})
    assert torch.autograd.grad(value, leaf)[0].tolist() == pytest.approx([-0.85, 0.85])


def test_cpl_ranks():
    pairs = all_pairs(tensor(0, 1, 2), torch.zeros(3, dtype=torch.int64))
    assert float(pairwise_loss(tensor(-14, -10, -6), pairs, objective=R("cpl").objective).loss) == pytest.approx(0.747716, abs=5e-7)


def test_forms_that_are_each_other():
    """INPO with share 1 is IPO; IPO of a constant reward difference is CoPG's; DPO is DNO with the reference as previous iterate."""
    assert R("inpo", eta=0.2, share=1.0).objective == R("ipo", tau=0.2).objective
    log_probs, pairs, ref = tensor(-1, -3), torch.tensor([[0, 1]]), tensor(-2, -2.5)
    copg = pairwise_loss(log_probs, pairs, ref_log_probs=ref, targets=tensor(0.5), objective=R("copg", beta=0.1).objective).loss
    ipo = pairwise_loss(log_probs, pairs, ref_log_probs=ref, objective=R("ipo", tau=0.1).objective).loss
    assert float(copg) == pytest.approx(0.1 / 2 * float(ipo))  # (.5 - .1 d)^2 / .2 = .05 (5 - d)^2
    dno = pairwise_loss(log_probs, pairs, previous_log_probs=ref, objective=R("dno").objective).loss
    assert float(dno) == float(pairwise_loss(log_probs, pairs, ref_log_probs=ref, objective=R("dpo").objective).loss)
    assert R("simpo", margin=0.0).objective.score == Score(0.0, per_token=True)
    assert PairwiseObjective(Square(0.5), beta=1.0) == R("ipo", tau=1.0).objective  # the bandit's margin beta = .5


def test_a_chosen_response_that_is_pulled_down_is_one_of_a_pair():
    with pytest.raises(ValueError, match="chosen_down must be a Link that reads no targets, got SoftLabel"):
        PairwiseObjective(chosen_down=SoftLabel())
    objective = PairwiseObjective(chosen_down=Sigmoid())
    with pytest.raises(ValueError, match="response_loss: objective must be one with rejected=1, no chosen_down and no nll of both"):
        response_loss(tensor(-1.0), torch.tensor([True]), ref_log_probs=tensor(-1.0), objective=objective)
