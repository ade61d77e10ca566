"""Rollout files with something wrong in them raise with file and line, in every reader, before a number is made of them."""

import gzip
import json
import re

import pytest

from tests import rollout_steps
from tests.oracles.tensors import read_steps
from tests.rollout_steps import records

from agent import rollouts  # isort: skip  # from examples/, which the reader above has put on the path


def good() -> list[dict]:
    def step(name: str, number: int, reward: float) -> dict:
        return {"type": "step", "task_id": "t", "traj_uid": name, "step": number, "obs": "a room", "action": "look", "reward": reward}

    def end(name: str, count: int) -> dict:
        return {"type": "traj", "task_id": "t", "traj_uid": name, "n_steps": count, "success": True}

    task = {"type": "task", "task_id": "t", "description": "find it"}
    return [task, step("a", 0, 0), step("b", 0, 0.5), step("a", 1, 1), end("a", 2), step("b", 1, 0), end("b", 2)]


def write(folder, lines: list) -> None:
    with gzip.open(folder / "made.jsonl.gz", "wt") as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


READERS = {
    "examples/agent/rollouts.py": lambda folder: rollouts.read("made", folder),
    "examples/agent/records.py": lambda folder: records(folder / "made.jsonl.gz"),
    "tests/oracles": lambda folder: read_steps.__wrapped__(folder / "made.jsonl.gz"),
    "tests/rollout_steps.py": lambda folder: rollout_steps.steps.__wrapped__("made"),
}


def change(line: int, **fields):
    return lambda lines: lines[line - 1].update(fields)


def without(line: int, field: str):
    return lambda lines: lines[line - 1].pop(field)


def swap(one: int, other: int):
    def swapped(lines: list) -> None:
        lines[one - 1], lines[other - 1] = lines[other - 1], lines[one - 1]

    return swapped


WRONG = {
    "NaN reward": (change(3, reward=float("nan")), 3, "reward must be a finite number, got nan; leave the whole trajectory out"),
    "infinite reward": (change(3, reward=float("-inf")), 3, "reward must be a finite number, got -inf"),
    "null reward": (change(3, reward=None), 3, "reward must be a finite number, got None"),
    "a text as reward": (change(3, reward="1"), 3, "reward must be a finite number, got '1'"),
    "a flag as reward": (change(3, reward=True), 3, "reward must be a finite number, got True"),
    "null observation": (change(2, obs=None), 2, "obs must be a text, got None"),
    "null action": (change(2, action=None), 2, "action must be a text, got None"),
    "no observation": (without(2, "obs"), 2, "obs must be a text in a step record, got a record without it; write it"),
    "steps out of order": (swap(2, 4), 2, "step must be 0, since 'a' has 0 steps so far, got 1; write the steps of a trajectory once each"),
    "a step twice": (lambda lines: lines.insert(4, dict(lines[3])), 5, "step must be 2, since 'a' has 2 steps so far, got 1"),
    "a step missing": (lambda lines: lines.pop(1), 3, "step must be 0, since 'a' has 0 steps so far, got 1"),
    "the last step missing": (lambda lines: lines.pop(5), 6, "n_steps must be 1, since 'b' has 1 steps so far, got 2"),
    "a step after the end": (lambda lines: lines.append(dict(lines[3], step=2)), 8, "traj_uid must be that of a trajectory without a traj"),
    "ended twice": (lambda lines: lines.append(dict(lines[4])), 8, "traj_uid must be that of a trajectory without a traj record, got 'a'"),
    "no end": (lambda lines: lines.pop(), 6, "trajectory 'b' must be followed by its traj record after 2 steps, got the end of the file"),
    "an unknown type": (change(4, type="stepp"), 4, "type must be one of ['task', 'step', 'traj'], got 'stepp'; keep other records"),
    "no type": (without(4, "type"), 4, "type must be one of ['task', 'step', 'traj'], got None"),
    "a list as type": (change(4, type=["step"]), 4, "type must be one of ['task', 'step', 'traj'], got ['step']"),
    "no record": (lambda lines: lines.insert(1, "[1]"), 2, "type must be one of ['task', 'step', 'traj'], got None"),
    "no JSON": (lambda lines: lines.insert(1, '{"type": "st'), 2, "the line must be one JSON object, got "),
    "an empty line": (lambda lines: lines.insert(1, ""), 2, "the line must be one JSON object, got Expecting value"),
    "a task that comes later": (lambda lines: lines.append(lines.pop(0)), 1, "task_id must be that of a task further up, got 't'; write"),
    "a task twice": (lambda lines: lines.insert(3, dict(lines[0])), 4, "task_id must be that of a new task, got 't'; write each task once"),
    "one name in two tasks": (
        lambda lines: (lines.insert(0, dict(lines[0], task_id="u")), lines[4].update(task_id="u")),
        5,
        "task_id must be 't', as in the trajectory's first step, got 'u'; name trajectories apart",
    ),
    "success that is no flag": (change(5, success=None), 5, "success must be true or false, got None"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_steps, "FOLDERS", (tmp_path,))
    return tmp_path


@pytest.mark.parametrize("reader", READERS)
def test_a_good_file_is_read(folder, reader):
    write(folder, good())
    READERS[reader](folder)
    assert rollouts.read("made", folder).rewards.tolist() == [0, 0.5, 1, 0]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_raises_with_file_and_line(folder, name, reader):
    spoil, line, message = WRONG[name]
    lines = good()
    spoil(lines)
    write(folder, lines)
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'made.jsonl.gz'}, line {line}: {message}")):
        READERS[reader](folder)


@pytest.mark.parametrize("damage", ["cut", "not gzip", "not text"])
def test_a_damaged_file_raises_with_file_and_line(folder, damage):
    write(folder, good())
    path = folder / "made.jsonl.gz"
    path.write_bytes({"cut": path.read_bytes()[:-30], "not gzip": b'{"type": "task"}', "not text": gzip.compress(b"\xff\xfe\n")}[damage])
    with pytest.raises(ValueError, match=re.escape(f"{path}, line ") + r"\d+: the file must be whole, gzipped UTF-8 text, got \w+: "):
        records(path)
