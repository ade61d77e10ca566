"""`key=` of group_states: what the key returns is compared in the state's place, on every path and for every kind of state."""

import re

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gigpo_fast import anchor
from gigpo_fast.anchor import normalise
from gigpo_fast.reference import anchor as reference
from tests.anchor_helpers import assert_groups, on_every_path

STATES = ["hall 1", "hall 2", "cellar 1", "hall 1", "hall 33"]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.text("ab", max_size=2), st.binary(max_size=1), st.tuples(st.floats(0, 1))
)


def check(states, group=None, valid=None, *, key):
    expected = reference.group_states(states, group, valid, key)
    on_every_path(lambda: assert_groups(anchor.group_states(states, group, key=key, valid=valid), expected))


def test_by_hand():
    found = anchor.group_states(STATES, ["x", "x", "x", "y", "x"], key=normalise.digits())
    assert found.ids.tolist() == [0, 0, 1, 2, 0]
    assert found.first_row.tolist() == [0, 2, 3] and found.counts.tolist() == [3, 1, 1]
    check(STATES, ["x", "x", "x", "y", "x"], key=normalise.digits())


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 1), st.booleans()), max_size=12), st.lists(VALUES, min_size=8, max_size=8))
def test_any_value_may_be_returned(rows, values):
    states, group, valid = ([row[place] for row in rows] for place in range(3))
    check(states, group, valid, key=values.__getitem__)
    check([str(state) for state in states], group, valid, key=lambda text: values[int(text)])


def test_each_distinct_text_is_asked_once_and_invalid_rows_never():
    asked = []
    anchor.group_states(STATES, key=lambda text: asked.append(text) or text, valid=[True, True, False, True, True])
    assert asked == ["hall 1", "hall 2", "hall 33"]
    found = anchor.group_states(["a", None, "b"], key=str.upper, valid=[True, False, True])
    assert found.ids.tolist() == [0, -1, 1]


def test_equal_texts_of_different_types_are_asked_for_themselves():
    asked = []
    anchor.group_states(["a", b"a", "a"], key=lambda state: asked.append(state) or type(state).__name__)
    assert asked == ["a", b"a"]


class Loud(str):
    """A text that is more than its letters."""

    volume = 11


def test_texts_of_a_class_of_their_own_are_all_asked():
    assert anchor.group_states(["a", Loud("a")], key=lambda text: getattr(text, "volume", 0)).ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    "states",
    [torch.tensor([[1, 5], [2, 5], [1, 6]]), numpy.array([[1, 5], [2, 5], [1, 6]]), [(1, 5), (2, 5), (1, 6)], ([1, 5], [2, 5], [1, 6])],
    ids=["tensor", "array", "list", "tuple"],
)
def test_every_kind_of_states(states):
    assert anchor.group_states(states, key=lambda state: int(state[0])).ids.tolist() == [0, 1, 0]
    assert anchor.group_states(states, key=lambda state: state[1:]).ids.tolist() == [0, 0, 1]


def test_ragged_states():
    ragged = torch.tensor([1, 2, 3, 1, 2, 9]), torch.tensor([0, 3, 5, 6])
    assert anchor.group_states(ragged, key=lambda state: state[:1]).ids.tolist() == [0, 0, 1]


def test_across_ranks(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = anchor.group_states(STATES, key=normalise.digits(), process_group=torch.distributed.group.WORLD)
    finally:
        torch.distributed.destroy_process_group()
    assert found.ids.tolist() == [0, 0, 1, 0, 0]


def _fails(state):
    raise {"v": ValueError, "t": TypeError, "k": KeyError}[state]("no such room")


@pytest.mark.parametrize(
    ("states", "key", "error", "message"),
    [
        (["a"], "digits", TypeError, "group_states: key must be a function or None, got 'digits'; pass a function of one state"),
        (["x", "v"], lambda s: s == "x" or _fails(s), ValueError,
         "group_states: key(states[1]) must be a value, got ValueError: no such room; the key cannot take 'v'"),
        (["t"], _fails, TypeError, "group_states: key(states[0]) must be a value, got TypeError: no such room"),
        (["k"], _fails, ValueError, "group_states: key(states[0]) must be a value, got KeyError: 'no such room'"),
        (["a", "b"], lambda s: {s} if s == "b" else s, TypeError, "group_states: key(states[1]) must be made of None, bool, int"),
        ([1], normalise.digits(), TypeError, "group_states: key(states[0]) must be a value, got TypeError: normalise: the state must be str"),
    ],
)  # fmt: skip
def test_messages(states, key, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        anchor.group_states(states, key=key)
    assert type(caught.value) is error
