"""Records of steps on disk: what was written is read back, half files never appear, and only rank 0 writes."""

import gzip
import json
import math
import multiprocessing
import os
import pathlib
import re
import signal

import numpy
import pytest
import torch

from gigpo_fast import rollouts
from gigpo_fast.advantage import CORRECTED
from gigpo_fast.rollouts import schema

TEXTS = [
    "",
    "plain",
    "two\nlines\ttab\x00\x1b[31m\x7f",
    "\u2028\u2029\ufeff",
    "Füße 🧭 漢字",
    "\ud800 alone",
    '</script>"\\',
    "a" * 100_000,
]


def columns(**more) -> dict:
    return {"task": ["t"] * 3, "trajectory": [0, 0, 1], "step": [0, 1, 0], "state": ["a", "b", "a"], "reward": [0.0, 1.0, 0.0]} | more


def test_every_key_is_read_back_as_it_was_written(tmp_path):
    given = columns(
        action=["go east", None, "look"],
        response=["<a>go east</a>", "", "é"],
        tokens=torch.tensor([3, 2, 1]),
        success=[True, True, False],
        valid=numpy.array([True, False, True]),
        truth=[{"room": [1, 2]}, 7, "x"],
        next_state=[None, "end", [0.5]],
        iteration=[4, 4, 4],
        episode_advantage=torch.tensor([0.1, 0.2, -0.3]),
        step_advantage=torch.tensor([1 / 3, 0.0, -0.0], dtype=torch.float64),
        advantage=numpy.array([1e-45, 3.4e38, 0.1], dtype=numpy.float32),
        state_id=[0, 1, 0],
    )
    assert set(given) == set(schema.KEYS)
    found = rollouts.read(rollouts.write(tmp_path / "a.jsonl.gz", given))
    for name, column in given.items():
        assert found.columns[name] == (column.tolist() if hasattr(column, "tolist") else column), name
    assert list(found.columns) == list(schema.KEYS)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_texts_of_every_kind_come_back(tmp_path, name):
    size = len(TEXTS)
    given = {"task": TEXTS, "trajectory": TEXTS, "state": TEXTS, "action": TEXTS, "reward": [0.0] * size}
    found = rollouts.read(rollouts.write(tmp_path / name, given))
    for column in ("task", "trajectory", "state", "action"):
        assert found.columns[column] == TEXTS


def test_numbers_come_back_to_the_bit(tmp_path):
    numbers = [0.0, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, 0.1 + 0.2]
    size = len(numbers)
    finite = [x if math.isfinite(x) else 2.0**60 + 1 for x in numbers]
    given = {"task": [1] * size, "trajectory": list(range(size)), "state": ["s"] * size, "reward": finite, "advantage": numbers}
    path = rollouts.write(tmp_path / "a.jsonl", given)
    found = rollouts.read(path).columns
    assert [x.hex() for x in found["reward"]] == [x.hex() for x in finite]
    assert [x.hex() for x in found["advantage"]] == [x.hex() for x in numbers]
    for line in path.read_text().splitlines():  # what other languages can read: no bare NaN
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


def test_settings_and_iteration_stand_in_the_header(tmp_path):
    settings = {"gamma": 0.95, "step_weight": 1.0, "scale": None, "statistics": CORRECTED}
    for iteration in (2, 11):
        rollouts.write(tmp_path / f"{iteration}.jsonl.gz", columns(), iteration=iteration, settings=settings)
    found = rollouts.read(tmp_path)
    assert found.columns["iteration"] == [2] * 3 + [11] * 3
    assert found.settings[2] == found.settings[11] == settings | {"statistics": {**vars(CORRECTED)}}
    group, trajectory = found.labels()
    assert group.tolist() == [0, 0, 0, 1, 1, 1] and trajectory.tolist() == [0, 0, 1, 2, 2, 3]


def test_files_without_a_number_are_iterations_in_natural_order(tmp_path):
    for name in ("step_10", "step_9", "step_2"):
        rollouts.write(tmp_path / f"{name}.jsonl", columns(state=[name] * 3))
    found = rollouts.read(tmp_path).columns
    assert list(zip(found["iteration"], found["state"]))[::3] == [(0, "step_2"), (1, "step_9"), (2, "step_10")]


def test_states_that_json_can_hold_are_converted_and_others_refused(tmp_path):
    states = [numpy.arange(4).reshape(2, 2), torch.tensor([0.5]), b"\x00\xff"]
    found = rollouts.read(rollouts.write(tmp_path / "a.jsonl", columns(state=states)))
    assert found.columns["state"] == [[[0, 1], [2, 3]], [0.5], "00ff"]
    for state in ({1, 2}, float("nan"), object()):
        with pytest.raises(ValueError, match=r"rollouts.write: state of row 1 must be a value that JSON can hold.*record it as a text"):
            rollouts.write(tmp_path / "b.jsonl", columns(state=["a", state, "a"]))
    assert not (tmp_path / "b.jsonl").exists()


WRONG = {
    "unknown key": (columns(colour=[1, 2, 3]), "columns must be made of iteration, task,.*got also colour; leave them out"),
    "no reward": (
        {k: v for k, v in columns().items() if k != "reward"},
        "columns must be task, .* got none of reward; pass one value a step",
    ),
    "short": (columns(action=["a"]), r"columns\['action'\] must be 3 values, as task has, got 1 values"),
    "NaN reward": (columns(reward=[0.0, float("nan"), 0.0]), r"columns\['reward'\]\[1\] must be a finite number, got nan; 0.0 where"),
    "a flag as reward": (columns(reward=[0.0, True, 0.0]), r"columns\['reward'\]\[1\] must be a finite number, got True"),
    "no state": (columns(state=["a", None, "a"]), r"columns\['state'\]\[1\] must be any JSON value but null, got None"),
    "a float as task": (columns(task=[0.5] * 3), r"columns\['task'\]\[0\] must be a text or an integer, got 0.5"),
    "a negative step": (columns(step=[0, -1, 0]), r"columns\['step'\]\[1\] must be an integer >= 0, got -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, name):
    given, message = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=f"rollouts.write: {message}"):
        rollouts.write(tmp_path / "a.jsonl.gz", given)
    assert not list(tmp_path.iterdir())


def test_a_name_that_readers_would_not_find_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rollouts.write: path must be a name that ends in .jsonl.gz or .jsonl, got 'a.json'"):
        rollouts.write(tmp_path / "a.json", columns())


def test_equal_steps_give_equal_bytes(tmp_path):
    one, other = (rollouts.write(tmp_path / name, columns()) for name in ("a.jsonl.gz", "b.jsonl.gz"))
    assert one.read_bytes() == other.read_bytes()


def test_a_writer_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = rollouts.write(tmp_path / "a.jsonl.gz", columns())
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        rollouts.write(path, columns(state=["x"] * 3))
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl.gz"] and path.read_bytes() == before


def _write_for_ever(folder: str) -> None:
    torch.set_num_threads(1)
    number = 0
    while True:
        number += 1
        size = 3000
        rollouts.write(
            pathlib.Path(folder) / "a.jsonl.gz",
            {
                "task": [number] * size,
                "trajectory": list(range(size)),
                "state": [f"state {i * number}" for i in range(size)],
                "reward": [0] * size,
            },
        )


def test_a_killed_writer_leaves_no_half_file(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_write_for_ever, args=(str(tmp_path),))
    process.start()
    try:
        while not list(tmp_path.glob(".*.tmp")) or not (tmp_path / "a.jsonl.gz").exists():  # killed while a later file is half written
            assert process.is_alive()
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    found = rollouts.read(tmp_path)  # a half-written one has a hidden name, which readers leave out
    assert len(found) == 3000 and len(set(found.columns["task"])) == 1


def test_the_recorder_writes_every_nth_iteration(tmp_path):
    recorder = rollouts.Recorder(tmp_path, every=3)
    written = [recorder.save(i, columns(), settings={"gamma": 1.0}) for i in range(7)]
    assert [path and pathlib.Path(path).name for path in written] == [
        "000000.jsonl.gz",
        None,
        None,
        "000003.jsonl.gz",
        None,
        None,
        "000006.jsonl.gz",
    ]
    assert sorted(rollouts.read(tmp_path).settings) == [0, 3, 6]
    with pytest.raises(ValueError, match="Recorder: every must be an integer >= 1, got 0; 1 records every iteration"):
        rollouts.Recorder(tmp_path, every=0)


def _save(rank: int, folder: str) -> str | None:
    return rollouts.Recorder(folder).save(0, columns(state=[f"rank {rank}"] * 3))


def _save_in_a_group(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    written = _save(rank, f"{folder}/records")
    assert (written is not None) == (rank == 0)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_of_two_ranks_the_first_writes(tmp_path):
    torch.multiprocessing.spawn(_save_in_a_group, (str(tmp_path),), nprocs=2)
    assert [file.name for file in (tmp_path / "records").iterdir()] == ["000000.jsonl.gz"]
    assert rollouts.read(tmp_path / "records").columns["state"] == ["rank 0"] * 3


def test_without_a_group_the_environment_says_the_rank(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert _save(1, str(tmp_path)) is None
    monkeypatch.setenv("RANK", "0")
    assert _save(0, str(tmp_path)) is not None


def test_many_steps_are_read_line_by_line(tmp_path):
    """Memory grows by the columns, not by the file: the same long state a thousand times is kept once."""
    import tracemalloc

    state = "a long room description " * 2000
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for i in range(1000):
            file.write(json.dumps({"task": "t", "trajectory": i, "state": state, "reward": 0}) + "\n")
    tracemalloc.start()
    found = rollouts.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1000 and found.columns["state"][-1] == state
    assert peak < 10_000_000 < len(state) * 1000


def test_the_first_line_of_another_version_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"type": "gigpo_fast.rollouts/2"}\n')
    with pytest.raises(
        ValueError, match=re.escape(f"rollouts.read: {path}, line 1: type must be 'gigpo_fast.rollouts/1', got") + ".*read it with"
    ):
        rollouts.read(path)
