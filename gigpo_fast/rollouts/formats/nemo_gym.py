"""NeMo-Gym: a rollout a line, in the form of the responses API: items by the model and by tools and users."""

from collections.abc import Iterator
from typing import Any

from .. import chat

NAME = "nemo-gym"
COLUMNS = {"task": "_ng_task_index", "trajectory": "_ng_rollout_index", "reward": "reward"}
MISSING = {"state": chat.STATE, "action": chat.ACTION, "reward": chat.REWARD}


def knows(record: dict[str, Any]) -> bool:
    """Its own name of a task."""
    return "_ng_task_index" in record


def records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rollout."""
    yield record


def turns(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Neighbouring items by the model (a text, then its calls) are one answer."""
    given = (record.get("responses_create_params") or {}).get("input") or []
    messages: list[dict] = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    for item in (record.get("response") or {}).get("output") or []:
        kind = item.get("type", "message")
        if kind == "function_call" and messages and messages[-1].get("role") == "assistant":
            messages[-1] = messages[-1] | {"tool_calls": [*messages[-1].get("tool_calls", []), item]}
        elif kind == "function_call":
            messages.append({"role": "assistant", "tool_calls": [item]})
        elif kind == "function_call_output":
            messages.append({"role": "tool", "content": item.get("output")})
        elif kind == "message":
            messages.append(item)
    return chat.turns(messages)
