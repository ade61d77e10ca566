"""Flat records, one object a step: gigpo_fast.rollouts/1, the recordings of this repository, and whatever `columns` maps to them."""

from collections.abc import Iterator
from typing import Any

from .. import schema

NAME = "jsonl"
COLUMNS = {"task": "task", "trajectory": "trajectory", "reward": "reward", "iteration": "iteration", "success": "success"}
SYNONYMS = {"task": "task_id", "trajectory": "traj_uid", "state": "obs", "truth": "state_key", "valid": "is_action_valid"}
MISSING: dict[str, str] = {}


def knows(record: dict[str, Any]) -> bool:
    """What no other format knows is flat."""
    return True


def records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A step, under the schema's names; objects of other types are left out."""
    if record.get("type", "step") == "step":
        yield record | {name: record[other] for name, other in SYNONYMS.items() if name not in record and other in record}


def turns(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The step itself."""
    yield {name: record[name] for name in schema.KEYS if record.get(name) is not None}
