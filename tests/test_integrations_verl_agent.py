"""verl-agent's functions on this engine: its recorded answers, a replaced module, and what departs from it. verl is not needed."""

import difflib
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import gigpo_fast
from gigpo_fast.integrations import verl_agent
from tests.oracles import runner
from tests.oracles import verl_agent as recorded
from tests.oracles.adapter import Adapter
from tests.oracles.tensors import read_cases, read_steps
from tests.rollout_steps import FOLDERS, ROOT

ORACLES = ROOT / "tests" / "data" / "oracles"
EXAMPLE = {  # two tasks; the second has one trajectory of one step
    "token_level_rewards": torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 5.0]]),
    "step_rewards": torch.tensor([0.9, 1.0, 0.0, 0.0]),
    "response_mask": torch.ones(4, 2, dtype=torch.int64),
    "anchor_obs": np.array(["s0", "s1", "s0", "s0"], dtype=object),
    "index": np.array(["a", "a", "a", "b"], dtype=object),
    "traj_index": np.array(["t1", "t1", "t2", "t3"], dtype=object),
}


def objects(values: list) -> np.ndarray:
    """A one-dimensional object array, as verl-agent keeps its columns."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def batch_of(rewards: list, trajectories: list, active: list | None = None) -> types.SimpleNamespace:
    """What of a DataProto is read."""
    columns = {"rewards": objects(rewards), "traj_uid": objects(trajectories), "active_masks": objects(active or [1.0] * len(rewards))}
    return types.SimpleNamespace(non_tensor_batch=columns, batch={"input_ids": torch.zeros(len(rewards), 1, dtype=torch.int64)})


def dense(groups: np.ndarray) -> torch.Tensor:
    number: dict[str, int] = {}
    return torch.tensor([number.setdefault(group, len(number)) for group in groups])


def answers(config: dict, rewards: list, token_rewards, mask, states, task, own, thresh: float | None) -> dict:
    """Every recorded output by the functions of the module under test, in the order in which verl-agent calls them."""
    returns = verl_agent.compute_step_discounted_returns(batch_of(rewards, own), config["gamma"])
    index, trajectory, states = objects(task), objects(own), objects(states)
    similar = {} if thresh is None else {"enable_similarity": True, "similarity_thresh": thresh}
    remove_std = config["mode"] == "mean_norm"
    advantages, same = verl_agent.compute_gigpo_outcome_advantage(
        token_rewards, returns, mask, states, index, trajectory, step_advantage_w=config["step_advantage_w"], mode=config["mode"], **similar
    )
    assert same is advantages
    return {
        "step_returns": returns,
        "anchor_ids": dense(verl_agent.build_step_group(states, index, **similar)),
        "episode_advantages": verl_agent.episode_norm_reward(token_rewards, mask, index, trajectory, remove_std=remove_std),
        "episode_advantages_per_trajectory": verl_agent.episode_norm_reward(
            token_rewards, mask, index, trajectory, remove_std=remove_std, compute_mean_std_cross_steps=False
        ),
        "advantages": advantages,
    }


def synthetic(case):
    inputs, config = case.inputs, case.config
    thresh = config["similarity_thresh"] if config["enable_similarity"] else None
    found = answers(
        config,
        inputs["rewards"],
        inputs["token_level_rewards"],
        inputs["mask"],
        inputs["anchor_states"],
        inputs["group"],
        inputs["trajectory"],
        thresh,
    )
    return recorded.answer(case)._replace(outputs=found)


def rollouts(case):
    steps = read_steps(case.inputs["steps"])
    own = [step["traj_uid"] for step in steps]
    totals: dict[str, float] = {}
    for step in steps:
        totals[step["traj_uid"]] = totals.get(step["traj_uid"], 0.0) + float(step["reward"])
    token_rewards = torch.tensor([[totals[label]] for label in own])
    states, task = [step["obs"] for step in steps], [step["task_id"] for step in steps]
    found = answers(case.config, [step["reward"] for step in steps], token_rewards, torch.ones(len(own), 1), states, task, own, None)
    kept = {name: value.squeeze(-1) if value.dim() == 2 else value for name, value in found.items() if name in case.outputs}
    return recorded.answer_rollouts(case)._replace(outputs=kept)


@pytest.mark.parametrize("file, answer, count", [("verl_agent_gigpo", synthetic, 16), ("verl_agent_gigpo_rollouts", rollouts, 15)])
def test_recorded_answers(file, answer, count):
    cases = read_cases(ORACLES / f"{file}.json.gz", list(FOLDERS))
    report = runner.run(cases, Adapter(answer, recorded.LOOSER))
    assert report.cases == count and not report.disagree and not report.unsupported, report
    assert 0 < report.worst <= 1


@pytest.mark.parametrize(
    "mode, want", [("mean_norm", [0.78333333, 0.33333333, -1.11666667, 5.0]), ("mean_std_norm", [1.28445, 0.57735, -1.86180, 5.0])]
)
def test_by_hand(mode, want):
    """Task a: scores 1, 1, 0, deviation 0.57735; its state s0 has returns 0.9 and 0, deviation 0.63640. Task b is alone: its score stays."""
    advantages, _ = verl_agent.compute_gigpo_outcome_advantage(**EXAMPLE, mode=mode)
    # The lone score is divided by 1 + 1e-6, and the hand-computed numbers have 6 digits.
    torch.testing.assert_close(advantages, torch.tensor(want)[:, None].expand(4, 2), rtol=1e-5, atol=1e-5)


def test_first_rows_count_once_per_trajectory():
    """Two rows of t1 with different scores, as a penalty makes them: the first alone is compared."""
    rewards = torch.tensor([[1.0], [0.5], [0.0], [5.0]])
    mask, index, trajectory = torch.ones(4, 1), EXAMPLE["index"], EXAMPLE["traj_index"]
    found = verl_agent.episode_norm_reward(rewards, mask, index, trajectory, compute_mean_std_cross_steps=False)
    assert found.squeeze(1).tolist() == [0.5, 0.0, -0.5, 5.0]
    every = verl_agent.episode_norm_reward(rewards, mask, index, trajectory)
    assert every.squeeze(1).tolist() == [0.5, 0.0, -0.5, 5.0]  # mean of 1, 0.5 and 0
    divided = verl_agent.episode_norm_reward(rewards, mask, index, trajectory, 0.25, False, False)
    torch.testing.assert_close(divided.squeeze(1), torch.tensor([0.5, 0.0, -0.5, 5.0]) / torch.tensor([0.5**0.5 + 0.25] * 3 + [1.25]))


def test_the_mask_multiplies_and_hides():
    mask = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0]])
    whole, _ = verl_agent.compute_gigpo_outcome_advantage(**EXAMPLE)
    found, _ = verl_agent.compute_gigpo_outcome_advantage(**{**EXAMPLE, "response_mask": mask})
    assert torch.equal(found, whole * mask)
    unknown = {**EXAMPLE, "step_rewards": torch.tensor([0.9, 1.0, float("nan"), 0.0]), "response_mask": mask}
    with gigpo_fast.validation("metadata"):
        found, _ = verl_agent.compute_gigpo_outcome_advantage(**unknown)
    assert torch.equal(found[2], torch.zeros(2)) and found[0].tolist()[1] == 0.0
    with pytest.raises(ValueError, match="scores must be finite in valid rows, got not finite in rows 2"):
        verl_agent.compute_gigpo_outcome_advantage(**unknown)


def test_bfloat16_scores_are_averaged_in_full():
    """A departure: 257 rows of 1 and one of 0 have a mean that bfloat16 has no number for."""
    rewards = torch.ones(258, 1, dtype=torch.bfloat16)
    rewards[0] = 0.0
    found = verl_agent.episode_norm_reward(rewards, torch.ones(258, 1), ["a"] * 258, list(range(258)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[1], torch.tensor([1 / 258]))


def loops(states: list, task: list) -> list[int]:
    number: dict = {}
    return [number.setdefault((label, verl_agent.to_hashable(state)), len(number)) for label, state in zip(task, states)]


@pytest.mark.parametrize(
    "states",
    [
        ["hall", "cellar", "hall", "hall"],
        [
            {"room": "hall", "has": ["key"]},
            {"has": ("key",), "room": "hall"},
            {"room": "hall", "has": []},
            {"room": "hall", "has": ["key"]},
        ],
        [np.zeros((2, 3)), np.zeros((3, 2)), np.zeros((2, 3)), np.zeros((2, 3), dtype=np.float32)],
        [1, 1.0, True, np.int64(1)],
        ["hall", 7, "hall", ["hall"]],
    ],
)
def test_step_groups(states):
    task = ["a", "a", "a", "b"]
    groups = verl_agent.build_step_group(objects(states), objects(task))
    assert isinstance(groups, np.ndarray) and groups.dtype == object and groups.shape == (4,) and all(type(g) is str for g in groups)
    assert dense(groups).tolist() == loops(states, task)
    assert groups[3] not in groups[:3]  # another task


def test_keys_of_states():
    assert verl_agent.to_hashable(np.zeros((2, 3))) != verl_agent.to_hashable(np.zeros((3, 2)))
    assert verl_agent.to_hashable(np.array([1])) != verl_agent.to_hashable(np.array([1.0]))
    image = np.array([[np.nan, 1.0]])
    assert verl_agent.to_hashable(image) == verl_agent.to_hashable(image.copy())
    assert verl_agent.to_hashable([np.float32(0.5), ("a", {"b": 1, "a": 2})]) == (0.5, ("a", (("a", 2), ("b", 1))))
    assert verl_agent.to_hashable(np.array(["a", None, "b"], dtype=object)[::2]) == ("a", "b")
    for unknown in (None, b"hall", {1, 2}, torch.zeros(2)):
        with pytest.raises(TypeError, match="to_hashable: x must be int, float, str, bool, an array, list, tuple or dict, got a "):
            verl_agent.to_hashable(unknown)


def test_similar_texts():
    a, b = "You are in the hall, turn 1", "You are in the hall, turn 2"
    ratio = difflib.SequenceMatcher(None, a, b).ratio()
    assert verl_agent.are_similar(a, b) is (ratio >= 0.95)
    assert verl_agent.are_similar(a, b, ratio) and not verl_agent.are_similar(a, b, ratio + 1e-6)
    assert dense(verl_agent.build_step_group([a, b, a, b], ["t", "t", "t", "u"], True, 0.9)).tolist() == [0, 0, 0, 1]
    with pytest.raises(ValueError, match="are_similar: b must be a str, got a int"):
        verl_agent.are_similar("a", 1)


def test_sizes_are_printed(capsys):
    verl_agent.build_step_group(["hall", "hall", "cellar"], ["a"] * 3, summarize=True)
    assert capsys.readouterr().out.splitlines() == [
        "group size: groups, share of the groups",
        "         1: 1, 50.0%",
        "         2: 1, 50.0%",
    ]
    verl_agent.build_step_group(["hall"], ["a"])
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="group_size must be the size of one group at least, got an empty list"):
        verl_agent.summarize_group_size([])


def core_gigpo() -> types.ModuleType:
    """A stand-in for verl-agent's module: the names, and functions that say that they are the old ones."""
    module = types.ModuleType("core_gigpo")
    for name in verl_agent.NAMES:
        setattr(module, name, lambda *_, name=name: f"old {name}")
    return module


def test_a_module_is_replaced():
    module = core_gigpo()
    assert module.are_similar("a", "a") == "old are_similar"
    verl_agent.replace(module)
    verl_agent.replace(module)  # twice is once
    assert all(getattr(module, name) is getattr(verl_agent, name) for name in verl_agent.NAMES)
    assert module.compute_gigpo_outcome_advantage(**EXAMPLE)[0].shape == (4, 2)


def test_a_module_that_lacks_a_function_is_left_alone():
    module = core_gigpo()
    del module.step_norm_reward
    with pytest.raises(AttributeError, match=r"replace: module must be one with the functions .*, got no \['step_norm_reward'\]"):
        verl_agent.replace(module)
    assert module.are_similar("a", "a") == "old are_similar"


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="mode must be 'mean_norm' or 'mean_std_norm', got 'leave_one_out'"):
        verl_agent.compute_gigpo_outcome_advantage(**EXAMPLE, mode="leave_one_out")
    with pytest.raises(ValueError, match=r"active_masks must be true in every row, got false in rows \[1\]"):
        verl_agent.compute_step_discounted_returns(batch_of([0.0, 1.0], ["t", "t"], [1.0, 0.0]), 0.9)


def test_importing_it_imports_no_framework():
    code = "import sys; from gigpo_fast.integrations import verl_agent; print({'verl', 'ray', 'gigpo'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=pathlib.Path(ROOT), capture_output=True, text=True, timeout=120)
    assert ran.stdout.strip() == "set()", ran.stderr
