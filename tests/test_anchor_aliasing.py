"""Same state, same action, another next state: by hand, on recorded rollouts against their true states, and the table of definitions."""

import itertools
import time
from collections import defaultdict

import pytest

from gigpo_fast import anchor
from tests.rollout_steps import column, steps


def test_by_hand():
    """Three walks from the hall to the north: one comes to the attic; what the cellar leads to is known of one walk."""
    states = ["hall", "attic", "hall", "cellar", "hall", "cellar", "garden"]
    walk, action = [0, 0, 1, 1, 2, 2, 2], ["north", "wait", "north", "wait", "north", "wait", "wait"]
    found = anchor.diagnose(states, trajectory=walk, action=action)
    assert found.aliasing.comparable == pytest.approx(3 / 7)
    assert found.aliasing.conflicting == 1.0
    assert found.aliasing.hiding == pytest.approx(3 / 7)
    assert found.aliasing.states == ((0, 3, 1),)
    (warning,) = (text for text in found.warnings if "chance decides" in text)
    assert "100% of the steps that can be compared" in warning and "'hall' in 3 steps of 1 tasks" in warning
    assert "equal states and actions: 42.9% of the steps share state and action with another" in str(found)
    # With another action there is nothing to compare; nor between tasks.
    action[2] = "up"
    assert anchor.diagnose(states, trajectory=walk, action=["up", "a", "down", "b", "north", "c", "d"]).aliasing.comparable == 0.0
    assert anchor.diagnose(states, [0, 0, 1, 1, 2, 2, 2], trajectory=walk, action=["north"] * 7).aliasing.conflicting == 0.0
    assert anchor.diagnose(states, trajectory=walk).aliasing is None


def precision_and_recall(environment, field):
    task, text, truth = column(environment, "task_id"), column(environment, field), column(environment, "state_key")
    found = anchor.diagnose(text, task, trajectory=column(environment, "traj_uid"), action=column(environment, "action"), seconds=0.0)
    # The states that hide something, flagged once more by hand.
    last, following = {}, defaultdict(set)
    for row, step in enumerate(steps(environment)):
        if step["traj_uid"] in last:
            before = last[step["traj_uid"]]
            following[task[before], text[before], steps(environment)[before]["action"]].add(text[row])
        last[step["traj_uid"]] = row
    flagged = {key[:2] for key, after in following.items() if len(after) > 1}
    true = defaultdict(set)
    for key, state in zip(zip(task, text), truth):
        true[key].add(state)
    in_flagged = [key for key in zip(task, text) if key in flagged]
    ambiguous = [key for key in zip(task, text) if len(true[key]) > 1]
    right = sum(len(true[key]) > 1 for key in in_flagged)
    assert found.aliasing.hiding == pytest.approx(len(in_flagged) / len(text))
    return right / max(len(in_flagged), 1), right / max(len(ambiguous), 1), found


@pytest.mark.parametrize(("environment", "precision", "recall"), [("alfworld", 1.0, 0.16), ("textworld", 0.89, 0.3), ("scienceworld", 1.0, 0.2)])
def test_what_it_flags_is_truly_ambiguous(environment, precision, recall):
    right, found, diagnosis = precision_and_recall(environment, "obs")
    assert right >= precision - 0.01 and found >= recall
    assert any("the state hides something, or chance decides" in warning for warning in diagnosis.warnings)


def test_the_worst_texts_are_named():
    *_, found = precision_and_recall("textworld", "obs")
    first = found.aliasing.states[0]
    assert (steps("textworld")[first.row]["obs"].strip(), first.steps, first.tasks) == ("You are carrying nothing.", 383, 22)


def test_boards_hide_nothing_and_chance_looks_like_hiding():
    board = [column("minigrid", name) for name in ("obs", "task_id", "traj_uid", "action")]
    found = anchor.diagnose(board[0], board[1], trajectory=board[2], action=board[3], seconds=0.0)
    assert found.aliasing.conflicting == 0.0 and not any("chance" in warning for warning in found.warnings)
    ice = [column("frozenlake", name) for name in ("obs", "task_id", "traj_uid", "action")]
    assert anchor.diagnose(ice[0], ice[1], trajectory=ice[2], action=ice[3], seconds=0.0).aliasing.conflicting > 0.7  # slippery


def test_boards_joined_by_likeness():
    text, task, walk, action = (column("minigrid", name) for name in ("obs", "task_id", "traj_uid", "action"))
    alike = anchor.group_similar_states(text, task, threshold=0.95).ids
    found = anchor.diagnose(text, task, trajectory=walk, action=action, ids=alike, seconds=0.0)
    (warning,) = (text for text in found.warnings if text.startswith("the ids join"))
    assert "883 groups of equal states into 74" in warning and "0% among equal states" in warning
    equal = anchor.group_states(text, task).ids
    assert not any("the ids join" in text for text in anchor.diagnose(text, task, trajectory=walk, action=action, ids=equal, seconds=0.0).warnings)


def test_definitions_side_by_side():
    answer, room, task, walk, action = (column("textworld", name) for name in ("obs", "state_text", "task_id", "traj_uid", "action"))
    both = list(zip(room, answer))
    table = anchor.compare_states({"answer": answer, "room": room, "room and answer": both}, task, trajectory=walk, action=action)
    lines = str(table).split("\n")
    assert lines[0].split("  ")[0] == "state" and [line.split("  ")[0] for line in lines[1:]] == ["answer", "room", "room and answer"]
    found = table.found
    # The room alone leaves few steps alone and hides little; the last answer hides much; both together leave a third alone.
    assert found["room"].alone < 0.1 and found["room"].aliasing.conflicting < 0.02 < 0.15 < found["answer"].aliasing.conflicting
    assert found["room and answer"].alone > 0.3
    with pytest.raises(TypeError, match="compare_states: definitions must be a dict of states by name"):
        anchor.compare_states(answer, task)


def test_many_texts_are_sampled_and_time_is_limited():
    """30 tasks of 100 texts with a counter: learnt on some tasks, applied to all; truth is asked about every text."""
    states = [f"Turn {turn}: room {chr(97 + task)} {'ns'[turn % 2]}" for task, turn in itertools.product(range(26), range(100))]
    task = [task for task in range(26) for _ in range(100)]
    found = anchor.diagnose(states, task)
    assert found.tried_on == 1000 and "tried on 1000 texts of whole tasks" in str(found)
    assert repr(found.key).startswith("digits(after='Turn'") and found.proposals[-1].groups == 52
    # One task whose truth forbids it, outside the sample or inside: its texts are kept apart.
    for odd in range(26):
        truth = [turn if task == odd else turn % 2 for task, turn in itertools.product(range(26), range(100))]
        known = anchor.diagnose(states, task, truth=truth)
        ids = anchor.group_states(states, task, key=known.key).ids.tolist() if known.key else list(range(2600))
        assert len(set(ids[100 * odd : 100 * odd + 100])) == 100
    begin = time.monotonic()
    late = anchor.diagnose([f"{text} the {'x' * 50}" for text in states], task, seconds=1e-9)
    assert late.key is None and any("no masking was tried after 1e-09 seconds" in text for text in late.warnings)
    assert time.monotonic() - begin < 30
