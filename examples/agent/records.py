"""The lines of a rollout file, checked: what is wrong raises with file and line before anything is computed from it.

A file is gzipped JSON lines. A "task" comes first, then the "step" records of its trajectories in time order, and one "traj" after
each trajectory's last step.
"""

import gzip
import json
import math
import pathlib
import zlib
from typing import Any

_TEXT = (lambda value: isinstance(value, str)), "a text"
_FLAG = (lambda value: isinstance(value, bool)), "true or false"
_COUNT = (lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0), "an integer >= 0"
_NUMBER = (lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)), "a finite number"
FIELDS = {
    "task": {"task_id": _TEXT, "description": _TEXT},
    "step": {"task_id": _TEXT, "traj_uid": _TEXT, "step": _COUNT, "obs": _TEXT, "action": _TEXT, "reward": _NUMBER},
    "traj": {"task_id": _TEXT, "traj_uid": _TEXT, "n_steps": _COUNT, "success": _FLAG},
}


def records(path: pathlib.Path) -> list[dict[str, Any]]:
    """All records of a file, in its order."""
    found, line, order = [], 0, _Order(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line, text in enumerate(lines, 1):
                found.append(_checked(path, line, text))
                order.add(line, found[-1])
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as error:
        _fail(path, line + 1, "the file", "whole, gzipped UTF-8 text", f"{type(error).__name__}: {error}", "record or copy it again")
    order.end(line)
    return found


class _Order:
    """Which records may come next."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.tasks: set[str] = set()
        self.steps: dict[str, tuple[int, str, int]] = {}  # of running trajectories: steps so far, task, last line
        self.ended: set[str] = set()

    def add(self, line: int, record: dict[str, Any]) -> None:
        task, kind = record["task_id"], record["type"]
        if kind == "task":
            if task in self.tasks:
                _fail(self.path, line, "task_id", "that of a new task", repr(task), "write each task once")
            self.tasks.add(task)
            return
        if task not in self.tasks:
            _fail(self.path, line, "task_id", "that of a task further up", repr(task), "write the task before its steps")
        name = record["traj_uid"]
        if name in self.ended:
            _fail(self.path, line, "traj_uid", "that of a trajectory without a traj record", repr(name), "it ends once, after its steps")
        count, of_task, _ = self.steps.get(name, (0, task, line))
        if task != of_task:
            _fail(self.path, line, "task_id", f"{of_task!r}, as in the trajectory's first step", repr(task), "name trajectories apart")
        field = "step" if kind == "step" else "n_steps"
        if record[field] != count:
            fix = "write the steps of a trajectory once each and in time order, numbered from 0"
            _fail(self.path, line, field, f"{count}, since {name!r} has {count} steps so far", record[field], fix)
        self.steps[name] = count + 1, task, line
        if kind == "traj":
            del self.steps[name]
            self.ended.add(name)

    def end(self, line: int) -> None:
        for name, (count, _, last) in self.steps.items():
            got = f"the end of the file in line {line}"
            _fail(self.path, last, f"trajectory {name!r}", f"followed by its traj record after {count} steps", got, "record it to its end")


def _checked(path: pathlib.Path, line: int, text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        _fail(path, line, "the line", "one JSON object", f"{error} in {text[:40]!r}", "write one record a line")
    kind = record.get("type") if isinstance(record, dict) else None
    if not isinstance(kind, str) or kind not in FIELDS:
        _fail(path, line, "type", f"one of {list(FIELDS)}", repr(kind), "keep other records in another file")
    for name, (fits, expected) in FIELDS[kind].items():
        if name not in record:
            _fail(path, line, name, f"{expected} in a {kind} record", "a record without it", "write it")
        if not fits(record[name]):
            _fail(path, line, name, expected, repr(record[name]), "leave the whole trajectory out if it is not known")
    return record


def _fail(path: pathlib.Path, line: int, name: str, expected: str, got: object, fix: str) -> None:
    raise ValueError(f"{path}, line {line}: {name} must be {expected}, got {got}; {fix}")
