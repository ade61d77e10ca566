"""Conversations in OpenAI's form, one a line: `messages`, or `prompt` and `completion` lists (verifiers before 0.4)."""

from collections.abc import Iterator
from typing import Any

from .. import chat

NAME = "chat"
COLUMNS = {"task": "_task", "trajectory": "trajectory", "reward": "reward"}
MISSING = {
    "task": 'name what trajectories of one task share: columns={"task": "KEY"}, "a.b" for b inside a',
    "state": chat.STATE,
    "action": chat.ACTION,
    "reward": chat.REWARD,
}


def knows(record: dict[str, Any]) -> bool:
    """A list of messages under either name."""
    return isinstance(record.get("messages"), list) or isinstance(record.get("completion"), list)


def records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The conversation; verifiers calls its task example_id."""
    yield record | {"_task": record.get("task", record.get("example_id"))}


def turns(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Answers inside a prompt were given before, by whoever made it, and are no steps."""
    if isinstance(record.get("messages"), list):
        return chat.turns(record["messages"])
    prompt = record.get("prompt") or []
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    old = {id(message) for message in prompt}
    return chat.turns([*prompt, *record["completion"]], by_model=lambda message: chat.answered(message) and id(message) not in old)
