"""From the messages of a conversation to turns: what the agent saw since its last answer, and what it answered."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

STATE = "the state is what the messages since the last answer show, which may hide much: record `state` in the agent loop"
ACTION = "the action is the tool call or the whole answer: pass action_pattern, such as r'<action>(.*?)</action>', if it stands inside"
REWARD = "a record holds one reward a trajectory, so the step level compares discounted final rewards: record the reward of each step"
INSTRUCTIONS = ("system", "developer")  # the same in every turn of a task


def answered(message: dict[str, Any]) -> bool:
    """The model wrote it."""
    return message.get("role") == "assistant"


def turns(messages: Iterable[Any], by_model: Callable[[dict], bool] = answered) -> Iterator[dict[str, Any]]:
    """One step for each message that the model wrote: state, action, response."""
    seen: list[str] = []
    for message in messages:
        if not isinstance(message, dict):
            continue
        if by_model(message):
            yield {"state": "\n".join(seen), **said(message)}
            seen = []
        elif message.get("role") not in INSTRUCTIONS:
            seen.append(text(message.get("content")))


def said(message: dict[str, Any]) -> dict[str, str]:
    """The action and the raw answer of a message."""
    response = text(message.get("content"))
    calls = [call(entry) for entry in message.get("tool_calls") or []]
    return {"action": "\n".join(calls) or response.strip(), "response": "\n".join([*filter(None, [response]), *calls])}


def call(entry: Any) -> str:
    """A tool call as `name {"argument": value}`, the same text for the same call; some projects store it as a JSON text."""
    entry = _parsed(entry)
    if not isinstance(entry, dict):
        return str(entry)
    inner = entry.get("function") if isinstance(entry.get("function"), dict) else entry
    name = inner.get("name") or entry.get("function") or "tool"
    arguments = _parsed(inner.get("arguments", {}))
    return f"{name} {arguments if isinstance(arguments, str) else json.dumps(arguments, sort_keys=True, ensure_ascii=False)}"


def text(content: Any) -> str:
    """The text of a message's content, which is a text or a list of parts; parts without text (images) are named."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content if isinstance(content, list) else [content]
    return "\n".join(_part(part) for part in parts)


def _part(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    if isinstance(part.get("text"), str):
        return part["text"]
    return "" if "reasoning" in part else f"[{part.get('type', 'part')}]"


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
