"""What comes in from disk: the recordings as their own reader has them, order and labels, and files with something wrong in them."""

import gzip
import json
import random
import re

import pytest

from gigpo_fast import rollouts
from gigpo_fast.rollouts import json_files
from tests.rollout_steps import FOLDERS, column, steps

RECORDINGS = sorted(path for folder in FOLDERS for path in folder.glob("*.jsonl.gz"))
NAMES = {
    "task": "task_id",
    "trajectory": "traj_uid",
    "step": "step",
    "state": "obs",
    "action": "action",
    "reward": "reward",
    "truth": "state_key",
}


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_recordings_give_the_steps_of_their_own_reader(path):
    found, environment = rollouts.read(path), path.name.removesuffix(".jsonl.gz")
    assert len(found) == len(steps(environment)) > 500
    for name, own in NAMES.items():
        assert found.columns[name] == column(environment, own), name
    assert found.columns["success"] == column(environment, "success")
    group, trajectory = found.labels()
    tasks = list(dict.fromkeys(column(environment, "task_id")))
    assert group.tolist() == [tasks.index(task) for task in column(environment, "task_id")]
    names = {name: i for i, name in enumerate(dict.fromkeys(column(environment, "traj_uid")))}
    assert trajectory.tolist() == [names[name] for name in column(environment, "traj_uid")]


def test_another_column_may_be_the_state():
    path = next(path for path in RECORDINGS if path.name.startswith("textworld"))
    assert rollouts.read(path, columns={"state": "state_text"}).columns["state"] == column("textworld", "state_text")


def step(trajectory=0, number=0, **more) -> dict:
    return {"task": "t", "trajectory": trajectory, "step": number, "state": f"s{number}", "action": "look", "reward": 0.5} | more


def write(folder, lines: list, name: str = "made.jsonl"):
    path = folder / name
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def test_the_order_of_lines_changes_nothing_where_steps_are_numbered(tmp_path):
    given = [step(t, n, task=task) for task in ("x", "y") for t in range(3) for n in range(4)]
    found = rollouts.read(write(tmp_path, given)).columns
    mixed = [given[0], *random.Random(0).sample(given[1:], len(given) - 1)]
    again = rollouts.read(write(tmp_path, mixed)).columns
    rows = lambda columns: sorted(zip(*columns.values()))  # noqa: E731
    assert rows(found) == rows(again)
    for columns in (found, again):
        keys = list(zip(columns["task"], columns["trajectory"]))
        assert [key for i, key in enumerate(keys) if i == 0 or keys[i - 1] != key] == list(dict.fromkeys(keys)), (
            "a trajectory stands together"
        )
        assert columns["step"] == [0, 1, 2, 3] * 6


def test_without_numbers_the_order_of_lines_is_time_also_of_trajectories_in_turn(tmp_path):
    lines = [{k: v for k, v in step(t, n).items() if k != "step"} for n in range(3) for t in range(2)]
    found = rollouts.read(write(tmp_path, lines)).columns
    assert found["trajectory"] == [0, 0, 0, 1, 1, 1] and found["state"] == ["s0", "s1", "s2"] * 2


def test_labels_that_start_again_in_every_task_are_other_trajectories(tmp_path):
    found = rollouts.read(write(tmp_path, [step(task="x"), step(task="y"), step(1, task="y")]))
    assert found.labels().group.tolist() == [0, 1, 1] and found.labels().trajectory.tolist() == [0, 1, 2]


def test_types_and_keys_of_others_are_left_out(tmp_path):
    lines = [{"type": "run", "step": "?"}, step(colour="red"), {"type": "traj"}, step(0, 1, type="step"), ""]
    found = rollouts.read(write(tmp_path, lines))
    assert len(found) == 2 and "colour" not in found.columns


def test_a_missing_step_is_named(tmp_path):
    found = rollouts.read(write(tmp_path, [step(0, 0), step(0, 1), step(0, 3)]))
    assert found.missing["step"] == "trajectory 0 of task 't' has no step before 3, so its returns lack a reward: record every step"
    assert "step" not in rollouts.read(write(tmp_path, [step(0, 1), step(0, 2)])).missing  # counted from 1


def test_paths_lead_into_objects_and_a_name_with_a_dot_goes_first(tmp_path):
    lines = [{"a": {"task": 1, "b": {"r": 2}}, "a.t": "T", "obs": "s"}]
    found = rollouts.read(write(tmp_path, lines), columns={"task": "a.task", "trajectory": "a.t", "reward": "a.b.r"}).columns
    assert (found["task"], found["trajectory"], found["reward"]) == ([1], ["T"], [2.0])


WRONG = {
    "NaN reward": ([step(), step(0, 1, reward=float("nan"))], 2, "reward must be a finite number, got nan; leave a broken trajectory out"),
    "infinite reward": ([step(reward=float("-inf"))], 1, "reward must be a finite number, got -inf"),
    "a huge reward": ([step(reward=10**400)], 1, "reward must be a finite number, got 1000"),
    "a text as reward": ([step(reward="1")], 1, "reward must be a finite number, got '1'"),
    "an object as reward": (
        [step(reward={"env": 1})],
        1,
        """reward must be a finite number, got {'env': 1}; say where it is: columns={"re""",
    ),
    "no reward": ([step(reward=None)], 1, "reward must be a finite number in every step, got none among task, trajectory, step, state"),
    "no state": ([step(state=None)], 1, "state must be any JSON value but null in every step, got none among"),
    "a negative step": ([step(0, -1)], 1, "step must be an integer >= 0, got -1"),
    "a flag as step": ([step(0, True)], 1, "step must be an integer >= 0, got True"),
    "a list as action": ([step(action=["a"])], 1, "action must be a text, got ['a']; say where it is"),
    "a step twice": ([step(), step(1), step()], 3, "step 0 of trajectory 0 of task 't' must be there once, got also in "),
    "numbers on some steps": ([step(), step(0, None)], 2, "step of trajectory 0 must be in all its records or in none, got some with it"),
    "no JSON": ([step(), '{"task": "t", "traj'], 2, "the text must be JSON, got JSONDecodeError: "),
    "a list": ([step(), "[1]"], 2, "each entry must be a JSON object, got list [1]; write one JSON object a line"),
    "deep nesting": (["[" * 100_000], 1, "the text must be JSON, got RecursionError: "),
    "a number of 10,000 digits": (['{"task": ' + "1" * 10_000 + "}"], 1, "the text must be JSON, got ValueError: "),
    "settings that are none": ([{"type": "gigpo_fast.rollouts/1", "settings": [1]}], 1, "settings must be an object, got [1]"),
    "an iteration that is none": ([{"type": "gigpo_fast.rollouts/1", "iteration": -1}], 1, "iteration must be an integer >= 0, got -1"),
}


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_raises_with_file_and_line(tmp_path, name, ending):
    lines, line, message = WRONG[name]
    path = write(tmp_path, lines, "made" + ending)
    with pytest.raises(ValueError, match=re.escape(f"rollouts.read: {path}, line {line}: {message}")):
        rollouts.read(path)


def test_control_characters_stay_what_they_are(tmp_path):
    text = "\x00\x07\x1b]0;title\x07\x1b[2J\u202e\u2028\ud800"
    found = rollouts.read(write(tmp_path, [step(state=text, action=text, task=text)])).columns
    assert found["state"] == found["action"] == found["task"] == [text]


def test_text_that_is_not_utf8_raises_with_its_line(tmp_path):
    path = write(tmp_path, [step()])
    path.write_bytes(path.read_bytes() + b'{"task": "\xff\xfe"}\n')
    with pytest.raises(ValueError, match=re.escape(f"rollouts.read: {path}, line 2: the text must be UTF-8, got ")):
        rollouts.read(path)


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = write(tmp_path, [step()])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(rollouts.read(path)) == 1


def test_a_very_long_line_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_files, "LONGEST_LINE", 1000)
    path = write(tmp_path, [step(), step(0, 1, state="x" * 1000)], "made.jsonl.gz")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 2: the line must be at most 1000 bytes long, got a longer one")):
        rollouts.read(path)


@pytest.mark.parametrize("damage", ["cut", "a wrong byte", "no checksum"])
def test_a_broken_archive_raises_with_the_line(tmp_path, damage):
    path = write(tmp_path, [step(0, n, state=str(random.Random(n).random())) for n in range(2000)], "made.jsonl.gz")
    data = bytearray(path.read_bytes())
    if damage == "a wrong byte":
        data[len(data) // 2] ^= 0xFF
    path.write_bytes(data[: {"cut": len(data) // 2, "a wrong byte": len(data), "no checksum": len(data) - 8}[damage]])
    with pytest.raises(ValueError, match=re.escape(f"rollouts.read: {path}, line ") + r"\d+: the (file|text) must be "):
        rollouts.read(path)


def test_gzip_is_known_by_its_bytes_and_not_by_the_name(tmp_path):
    path = write(tmp_path, [step()], "made.jsonl.gz")
    assert len(rollouts.read(path.rename(tmp_path / "other.jsonl"))) == 1


@pytest.mark.parametrize("text", ["[{0}, {1}]", "{0}\n{1}\n", "{0}\n{1}"])
def test_json_is_a_list_or_lines(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text.format(json.dumps(step()), json.dumps(step(0, 1))))
    assert rollouts.read(path).columns["step"] == [0, 1]


def test_paths_that_hold_nothing_say_what_to_name(tmp_path):
    (tmp_path / "step_1").mkdir()
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"must be one with rollout files directly in it, got none of .* but the folders step_1; name"):
        rollouts.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="the path must be a file or a folder, got nothing of that name"):
        rollouts.read(tmp_path / "absent")
    with pytest.raises(ValueError, match="paths must be one file or folder at least"):
        rollouts.read([])
    path = write(tmp_path, [])
    with pytest.raises(ValueError, match="paths must be files with at least one step, got none in"):
        rollouts.read(path)
    write(tmp_path, [step()])
    with pytest.raises(ValueError, match="paths must be each file once, got one file twice"):
        rollouts.read([path, tmp_path])


def test_a_trajectory_of_two_files_of_one_iteration_is_refused(tmp_path):
    paths = [write(tmp_path, [step(0, n, iteration=3)], f"{n}.jsonl") for n in range(2)]
    with pytest.raises(ValueError, match=r"1.jsonl, line 1: trajectory 0 of task 't' must be in one file, got also in .*0.jsonl, line 1"):
        rollouts.read(paths)
    assert len(rollouts.read([write(tmp_path, [step(0, 0)], f"{n}.jsonl") for n in range(2)])) == 2


def test_arguments_are_read_or_refused(tmp_path):
    path = write(tmp_path, [step(response="I think <a>go\neast</a>.")])
    assert rollouts.read(path, action_pattern="<a>(.*?)</a>").columns["action"] == ["go\neast"]
    assert rollouts.read(path, action_pattern="t.ink").columns["action"] == ["think"]
    assert "action" not in rollouts.read(path, action_pattern="<b>").columns
    for wrong, message in (
        ({"format": "parquet"}, "format must be one of "),
        ({"columns": {"colour": "x"}}, "columns must be for keys among .*, got also colour"),
        (
            {"columns": {"state": "absent"}},
            r"line 1: columns\['state'\] must be a place in every record, as 'absent' is to be, got a record",
        ),
        ({"action_pattern": "("}, "action_pattern must be a regular expression, got "),
        ({"format": "chat"}, "line 1: the record must be one of chat, got "),
    ):
        with pytest.raises(ValueError, match=f"rollouts.read: .*{message}"):
            rollouts.read(path, **wrong)


def chat(*roles: str) -> dict:
    return {"task": "t", "reward": 1, "messages": [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(roles)]}


def test_conversations_whose_answers_follow_each_other_or_are_none(tmp_path):
    found = rollouts.read(write(tmp_path, [chat("system", "user", "assistant", "assistant", "user"), chat("user")]))
    assert found.columns["state"] == ["user 1", ""] and found.columns["reward"] == [0.0, 1.0]
    assert found.missing["trajectory"].startswith("1 records hold no answer of the model and are left out")


def test_a_tree_of_messages_with_a_circle_is_refused(tmp_path):
    node = {"parent": 0, "message": {"role": "user", "content": "x"}, "sampled": False}
    answer = {"parent": 0, "message": {"role": "assistant", "content": "y"}, "sampled": True}
    path = write(tmp_path, [{"id": "a", "task": {"key": "k"}, "rewards": {"r": {"score": 1}}, "nodes": [node, answer]}])
    with pytest.raises(
        ValueError, match="line 1: the record must be one of verifiers, got ValueError: node 0 has the parent 0, which comes later"
    ):
        rollouts.read(path)


def test_branches_of_a_tree_give_every_answer_once(tmp_path):
    def node(parent, role, advantages=None):
        sampled = role == "assistant"
        message = {"role": role, "content": f"{role} of {parent}"}
        return {"parent": parent, "message": message, "sampled": sampled, "mask": [False, sampled], "advantages": advantages}

    nodes = [
        node(None, "user"),
        node(0, "assistant", [9, 0.5]),
        node(1, "user"),
        node(2, "assistant"),
        node(0, "user"),
        node(4, "assistant"),
    ]
    trace = {"id": "a", "nodes": nodes, "rewards": {"x": {"score": 1.0, "weight": 2.0}, "y": {"score": 3.0, "weight": 0.5}}}
    found = rollouts.read(write(tmp_path, [{"group": {"id": "g"}, "traces": [trace]}])).columns
    assert found["state"] == ["user of None", "user of 1", "user of None\nuser of 0"]
    assert found["advantage"] == [0.5, None, None] and found["reward"] == [0.0, 0.0, 3.5] and found["tokens"] == [1, 1, 1]
