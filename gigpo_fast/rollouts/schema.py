"""The record of a step: which keys there are, what each may hold, and how numbers that JSON does not know are written.

A file is UTF-8 text, one JSON object a line, gzipped or not. Its first line may be a header,

    {"type": "gigpo_fast.rollouts/1", "iteration": 12, "settings": {"gamma": 0.95, "step_weight": 1.0, ...}}

and every other line is a step: an object without "type", or with "type": "step". Objects of other types are left out, unknown keys too.
A trajectory is named by (iteration, task, trajectory), so labels may start again in every task.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ..anchor import group_ids

VERSION = "gigpo_fast.rollouts/1"
FAMILY = VERSION.rpartition("/")[0] + "/"
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Key(NamedTuple):
    """One key of a step."""

    read: Callable[[Any], Any]  # the value to keep, None if it does not fit
    expected: str
    required: bool = False


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _label(value: Any) -> str | int | None:
    return value if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _finite(value: Any) -> float | None:
    found = _number(value)
    return found if found is not None and math.isfinite(found) else None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return _SPECIAL.get(value)
    try:
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:  # an integer beyond float64
        return None


_NUMBER = 'a number, or "NaN", "Infinity", "-Infinity"'
KEYS = {
    "iteration": Key(_count, "an integer >= 0"),  # of the training; else the header's, else the place of the file among those read
    "task": Key(_label, "a text or an integer", True),  # trajectories of one task are compared
    "trajectory": Key(_label, "a text or an integer", True),
    "step": Key(_count, "an integer >= 0"),  # in time order; without it, the order of the lines
    "state": Key(lambda value: value, "any JSON value but null", True),  # what is compared, before any key
    "action": Key(_text, "a text"),  # as the environment understood it
    "reward": Key(_finite, "a finite number", True),  # of this step
    "response": Key(_text, "a text"),  # as the model wrote it; shown, never grouped
    "tokens": Key(_count, "an integer >= 0"),  # trained ones of this step
    "success": Key(_flag, "true or false"),  # of the trajectory
    "valid": Key(_flag, "true or false"),  # the environment understood the answer
    "truth": Key(lambda value: value, "any JSON value but null"),  # the environment's own name for the state
    "next_state": Key(lambda value: value, "any JSON value but null"),  # of the last step; for others it is the next step's state
    "episode_advantage": Key(_number, _NUMBER),  # the four below: what the trainer used
    "step_advantage": Key(_number, _NUMBER),
    "advantage": Key(_number, _NUMBER),
    "state_id": Key(_label, "a text or an integer"),
}
FLOATS = ("reward", "episode_advantage", "step_advantage", "advantage")


class Labels(NamedTuple):
    """Tasks and trajectories as numbers, the form that anchor and advantage work on."""

    group: Tensor  # (S,) int64, a task of an iteration
    trajectory: Tensor  # (S,) int64


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """S steps as columns; the steps of a trajectory stand together and in time order.

    columns: one list of S values for each key of the record that the files hold, None where a single step does not have it.
    settings: of each iteration whose file has a header, what the trainer used: gamma, step_weight, scale, statistics, ...
    missing: what the files cannot tell and how to record it, one sentence for each key that it concerns.
    """

    columns: Mapping[str, list]
    settings: Mapping[int, Mapping[str, Any]]
    missing: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.columns["task"])

    def labels(self) -> Labels:
        """The `group` and `trajectory` arguments of gigpo_advantages, numbered by first occurrence."""
        tasks = list(zip(self.columns["iteration"], self.columns["task"]))
        return Labels(group_ids(tasks), group_ids(list(zip(tasks, self.columns["trajectory"]))))


def special(value: float) -> float | str:
    """A float as JSON can hold it."""
    return value if math.isfinite(value) else "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
