"""The demo: its figures agree with statistics counted elsewhere, its game and batches are what they say, and it learns."""

import json
import os
import pathlib
import subprocess
import sys
import types
from collections import Counter, defaultdict

import pytest
import torch

import gigpo_fast

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

from agent import report, rollouts, summary  # noqa: E402

# Counted with plain dictionaries when the rollouts were recorded: steps, states, mean and largest group, singletons,
# share of steps in groups of several trajectories, and shares with zero episode level, zero step level, and both zero.
RECORDED = {
    "textworld": (4287, 1048, 4.091, 51, 434, 0.8645, 0.1964, 0.2876, 0.1096),
    "scienceworld": (4121, 1640, 2.513, 133, 1103, 0.7083, 0.0, 0.4242, 0.0),
    "frozenlake": (2289, 302, 7.579, 52, 42, 0.9428, 0.2294, 0.294, 0.2294),
}


@pytest.mark.parametrize("environment", RECORDED)
def test_what_grouping_finds_agrees_with_the_recorded_statistics(environment):
    found, _, levels = report.analyse(rollouts.read(environment))
    steps, states, mean, largest, singletons, shared, zero_episode, zero_step, zero_both = RECORDED[environment]
    assert (found.tasks, found.trajectories) == {"scienceworld": (12, 96)}.get(environment, (24, 192))
    assert (found.steps, found.states, found.largest_group, found.singletons) == (steps, states, largest, singletons)
    assert round(found.mean_group_size, 3) == mean
    assert round(1 - (found.singletons + found.one_trajectory_steps) / found.steps, 4) == shared

    # Exactly zero, not nearly: only then may a row be left out.
    episode, step = levels.episode == 0, levels.step == 0
    assert [round(z.double().mean().item(), 4) for z in (episode, step, episode & step)] == [zero_episode, zero_step, zero_both]
    assert round(found.no_forward_grpo, 4) == zero_episode
    assert round(found.no_forward_gigpo - found.lost_signal, 4) == zero_both


@pytest.mark.parametrize("environment", RECORDED)
def test_signs_and_the_drawn_trajectory_agree_with_a_plain_count(environment):
    recorded = rollouts.read(environment)
    found, _, levels = report.analyse(recorded)
    grpo, gigpo = _plain_advantages(recorded)
    opposite, new = Counter(), 0
    for trajectory, a, b in zip(recorded.trajectory.tolist(), grpo, gigpo, strict=True):
        opposite[trajectory] += a * b < 0
        new += a == 0 and b != 0
    assert found.opposite_sign == pytest.approx(sum(opposite.values()) / found.steps, abs=1e-12)
    assert found.new_signal == pytest.approx(new / found.steps, abs=1e-12)

    length = Counter(recorded.trajectory.tolist())
    chosen = report.instructive_trajectory(recorded, levels)
    assert length[chosen] <= 30
    assert opposite[chosen] == max(count for trajectory, count in opposite.items() if length[trajectory] <= 30)


def _plain_advantages(recorded):
    """Both methods' advantages with dictionaries, rounded to 9 digits so that rounding makes no signs."""
    to_go, total, members = [0.0] * len(recorded.actions), Counter(), defaultdict(set)
    returns = defaultdict(float)
    rows = list(zip(recorded.trajectory.tolist(), recorded.group.tolist(), recorded.observations, recorded.rewards.tolist(), strict=True))
    for i in reversed(range(len(rows))):
        trajectory, task, _, reward = rows[i]
        to_go[i] = returns[trajectory] = reward + report.GAMMA * returns[trajectory]
        total[trajectory] += reward
        members[task].add(trajectory)
    peers = defaultdict(list)
    for (_, task, observation, _), value in zip(rows, to_go, strict=True):
        peers[task, observation].append(value)
    grpo, gigpo = [], []
    for (trajectory, task, observation, _), value in zip(rows, to_go, strict=True):
        same = peers[task, observation]
        episode = total[trajectory] - sum(total[t] for t in members[task]) / len(members[task])
        grpo.append(round(episode, 9))
        gigpo.append(round(episode + value - sum(same) / len(same), 9))
    return grpo, gigpo


def test_summary_by_hand():
    assert summary.smooth([1.0, None, 0.0, 0.5], width=2)[:3] == [1.0, 1.0, 0.0]
    assert summary.smooth([None])[0] != summary.smooth([None])[0]  # NaN
    assert summary.last_quarter([0.0] * 6 + [0.5, 1.0]) == 0.75
    assert summary.last_quarter([1.0, None]) is None
    assert summary.episodes_until([0.0] * 10 + [1.0] * 10, 0.5, 32) == 15 * 32
    assert summary.episodes_until([0.0] * 10, 0.5, 32) is None
    still = {"invalid_actions": [0.0] * 4, "steps_to_goal": [None] * 4, "rows_without_forward": [0.0] * 4, "seconds": 1.0}
    runs = [{"algorithm": "grpo", "seed": seed, "success": [s] * 4, **still} for seed, s in ((1, 0.5), (0, 0.3))]
    figure = summary.summarise(runs, 8)["grpo"]["success_last_quarter"]
    assert figure["seeds"] == [0.3, 0.5] and figure["mean"] == pytest.approx(0.4) and figure["std"] == pytest.approx(0.02**0.5)


# ---- from here on: the training half, which needs the demo's packages


@pytest.fixture(scope="module")
def agent():
    """The training half's modules; without the demo's packages these tests are skipped."""
    for package in ("gymnasium", "transformers", "matplotlib", "tqdm"):
        pytest.importorskip(package, reason=f"the demo needs {package}: pip install 'gigpo-fast[demo]'")
    import demo
    from agent import episodes, frozen_lake, parallel, policy, train

    return types.SimpleNamespace(demo=demo, episodes=episodes, frozen_lake=frozen_lake, parallel=parallel, policy=policy, train=train)


def test_the_game_plays_as_recorded(agent):
    lakes = agent.frozen_lake.FrozenLakes(2)
    lakes.reset(seed=0)
    assert lakes.observations == ["P F F F\nF H F H\nF F F H\nH F F G"] * 2
    recorded = rollouts.read("frozenlake")
    first_task = {text for text, task in zip(recorded.observations, recorded.group.tolist(), strict=True) if task == 0}  # on this map
    assert len(first_task) > 4 and first_task <= set(lakes.texts)

    for word, reward in zip(("down", "down", "right", "right", "down", "right"), (0, 0, 0, 0, 0, 1), strict=True):
        before = lakes.observations[1]
        assert lakes.step({0: word, 1: "F"}) == {0: reward, 1: 0}
        assert lakes.observations[1] == before  # no action word: the board stays
    assert lakes.running == [False, True]
    for _ in range(lakes.horizon - 6):
        assert lakes.running[1]
        lakes.step({1: ">"})
    assert not lakes.running[1]  # but the steps were counted


def test_tokenizer_has_one_token_for_a_cell_and_for_an_action(agent):
    tokenizer = agent.frozen_lake.Tokenizer()
    ids = tokenizer.encode("P F\nH G")
    assert "".join(map(tokenizer.decode, ids)) == "PF\nHG>"
    assert [tokenizer.number[word] for word in agent.frozen_lake.ACTIONS] == [7, 8, 9, 10] and len(tokenizer) == 11


def test_a_batch_holds_what_the_model_said(agent):
    model, steps = _batch(agent)
    assert torch.equal(steps.token_ids[:, :-1], steps.prompts[:, 1:])
    assert torch.equal(steps.mask.nonzero(), torch.stack([torch.arange(len(steps.mask)), torch.full((len(steps.mask),), 19)], 1))
    with torch.no_grad():
        log_probs = model(input_ids=steps.prompts).logits.log_softmax(-1).gather(2, steps.token_ids[..., None])[..., 0]
    # The same weights in batches of another size: float32 of about 20 layers' operations, log-probs of about 2.
    assert torch.allclose(steps.old_log_probs[steps.mask], log_probs[steps.mask], rtol=0, atol=2e-5)
    assert not steps.old_log_probs[~steps.mask].any()
    assert torch.equal(torch.bincount(steps.trajectory), steps.lengths)


@pytest.mark.parametrize("algorithm", ["grpo", "gigpo"])
def test_rows_left_out_change_nothing(agent, algorithm, monkeypatch):
    """The optimiser step is the same whether rows without influence enter the transformer or not."""
    results = []
    for skip in (True, False):
        model, steps = _batch(agent)
        rewards = torch.zeros_like(steps.rewards)
        rewards[steps.trajectory == 3] = 0.25  # one group of four with a winner; the other all fail
        advantages = agent.train.credit(steps._replace(rewards=rewards), agent.train.Settings(algorithm, 0, group_size=4))
        advantages = agent.train.to_tokens(advantages, agent.train.step_ids(steps.mask))
        if not skip:
            monkeypatch.setattr(agent.train, "rows_that_matter", lambda mask, *_, **__: torch.ones(len(mask), dtype=torch.bool))
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        skipped = agent.train.learn(model, optimizer, steps, advantages, algorithm)
        assert (skipped > 0.3) == skip
        results.append(torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)]))
    with_skipping, without = results
    assert without.norm() > 0.1
    assert torch.allclose(with_skipping, without, rtol=0, atol=1e-6)  # steps of up to 1, float32 sums in another order


def test_a_batch_without_signal_changes_nothing(agent):
    model, steps = _batch(agent)
    before = [p.detach().clone() for p in model.parameters()]
    skipped = agent.train.learn(model, torch.optim.AdamW(model.parameters()), steps, torch.zeros(steps.mask.shape), "gigpo")
    assert skipped == 1 and all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def _batch(agent):
    """A fresh policy and eight episodes played by it; equal at every call."""
    torch.manual_seed(3)
    tokenizer = agent.frozen_lake.Tokenizer()
    model = agent.policy.tiny_qwen2(len(tokenizer))
    lakes = agent.frozen_lake.FrozenLakes(8)
    return model, agent.episodes.play(model, lakes, tokenizer, seed=0, generator=torch.Generator().manual_seed(3))


def test_it_learns(agent):
    """A run that is shorter than the demo's. By then the slowest of five seeds was near one half; an untrained policy is below 0.1."""
    settings = agent.train.Settings("gigpo", seed=4, updates=110)
    (run,) = agent.parallel.train_all([settings], processes=1)
    assert summary.smooth(run["success"])[9] < 0.15
    assert summary.smooth(run["success"])[-1] > 0.3


def test_end_to_end(agent, tmp_path):
    options = ["--updates", "3", "--seeds", "1", "--episodes", "8", "--group-size", "4", "--processes", "2", "--out", str(tmp_path)]
    options += ["--record", str(tmp_path / "records")]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(gigpo_fast.__file__).parent.parent)}  # the package under test
    command = [sys.executable, EXAMPLES / "demo.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "434 (10.1% of steps)" in done.stdout
    for picture in ("credit.png", "learning_curves.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "results.json").read_text())
    assert {run["algorithm"] for run in results["runs"]} == {"grpo", "gigpo"}
    assert f"{results['summary']['gigpo']['invalid_actions_last_quarter']['mean']:.3f}" in done.stdout

    for algorithm, weight in (("grpo", 0.0), ("gigpo", 1.0)):
        found = gigpo_fast.rollouts.read(tmp_path / "records" / f"{algorithm}-seed0")
        columns, settings = found.columns, found.settings[0]
        assert settings["step_weight"] == weight and len(set(zip(columns["task"], columns["trajectory"]))) == 8
        used = [e + weight * s for e, s in zip(columns["episode_advantage"], columns["step_advantage"], strict=True)]
        assert columns["advantage"] == pytest.approx(used, rel=1e-5, abs=1e-6)

    # What two processes did is what one does: a run depends on its settings alone.
    settings = agent.train.Settings("gigpo", 0, updates=3, groups=2, group_size=4)
    (alone,) = agent.parallel.train_all([settings], processes=1)
    (beside,) = (run for run in results["runs"] if run["algorithm"] == "gigpo")
    assert {k: v for k, v in alone.items() if k != "seconds"} == {k: v for k, v in beside.items() if k != "seconds"}


def test_options_that_cannot_be_are_named(agent, capsys):
    for arguments, message in (
        (["--episodes", "30"], "--episodes must be a multiple of --group-size (8), got 30"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit):
            agent.demo.parse(arguments)
        assert message in capsys.readouterr().err
    quick = agent.demo.parse(["--quick", "--map", "8x8", "--slippery"])
    assert (quick.seeds, quick.updates, quick.map, quick.slippery) == (2, 20, "8x8", True)
