"""Grouping by similarity against the plain double loop: the same groups in the same order, and bounds that only save time."""

import difflib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import anchor
from gigpo_fast.reference import anchor as reference
from tests.anchor_helpers import on_every_path

WORDS = st.lists(st.sampled_from(["room", "door", "key", "north", "a", "1", "2"]), max_size=8).map(" ".join)


@given(st.lists(st.tuples(WORDS, st.sampled_from(["x", "y"])), max_size=25), st.sampled_from([0.1, 0.5, 0.8, 0.95, 0.999]))
def test_groups_are_those_of_the_double_loop(rows, threshold):
    states, group = [state for state, _ in rows], [label for _, label in rows]

    def check():
        found = anchor.group_similar_states(states, group, threshold=threshold)
        expected = reference.group_similar_states(states, group, threshold)
        assert found.ids.tolist() == expected.tolist()
        assert found.counts.tolist() == torch.bincount(expected, minlength=len(found.counts)).tolist()
        assert found.first_row.tolist() == [expected.tolist().index(number) for number in range(len(found.counts))]

    on_every_path(check)


def test_long_texts_where_the_matcher_drops_popular_letters():
    base = "You are in a small room. There is a door to the north and a key on the table. " * 6  # over 200 letters
    states = [base + str(number) for number in range(12)] + [base[number:] for number in range(0, 120, 10)] + [base.upper()]
    found = anchor.group_similar_states(states * 2, threshold=0.9)
    assert found.ids.tolist() == reference.group_similar_states(states * 2, None, 0.9).tolist()
    assert 1 < found.counts.numel() < len(states)


def test_the_first_fitting_group_wins_not_the_best():
    states = ["aaaaaaaaab", "aaaaaaabbb", "aaaaaaaabb"]  # the third is equally near to both
    assert difflib.SequenceMatcher(None, states[2], states[0]).ratio() == difflib.SequenceMatcher(None, states[2], states[1]).ratio() == 0.9
    assert anchor.group_similar_states(states, threshold=0.85).ids.tolist() == [0, 1, 0]


def test_similarity_stays_inside_a_task_and_skips_invalid_rows():
    found = anchor.group_similar_states(
        ["room 1", "room 2", "room 1", None, "room 2"], ["a", "b", "a", "a", "a"], threshold=0.8, valid=[1 > 0] * 3 + [False, True]
    )
    assert found.ids.tolist() == [0, 1, 0, -1, 0]
    assert found.first_row.tolist() == [0, 1] and found.counts.tolist() == [3, 1]


def test_tensor_labels():
    assert anchor.group_similar_states(["a", "a", "a"], torch.tensor([5, -1, 5]), threshold=0.5).ids.tolist() == [0, 1, 0]


def test_equal_texts_are_compared_once(monkeypatch):
    calls = []
    original = difflib.SequenceMatcher.real_quick_ratio
    monkeypatch.setattr(difflib.SequenceMatcher, "real_quick_ratio", lambda matcher: calls.append(1) or original(matcher))
    anchor.group_similar_states(["room one", "the cellar"] * 500, threshold=0.9)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("states", "threshold", "error", "message"),
    [
        (["a"], 1.0, ValueError, "threshold must be below 1, got 1.0; for equal texts use group_states"),
        (["a"], 0.0, ValueError, "threshold must be a finite number > 0.0, got 0.0"),
        (["a"], float("nan"), ValueError, "threshold must be a finite number"),
        (["a"], "0.9", TypeError, "threshold must be a finite number"),
        (["a", b"b"], 0.9, TypeError, r"states\[1\] must be str, got b'b'; convert states to text"),
        (torch.zeros(2, 2), 0.9, TypeError, r"states\[0\] must be str"),
    ],
)
def test_messages(states, threshold, error, message):
    with pytest.raises(error, match=f"group_similar_states: {message}"):
        anchor.group_similar_states(states, threshold=threshold)
