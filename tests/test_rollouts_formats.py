"""Every reader on a file of its project: the steps that were played, and in words what the file cannot tell."""

import importlib.util
import pathlib
import pickle
import re
import sys

import pytest
import torch

from gigpo_fast import rollouts
from gigpo_fast.rollouts.formats import FORMATS

FOLDER = pathlib.Path(__file__).parent / "data" / "formats"
PATTERN = r"<action>(.*?)</action>"
ACTIONS = ["go east", "take lamp", "look", "go east"]
HALL, KITCHEN = "You are in the hall.", "You are in the kitchen. You see a lamp."
CALLS = [f'act {{"command": "{action}"}}' for action in ACTIONS]


def _needs(package: str):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


# file: (state of the first and the second turn, actions, tokens of each step, task, trajectories)
TURNS = {
    "verifiers/v1/traces.jsonl": (HALL, KITCHEN, CALLS, 2, "g-7", ["eedb1db010784caabe058e029c073725", "6cc37eb427414903aba418846553bce3"]),
    "prime_rl/rollouts/step_12/train/effective/traces.jsonl": (
        *(HALL, KITCHEN, CALLS, 2, "g-7"),
        ["eedb1db010784caabe058e029c073725", "6cc37eb427414903aba418846553bce3"],
    ),
    "art/0012.as_json.json": (HALL, "You are in the kitchen.", ACTIONS, None, 0, [1, 2]),
    "art/0012.parquet": (HALL, "You are in the kitchen.", ACTIONS, None, 0, [1, 2]),
    "nemo_gym/rollouts.jsonl": (f"{HALL} Exits: east.", KITCHEN, ACTIONS, None, 7, [0, 1]),
    "inspect_ai/log.json": (HALL, KITCHEN, ACTIONS, None, "rooms-7", [1, 2]),
    "inspect_ai/log.eval": (HALL, KITCHEN, ACTIONS, None, "rooms-7", [1, 2]),
}
PACKAGES = {".parquet": "pyarrow", ".eval": "inspect_ai"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=_needs(PACKAGES[n[n.rindex(".") :]])) if n.endswith(tuple(PACKAGES)) else n for n in TURNS]
)
def test_turns_are_found(name):
    hall, kitchen, actions, tokens, task, trajectories = TURNS[name]
    found = rollouts.read(FOLDER / name, action_pattern=PATTERN if actions is ACTIONS and "art" not in name else None)
    columns = found.columns
    assert columns["task"] == [task] * 4
    assert columns["trajectory"] == [trajectories[0]] * 2 + [trajectories[1]] * 2
    assert columns["step"] == [0, 1, 0, 1]
    assert columns["state"] == [hall, kitchen] * 2
    assert columns["action"] == actions
    assert columns["reward"] == [0.0, 1.0, 0.0, 0.0]
    assert columns.get("tokens") == (tokens and [tokens] * 4)
    assert "record the reward of each step" in found.missing["reward"] or "no step rewards" in found.missing["reward"]
    assert "step" not in found.missing and "advantage" in found.missing and "settings" in found.missing


def test_verifiers_before_04_are_conversations():
    found = rollouts.read(FOLDER / "verifiers/legacy/results.jsonl")
    assert found.columns["task"] == [7] * 4 and found.columns["trajectory"] == [1, 1, 2, 2]
    assert found.columns["state"] == [HALL, "You are in the kitchen."] * 2
    assert found.columns["action"] == [CALLS[0], "<action>take lamp</action>", CALLS[2], "<action>go east</action>"]
    assert found.columns["reward"] == [0.0, 1.0, 0.0, 0.0]


def test_verl_rows_that_are_turns():
    found = rollouts.read(FOLDER / "verl/v1_turn_a_row/12.jsonl", action_pattern=PATTERN)
    assert found.columns["iteration"] == [12] * 4
    assert found.columns["task"] == ["7f3a"] * 4 and found.columns["trajectory"] == ["7f3a_0"] * 2 + ["7f3a_1"] * 2
    assert found.columns["step"] == [0, 1, 0, 1] and found.columns["action"] == ACTIONS
    assert found.columns["reward"] == [0.0, 1.0, 0.0, 0.0]
    assert found.columns["state"][1].endswith("user\nYou are in the kitchen. You see a lamp.\nassistant\n")
    assert "step" not in found.missing and "no step rewards are written" in found.missing["reward"]


ONE_STEP = {
    "verl/v1_whole_conversation/12.jsonl": ({}, "7f3a", ["7f3a_0", "7f3a_1"]),
    "verl/legacy/12.jsonl": ({"task": "input"}, None, ["r-1", "r-2"]),
    "trl/completions_00012.as_json.jsonl": ({"task": "prompt"}, None, [1, 2]),
    "trl/completions/completions_00012.parquet": ({"task": "prompt"}, None, [1, 2]),
    "slime/rollout_12.as_json.json": ({}, 7, [56, 57]),
    "slime/rollout_12.pt": ({}, 7, [56, 57]),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=_needs("pyarrow")) if n.endswith(".parquet") else n for n in ONE_STEP])
def test_rows_that_are_whole_conversations_are_one_step_and_it_says_so(name):
    columns, task, trajectories = ONE_STEP[name]
    found = rollouts.read(FOLDER / name, columns=columns)
    assert found.columns["task"] == [task or found.columns["state"][0]] * 2 and found.columns["trajectory"] == trajectories
    assert found.columns["iteration"] == [12, 12] and found.columns["step"] == [0, 0]
    assert found.columns["reward"] == [1.0, 0.0]
    assert "take lamp" in found.columns["response"][0]
    assert re.search(r"turns .* there is no step level: .*record", found.missing["step"])
    if name.startswith("trl"):
        assert found.columns["episode_advantage"] == [0.7071, -0.7071]
    if name.startswith("slime"):
        assert found.columns["tokens"] == [2, 2]


@pytest.mark.parametrize("name", ["verl/legacy/12.jsonl", "trl/completions_00012.as_json.jsonl"])
def test_a_task_that_a_file_does_not_say_is_asked_for_and_the_advice_works(name):
    with pytest.raises(
        ValueError, match=r"line 1: task must be a text or an integer in every step, got none among .*equal prompts"
    ) as caught:
        rollouts.read(FOLDER / name)
    advice = re.search(r'columns=\{"task": "(\w+)"\}', str(caught.value))[1]
    assert len(rollouts.read(FOLDER / name, columns={"task": advice})) == 2


@pytest.mark.parametrize("name", ["trl/completions_00012.as_json.jsonl", "slime/rollout_12.as_json.json"])
def test_one_action_is_not_taken_out_of_a_whole_conversation(name):
    with pytest.raises(ValueError, match=r"action_pattern must be None, got .*whole trajectory, which has no single action"):
        rollouts.read(FOLDER / name, columns={"task": "prompt"}, action_pattern=PATTERN)
    assert "action" not in rollouts.read(FOLDER / name, columns={"task": "prompt"}).columns


def test_the_rest_opens_by_naming_its_columns():
    path = FOLDER / "areal/rollout/3/41.jsonl"
    with pytest.raises(ValueError, match=r'trajectory must be .* got none among task_id, sample_idx.*columns=\{"trajectory": "KEY"\}'):
        rollouts.read(path)
    found = rollouts.read(
        path, columns={"trajectory": "sample_idx", "state": "prompt", "response": "completion", "iteration": "head_version"}
    )
    assert found.columns["task"] == [41, 41] and found.columns["trajectory"] == [0, 1] and found.columns["iteration"] == [3, 3]
    assert found.columns["reward"] == [1.0, 0.0] and "take lamp" in found.columns["response"][0]


@pytest.mark.parametrize(
    "name, message",
    [
        ("nemo_rl/train_data_step12.jsonl", r"line 1: task must be .* got none among content, rewards.*docs/rollouts.md"),
        ("agent_lightning/train_trajectories.jsonl.zip", r"a file must be one of .jsonl, .*convert it to JSON Lines"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_way_out(name, message):
    with pytest.raises(ValueError, match=message):
        rollouts.read(FOLDER / name)


def test_every_sample_has_a_test():
    named = {*TURNS, *ONE_STEP, "verifiers/legacy/results.jsonl", "verl/v1_turn_a_row/12.jsonl", "areal/rollout/3/41.jsonl"}
    named |= {"nemo_rl/train_data_step12.jsonl", "agent_lightning/train_trajectories.jsonl.zip"}
    assert {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()} == named


@pytest.mark.parametrize("name", ["art/0012.parquet", "inspect_ai/log.eval"])
def test_a_package_that_is_not_there_is_named(name, monkeypatch):
    package = PACKAGES[name[name.rindex(".") :]]
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"the package must be {package}, .*; pip install {package}, or convert the file to JSON Lines"):
        rollouts.read(FOLDER / name)


class _Runs:
    """An object whose pickle runs code when it is loaded."""

    def __reduce__(self):
        return exec, ("import builtins; builtins.gigpo_fast_was_here = True",)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))], ids=["torch.save", "pickle"])
def test_nothing_is_unpickled(tmp_path, save):
    path = tmp_path / "rollout_0.pt"
    save({"rollout_id": 0, "samples": [_Runs()]}, path)
    with pytest.raises(ValueError, match=r"object 1: the file must be tensors and plain values alone, got .*objects run code when loaded"):
        rollouts.read(path)
    import builtins

    assert not hasattr(builtins, "gigpo_fast_was_here")


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.NAME)
def test_a_reader_is_short(form):
    assert len(pathlib.Path(form.__file__).read_text().splitlines()) <= 60
