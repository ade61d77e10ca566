"""Advantages and rewards worked out by hand from the papers, through the recipes."""

import math

import pytest
import torch

from gigpo_fast import advantage, reward
from gigpo_fast.recipes import recipe

NAN = math.nan
ONE = torch.zeros(4, dtype=torch.int64)  # one group
R = recipe


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def advantages(name, *arguments, **keywords):
    return R(name).advantages(*arguments, **keywords)


# name of the paper: (what is computed, the numbers), to six places at least
ADVANTAGES = {
    "gigpo": lambda: (_gigpo(None), [0.975, 0.5, -0.975, -0.5]),
    "gigpo, std": lambda: (_gigpo("std"), [1.4142115, 0.7071058, -1.4142115, -0.7071058]),
    "copg, leave-one-out": lambda: (advantages("rloo", tensor(0.9, 0.05, 0.5), ONE[:3]), [0.625, -0.65, 0.025]),
    "ton": lambda: (advantages("ton", tensor(2, 1, 1, 0), ONE), [1.2245949, 0, 0, -1.2245949]),
    "multi_objective_grpo": lambda: (_objectives(False), [0.4548588, -0.4548588, 1.1371471, -1.1371471]),
    "multi_objective_grpo, each first": lambda: (_objectives(True), [0.3464102, -0.3464102, 0.8660254, -0.8660254]),
    "retroformer": lambda: (R("retroformer").rewards(tensor(0.2, 0.5, 0.4), ONE[:3])[:2], [0.3, -0.1]),
    "seed_grpo": lambda: (_seed(), [0.7375, -0.2458333, -0.2458333, -0.2458333]),
    "open_rs, right": lambda: (_cosine(True), [1.0, 0.75, 0.5]),
    "open_rs, wrong": lambda: (_cosine(False), [-1.0, -0.75, -0.5]),
    "grpo": lambda: (advantages("grpo", tensor(1, 0, 0, 0), ONE), [1.499997, -0.499999, -0.499999, -0.499999]),
    "dr_grpo": lambda: (advantages("dr_grpo", tensor(1, 0, 0, 0), ONE), [0.75, -0.25, -0.25, -0.25]),
    "kimi15": lambda: (advantages("kimi15", tensor(1, 0, 0, 0), ONE), [0.75, -0.25, -0.25, -0.25]),
    "topr": lambda: (advantages("topr", tensor(1, 0, 0, 0), ONE), [0.75, -0.25, -0.25, -0.25]),
    "rloo": lambda: (advantages("rloo", tensor(1, 0, 0, 0), ONE), [1.0, -1 / 3, -1 / 3, -1 / 3]),
    "opo": lambda: (advantages("opo", tensor(1, 0), tensor(3, 1), ONE[:2]), [0.25, -0.75]),
    "gpg": lambda: (advantages("gpg", tensor(1, 0, 1, 1), torch.tensor([0, 0, 1, 1])), [1.0, -1.0, 0.0, 0.0]),
    "maxrl": lambda: (advantages("maxrl", tensor(1, 0, 0, 0), ONE), [3.0, -1.0, -1.0, -1.0]),
    "remax": lambda: (advantages("remax", rows([0.0, 1.0]), tensor(0.25), torch.ones(1, 2, dtype=torch.bool))[0], [0.75, 0.75]),
    "reinforce_plus_plus": lambda: (
        advantages("reinforce_plus_plus", rows([0.0, 1.0], [0.0, 0.0]), torch.ones(2, 2, dtype=torch.bool)).flatten(),
        [0.8660254, 0.8660254, -0.8660254, -0.8660254],
    ),
    "dapo, overlong": lambda: (R("dapo", max_length=100, buffer=20).rewards(tensor(80, 90, 100)), [0.0, -0.5, -1.0]),
    "text2grad": lambda: (_text2grad(), [1.1462334, -0.6939956, -0.4522378]),
    "concise_r_length": lambda: (_concise(1, 1, 1, 1), [1.1618950, -0.3872983, 0.3872983, -1.1618950]),
    "concise_r_length, one wrong": lambda: (_concise(1, 1, 1, 0), [0.5, 0.5, 0.5, -1.5]),
    "maxmin": lambda: (_maxmin(), [-0.5, 1.5, -0.5, -0.5]),
    "pixelthink": lambda: (_pixelthink(), [0.491967, 0.710619, -1.475901, 0.273315]),
    "ui_r1": lambda: (advantages("ui_r1", tensor(3, 2, 1, 0), ONE), [1.161805, 0.387268, -0.387268, -1.161805]),
    "ui_r1_e": lambda: (
        tensor(3, 3, 1, 2) + R("ui_r1_e").rewards(torch.tensor([True, True, False, False]), tensor(100, 200, 400, 300), ONE),
        [3.818182, 3.636364, 0.9, 1.9],
    ),
    "rank": lambda: (advantages("rank", tensor(4, 3, 2, 1), ONE), [0.5, 0.166667, -0.166667, -0.5]),
    "rank, the best alone": lambda: (R("rank", top=1).advantages(tensor(4, 3, 2, 1), ONE), [1, -1 / 3, -1 / 3, -1 / 3]),
    "ensemble": lambda: (R("ensemble", coefficient=0.5).rewards(rows([1.0], [2.0], [0.0])), [0.5]),
    "ensemble, best of n": lambda: (R("ensemble", coefficient=0.5, ddof=0).rewards(rows([1.0], [2.0], [0.0])), [0.666667]),
    "gui_r1": lambda: (
        R("gui_r1").rewards(rows([1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]), weights=(0.8, 0.2)),
        [1.0, 0.2, 0.8, 0.0],
    ),
    "one_shot_rlvr": lambda: (advantages("one_shot_rlvr", tensor(1, 1, 0, 0), ONE), [0.866024, 0.866024, -0.866024, -0.866024]),
    "running_baseline": lambda: (_running(), [1.0, 0.9]),
    "salsa": lambda: (R("salsa").rewards(rows([-1.0, -2.0]), rows([-1.2, -1.5]), torch.ones(1, 2, dtype=torch.bool))[0], [-0.01, 0.025]),
    "ppo_max": lambda: (_ppo_max(), [0.999516, 0.366603, -1.366119]),
    "ppo_max, scaling": lambda: (R("ppo_max").rewards(tensor(1, 3, 2), reward.RunningMoments.empty())[0], [1.0, 3.0, 2.0]),
    "spo_tree": lambda: (_tree(None), [0.25, -0.75, 0.25, 0.25]),
    "spo_tree, std": lambda: (_tree("std"), [0.577350, -1.732051, 0.577350, 0.577350]),
    "spo_chain": lambda: (_chain(), [0.25, 0.25, -0.5, -0.5, 0.75, 0.75]),
    "otc": lambda: (_otc(), [0.801156, 0.500260, -1.444759, 0.143343]),
    "vision_r1": lambda: (advantages("vision_r1", tensor(1, 0, 0, 0), ONE), [1.499997, -0.499999, -0.499999, -0.499999]),
    "prpo": lambda: (advantages("prpo", tensor(1, 0, 0, 0), ["solver"] * 4), [1.732047, -0.577349, -0.577349, -0.577349]),
    "asymre": lambda: (advantages("asymre", tensor(1, 0, 0, 0, 0.3), [0, 0, 0, 0, 1]), [0.85, -0.15, -0.15, -0.15, 0.3]),
    "opmd": lambda: (advantages("opmd", tensor(1, 0, 0, 0, 0.3), [0, 0, 0, 0, 1]), [0.75, -0.25, -0.25, -0.25, 0.3]),
    "opmd, soft": lambda: (R("opmd", temperature=0.5).advantages(tensor(1, 1, 0, 0, 0, 0, 0, 0), [0] * 8), [0.5227707] * 2 + [-0.4772293] * 6),
    "unigrpo": lambda: (advantages("unigrpo", tensor(2.5, 0.5, 2, 0), ONE), [1.212678, -0.727607, 0.727607, -1.212678]),
    "dancegrpo": lambda: (advantages("dancegrpo", tensor(1, 0, 0, 0), ONE), [1.5, -0.5, -0.5, -0.5]),
}


def _gigpo(scale):
    trajectory = torch.tensor([0, 0, 1, 1])
    found = advantages("gigpo", tensor(0, 1, 0, 0), trajectory, ONE, torch.tensor([0, 1, 0, 2]), scale=scale)
    return found.advantages


def _objectives(first):
    matrix = rows([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0])
    exact = advantage.GroupStatistics(count="row", eps=0.0)
    found = R("multi_objective_grpo", normalise_first=first)
    if first:
        return found.advantages(matrix, ONE, weights=(0.7, 0.3), statistics=exact)
    return found.advantages(found.rewards(matrix, weights=(0.7, 0.3)), ONE, statistics=exact)


def _seed():
    centred = advantages("seed_grpo", tensor(1, 0, 0, 0), ONE)
    entropy = tensor(*[1.1552453] * 4)  # masses .5, .25, .25, each cluster once
    return centred * advantage.uncertainty_weights(entropy, tensor(4, 4, 4, 4))


def _cosine(right):
    return R("open_rs", max_length=1000).rewards(torch.tensor([right] * 3), tensor(0, 500, 1000))


def _text2grad():
    given, mask = rows([1.0, 0.0, -1.0]), torch.ones(1, 3, dtype=torch.bool)
    shaped = given - 0.1 * rows([0.2, 0.0, 0.1])
    plain = advantages("text2grad", shaped, rows([0.1, 0.2, 0.0]), mask).advantages
    assert plain[0].tolist() == pytest.approx([-0.021525, -1.1595, -1.01])
    return advantage.whiten(plain, mask)[0]


def _concise(*correct):
    correct, lengths = torch.tensor(correct).bool(), tensor(100, 300, 200, 400)
    found = R("concise_r_length", coefficient=0.3)
    shaped = found.rewards(correct.double(), reward.remaining_length(lengths, max_length=500), reward.all_of_group(correct, ONE))
    return found.advantages(shaped, ONE, statistics=advantage.GroupStatistics(count="row", eps=0.0))


def _maxmin():
    worst = R("maxmin").rewards(rows([1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]))
    return advantage.group_advantages(worst, ONE, scale="std", statistics=advantage.GroupStatistics(count="row", eps=0.0))


def _pixelthink():
    budget = reward.difficulty_budget(tensor(2, 2, 2, 2), tensor(0, 0, 0, 0))
    shaped = tensor(3, 3, 0, 3) * R("pixelthink").rewards(tensor(146, 96, 96, 196), budget)
    assert shaped.tolist() == pytest.approx([2.7, 3.0, 0.0, 2.4])
    return advantages("pixelthink", shaped, ONE)


def _running():
    baselines, found = torch.zeros(1, dtype=torch.float64), []
    for _ in range(2):
        step = advantages("running_baseline", tensor(1.0), torch.tensor([0]), baselines)
        baselines = step.baselines
        found.append(step.advantages)
    return torch.cat(found)


def _ppo_max():
    mask = torch.ones(1, 3, dtype=torch.bool)
    plain = advantages("ppo_max", rows([-0.002, 0.001, 0.997]), rows([0.2, 0.3, 0.5]), mask)
    assert plain.advantages[0].tolist() == pytest.approx([0.7374925, 0.67315, 0.497])
    assert plain.returns[0].tolist() == pytest.approx([0.9374925, 0.97315, 0.997])
    return advantage.whiten(plain.advantages, mask, statistics=advantage.Whitening(ddof=0, eps=1e-6, eps_in="variance"))[0]


def _tree(scale):
    scores, parent = tensor(NAN, 1, 0, 1, 1), torch.tensor([-1, 0, 0, 0, 0])
    values = advantage.tree_values(scores.nan_to_num(), parent, depth=1)
    return R("spo_tree", scale=scale).advantages(values, parent)[1:]


def _chain():
    """Three segments of two tokens, values .5, .75, .25 at their starts and a score of 1."""
    mask, cuts = torch.ones(1, 6, dtype=torch.bool), torch.tensor([[False, True, False, True, False, False]])
    values = rows([0.0, 0.75, 0.0, 0.25, 0.0, 0.0])
    return advantages("spo_chain", values, cuts, tensor(1.0), mask, start_values=tensor(0.5))[0]


def _otc():
    calls, correct = tensor(1, 2, 0, 3), torch.tensor([True, True, False, True])
    shaped = correct * R("otc").rewards(calls, reward.fewest_calls(calls, correct, ONE))
    assert shaped.tolist() == pytest.approx([1, 0.866025, 0, 0.707107], abs=1e-6)
    return advantages("otc", shaped, ONE)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_and_rewards(name):
    found, want = ADVANTAGES[name]()
    assert found.tolist() == pytest.approx(want, abs=6e-7)
