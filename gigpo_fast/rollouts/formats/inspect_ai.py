"""Inspect AI: a log of samples with their messages and scores; .eval files are read by its own package, .json ones without."""

from collections.abc import Iterator
from typing import Any

from .. import chat

NAME = "inspect-ai"
COLUMNS = {"task": "id", "trajectory": "epoch", "reward": "_reward"}
MISSING = {
    "state": chat.STATE,
    "action": chat.ACTION,
    "reward": 'a sample may have several scores, of the trajectory: columns={"reward": "scores.NAME.value"}; no step rewards are written',
}
_LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # correct, partially, incorrect, no answer


def knows(record: dict[str, Any]) -> bool:
    """A log as a whole."""
    return "eval" in record and "samples" in record


def records(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One record a sample, its scores as numbers where they are letters."""
    for sample in record["samples"] or []:
        scores = {name: score | {"value": _number(score.get("value"))} for name, score in (sample.get("scores") or {}).items()}
        values = [score["value"] for score in scores.values()]
        yield sample | {"scores": scores, "_reward": values[0] if len(values) == 1 and not isinstance(values[0], dict) else None}


def turns(sample: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One step an answer. Long texts may be kept once, as attachments."""
    kept = {f"attachment://{name}": text for name, text in (sample.get("attachments") or {}).items()}
    messages = sample.get("messages") or []
    return chat.turns(m | {"content": kept.get(m["content"], m["content"])} if isinstance(m.get("content"), str) else m for m in messages)


def _number(value: Any) -> Any:
    return _LETTERS.get(value, value) if isinstance(value, str) else value
