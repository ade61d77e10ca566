"""ART (openpipe-art): a trajectory a row, its messages with a mark at those that are trained."""

from collections.abc import Iterator
from typing import Any

from .. import chat

NAME = "art"
COLUMNS = {"task": "group_index", "reward": "reward"}
MISSING = {"state": chat.STATE, "action": chat.ACTION, "reward": chat.REWARD}


def knows(record: dict[str, Any]) -> bool:
    """Messages of a group."""
    return "group_index" in record and isinstance(record.get("messages"), list)


def records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The row."""
    yield record


def turns(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One step a trained message."""
    return chat.turns(record["messages"], by_model=lambda message: bool(message.get("trainable")))
