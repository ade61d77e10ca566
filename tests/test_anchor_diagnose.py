"""diagnose on made-up texts: its numbers by hand, what it proposes and refuses, and that truth is never contradicted."""

import itertools
import random
import re
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import advantage, anchor
from gigpo_fast.anchor import normalise
from gigpo_fast.types import GiGPOAdvantages

ROOMS = ["hall", "kitchen", "cellar", "garden", "attic", "bedroom"]
THINGS = {room: random.Random(number).sample(["lamp", "key", "cup", "fork", "pan", "rope"], 4) for number, room in enumerate(ROOMS)}
TICKS = itertools.count()  # no two steps have the same


def walks(text, seed=0):
    """(states, task, trajectory, room) of 4 tasks of 8 random walks of 12 steps; text(room, step, seconds, draw) writes a state."""
    draw, rows = random.Random(seed), []
    for task, walk in itertools.product(range(4), range(8)):
        room, seconds = 0, draw.randrange(3000)
        for step in range(12):
            rows.append((text(ROOMS[room], step, seconds, draw), task, 8 * task + walk, room))
            seconds += draw.randrange(1, 90)
            room = min(max(room + draw.choice([-1, 0, 1]), 0), 5)
    return map(list, zip(*rows))


def many_things(room, draw):
    return ", ".join(draw.sample([f"{adjective} {thing}" for thing in THINGS[room] for adjective in ("old", "new", "red", "big")], 16))


def clock(seconds):
    return f"{8 + seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def listed(room, draw):
    things = draw.sample(THINGS[room], 4)
    return f"You see a {', a '.join(things[:-1])} and a {things[-1]}."


def spread(text, draw):
    return "".join(letter + " " * draw.randrange(2) if letter == " " else letter for letter in text)


NUISANCES = {
    "step of": (lambda room, step, s, draw: f"Step {step + 1} of 50. You are in the {room}.", "digits(after='Step', before='of')"),
    "in brackets": (lambda room, step, s, draw: f"[turn {step}] {room}", "digits(after='turn', before=']')"),
    "countdown": (lambda room, step, s, draw: f"The {room}. {50 - step} moves left.", "digits(before='moves')"),
    "clock": (lambda room, step, s, draw: f"{clock(s)} You are in the {room}.", "digits(before='You')"),
    "date": (lambda room, step, s, draw: f"2024-05-01T{clock(s)}Z the {room}", "digits(after='T', before='Z')"),
    "items": (lambda room, step, s, draw: f"The {room}. {listed(room, draw)}", "sorted_items(after='You see')"),
    "lines": (lambda room, step, s, draw: f"The {room}:\n- " + "\n- ".join(draw.sample(THINGS[room], 4)), "sorted_lines()"),
    "blanks": (lambda room, step, s, draw: spread(f"You are in the {room}.", draw), "whitespace()"),
    "lines and counter": (
        lambda room, step, s, draw: f"Objects here:\n{chr(10).join(draw.sample(THINGS[room], 4))}\n\nThe {room}. Moves: {step}",
        "sorted_lines(after='Objects here:') | digits(after='Moves:')",
    ),
    "all at once": (
        lambda room, step, s, draw: spread(f"Turn {step}: the {room}. {listed(room, draw)}", draw),
        "sorted_items(after='You see') | digits(after='Turn', before=':') | whitespace()",
    ),
    "two counters": (
        lambda room, step, s, draw: f"moves {step} time {s} in the {room}",
        "digits(after='time', before='in') | digits(after='moves', before='time')",
    ),
    "no order twice": (
        lambda room, step, s, draw: f"At {next(TICKS)} in the {room}: {many_things(room, draw)}.", "sorted_items() | digits(after='At', before='in')",
    ),
    "another number": (
        lambda room, step, s, draw: "Inside room 4." if room == "attic" else f"Turn {step}. The {room}", "digits(after='Turn', before='.')",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NUISANCES)
@pytest.mark.parametrize("known", ["nothing", "trajectory", "truth"])
def test_nuisances_are_found_and_removed(name, known):
    states, task, trajectory, room = walks(NUISANCES[name][0])
    found = anchor.diagnose(states, task, **{"nothing": {}, "trajectory": {"trajectory": trajectory}, "truth": {"truth": room}}[known])
    assert sorted(repr(found.key).split(" | ")) == sorted(NUISANCES[name][1].split(" | "))
    after = anchor.group_states(states, task, key=found.key)
    assert after.ids.tolist() == anchor.group_states(list(zip(task, room))).ids.tolist()
    assert found.proposals[-1].groups == after.counts.numel()
    assert found.proposals[-1].alone == pytest.approx((after.counts == 1).sum().item() / len(states))


STATE_LIKE = {
    "room number": (lambda room, step, s, draw: f"You are in room {ROOMS.index(room)}.", ""),
    "reading": (lambda room, step, s, draw: f"The {room}. The scale shows {draw.randrange(10**6)} grams.", "go one way"),
    "level": (lambda room, step, s, draw: f"The {room}. Level {step // 4}.", "recur as they are"),
    "in few texts": (lambda room, step, s, draw: f"The {room}." + f" Move {step}." * (room == "attic"), "of the steps only"),
    "grid": (lambda room, step, s, draw: "W" + "  " * ROOMS.index(room) + "AG" + "  " * (5 - ROOMS.index(room)) + "W", "cells of a grid"),
    "rows": (lambda room, step, s, draw: "\n".join(f"  {'P' if place == room else 'F'} F" for place in ROOMS), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", STATE_LIKE)
def test_what_may_be_state_is_left_alone(name):
    text, reason = STATE_LIKE[name]
    states, task, trajectory, room = walks(text)
    for options in ({}, {"trajectory": trajectory}):
        found = anchor.diagnose(states, task, **options)
        assert found.key is None and found.proposals == ()
        assert not reason or any(reason in proposal.refused for proposal in found.refused), found.refused


def test_truth_decides_where_the_data_do_not():
    states, task, trajectory, room = walks(STATE_LIKE["reading"][0])
    assert repr(anchor.diagnose(states, task, truth=room).key) == "digits(after='shows', before='grams')"
    assert anchor.diagnose(states, task, trajectory=trajectory, truth=states).key is None
    # The masking is right everywhere but in the kitchen, where the scale matters.
    mixed = [(number, state) if number == 1 else number for number, state in zip(room, states)]
    found = anchor.diagnose(states, task, truth=[str(true) for true in mixed])
    assert found.key == normalise.unless(normalise.digits(after="shows", before="grams"), ["The kitchen. The scale shows # grams."])
    assert "but not where that joins different true states" in str(found)


TEMPLATES = st.sampled_from(
    ["Move {n}. {r}", "{r}: {n}", "You see {a} and {b}. {n}", "You see {b} and {a}. {n}", "{r} {a}, {b}", "{r}  {b}"]
)
ROWS = st.lists(
    st.tuples(TEMPLATES, st.integers(0, 3), st.sampled_from("xy"), st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=30
)


@given(ROWS)
def test_no_key_contradicts_truth_and_every_key_does_what_was_said(rows):
    states = [form.format(n=number, r=place, a="a cup" + "s" * (place == "x"), b="the pan") for form, number, place, _, _ in rows]
    task, truth = [row[3] for row in rows], [row[4] for row in rows]
    for options in ({"truth": truth}, {}):
        found = anchor.diagnose(states, task, **options)
        after = anchor.group_states(states, task, key=found.key)
        if found.key is not None:
            assert found.proposals[-1].groups == after.counts.numel() < found.groups
            assert found.proposals[-1].alone == pytest.approx((after.counts == 1).sum().item() / len(states))
        members = defaultdict(set)
        for number, state, true in zip(after.ids.tolist(), states, truth):
            members[number].add((state, true))
        for group in members.values():
            texts, truths = (set(part) for part in zip(*group))
            assert len(texts) == 1 or len(truths) == 1 or "truth" not in options


def test_numbers_by_hand():
    # Task x: hall three times (trajectories 1, 1, 2), cellar twice in trajectory 2; task y: hall once.
    states = ["hall", "hall", "hall", "cellar", "cellar", "hall", None]
    task, trajectory = ["x"] * 5 + ["y", "y"], [1, 1, 2, 2, 2, 3, 3]
    truth = ["a", "b", "a", "c", "c", "a", "?"]
    found = anchor.diagnose(states, task, truth=truth, trajectory=trajectory, valid=[True] * 6 + [False])
    assert (found.steps, found.tasks, found.groups) == (6, 2, 3)
    assert found.alone == pytest.approx(1 / 6)
    assert found.sizes == pytest.approx({"1": 1 / 6, "2 to 3": 5 / 6, "4 to 7": 0, "8 to 15": 0, "16 or more": 0})
    assert found.one_trajectory == pytest.approx(2 / 6)
    assert found.ambiguous == pytest.approx(3 / 6) and found.split == 0.0
    assert "('hall' for 2)" in found.warnings[-1] and "33% of the steps are in groups of one trajectory" in found.warnings[0]
    split = anchor.diagnose(["hall", "the hall", "cellar"], truth=torch.tensor([7, 7, 8]))
    assert split.split == pytest.approx(2 / 3) and split.ambiguous == 0.0
    assert split.one_trajectory is None and split.mean_advantage is None and split.step_level is None
    assert split.warnings == ("100% of the steps share their state with no other, so the step level says nothing about them",)


def levels(whole, episode):
    whole, episode = torch.tensor(whole), torch.tensor(episode)
    return GiGPOAdvantages(whole, episode, whole - episode, whole)


def test_advantages_by_hand():
    states = ["a", "b", "c", "d"]
    found = anchor.diagnose(states, advantages=levels([1.0, -1.0, 1.0, -1.0], [0.5, -0.5, 0.5, -0.5]))
    assert found.mean_advantage == 0.0 and found.step_level == pytest.approx(0.5)
    assert len(found.warnings) == 1
    found = anchor.diagnose(
        states,
        advantages=levels([1.0, -1.0, 1.0, -1.0], [0.1, -0.1, 0.1, -0.1]),
        tokens=torch.tensor([5, 1, 1, 1]),
        valid=[True] * 3 + [False],
    )
    assert found.mean_advantage == pytest.approx(5 / 7) and found.step_level == pytest.approx(0.9)
    assert "mean advantage over tokens is +0.71 of its root mean square" in found.warnings[1]
    assert "the step level makes up 90% of the advantages" in found.warnings[2] and "lower step_weight" in found.warnings[2]
    nothing = anchor.diagnose(states, advantages=levels([0.0] * 4, [0.0] * 4), tokens=torch.zeros(4, dtype=torch.int64))
    assert nothing.mean_advantage == nothing.step_level == 0.0


def test_with_the_advantages_of_the_library():
    states, task, trajectory, _ = walks(NUISANCES["in brackets"][0])
    ids = anchor.group_states(states, task).ids
    both = advantage.gigpo_advantages(torch.rand(len(states)), trajectory, task, ids, gamma=0.95, step_weight=20.0)
    found = anchor.diagnose(states, task, trajectory=trajectory, advantages=both)
    assert found.step_level > 0.75 and "the episode level drowns" in "".join(found.warnings)


def test_states_that_are_no_texts_and_no_states():
    assert anchor.diagnose([(1, 2), (1, 3), (1, 2)]).key is None
    assert anchor.diagnose(torch.zeros(3, 2), torch.tensor([0, 0, 1])).alone == pytest.approx(1 / 3)
    ragged = anchor.diagnose((torch.tensor([1, 2, 1, 2, 3]), torch.tensor([0, 2, 4, 5])), truth=[0, 1, 2])
    assert ragged.ambiguous == pytest.approx(2 / 3) and "(row 0 for 2)" in ragged.warnings[0]
    empty = anchor.diagnose([], [], truth=[], trajectory=[])
    assert (empty.steps, empty.tasks, empty.groups, empty.alone, empty.key) == (0, 0, 0, 0.0, None)
    assert str(empty) == "no valid step: there is nothing to diagnose"
    assert anchor.diagnose([None, None], valid=[False, False]).steps == 0


def test_what_is_printed():
    states, task, trajectory, room = walks(NUISANCES["clock"][0])
    lines = str(anchor.diagnose(states, task, truth=room, trajectory=trajectory)).split("\n")
    assert lines[0] == "384 steps of 4 tasks in 383 groups; 99.5% of the steps are alone"
    assert lines[2].startswith("0.0% of the steps have a state that stands for several true states, ")
    assert re.fullmatch(r"proposal: masking the number before 'You' would leave 0\.\d% of the steps alone \(\d+ groups\)", lines[3])
    assert lines[4] == "key: digits(before='You')"
    assert lines[-1].startswith("warning: 99% of the steps share their state with no other")
    states, task, *_ = walks(STATE_LIKE["reading"][0])
    assert "\ntried: masking the number" in str(anchor.diagnose(states, task))


def test_long_work_shows_its_progress(capsys, monkeypatch):
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(tqdm, "tqdm", lambda items, **options: print(options["desc"], options["delay"]) or items)
    anchor.diagnose(["a", "b"])
    assert capsys.readouterr().out.startswith("diagnose 5.0\n")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"group": ["x"]}, ValueError, "diagnose: group must be 2 values, one for each state, got 1 values; give every step one"),
        ({"truth": [1, 2, 3]}, ValueError, "diagnose: truth must be 2 values"),
        ({"trajectory": []}, ValueError, "diagnose: trajectory must be 2 values"),
        ({"tokens": torch.ones(3)}, ValueError, "diagnose: tokens must be 2 values"),
        ({"action": ["go", "go"]}, ValueError, "diagnose: trajectory must be given with action, got None; without it nobody knows"),
        ({"ids": [1]}, ValueError, "diagnose: ids must be 2 values"),
        ({"seconds": -1}, ValueError, "diagnose: seconds must be a finite number >= 0.0, got -1; None has no limit"),
        ({"valid": [True]}, ValueError, "diagnose: valid must be 2 values"),
        ({"truth": [1.0, 2.0]}, TypeError, "diagnose: truth[0] must be str, int or another exact hashable"),
        ({"trajectory": torch.rand(2)}, TypeError, "diagnose: trajectory must be (any,) int64"),
        ({"advantages": torch.rand(2)}, TypeError, "diagnose: advantages must be a GiGPOAdvantages, got (2,) float32; pass the result"),
        ({"advantages": levels([1.0], [1.0])}, ValueError, "diagnose: advantages.advantages must be (2,), got (1,) float32"),
        ({"advantages": levels([1.0, 2.0], [1.0, 1.0]), "tokens": torch.rand(2)}, TypeError, "diagnose: tokens must be (2,) int64"),
        ({"tokens": torch.ones(2, dtype=torch.int64)}, ValueError, "diagnose: tokens must be None without advantages"),
    ],
)  # fmt: skip
def test_messages(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        anchor.diagnose(["a", "b"], **options)
