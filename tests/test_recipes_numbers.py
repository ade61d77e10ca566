"""Losses worked out by hand from the papers, through the recipes, and their gradients."""

import math

import pytest
import torch

from gigpo_fast import advantage, validation
from gigpo_fast.loss import policy_loss
from gigpo_fast.objective import PolicyObjective, with_value
from gigpo_fast.pairwise import pairwise_loss
from gigpo_fast.recipes import recipe

NAN = math.nan


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


ONE = torch.zeros(4, dtype=torch.int64)  # one group
R = recipe


# name: (objective, log-probs (B, T), advantages, keywords, loss, gradient); the gradient None is the value's own, by finite differences
A, LP = rows, rows
LOSSES = {
    "grpo": lambda: (R("grpo").objective, LP([-1.0, -1.0]), A([1.0, -1.0]), {"old": LP([-1 - math.log(1.5), -1 - math.log(0.5)])}, -0.2, None),
    "grpo_paper": lambda: (_named("grpo_paper"), LP([-1.0, -1.0], [-2.0, NAN]), A([1.0, 1.0], [-1.0, 0.0]), {"ref": LP([-1.2, -1.2], [-2.0, NAN])},
                           0.04 * 0.0187308 / 2, None),
    "disco_b": lambda: (R("disco_b").objective, *_disco(), -0.99994, [[-0.55], [-0.55], [0.45], [0.45]]),
    "disco": lambda: (R("disco", temperature=1.0).objective, *_disco(), -0.8798255, [[-0.55], [-0.55], [0.6810586], [0.2189414]]),
    "high_entropy_tokens": lambda: (R("high_entropy_tokens").objective, *_entropies(), -2.0, _only(1, -2.0)),
    "high_entropy_tokens_trl": lambda: (R("high_entropy_tokens_trl").objective, *_entropies(), -0.4, _only(1, -0.4)),
    "kl_cov": lambda: (R("kl_cov", fraction=0.25).objective, *_covariances(), -0.0513761, None),
    "clip_cov": lambda: (R("clip_cov", fraction=0.25, low=0.9).objective, *_covariances(keys=True), 0.1999166, None),
    "nash_md": lambda: (R("nash_md").objective, LP([-0.5, -1.0]), A([0.3 - 0.1 * 0.2, 0.3 + 0.1 * 0.2]), {}, 0.46, [[-0.28, -0.32]]),
    "nash_mp": lambda: (R("nash_mp").objective, LP([-5.0]), A([0.7 - 0.5 - 0.1 * 0.3 - 0.2 * 0.1]), {}, 0.75, [[-0.15]]),
    "dancegrpo": lambda: (R("dancegrpo").objective, LP([math.log(1.0002), math.log(0.9999)]), A([5.0, 5.0]), {"old": LP([0.0, 0.0])}, -5.0, None),
    "kdrl": lambda: (R("kdrl").objective, LP([-1.0, -2.0]), A([0.5, -0.5]), {"extras": {"teacher_log_probs": LP([-0.6, -2.5])}}, 0.000205, None),
    "tscac": lambda: (R("tscac").objective, LP([math.log(0.45)]), A([0.0]), {"extras": {"weights": A([math.exp(0.1) * math.sqrt(0.2 * 0.5) / 0.4])}}, 0.697668, None),
    "dr_po": lambda: (R("dr_po").objective, LP([NAN, NAN, math.log(1.3), math.log(0.7)]), A([0.5, 0.5, 1.0, -1.0]), {"old": A([0.0] * 4)}, -0.2, None),
    "nft, right": lambda: (_nft(), LP([math.log(1.1)]), A([0.0]), _correct(True), -0.047655, None),
    "nft, wrong": lambda: (_nft(), LP([math.log(0.9)]), A([0.0]), _correct(False), -0.047655, None),
    "nft, wrong and clamped": lambda: (_nft(), LP([math.log(1.2)]), A([0.0]), _correct(False), 0.0, [[0.6]]),
    "nft, wrong with a floor of .1": lambda: (R("nft", floor_negative=0.1).objective, LP([math.log(1.2)]), A([0.0]), _correct(False), 0.111572, [[0.75]]),
    "one_shot_rlvr": lambda: (R("one_shot_rlvr").objective, LP([-1.0]), A([0.1]), {"ref": LP([-1.2]), "entropy": LP([1.5])}, -0.101481, None),
    "props": lambda: (R("props").objective, LP([math.log(0.5), math.log(0.9), math.log(1.5)]), A([-1.0] * 3), {"old": A([0.0] * 3)}, 1.033333, None),
    "ros": lambda: (R("ros").objective, LP([math.log(0.5), math.log(0.9), math.log(1.5)]), A([-1.0] * 3), {"old": A([0.0] * 3)}, 2.9 / 3, None),
    "spo_chain": lambda: (R("spo_chain", kl_coefficient=0.0).objective, *_spo(), -0.229167, None),
    "unigrpo": lambda: (R("unigrpo").objective, LP([math.log(1.3), NAN, math.log(1.1)]), A([0.5] * 3), {"old": A([0.0] * 3), "ref": A([0.0] * 3)},
                        -0.574640, None),
    "awr": lambda: (R("awr").objective, LP([-1.0, -2.0, -1.5]), A([1.0, 0.0, 0.5]), {}, 2.397121, None),
    "best_of_n": lambda: (R("best_of_n").objective, LP([-1.0, -2.0, -1.5]), A([1.0, -0.05, -0.05]), {}, 0.825, None),
    "hypo": lambda: (R("hypo").second, LP([-5.0], [-6.0]), A([-0.7], [0.7]), {}, 0.35, [[0.35], [-0.35]]),
    "mdpo, surrogate": lambda: (with_value(R("mdpo").objective, "divergence.coefficient", 0.0), LP([0.1, -0.2]), A([1.0, -1.0]), {"old": A([0.0, 0.0])},
                                -0.1432201, None),
    "p3o_separate": lambda: (R("p3o_separate").objective, LP([0.1], [-0.3]), A([math.exp(-0.3)], [-math.exp(0.1)]), {"old": A([0.0], [0.0])}, 0.0327030, None),
    "f_dpg": lambda: (R("f_dpg").objective, LP([-1.0, -0.5]), A([2.0, 2.0]), {"old": LP([-1.2, -0.4])}, math.exp(0.1) * 3.0, [[-2 * math.exp(0.1)] * 2]),
    "ppo_max, entropy": lambda: (R("ppo_max", entropy_coefficient=1.0).objective, LP([-1.0]), A([0.0]), {"entropy": LP([20.0])}, 15.0, None),
    "reinforce": lambda: (R("reinforce").objective, LP([-1.0, -2.0]), A([-0.5, 0.25]), {}, 0.0, [[0.25, -0.125]]),
    "rloo": lambda: (R("rloo").objective, LP([-1.0, -2.0], [-3.0, NAN]), A([1.0, 1.0], [-1.0, 0.0]), {}, 0.0, [[-0.5, -0.5], [0.5, 0.0]]),
    "gspo": lambda: (R("gspo", clip_low=0.2, clip_high=0.2).objective, LP([0.3, -0.1]), A([1.0, 1.0]), {"old": A([0.0, 0.0])}, -math.exp(0.1), None),
    "gspo_token": lambda: (R("gspo_token", clip_low=0.2, clip_high=0.2).objective, LP([0.3, -0.1]), A([1.0, 1.0]), {"old": A([0.0, 0.0])}, -math.exp(0.1),
                           [[-math.exp(0.1) / 2] * 2]),
    "gspo, advantages that differ": lambda: (R("gspo", clip_low=0.2, clip_high=0.2).objective, LP([0.3, -0.1]), A([1.0, 2.0]), {"old": A([0.0, 0.0])},
                                             -1.5 * math.exp(0.1), [[-0.75 * math.exp(0.1)] * 2]),
    "gspo_token, advantages that differ": lambda: (R("gspo_token", clip_low=0.2, clip_high=0.2).objective, LP([0.3, -0.1]), A([1.0, 2.0]),
                                                   {"old": A([0.0, 0.0])}, -1.5 * math.exp(0.1), [[-0.5 * math.exp(0.1), -math.exp(0.1)]]),
    "nft, a sum": lambda: (_nft(), LP([math.log(1.1)] * 2), A([0.0, 0.0]), {"old": LP([0.0, 0.0]), "extras": {"correct": torch.tensor([[True, True]]),
                           "correct_rate": A([0.5, 0.5])}}, -2 * 0.0476551, None),
    "spo_chain, a batch that drifted": lambda: (R("spo_chain").objective, LP([-0.5, -0.5]), A([1.0, 1.0]), {"old": LP([-3.5, -3.5]), "ref": LP([-1.0, -1.0])},
                                                0.0, [[0.0, 0.0]]),
    "text2grad, a batch that drifted": lambda: (R("text2grad").objective, LP([-0.5, -0.5]), A([1.0, 1.0]), {"old": LP([-3.5, -3.5])}, 0.0, [[0.0, 0.0]]),
    "luspo": lambda: (R("luspo", clip_low=0.2, clip_high=0.2).objective, LP([0.3, -0.1]), A([1.0, 1.0]), {"old": A([0.0, 0.0])}, -2 * math.exp(0.1), None),
    "gmpo": lambda: (R("gmpo").objective, LP([0.5, -0.1]), A([1.0, 1.0]), {"old": A([0.0, 0.0])}, -math.exp(0.15), None),
    "cispo": lambda: (R("cispo").objective, LP([math.log(0.5)]), A([1.0]), {"old": LP([math.log(0.25)])}, 1.28 * math.log(2), [[-1.28]]),
    "cispo_absolute": lambda: (R("cispo_absolute", maximum=1.5).objective, LP([math.log(0.5)]), A([1.0]), {"old": LP([math.log(0.25)])}, 1.5 * math.log(2),
                               [[-1.5]]),
    "sapo": lambda: (R("sapo").objective, LP([0.0]), A([2.0]), {"old": LP([0.0])}, -4.0, [[-2.0]]),
    "vespo": lambda: (R("vespo").objective, LP([-1.0]), A([1.0]), {"old": LP([-1.0])}, 1.0, [[-1.0]]),
    "tis": lambda: (R("tis").objective, LP([-1.0]), A([1.0]), {"old": LP([-1.0]), "extras": {"rollout_log_probs": LP([-2.0])}}, -2.0, [[-2.0]]),
    "icepop": lambda: (R("icepop").objective, LP([-1.0, -1.0]), A([1.0, 1.0]), {"old": LP([-1.0, -1.0]), "extras": {"rollout_log_probs": LP([-1.5, -3.0])}},
                       -math.exp(0.5) / 2, [[-math.exp(0.5) / 2, 0.0]]),
    "prime_rl": lambda: (R("prime_rl").objective, *_gated(), (-3.2 + 2.5 + 0.001 * GATED) / 4, None),
    "echo": lambda: (R("echo").objective, *_gated(), (-3.2 + 2.5 + 0.001 * GATED) / 4, None),
    "prime_rl_tv": lambda: (R("prime_rl_tv").objective, *_gated(engine=True), (-3.2 + 0.001 * GATED) / 4, None),
    "opsm": lambda: (R("opsm").objective, LP([-1.0, -2.0], [-1.5, NAN]), A([-1.0, 1.0], [-2.0, 0.0]), {"old": LP([-1.0, -1.9], [-1.5, NAN])},
                     (-math.exp(-0.1) / 2 + 2.0) / 2, None),
    "bnpo": lambda: (R("bnpo").objective, LP([-1.0, -1.0]), A([1.0, -1.0]), {"old": LP([-1 - math.log(1.5), -1 - math.log(0.5)])}, -0.2, None),
    "prpo": lambda: (R("prpo").objective, LP([-1.0, -1.0]), A([1.0, -1.0]), {"old": LP([-1 - math.log(1.5), -1 - math.log(0.5)])}, -0.2, None),
    "asymre": lambda: (R("asymre").objective, LP([-1.0, -2.0]), A([0.85, -0.15]), {"old": LP([-3.0, -1.0])}, (0.85 - 0.3) / 2, [[-0.425, 0.075]]),
    "opmd": lambda: (R("opmd").objective, LP([-1.0, -2.0]), A([0.75, -0.25]), {"old": LP([-3.0, -1.0])}, (0.75 - 0.5) / 4, [[-0.1875, 0.0625]]),
    "dr_grpo": lambda: (R("dr_grpo", length=10.0).objective, LP([-1.0, -1.0], [-1.0, NAN]), A([1.0, 1.0], [0.5, 0.0]), {}, -0.125, None),
}  # fmt: skip


def _named(name):
    return R(name).objective


def _disco():
    """One group, one token each; the divergence from the old policy is .0003."""
    log_probs = LP([-0.4], [-0.6], [-1.0], [-2.0])
    old = LP([-0.4], [-0.6], [-1.0], [-1.9988])
    extras = {"group_ids": torch.zeros(4, 1, dtype=torch.int64), "correct": torch.tensor([[True], [True], [False], [False]])}
    return log_probs, A([0.0], [0.0], [0.0], [0.0]), {"old": old, "extras": extras, "denominator": 1.0}


GATED = math.log(1.6) ** 2 + math.log(2) ** 2 + 2 * math.log(2.5) ** 2  # squared log-ratios


def _gated(engine=False):
    """p moved by .06, -.3, .3 and .3: prime-rl keeps the first, and the last, whose action was bad; its other form the first alone."""
    old = A([0.1, 0.6, 0.2, 0.2]).log()
    return A([0.16, 0.3, 0.5, 0.5]).log(), A([2.0, -1.0, 1.0, -1.0]), {"extras": {"rollout_log_probs": old}} if engine else {"old": old}


def test_prime_rl_holds_an_advantage_of_zero_to_the_lower_bound():
    """p fell by .3 and rose by .3 at A = 0: the fall counts as dropped, the rise does not."""
    objective, old = R("prime_rl").objective, A([0.6, 0.2]).log()
    found = policy_loss(A([0.3, 0.5]).log(), A([0.0, 0.0]), torch.ones(1, 2, dtype=torch.bool), old_log_probs=old, objective=objective)
    assert found.metrics_as_floats()["clip_fraction_low"] == 0.5 and found.metrics_as_floats()["clip_fraction_high"] == 0.0


def test_echo_divides_the_environments_tokens_by_their_own_count():
    found, log_probs = R("echo", coefficient=0.5), LP([-1.0, -2.0, -3.0, -4.0])
    answered = torch.tensor([[False, True, True, False]])
    other = policy_loss(log_probs, torch.zeros_like(log_probs), answered, objective=found.second)
    assert float(other.loss) == pytest.approx(0.5 * 2.5)


def _entropies():
    """Token losses -1 ... -5 at ratio 1: the second has the highest entropy of five."""
    return LP([-1.0] * 5), A([1.0, 2.0, 3.0, 4.0, 5.0]), {"old": LP([-1.0] * 5), "entropy": LP([0.1, 0.9, 0.2, 0.8, 0.3])}


def _only(place, value):
    return [[value if at == place else 0.0 for at in range(5)]]


def _covariances(keys=False):
    extras = {"token_keys": torch.arange(4)[None]} if keys else {}
    return LP([-0.1, -2.0, -0.2, -1.9]), A([1.0, 1.0, -1.0, -1.0]), {"old": LP([-0.2, -2.1, -0.2, -1.8]), "extras": extras}


def _nft():
    return R("nft").objective


def _correct(right, rate=0.5):
    return {"old": LP([0.0]), "extras": {"correct": torch.tensor([[right]]), "correct_rate": A([rate])}}


def _spo():
    """Old probabilities of six tokens, of which three are below .9."""
    ratio = tensor(1.1, 1.3, 1.0, 0.7, 1.05, 1.4)
    old = tensor(0.95, 0.6, 0.99, 0.5, 0.3, 0.97).log()
    return (old + ratio.log())[None], A([0.25, 0.25, -0.5, -0.5, 0.75, 0.75]), {"old": old[None]}


def called(objective, log_probs, advantages, keywords):
    mask = ~log_probs.isnan()
    given = {"old": "old_log_probs", "ref": "ref_log_probs"}
    keywords = {given.get(name, name): value for name, value in keywords.items()}
    with validation("metadata"):  # ratios that are easy by hand have no log-probs behind them, and a line may be one sequence
        return policy_loss(log_probs, advantages, mask, objective=objective, **keywords).loss


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    objective, log_probs, advantages, keywords, loss, gradient = LOSSES[name]()
    assert isinstance(objective, PolicyObjective)
    leaf = log_probs.clone().requires_grad_()
    found = called(objective, leaf, advantages, keywords)
    assert float(found.detach()) == pytest.approx(loss, abs=6e-7)
    (got,) = torch.autograd.grad(found, leaf)
    trained = ~log_probs.isnan()
    assert not got[~trained].any()
    if gradient is not None:  # part of the value is a constant by the paper's rule, so differences of the value say nothing
        assert got.tolist() == [pytest.approx(row, abs=1e-6) for row in gradient]
        return
    for place in trained.nonzero().tolist():
        step = torch.zeros_like(log_probs)
        step[tuple(place)] = 1e-6
        if "old" not in keywords:  # on-policy: the value is constant, the gradient flows through the ratio
            keywords = (
                {**keywords, "old": torch.where(trained, log_probs, 0)}
                if not objective.needs_entropy or "entropy" in keywords
                else keywords
            )
        difference = float(
            called(objective, log_probs + step, advantages, keywords) - called(objective, log_probs - step, advantages, keywords)
        )
        assert float(got[tuple(place)]) == pytest.approx(difference / 2e-6, abs=2e-6, rel=1e-5), place


@pytest.mark.parametrize("rate, normalize, right, gradient", [
    (0.25, 1, True, -0.75), (0.25, 1, False, 0.25), (0.25, 2, True, -1.732051), (0.25, 2, False, 0.577350),
])  # fmt: skip
def test_nft_is_grpo_on_policy(rate, normalize, right, gradient):
    """At ratio 1 the gradient is that of Dr. GRPO (normalize 1) or of GRPO with the population deviation (2)."""
    leaf = LP([-1.0]).requires_grad_()
    given = {"correct": torch.tensor([[right]]), "correct_rate": A([rate])}
    found = policy_loss(
        leaf, A([0.0]), torch.tensor([[True]]), old_log_probs=LP([-1.0]), extras=given, objective=R("nft", normalize=normalize).objective
    )
    assert torch.autograd.grad(found.loss, leaf)[0].item() == pytest.approx(gradient, abs=5e-7)
    scores = tensor(1.0, 0.0, 0.0, 0.0)
    own = {1: None, 2: "std"}[normalize]
    want = advantage.group_advantages(scores, ONE, scale=own, statistics=advantage.GroupStatistics(count="row", eps=0.0, ddof=0))
    assert -gradient == pytest.approx(float(want[0 if right else 1]), abs=5e-7)


def test_mdpo_estimates_the_exact_divergence():
    """Summed over the actions by their old probability, the estimate is KL(.6, .4 || .5, .5) = .0201355, and so is its gradient."""
    logits = torch.tensor([0.6, 0.4], dtype=torch.float64).log().requires_grad_()
    log_probs = torch.log_softmax(logits, 0)[None]
    old = LP([math.log(0.5)] * 2)
    found = policy_loss(
        log_probs, A([0.0, 0.0]), torch.ones(1, 2, dtype=torch.bool), old_log_probs=old, objective=R("mdpo", step_size=1.0).objective
    ).loss
    exact = (log_probs.exp() * (log_probs - old)).sum()
    assert float(found.detach()) == pytest.approx(0.0201355, abs=5e-8) and float(exact.detach()) == pytest.approx(float(found.detach()))
    one, other = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (found, exact))
    assert one.tolist() == pytest.approx(other.tolist(), abs=1e-12)


def test_p3o_does_not_feel_a_shift_of_the_rewards():
    """(1, 0) and (11, 10) give the same numbers; at ratio 1 the gradient is that of group-centred advantages."""
    for r in ((1.0, 0.0), (11.0, 10.0)):
        weight = (r[0] - r[1]) * math.exp(0.1 - 0.3)
        found = pairwise_loss(
            tensor(0.1, -0.3), torch.tensor([[0, 1]]), ref_log_probs=tensor(0, 0), targets=tensor(weight), objective=R("p3o").objective
        )
        assert float(found.loss) == pytest.approx(-0.0818731, abs=5e-8)


def test_hypo_adds_two_batches():
    """DPO's part on a labelled pair, and .01 times the divergence on fresh samples."""
    found = R("hypo", beta=0.1)
    pair = pairwise_loss(tensor(-10, -12), torch.tensor([[0, 1]]), ref_log_probs=tensor(-11, -11.5), objective=found.objective)
    k1 = tensor(0.5, -0.2)
    advantages = 0.01 * advantage.leave_one_out_advantages(-k1, ONE[:2])
    leaf = LP([-5.0], [-6.0]).requires_grad_()
    fresh = policy_loss(leaf, advantages[:, None], torch.ones(2, 1, dtype=torch.bool), objective=found.second)
    assert float(pair.loss + fresh.loss.detach()) == pytest.approx(0.624457, abs=5e-7)
    assert torch.autograd.grad(fresh.loss, leaf)[0].flatten().tolist() == pytest.approx([0.0035, -0.0035])


def test_dancegrpo_of_two_rewards():
    """A = (1, -.5) at ratio 1: the clipped losses of both rewards add up."""
    objective = R("dancegrpo").objective
    losses = [policy_loss(LP([0.0]), A([value]), torch.tensor([[True]]), objective=objective).loss for value in (1.0, -0.5)]
    assert float(sum(losses)) == pytest.approx(-0.5)


def test_egpo_two_steps():
    """The tabular game: the half step, and the step from where it began against where it ended."""
    P, theta = rows([0.5, 0.9, 0.2], [0.1, 0.5, 0.8], [0.8, 0.2, 0.5]), torch.zeros(3, dtype=torch.float64)
    ref, beta, eta, n = torch.full((3,), math.log(1 / 3), dtype=torch.float64), 0.1, 0.5, 3
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))

    def step(opponent):
        leaf = theta.clone().requires_grad_()
        wins = P @ opponent
        targets = (wins[pairs[:, 0]] - wins[pairs[:, 1]]) / beta
        log_probs = torch.log_softmax(leaf, 0)
        pairwise_loss(log_probs, pairs, ref_log_probs=ref, targets=targets, objective=R("egpo").objective).loss.backward()
        return torch.softmax(theta - eta * beta * n / 4 * leaf.grad, 0)

    half = step(torch.softmax(theta, 0))
    assert half.tolist() == pytest.approx([0.338904, 0.327793, 0.333302], abs=1e-6)
    assert step(half).tolist() == pytest.approx([0.338593, 0.327487, 0.333920], abs=1e-6)
