"""Faults that grouping code in the wild has had, each with the behaviour that is right."""

import gzip
import json
import pathlib

import numpy as np
import pytest
import torch

from gigpo_fast import anchor
from tests.anchor_helpers import ROOT, check_states, on_every_path


def ids(states, group=None, **options):
    return anchor.group_states(states, group, **options).ids.tolist()


@pytest.mark.parametrize(
    "labels", [[1.0, 2.0], ["a", 1.5], [np.float32(1), 2], torch.tensor([1.0, 2.0]), np.array([1.0, 2.0]), [True, 1], [np.True_, 1]]
)
def test_F25_float_and_bool_labels_are_errors(labels):
    def check():
        with pytest.raises(TypeError, match=r"group_states: group.* must be .*; labels are compared, not rounded: pass int64 ids"):
            anchor.group_states(["a", "a"], labels)
        with pytest.raises(TypeError, match=r"group_ids: labels.* must be .*; labels are compared, not rounded: pass int64 ids"):
            anchor.group_ids(labels)

    on_every_path(check)


def test_F25_labels_are_never_used_as_dense_ids():
    labels = [-5, 2**62, -(2**63), 2**80, "7", "007", 7]

    def check():
        assert anchor.group_ids(labels).tolist() == list(range(7))
        assert ids(["s"] * 7, labels) == list(range(7))
        assert ids(["s"] * 4, torch.tensor([2**62, -1, 2**62, -(2**63)])) == [0, 1, 0, 2]

    on_every_path(check)


def test_F26_no_labels_is_one_group_and_labels_are_many():
    assert ids(["s"] * 4) == [0, 0, 0, 0]
    assert ids(["s"] * 4, ["a", "b", "a", "b"]) == [0, 1, 0, 1]


def test_F27_groups_of_unequal_size_in_any_order():
    states = ["s", "t", "s", "s", "t", "s"]
    group = ["a", "b", "b", "a", "b", "c"]
    on_every_path(lambda: check_states(states, group))
    assert ids(states, group) == [0, 1, 2, 0, 1, 3]


def test_F28_types_never_merge():
    nan = float("nan")
    states = [
        True, 1, 1.0, "1", b"1", None, "", b"", (), [], {}, (1,), [1], [[1]], [1, []], [[], 1],
        {"a": 1}, {"a": True}, {1: "a"}, 0, False, 0.0, -0.0, nan, "nan", 2**64, -1, 255, np.int64(1), np.int32(1), np.float64(1),
        np.array(1), np.zeros((2, 3)), np.zeros((3, 2)), np.zeros(6), np.zeros(6, np.float32), np.zeros(0),
        torch.zeros(6), torch.zeros(2, 3), torch.zeros(6, dtype=torch.bfloat16), ("ab", "c"), ("a", "bc"),
        np.array(["a", None], dtype=object), np.array([["a", None]], dtype=object), "None",
    ]  # fmt: skip

    def check():
        assert ids(states + states) == list(range(len(states))) * 2

    on_every_path(check)


@pytest.mark.parametrize(
    "pair",
    [
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}),
        (float("nan"), float("nan")),
        (np.zeros((2, 2)).T, np.zeros((2, 2))),
        ((1, ("x",)), (1, ("x",))),
        (torch.ones(2), torch.ones(2, 2)[:, 0]),
    ],
    ids=lambda pair: str(pair[0]),
)
def test_F28_equal_values_do_merge(pair):
    def check():
        assert ids([*pair, None]) == [0, 0, 1]

    on_every_path(check)


@pytest.mark.parametrize("convert", [lambda states: states, torch.Tensor.tolist, torch.Tensor.numpy], ids=["tensor", "list", "NumPy"])
def test_F28_float_states_count_by_their_bits(convert):
    def check():
        assert ids(convert(torch.tensor([0.0, -0.0, float("nan"), float("nan"), 0.0]))) == [0, 1, 2, 2, 0]

    on_every_path(check)


def test_F29_placeholder_rows_have_no_group():
    states, valid = ["", "", "a", "", "a", None], [True, False, True, True, False, False]

    def check():
        found = anchor.group_states(states, valid=valid)
        assert found.ids.tolist() == [0, -1, 1, 0, -1, -1]  # empty bytes are a state like any other
        assert found.first_row.tolist() == [0, 2] and found.counts.tolist() == [2, 1]

    on_every_path(check)


def test_F29_what_invalid_rows_hold_cannot_matter():
    valid = [True, False, True]
    for rubbish, label in ((None, None), (object(), float("nan")), ("a", "x"), ({1}, "new")):
        assert ids(["a", rubbish, "a"], ["x", label, "x"], valid=valid) == [0, -1, 0]


def test_F30_groups_never_cross_tasks():
    on_every_path(lambda: check_states(["door", "door", "key", "door"], ["task 1", "task 2", "task 2", "task 1"]))
    assert ids(["door", "door", "key", "door"], ["task 1", "task 2", "task 2", "task 1"]) == [0, 1, 2, 0]


def rollouts() -> list[pathlib.Path]:
    return sorted([*(ROOT / "examples").glob("rollouts/*.jsonl.gz"), *(ROOT / "tests" / "data" / "rollouts").glob("*.jsonl.gz")])


@pytest.mark.parametrize(
    "path",
    rollouts() or [pytest.param(None, marks=pytest.mark.skip("no recorded rollouts in examples/rollouts"))],
    ids=lambda path: path and path.name,
)
def test_F31_parity_on_recorded_rollouts(path):
    with gzip.open(path, "rt") as file:
        steps = [step for step in map(json.loads, file) if step["type"] == "step"]
    check_states([step["obs"] for step in steps], [step["task_id"] for step in steps])
