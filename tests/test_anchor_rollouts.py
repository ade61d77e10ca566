"""diagnose on recorded rollouts: it finds what is known to spoil the texts, leaves alone what is not, and its key restores the states."""

import re
from collections import Counter, defaultdict

import pytest

from gigpo_fast import anchor
from gigpo_fast.anchor import normalise
from tests.rollout_steps import column, steps

FREE_OF_FAULTS = ["alfworld", "frozenlake", "minigrid"]


def ids(states, task, key=None):
    return anchor.group_states(states, task, key=key).ids.tolist()


def pairs(*labels):
    """How many pairs of rows agree in all labels."""
    return sum(count * (count - 1) // 2 for count in Counter(zip(*labels)).values())


@pytest.fixture(scope="module")
def textworld():
    return [record["obs"] + record["status"] for record in steps("textworld")], column("textworld", "task_id")


@pytest.mark.parametrize("order", ["one trajectory after the other", "all trajectories step by step", "trajectories not known"])
def test_textworld_counts_its_moves(textworld, order):
    states, task = textworld
    trajectory = None if "not known" in order else column("textworld", "traj_uid")
    rows = (
        sorted(range(len(states)), key=lambda row: (task[row], steps("textworld")[row]["step"]))
        if "step by step" in order
        else range(len(states))
    )
    states, task = [states[row] for row in rows], [task[row] for row in rows]
    trajectory = None if trajectory is None else [trajectory[row] for row in rows]
    found = anchor.diagnose(states, task, trajectory=trajectory)
    assert found.alone == pytest.approx(0.7313, abs=1e-4)
    assert found.key == normalise.digits(after="/")  # the status line ends in score/moves
    assert [proposal.alone < 0.18 for proposal in found.proposals] == [True]
    # Exactly the states with room and score, but without the moves, are left.
    without = [re.sub(r"-= (.*) =-(\d+)/\d+$", r"-= \1 =-\2", state) for state in states]
    assert ids(states, task, found.key) == ids(without, task)


def test_textworld_key_restores_the_true_states(textworld):
    """Of the pairs of steps in one true state with one answer, raw text joins few, the key all but a few."""
    states, task = textworld
    key = anchor.diagnose(states, task, trajectory=column("textworld", "traj_uid")).key
    later = [row for row, record in enumerate(steps("textworld")) if record["step"] > 0]  # the first text of all has no status line
    states, task = [states[row] for row in later], [task[row] for row in later]
    truth, answer = ([column("textworld", name)[row] for row in later] for name in ("state_key", "obs"))
    same = pairs(task, truth, answer)
    raw, keyed = ids(states, task), ids(states, task, key)
    assert pairs(raw, truth, answer) < 0.2 * same
    assert pairs(keyed, truth, answer) > 0.99 * same
    # What it joins is more often one true state than what the answer alone, without the status line, joins.
    assert pairs(keyed, truth) / pairs(keyed) > pairs(task, answer, truth) / pairs(task, answer)


def test_textworld_with_truth_joins_nothing_that_differs(textworld):
    states, task = textworld
    truth = column("textworld", "state_key")
    found = anchor.diagnose(states, task, truth=truth, trajectory=column("textworld", "traj_uid"))
    assert repr(found.key).startswith("unless(digits(after='/'), ")
    keyed = ids(states, task, found.key)
    seen = defaultdict(set)
    for state, true, number in zip(states, truth, keyed):
        seen[number].add((state, true))
    assert any(len(members) > 1 for members in seen.values())
    for members in seen.values():
        texts, truths = (set(part) for part in zip(*members))
        assert len(texts) == 1 or len(truths) == 1
    assert len(found.proposals) == 1 and found.proposals[0].alone < found.alone - 0.2
    answers_only = anchor.diagnose(column("textworld", "obs"), task, truth=truth)
    assert answers_only.ambiguous == pytest.approx(0.5678, abs=1e-4)
    assert answers_only.key is None and "stands for several true states" in answers_only.warnings[0]


def objects(text):
    """What a room holds, whatever the order of lines and of objects in a line: for each heading the words of each line, inside how many
    brackets."""
    heading, held = "", Counter()
    for line in text.split("\n"):
        if line.rstrip().endswith(":") or not line.startswith("\t"):
            heading = line.strip()
        places = [(line.count("(", 0, word.start()) - line.count(")", 0, word.start()), word[0]) for word in re.finditer(r"\w+", line)]
        held[heading, tuple(sorted(places))] += 1
    return tuple(sorted(held.items()))


@pytest.mark.parametrize("known", [False, True])
def test_scienceworld_shuffles_the_objects_of_a_room(known):
    states, task = column("scienceworld", "obs"), column("scienceworld", "task_id")
    found = anchor.diagnose(states, task, trajectory=column("scienceworld", "traj_uid") if known else None)
    assert found.key == normalise.sorted_lines()
    assert ids(states, task, found.key) == ids([objects(state) for state in states], task)
    first = [row for row, record in enumerate(steps("scienceworld")) if record["step"] == 0 and record["task_id"].endswith("-002")]
    assert len({states[row] for row in first}) == 3  # eight resets of one room, in three orders
    assert len({ids(states, task, found.key)[row] for row in first}) == 1


def test_scienceworld_rooms_and_inventories():
    """Longer texts, with lists inside lines, and moves of an object from the room to the inventory, which keep all words."""
    states, task = column("scienceworld", "state_text"), column("scienceworld", "task_id")
    found = anchor.diagnose(states, task, trajectory=column("scienceworld", "traj_uid"))
    assert found.key == normalise.sorted_lines() | normalise.sorted_items()
    assert ids(states, task, found.key) == ids([objects(state) for state in states], task)
    assert max(ids(states, task)) > max(ids(states, task, found.key))
    assert any("degrees" in proposal.what or "'of'" in proposal.what for proposal in found.refused)  # thermometers are read, not counted


def test_scienceworld_with_a_truth_that_depends_on_the_order():
    """The recorded key is a hash of the text as it stands, so according to it rooms in another order do differ."""
    states, task = column("scienceworld", "obs"), column("scienceworld", "task_id")
    found = anchor.diagnose(states, task, truth=column("scienceworld", "state_key"))
    assert found.key is None
    assert str(found.refused[0]).startswith("sorting listed lines would leave")
    assert str(found.refused[0]).endswith("not proposed: it would join different true states")


@pytest.mark.parametrize("environment", FREE_OF_FAULTS)
@pytest.mark.parametrize("known", ["nothing", "trajectories", "truth"])
def test_nothing_is_proposed_where_nothing_is_wrong(environment, known):
    names = {"nothing": {}, "trajectories": {"trajectory": "traj_uid"}, "truth": {"truth": "state_key"}}[known]
    options = {option: column(environment, name) for option, name in names.items()}
    assert anchor.diagnose(column(environment, "obs"), column(environment, "task_id"), **options).key is None
