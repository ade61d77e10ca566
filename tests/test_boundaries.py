"""Numbers at the edge of a rule, where one comparison or one exp decides: each was wrong in a copy of the code that all other tests passed."""

import math
import subprocess
import sys

import pytest
import torch

from gigpo_fast import advantage, anchor, loss
from gigpo_fast.objective import K1, AdvantageWeightedNLL, KLPenalty, NoRatio, PolicyObjective, SecondMoment, TokenRatio
from gigpo_fast.recipes import recipe
from gigpo_fast.types import GiGPOAdvantages


def test_semantic_entropy_of_log_probs_whose_exp_is_zero():
    """Responses of hundreds of tokens: exp(-900) is 0 in float64, the shares of their clusters are not."""
    cluster, group = [0, 0, 1, 2, 5], [7, 7, 7, 7, 8]
    near, far = torch.tensor([-1.0, -2.0, -1.5, -3.0, -2.0]).double(), None
    far = near - 899.0
    masses = [math.exp(-1.0) + math.exp(-2.0), math.exp(-1.5), math.exp(-3.0)]
    shares = [mass / sum(masses) for mass in masses]
    want = [-math.fsum(share * math.log(share) for share in shares)] * 4 + [0.0]
    for log_probs in (near, far):
        assert advantage.semantic_entropy(cluster, group, log_probs=log_probs).tolist() == pytest.approx(want, abs=1e-12)
    raw = advantage.semantic_entropy(cluster, group, log_probs=far, normalised=False, expected=False)
    mean = -sum(math.log(mass) - 899.0 for mass in masses) / 3
    assert raw.tolist() == pytest.approx([mean] * 4 + [901.0], rel=1e-12)


def test_a_structure_is_read_where_its_blocks_were_never_imported():
    """A worker has the string alone: the class is found by its module's name."""
    objective = recipe("gspo").objective
    code = (
        "import sys, importlib\n"
        "from gigpo_fast.objective import block\n"
        "block._classes.clear()\n"  # as if nothing had been imported
        "for name in [name for name in sys.modules if name.startswith('gigpo_fast.objective.')]:\n"
        "    if name != 'gigpo_fast.objective.block': del sys.modules[name]\n"
        f"made = block.read({objective.structure!r}, {tuple(objective.numbers.tolist())!r})\n"
        "print(repr(made))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == repr(objective)


def test_a_weight_below_one_is_bounded():
    """maximum 0.5: exp(A) of every good action is above it, and of bad ones not always."""
    objective = PolicyObjective(NoRatio(), AdvantageWeightedNLL(maximum=0.5))
    log_probs, mask = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64), torch.ones(3, dtype=torch.bool)
    A = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64)
    found = loss.policy_loss(log_probs, A, mask, objective=objective, sequence_ids=torch.zeros(3, dtype=torch.int64)).loss
    assert float(found) == pytest.approx((0.5 + 0.5 + math.exp(-2.0)) / 3, abs=1e-15)


def run(objective, log_prob: float, **others) -> tuple[float, float]:
    own = torch.tensor([[log_prob]], dtype=torch.float64, requires_grad=True)
    moved = {key: torch.tensor([[value]], dtype=torch.float64) for key, value in others.items()}
    extras = {key: moved.pop(key) for key in list(moved) if key == "rollout_log_probs"}
    found = loss.policy_loss(own, torch.ones_like(own), torch.ones(1, 1, dtype=torch.bool), objective=objective, extras=extras or None, **moved)
    found.loss.backward()
    return float(found.loss.detach()), float(own.grad)


def test_the_second_moment_of_one_token_beyond_the_threshold_leaves_none():
    """The paper's constraint is on what is kept, so nothing may be; AReaL's code keeps the smallest."""
    objective = PolicyObjective(TokenRatio(), weighting=SecondMoment(threshold=1e-9))
    assert run(objective, -1.0, old_log_probs=-1.0, rollout_log_probs=-1.5) == (0.0, 0.0)
    kept = run(objective, -1.0, old_log_probs=-1.0, rollout_log_probs=-1.0 - 1e-5)
    assert kept == pytest.approx((-1.0, -1.0))


def test_the_input_clamp_acts_on_k1_as_well():
    """log_prob - ref = 30, weight .48: 20 x .48 lies within the output clamp of 10, 30 x .48 beyond it (NeMo-RL, whose k1 has no input clamp)."""
    given = dict(log_prob=-1.0, old_log_probs=-1.0 - math.log(0.48), ref_log_probs=-31.0)
    for estimator, value, slope in ((K1(20.0), 9.6, 9.6), (K1(), 10.0, 0.0)):
        with_kl = PolicyObjective(divergence=KLPenalty(1.0, estimator, importance_weighted=True, clip=10.0))
        policy = run(PolicyObjective(), given["log_prob"], old_log_probs=given["old_log_probs"])
        found = run(with_kl, **given)
        assert found[0] - policy[0] == pytest.approx(value, abs=1e-12)
        assert found[1] - policy[1] == pytest.approx(slope, abs=1e-12)


def diagnosed(states: list[str], **others) -> str:
    return " ".join(anchor.diagnose(states, seconds=0.0, **others).warnings)


def test_a_diagnosis_warns_from_its_shares_on():
    """Exactly half of the steps alone, a tenth in one trajectory, a twentieth ambiguous, three quarters step level: from there on, not only above."""
    assert "share their state with no other" in diagnosed(["a", "a", "b", "c"])
    assert "share their state with no other" not in diagnosed(["a", "a", "a", "b", "c"])
    twenty, own = ["a", "a"] + ["b"] * 18, [0, 0] + list(range(1, 19))
    assert "of the steps are in groups of one trajectory" in diagnosed(twenty, trajectory=own)
    assert "of the steps are in groups of one trajectory" not in diagnosed(twenty + ["b"], trajectory=[*own, 19])
    forty, true = ["a", "a"] + ["b"] * 38, ["x", "y"] + ["z"] * 38
    assert "stands for several true states" in diagnosed(forty, truth=true)
    assert "stands for several true states" not in diagnosed([*forty, "b"], truth=[*true, "z"])
    for step, warns in ((3.0, True), (2.9, False)):
        episode = torch.tensor([1.0, -1.0], dtype=torch.float64)
        micro = torch.tensor([step, -step], dtype=torch.float64)
        found = diagnosed(["a", "a"], advantages=GiGPOAdvantages(episode + micro, episode, micro, micro))
        assert ("the episode level drowns" in found) == warns
