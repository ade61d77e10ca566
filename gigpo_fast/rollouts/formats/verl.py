"""verl's trainer.rollout_data_dir: `input` and `output` as text without special tokens; a row is a turn (v1) or a whole conversation."""

from collections.abc import Iterator
from typing import Any

NAME = "verl"
COLUMNS = {"task": "_task", "trajectory": "_trajectory", "reward": "score", "iteration": "step"}
_RECORD = "set algorithm.gigpo.record (docs/verl.md)"
MISSING = {
    "task": 'verl\'s legacy trainer writes none: with columns={"task": "input"} rows of equal prompts are one task',
    "state": f"the state is the decoded prompt, which differs wherever the history does: {_RECORD}",
    "action": "the action is the whole answer: pass action_pattern, such as r'<action>(.*?)</action>'",
    "reward": f"scores are of rows, mostly of the last alone; no step rewards are written: {_RECORD}",
    "step": f"each trajectory is one row, so turns inside `output` are lost (no special tokens) and there is no step level: {_RECORD}",
}


def knows(record: dict[str, Any]) -> bool:
    """The keys that all of its trainers write."""
    return {"input", "output", "score"} <= record.keys()


def records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """v1 names rows "task_session_output"."""
    task, session, output = (str(record.get("uid", "")).rsplit("_", 2) + ["", ""])[:3]
    if session and output.isdigit():
        yield record | {"_task": task, "_trajectory": f"{task}_{session}", "_step": int(output)}
    else:
        yield record | {"_trajectory": record.get("request_id")}


def turns(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The row."""
    output = record["output"]
    yield {"step": record.get("_step", 0), "state": record["input"], "action": output and output.strip(), "response": output}
